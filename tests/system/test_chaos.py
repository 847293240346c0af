"""Every part of a cloud of real guests is killed at random moments: haneul, any process of a machine, dnsmasq, metadata.

Afterwards every instance is what the API promised, or stopped with the reason that its machine was killed; and the
world (processes, folders, volumes, namespaces, taps) is what the store says. `HANEUL_TEST_SEED` gives other moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haneul import identity
from haneul.drivers.machines.uml import engine as uml
from haneul.linux import locks
from haneul.store import tables
from haneul.store.database import Store
from tests.chaos import Tally, User, at_work, inconsistencies, lost, settled, twice
from tests.nursery import Nursery, gone
from tests.system.conftest import Haneul, eventually
from tests.system.test_faults import runtime

SEED = int(os.environ.get("HANEUL_TEST_SEED", "1"))


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


class Killer:
    """Starts and kills the parts of one haneul."""

    def __init__(self, own: Haneul, nursery: Nursery, tally: Tally) -> None:
        self.own = own
        self.nursery = nursery
        self.tally = tally
        self.machines: set[str] = set()
        self.pid = 0

    def start(self) -> None:
        self.pid = self.nursery.start(["up"], self.own.environment, self.own.data / "said")

    def until_it_serves(self) -> None:
        def serves() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.own.port}/metrics", timeout=20) as answer:
                return bool(answer.status == 200)

        eventually("haneul serves", serves, 60, 0.05)

    def kill(self, rng: random.Random) -> None:
        what = rng.choice(["haneul", "haneul", "haneul, by SIGTERM", "machine", "machine", "dnsmasq", "metadata"])
        if what.startswith("haneul"):
            os.kill(self.pid, signal.SIGTERM if "SIGTERM" in what else signal.SIGKILL)
            eventually("it has ended", lambda: gone(self.pid), 30, 0.01)
            self.tally.kill(what)
            time.sleep(rng.uniform(0, 0.5))
            self.start()
            if rng.random() < 0.7:
                self.until_it_serves()
            return
        pids = sorted(self._pids(what))
        if not pids:
            return
        pid = rng.choice(pids)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if what == "machine":
                what = Path(f"/proc/{pid}/comm").read_text().strip()
            os.kill(pid, signal.SIGKILL)
            self.tally.kill(what)

    def _pids(self, what: str) -> list[int]:
        place = runtime(self.own)
        if what == "dnsmasq":
            return [pid for lock in place.glob("vpcs/*/dnsmasq.lock") for pid in locks.holders(lock)]
        if what == "metadata":
            return locks.holders(place / "metadata" / "lock")
        found = []
        uids = _uids(self.own)
        for pid, uid in _machines_processes(self.own):
            if uid in uids:
                found.append(pid)
                self.machines.add(uids[uid])
        return found


def _uids(own: Haneul) -> dict[int, str]:
    """The uid of every machine that has a folder."""
    found = {}
    for folder in (own.data / "instances").glob("*"):
        with contextlib.suppress(OSError, ValueError):
            found[int((folder / "uid").read_text())] = folder.name
    return found


def _machines_processes(own: Haneul) -> list[tuple[int, int]]:
    """(pid, uid) of what runs as a machine's uid, whether there is that machine or not."""
    first = identity.Identity(own.data / "identity", int((own.data / "identity" / "slot").read_text())).first_uid
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            uid = os.stat(f"/proc/{name}").st_uid
            if first < uid < first + 65536 and not gone(int(name)):
                found.append((int(name), uid))
    return found


def _orphans(own: Haneul) -> list[str]:
    """What there is and the store does not want, or the reverse."""
    store = Store(f"sqlite:///{own.data / 'haneul.db'}")
    with store.read() as tx:
        instances = {row["id"]: row for row in tx.select(tables.instances) if row["power"] != "terminated"}
        volumes = {row["id"] for row in tx.select(tables.volumes)}
        nics = tx.select(tables.interfaces)
    store.close()
    running = {one for one, row in instances.items() if row["power"] == "running"}
    folders = own.data / "instances"
    alive = {path.name for path in folders.iterdir() if locks.held(path / "lock")} if folders.is_dir() else set()
    wrong = [f"machine {one}: runs: {one in alive}, wanted: {one in running}" for one in alive ^ running]
    wrong += [f"folder {path.name}" for path in folders.iterdir() if path.name not in instances]
    files = {path.name.removesuffix(".qcow2") for path in (own.data / "volumes").iterdir()}
    wrong += [f"volume {one}" for one in files ^ volumes]
    wrong += [f"process {pid} of a machine" for pid in _strangers(own, alive)]
    return wrong + _of_networks(
        own, {row["vpc_id"] for row in nics}, {row["id"] for row in nics if row["instance_id"] in running}
    )


def _strangers(own: Haneul, alive: set[str]) -> list[int]:
    """Processes that run as a machine's uid and are no machine's."""
    known = {uid for uid, instance in _uids(own).items() if instance in alive}
    return [pid for pid, uid in _machines_processes(own) if uid not in known]


def _of_networks(own: Haneul, vpcs: set[str], nics: set[str]) -> list[str]:
    place = runtime(own)
    there = {path.name for path in (place / "netns").iterdir()} - {"edge"}
    wrong = [f"namespace {one}" for one in there ^ vpcs]
    wrong += [f"dnsmasq of {one}" for one in vpcs if not locks.held(place / "vpcs" / one / "dnsmasq.lock")]
    if vpcs and not locks.held(place / "metadata" / "lock"):
        wrong.append("the metadata process")
    taps = set()
    for vpc in there:
        command = ["nsenter", f"--net={place / 'netns' / vpc}", "ip", "-o", "link", "show"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        taps |= {line.split()[1].rstrip(":").partition("@")[0] for line in lines} - {"lo", "ext"}
    wanted = {f"t{one[-12:]}" for one in nics}
    return wrong + [f"tap {one}" for one in {tap for tap in taps if not tap.startswith("br")} ^ wanted]


def _answers(address: str) -> bool:
    with socket.create_connection((address, 22), timeout=3) as connection:
        connection.settimeout(10)
        return connection.recv(4) == b"SSH-"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [14, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["t3.nano", "t1.micro"])
def test_every_part_is_killed(
    make_haneul: Callable[..., Haneul], nursery: Nursery, kind: str, kills: int, record_tally: Callable[[str], None]
) -> None:
    if kind == "t1.micro" and uml.missing():
        pytest.skip(f"no paravirtual machines: {uml.missing()}")
    own = make_haneul(HANEUL_STOP_SECONDS="20")
    identity.ensure(own.data)
    rng, tally = random.Random(SEED), Tally()
    killer = Killer(own, nursery, tally)
    killer.start()
    killer.until_it_serves()
    launch = {"ImageId": own.image("tiny"), "InstanceType": kind}
    users = [User(f"user{n}", own.client(), random.Random(SEED * 100 + n), launch, 2, pause=0.3) for n in range(2)]

    def harass() -> None:
        while sum(tally.kills.values()) < kills:
            time.sleep(rng.uniform(0.05, 1.5))
            killer.kill(rng)

    try:
        at_work(users, harass)
        killer.until_it_serves()
        for user in users:
            user.finish()
        found = settled(own.client(), 240)
        tally.lost += [wrong for user in users for wrong in lost(user, found, killer.machines)] + twice(users, found)
        store = Store(f"sqlite:///{own.data / 'haneul.db'}")
        tally.lost += inconsistencies(store)
        store.close()
        with contextlib.suppress(AssertionError):
            eventually("the world is as the store", lambda: not _orphans(own), 60)
        tally.orphaned += _orphans(own)
        for user in users:
            if user.group:
                user.client.authorize_security_group_ingress(
                    GroupId=user.group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
                )
        addresses = [one["PublicIpAddress"] for one in found.values() if one["State"]["Name"] == "running"]
        for address in addresses:
            eventually(f"{address} answers", lambda address=address: _answers(address), 200)  # type: ignore[misc]
        if found:
            own.client().terminate_instances(InstanceIds=list(found))
        eventually("nothing is left", lambda: not list((own.data / "volumes").iterdir()) and not _orphans(own), 120)
        assert not list((own.data / "instances").iterdir())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(killer.pid, signal.SIGTERM)
        record_tally(f"real guests ({kind}), " + tally.text(users, SEED))
    assert not tally.lost and not tally.orphaned
    said = Path(own.data / "said").read_text()
    assert "Traceback" not in said, said[-3000:]
