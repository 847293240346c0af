"""Absence is never an order: lost, other and older stores, and two haneuls for one server."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haneul.app.compose import fake_drivers
from haneul.drivers.fake import World
from haneul.errors import SettingsError
from haneul.model.assignment import DiskSpec
from tests.conformance.conftest import FakeCloud, _start

Start = Callable[..., FakeCloud]


def _until(what: Callable[[], Any], told: str) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, told
        time.sleep(0.02)


def _launch(cloud: FakeCloud, number: int = 1) -> list[str]:
    answer = cloud.client().run_instances(ImageId="ami-0123456789abcdef0", MinCount=number, MaxCount=number)
    ids = [one["InstanceId"] for one in answer["Instances"]]
    _until(lambda: set(ids) <= cloud.world.all("machine").keys(), "they are launched")
    return ids


def _holds(data: Path) -> tuple[set[str], set[str], set[str]]:
    world = World(data / "fake-world.db")
    return set(world.all("machine")), set(world.all("volume")), set(world.all("network"))


def _looked(cloud: FakeCloud, passes: int = 3) -> None:
    """The agent has made some whole passes."""
    agent = cloud.running.agent
    done = [0]
    inner = agent.link.report

    async def report(value: Any) -> None:
        await inner(value)
        done[0] += 1

    agent.link.report = report  # type: ignore[method-assign]
    for step in range(1, passes + 1):
        cloud.running.loop.call_soon_threadsafe(agent.wake)
        _until(lambda step=step: done[0] >= step, "a pass")  # type: ignore[misc]
    agent.link.report = inner  # type: ignore[method-assign]


@pytest.fixture
def used(start_cloud: Start, tmp_path: Path) -> tuple[Path, list[str]]:
    """A data directory with a machine and a volume, whose haneul has ended."""
    cloud = start_cloud(tmp_path / "data")
    ids = _launch(cloud)
    cloud.stop()
    return tmp_path / "data", ids


@pytest.fixture(autouse=True)
def _data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()


def test_a_lost_store_removes_nothing(used: tuple[Path, list[str]]) -> None:
    data, _ = used
    before = _holds(data)
    for path in data.glob("haneul.db*"):
        path.unlink()
    with pytest.raises(SettingsError, match=r"is not there.*1 machines and 1 volumes"):
        _start(data, {})
    assert not (data / "haneul.db").exists(), "no empty one that would hide the loss"
    assert _holds(data) == before


def test_another_store_removes_nothing(used: tuple[Path, list[str]], start_cloud: Start, tmp_path: Path) -> None:
    data, _ = used
    before = _holds(data)
    other = tmp_path / "other"
    other.mkdir()
    start_cloud(other).stop()
    with pytest.raises(SettingsError, match="does not know what is in"):
        _start(data, {"database": f"sqlite:///{other / 'haneul.db'}"})
    assert _holds(data) == before


def test_an_older_copy_of_the_store_leaves_alone_what_it_does_not_know(start_cloud: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    cloud = start_cloud(data)
    (known,) = _launch(cloud)
    cloud.stop()
    for path in data.glob("haneul.db*"):
        shutil.copy(path, tmp_path / path.name)
    cloud = start_cloud(data)
    (later,) = _launch(cloud)
    cloud.stop()
    before = _holds(data)
    for path in data.glob("haneul.db*"):
        path.unlink()
    for path in tmp_path.glob("haneul.db*"):
        shutil.copy(path, data / path.name)
    cloud = start_cloud(data)
    _looked(cloud)
    assert _holds(data) == before, "nothing was removed"
    status = cloud.running.status()
    assert {one["id"] for one in status["unclaimed"]} == {later} | (before[1] - _volumes(cloud))
    # The owner may order it, and then only that goes.
    future = asyncio.run_coroutine_threadsafe(cloud.running.unclaimed("remove", {"id": later}), cloud.running.loop)
    assert future.result(10)["kind"] == "machine"
    refused = asyncio.run_coroutine_threadsafe(cloud.running.unclaimed("remove", {"id": known}), cloud.running.loop)
    with pytest.raises(Exception, match="is not unclaimed"):
        refused.result(10)
    assert _holds(data)[0] == {known}


def _volumes(cloud: FakeCloud) -> set[str]:
    return {one["VolumeId"] for one in cloud.client().describe_volumes()["Volumes"]}


def test_what_is_terminated_goes_by_its_tombstone(start_cloud: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    cloud = start_cloud(data)
    (one,) = _launch(cloud)
    cloud.client().terminate_instances(InstanceIds=[one])
    _until(lambda: not any(_holds(data)), "machine, volume and network are gone")
    _until(lambda: not _tombstones(cloud), "and what was ordered is done")
    assert cloud.running.status()["unclaimed"] == []


def _tombstones(cloud: FakeCloud) -> list[Any]:
    from haneul.store import tables

    with cloud.running.store.read() as tx:
        return tx.select(tables.tombstones)


def test_a_second_haneul_on_one_store_is_refused(start_cloud: Start, tmp_path: Path) -> None:
    """Both would run every instance."""
    first = start_cloud(tmp_path / "data")
    _launch(first)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(SettingsError, match="is of the server"):
        _start(other, {"database": f"sqlite:///{tmp_path / 'data' / 'haneul.db'}"})
    assert not any(_holds(other))
    # And so is one with a copy of the first one's identity.
    shutil.copytree(tmp_path / "data" / "identity", other / "identity", dirs_exist_ok=True)
    with pytest.raises(SettingsError, match="is alive"):
        _start(other, {"database": f"sqlite:///{tmp_path / 'data' / 'haneul.db'}"})
    assert not any(_holds(other))
    _launch(first)


def test_a_haneul_that_lost_its_lease_starts_nothing_more_and_ends(start_cloud: Start, tmp_path: Path) -> None:
    import sqlalchemy as sa

    from haneul.store import tables

    cloud = start_cloud(tmp_path / "data")
    _launch(cloud)
    before = _holds(tmp_path / "data")
    with cloud.running.store.write() as tx:
        tx.execute(sa.update(tables.servers).values(epoch=tables.servers.c.epoch + 1))
    cloud.client().run_instances(ImageId="ami-0123456789abcdef0", MinCount=1, MaxCount=1)
    _until(cloud.running.over.done, "it notices")
    assert "has taken over" in str(cloud.running.over.exception())
    assert _holds(tmp_path / "data") == before


def test_a_volume_that_is_missing_is_said_and_not_made_anew(start_cloud: Start, tmp_path: Path) -> None:
    """Its disk is not mounted, say. The instance is stopped with the reason; nothing of it is given up."""
    data = tmp_path / "data"
    cloud = start_cloud(data)
    (one,) = _launch(cloud)
    ec2 = cloud.client()
    _until(lambda: _state(ec2, one) == "running", "it runs")
    _looked(cloud)
    (volume,) = _volumes(cloud)
    cloud.stop()
    kept = World(data / "fake-world.db").get("volume", volume)
    World(data / "fake-world.db").remove("volume", volume)
    World(data / "fake-world.db").remove("machine", one)
    cloud = start_cloud(data)
    ec2 = cloud.client()
    _until(lambda: _state(ec2, one) == "stopped", "it is stopped")
    found = ec2.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"][0]
    assert f"the disk of {volume} is missing" in found["StateReason"]["Message"]
    assert _volumes(cloud) == {volume}
    cloud.world.put("volume", volume, kept)
    ec2.start_instances(InstanceIds=[one])
    _until(lambda: _state(ec2, one) == "running", "mounted again, it starts")


def _state(ec2: Any, one: str) -> str:
    return str(ec2.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"][0]["State"]["Name"])


def test_a_made_volume_is_never_made_again(tmp_path: Path) -> None:
    drivers = fake_drivers(World(tmp_path / "world.db"))
    with pytest.raises(Exception, match="is missing"):
        asyncio.run(drivers.disks.ensure(DiskSpec("vol-1", "", 1, "/dev/xvda", made=True)))
