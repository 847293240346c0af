"""haneul and its agent are killed at hundreds of random moments; nothing that was promised is lost, nothing is left over.

Fake drivers: their world is a file that outlives haneul, as machines do. `HANEUL_TEST_SEED` gives other moments.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from haneul import identity
from haneul.agent.link import LINE_LIMIT, serve_agent
from haneul.config import Settings
from haneul.drivers.fake import World
from haneul.reconcile.assign import Signer
from haneul.reconcile.control import Control
from haneul.services import ec2  # noqa: F401 - fills the table of operations
from haneul.services.context import Caller
from haneul.services.dispatch import Cloud
from haneul.store import tables
from haneul.store.database import Store
from tests.chaos import Tally, User, at_work, inconsistencies, lost, settled, twice
from tests.nursery import Nursery, gone
from tests.system.conftest import _free_port, eventually

AMI = {"ImageId": "ami-0123456789abcdef0", "InstanceType": "t3.nano"}
SEED = int(os.environ.get("HANEUL_TEST_SEED", "1"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


def _client(data: Path, port: int) -> Any:
    access_key, secret = (data / "identity" / "credentials").read_text().split()
    config = Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=30)
    return boto3.client("ec2", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{port}",
                        aws_access_key_id=access_key, aws_secret_access_key=secret, config=config)  # fmt: skip


def _world_against_store(data: Path) -> list[str]:
    """What the world has and nobody wants, or the reverse."""
    world, store = World(data / "fake-world.db"), Store.embedded(data / "haneul.db")
    with store.read() as tx:
        instances = {row["id"]: row for row in tx.select(tables.instances) if row["power"] != "terminated"}
        volumes = {row["id"] for row in tx.select(tables.volumes)}
    store.close()
    machines = {one: value["power"] for one, value in world.all("machine").items()}
    # One that was stopped before its first boot has no machine.
    never = {one for one, row in instances.items() if row["power"] == "stopped" and not row["observed_boot_count"]}
    wanted = {one: "running" if row["power"] == "running" else "off" for one, row in instances.items()}
    wrong = [f"machine {one}: {machines.get(one)}, wanted {wanted.get(one)}" for one in machines.keys() | wanted.keys()
             if machines.get(one) != wanted.get(one) and not (one in never and one not in machines)]  # fmt: skip
    return wrong + [f"volume {one}" for one in world.all("volume").keys() ^ volumes]


def _kill_and_start(nursery: Nursery, data: Path, kills: int, seed: int, tally: Tally) -> list[User]:
    rng = random.Random(seed)
    identity.ensure(data)
    port = _free_port()
    environment = {"HANEUL_DATA": str(data), "HANEUL_DRIVERS": "fake", "HANEUL_PORT": str(port), "HANEUL_CONFIG": ""}
    environment["HANEUL_ACCOUNT"] = "000000000000"
    users = [User(f"user{n}", _client(data, port), random.Random(seed * 100 + n), AMI, 6) for n in range(3)]

    def start() -> int:
        return nursery.start(["up"], environment, data / "said")

    def serves() -> bool:
        # It listens before it serves.
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return bool(answer.status == 200)

    def harass() -> None:
        for _ in range(kills):
            pid = start()
            # A third of the kills meet a haneul that is still starting.
            if rng.random() > 0.33:
                eventually("haneul serves", serves, 30, 0.005)
            time.sleep(rng.uniform(0, 0.4))
            orderly = rng.random() < 0.2
            os.kill(pid, signal.SIGTERM if orderly else signal.SIGKILL)
            tally.kill("haneul, by SIGTERM" if orderly else "haneul")
            eventually("it has ended", lambda pid=pid: gone(pid), 30, 0.002)  # type: ignore[misc]

    at_work(users, harass)
    last = start()
    eventually("haneul serves", serves, 30, 0.02)
    for user in users:
        user.finish()
    found = settled(users[0].client, 60)
    tally.lost += [wrong for user in users for wrong in lost(user, found)] + twice(users, found)
    eventually("the world is as the store", lambda: not _world_against_store(data), 30)
    os.kill(last, signal.SIGKILL)
    eventually("it has ended", lambda: gone(last), 30, 0.002)
    return users


def _left_over(data: Path) -> list[str]:
    wrong = _world_against_store(data)
    store = Store.embedded(data / "haneul.db")
    wrong += inconsistencies(store)
    store.close()
    with sqlite3.connect(data / "haneul.db") as connection:
        wrong += [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    return wrong + [str(path) for path in data.rglob("*.new")]


@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_haneul_is_killed(nursery: Nursery, tmp_path: Path, kills: int, record_tally: Callable[[str], None]) -> None:
    tally = Tally()
    users = _kill_and_start(nursery, tmp_path, kills, SEED, tally)
    tally.orphaned += _left_over(tmp_path)
    record_tally(tally.text(users, SEED))
    assert not tally.lost and not tally.orphaned
    assert sum(user.answered for user in users) > kills, "they have got something done"
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said, said[-3000:]


# --- the agent ----------------------------------------------------------------------------------------


class _NoAsk:
    def console_output(self, server_id: str, instance_id: str, deadline: float) -> bytes:
        raise NotImplementedError

    screenshot = console_output


class _Direct:
    """boto3's methods, straight to the operations: the control plane lives on."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        from botocore import xform_name
        from botocore.exceptions import ClientError

        from haneul.errors import CloudError
        from haneul.services.context import OPERATIONS

        operation = next(one for one in OPERATIONS.names("ec2") if xform_name(one) == name)

        def call(**parameters: Any) -> dict[str, Any]:
            try:
                return self._cloud.call("ec2", operation, Caller("000000000000", "us-east-1", ""), parameters)
            except CloudError as error:
                raise ClientError({"Error": {"Code": error.code, "Message": error.message}}, operation) from None

        return call


@pytest.mark.parametrize("kills", [60, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_the_agent_is_killed(nursery: Nursery, tmp_path: Path, kills: int, record_tally: Callable[[str], None]) -> None:
    """An agent in a process of its own, killed again and again; the next one carries on."""
    settings = Settings(data=tmp_path, drivers="fake", public_pool="198.18.0.0/23")
    who = identity.ensure(tmp_path)
    store = Store.embedded(tmp_path / "haneul.db")
    store.migrate()
    control = Control(store, settings, Signer(None, who.ssh_public), time.time, list)
    cloud = Cloud(store, settings, _NoAsk(), time.time)
    ready, done = threading.Event(), threading.Event()
    socket_path = tmp_path / "agent.sock"

    async def plane() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve_agent(control, "server-1", reader, writer)
            except (ConnectionError, ValueError):  # the agent was killed in the middle of a line
                writer.close()

        async with await asyncio.start_unix_server(connected, str(socket_path), limit=LINE_LIMIT):
            ready.set()
            while not done.is_set():
                await asyncio.sleep(0.05)

    serving = threading.Thread(target=lambda: asyncio.run(plane()))
    serving.start()
    ready.wait(10)
    rng, tally = random.Random(SEED), Tally()
    environment = {"HANEUL_DATA": str(tmp_path), "HANEUL_DRIVERS": "fake"}
    users = [User(f"user{n}", _Direct(cloud), random.Random(SEED * 100 + n), AMI, 5) for n in range(2)]

    def start() -> int:
        return nursery.start(["agent", str(socket_path)], environment, tmp_path / "said")

    def has_server() -> bool:
        with store.read() as tx:
            return bool(tx.select(tables.servers))

    def harass() -> None:
        for _ in range(kills):
            pid = start()
            time.sleep(rng.uniform(0, 0.25))
            os.kill(pid, signal.SIGKILL)
            tally.kill("the agent")
            eventually("it has ended", lambda pid=pid: gone(pid), 30, 0.002)  # type: ignore[misc]

    first = start()
    eventually("the server is known", has_server, 20, 0.01)
    os.kill(first, signal.SIGKILL)
    try:
        at_work(users, harass)
        last = start()
        for user in users:
            user.finish()
        found = {one["InstanceId"]: one for one in _settled_directly(cloud)}
        eventually("the world is as the store", lambda: not _world_against_store(tmp_path), 30)
        os.kill(last, signal.SIGKILL)
    finally:
        done.set()
        serving.join(20)
    tally.lost += [wrong for user in users for wrong in lost(user, found)] + twice(users, found)
    tally.orphaned += _left_over(tmp_path)
    record_tally(tally.text(users, SEED))
    store.close()
    assert not tally.lost and not tally.orphaned


def _settled_directly(cloud: Cloud) -> list[dict[str, Any]]:
    def ask() -> list[dict[str, Any]] | None:
        answer = cloud.call("ec2", "DescribeInstances", Caller("000000000000", "us-east-1", ""), {})
        found = [one for r in answer["Reservations"] for one in r["Instances"]]
        return found if all(one["State"]["Name"] in ("running", "stopped", "terminated") for one in found) else None

    return eventually("every instance has settled", ask, 60)
