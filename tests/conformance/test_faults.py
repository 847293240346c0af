"""The machine fails under haneul: disk, memory, descriptors, clock, power. Fake drivers; what is real is in tests/system."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from haneul.config import Settings
from haneul.services import ec2  # noqa: F401 - fills the table of operations
from haneul.services.context import Caller
from haneul.services.dispatch import Cloud
from haneul.store import tables
from haneul.store.database import Store
from tests.chaos import inconsistencies
from tests.conformance.conftest import FakeCloud
from tests.system.conftest import HANEUL, Haneul, eventually

AMI = {"ImageId": "ami-0123456789abcdef0", "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1}
SEED = int(os.environ.get("HANEUL_TEST_SEED", "1"))


@contextmanager
def _fake(data: Path) -> Iterator[Haneul]:
    """`haneul up` with fake drivers, as a process of its own."""
    data.mkdir(exist_ok=True)
    found = Haneul(data, data / "images", HANEUL_DRIVERS="fake", HANEUL_DURABLE="yes", HANEUL_CONFIG="")
    found.up()
    try:
        yield found
    finally:
        found.run("down", "--purge")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Haneul]:
    with _fake(tmp_path / "data") as found:
        yield found


def _run(own: Haneul, **more: Any) -> str:
    return str(own.client().run_instances(**AMI, **more)["Instances"][0]["InstanceId"])


def _ids(own: Haneul) -> set[str]:
    pages = own.client().get_paginator("describe_instances").paginate()
    return {one["InstanceId"] for page in pages for r in page["Reservations"] for one in r["Instances"]}


# --- disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB. `make test` has a mount namespace of its own."""
    if os.environ.get("HANEUL_TEST_MOUNTS") != "own":
        pytest.skip("mounts a file system: run `make test` as root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)], check=True)
    yield place
    # On a busy server the last thread of a haneul that was ended has a file open a moment longer.
    eventually("nothing is open there", lambda: subprocess.run(["umount", str(place)], check=False).returncode == 0)


def test_a_full_disk_is_said_and_survived(small_disk: Path) -> None:
    with _fake(small_disk / "data") as own:
        before = {_run(own) for _ in range(3)}
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        answered, codes = set(), set()
        for number in range(400):
            try:
                answered.add(_run(own, UserData="x" * 16000, ClientToken=str(number)))
            except ClientError as error:
                codes.add((error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]))
                if number > 40:
                    break
        assert codes == {("Unavailable", 503)}, "a client is told to try again, not that haneul is broken"
        assert _ids(own) == before | answered, "reading goes on, and what was refused has not happened"
        filler.unlink()
        later = eventually("it works again", lambda: _run(own), 20)
        assert _ids(own) == before | answered | {later}
        own.until(later, "running", 30)


# --- descriptors and memory ---------------------------------------------------------------------------


def test_too_many_files(own: Haneul) -> None:
    """Connections beyond the limit wait or are refused; those that are served are served."""
    (pid,) = own.pids
    ours = len(os.listdir(f"/proc/{pid}/fd"))
    before = resource.prlimit(
        pid, resource.RLIMIT_NOFILE, (ours + 20, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1])
    )
    held = []
    try:
        for _ in range(60):
            one = socket.socket()
            one.settimeout(0.2)
            with suppress(OSError):
                one.connect(("127.0.0.1", own.port))
            held.append(one)
        answered = 0
        for _ in range(3):
            with suppress(Exception):
                _run(own)
                answered += 1
    finally:
        for one in held:
            one.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    instance = eventually("it works again", lambda: _run(own), 30)
    own.until(instance, "running", 30)
    assert own.pids == [pid], "it is the same process"
    assert len(_ids(own)) >= answered + 1


def test_out_of_memory(own: Haneul) -> None:
    """A request that there is no memory for fails; the next one does not."""
    (pid,) = own.pids
    instance = _run(own)
    status = (Path("/proc") / str(pid) / "status").read_text()
    used = int(next(line for line in status.splitlines() if line.startswith("VmSize")).split()[1]) << 10
    before = resource.prlimit(pid, resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
    try:
        for _ in range(20):
            with suppress(Exception):
                own.client().run_instances(**(AMI | {"MaxCount": 20}))
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)
    assert own.pids == [pid], "it is the same process"
    eventually("it works again", lambda: _run(own), 30)
    own.until(instance, "running", 60)
    store = Store(f"sqlite:///{own.data / 'haneul.db'}")
    eventually("all is consistent", lambda: not inconsistencies(store), 60)
    store.close()


# --- signals ------------------------------------------------------------------------------------------


def test_sigterm_ends_every_phase_soon_and_cleanly(own: Haneul) -> None:
    """In the middle of starting, of calls, of passes. It says nothing on standard error but words for people."""
    rng = random.Random(SEED)
    own.run("down")
    phases: dict[str, int] = {"starting": 0, "serving": 0}
    for _ in range(8):
        process = subprocess.Popen(
            [str(HANEUL), "up"],
            env=own.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        stop = threading.Event()
        worker = threading.Thread(target=_keep_launching, args=(own, stop))
        worker.start()
        time.sleep(rng.uniform(0.3, 2.5))
        serving = _answers(own)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        stop.set()
        worker.join(60)
        phases["serving" if serving else "starting"] += 1
        assert process.returncode == 0 or (not serving and process.returncode == -signal.SIGTERM), errors
        assert "Traceback" not in errors, errors
    own.up()
    store = Store(f"sqlite:///{own.data / 'haneul.db'}")
    eventually("all is consistent", lambda: not inconsistencies(store), 60)
    store.close()


def _answers(own: Haneul) -> bool:
    try:
        own.client().describe_regions()
    except Exception:
        return False
    return True


def _keep_launching(own: Haneul, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            _run(own)
        except Exception:
            time.sleep(0.05)


# --- power --------------------------------------------------------------------------------------------


def test_a_power_cut_of_the_store(own: Haneul, tmp_path: Path, record_tally: Callable[[str], None]) -> None:
    """Its files as they are at any moment, and with the end of the log torn off, open and are consistent.

    What was answered before the files were copied is in a copy that lost nothing.
    """
    (pid,) = own.pids
    rng, stop = random.Random(SEED), threading.Event()
    answered: list[str] = []

    def work() -> None:
        client, own_rng = own.client(), random.Random(SEED)
        while not stop.wait(0.02):
            try:
                answered.append(client.run_instances(**AMI)["Instances"][0]["InstanceId"])
                if own_rng.random() < 0.5:
                    client.terminate_instances(InstanceIds=[own_rng.choice(answered)])
            except Exception:
                time.sleep(0.01)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    cuts, torn, lost = 0, 0, []
    try:
        while cuts < 20:
            time.sleep(rng.uniform(0.02, 0.15))
            known = list(answered)
            # Stopped, not killed: the copy is of one moment, as a cut is.
            os.kill(pid, signal.SIGSTOP)
            try:
                copy = tmp_path / f"copy{cuts}"
                copy.mkdir()
                for name in ("haneul.db", "haneul.db-wal"):
                    shutil.copyfile(own.data / name, copy / name)
            finally:
                os.kill(pid, signal.SIGCONT)
            cuts += 1
            shutil.copyfile(copy / "haneul.db-wal", copy / "whole")
            found = _opened(copy)
            lost += [one for one in known if one not in found]
            for _ in range(3):
                # What was not synced may be missing, or be there in part and wrong.
                shutil.copyfile(copy / "whole", copy / "haneul.db-wal")
                _tear(copy / "haneul.db-wal", rng)
                _opened(copy)
                torn += 1
            shutil.rmtree(copy)
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
    record_tally(f"power cuts: {cuts} copies, {torn} with a torn log, 0 inconsistent, {len(lost)} answers lost")
    assert not lost and len(answered) > cuts


def _tear(log: Path, rng: random.Random) -> None:
    """Cut or spoil what a power cut can: what was written after the last commit but one, which was synced before."""
    begin, end = _unsynced(log.read_bytes())
    if begin == end:
        return
    place = rng.randrange(begin, end)
    with log.open("r+b") as file:
        if rng.random() < 0.5:
            file.truncate(place)
        else:
            file.seek(place)
            file.write(rng.randbytes(min(512, end - place)))


def _unsynced(log: bytes) -> tuple[int, int]:
    """(begin, end) of the valid frames after the last commit but one (sqlite.org, "WAL-mode File Format")."""
    if len(log) < 32:
        return 0, 0
    size, salts = int.from_bytes(log[8:12], "big") + 24, log[16:24]
    commits, end = [32, 32], 32
    while end + size <= len(log) and log[end + 8 : end + 16] == salts:
        end += size
        if log[end - size + 4 : end - size + 8] != b"\0\0\0\0":
            commits.append(end)
    return commits[-2], end


def _opened(copy: Path) -> set[str]:
    """The instances of a copy that opens and is consistent. Opened on another copy, so that it stays as it is."""
    with closing(sqlite3.connect(":memory:")) as memory:
        work = copy / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name in ("haneul.db", "haneul.db-wal"):
            shutil.copyfile(copy / name, work / name)
        with closing(sqlite3.connect(work / "haneul.db")) as source:
            source.backup(memory)
        assert memory.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = Store(f"sqlite:///{work / 'haneul.db'}")
    try:
        store.migrate()
        assert not inconsistencies(store, settled=False)
        with store.read() as tx:
            return {row["id"] for row in tx.select(tables.instances)}
    finally:
        store.close()


# --- clock --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, -3600, 3600, 10 * 365 * 86400])
def test_a_clock_that_jumps(tmp_path: Path, jump: int) -> None:
    """Operations go on with both clocks, tokens hold, nothing is forgotten that is alive."""
    now = [1_800_000_000.0]
    store = Store.embedded(tmp_path / "db")
    store.migrate()
    settings = Settings(data=tmp_path, drivers="fake", public_pool="198.18.0.0/23", auth="open")
    cloud = Cloud(store, settings, None, lambda: now[0])  # type: ignore[arg-type]
    caller = Caller("000000000000", "us-east-1", "")
    with store.write() as tx:
        tx.insert(
            tables.servers, id="server-1", zones=[], vcpus=100, memory_mib=10**6, observed_facts={}, observed_at=0.0
        )

    def call(name: str, **parameters: Any) -> dict[str, Any]:
        return cloud.call("ec2", name, caller, parameters)

    first = call("RunInstances", **AMI, ClientToken="t")
    now[0] += jump
    second = call("RunInstances", **AMI, ClientToken="u")
    assert (
        call("RunInstances", **AMI, ClientToken="t")["Instances"][0]["InstanceId"]
        == first["Instances"][0]["InstanceId"]
    )
    pages, token = [], None
    while True:
        page = call("DescribeInstances", MaxResults=5, **({"NextToken": token} if token else {}))
        pages += [one["InstanceId"] for r in page["Reservations"] for one in r["Instances"]]
        token = page.get("NextToken")
        if not token:
            break
    ids = [one["Instances"][0]["InstanceId"] for one in (first, second)]
    assert sorted(pages) == sorted(ids)
    now[0] -= 2 * jump
    call("TerminateInstances", InstanceIds=ids)
    assert not inconsistencies(store, settled=False)
    store.close()


def test_a_report_in_the_past_or_future_changes_nothing_but_its_times(
    start_cloud: Callable[..., FakeCloud], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole cloud, with a wall clock that is set while it runs."""
    cloud = start_cloud(tmp_path, auth="open")
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    client = cloud.client()
    found = []
    for jump in (0.0, -7200.0, 7200.0, 86400.0 * 400, 0.0):
        offset[0] = jump
        # Signatures carry the client's clock, which jumps with the server's.
        one = client.run_instances(**AMI)["Instances"][0]["InstanceId"]
        eventually("it runs", lambda one=one: one in _running(client), 20, 0.05)  # type: ignore[misc]
        found.append(one)
    assert set(found) <= _running(client)


def _running(client: Any) -> set[str]:
    states = [{"Name": "instance-state-name", "Values": ["running"]}]
    return {
        one["InstanceId"] for r in client.describe_instances(Filters=states)["Reservations"] for one in r["Instances"]
    }
