"""Fake drivers: the whole cloud without any guest, instantly. They say that they are fake.

Their world is one SQLite file, which outlives haneul as real machines do, so that crashes can be tested on it.
A row is a thing: (kind, id, value). Tests reach into it (`World.put`) to play the guest.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from haneul.drivers.interface import DriverError, lost
from haneul.model.assignment import (
    DiskSpec,
    MachineReport,
    MachineSpec,
    MetadataSpec,
    NetworkSpec,
    NicSpec,
    ServerFacts,
)
from haneul.model.generation import GENERATIONS
from haneul.model.values import from_json, to_json


class World:
    """The things of a fake server. Safe to open from several processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=20)
        self._lock = threading.Lock()
        self._version = -1
        self._known: dict[str, dict[str, Any]] = {}
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS things (kind TEXT, id TEXT, value TEXT, PRIMARY KEY (kind, id))"
        )

    @contextmanager
    def _cursor(self) -> Iterator[sqlite3.Cursor]:
        """What is known of the file is forgotten when another connection has written to it."""
        with self._lock:
            cursor = self._connection.cursor()
            version = cursor.execute("PRAGMA data_version").fetchone()[0]
            if version != self._version:
                self._version, self._known = version, {}
            yield cursor

    def _things(self, cursor: sqlite3.Cursor, kind: str) -> dict[str, Any]:
        if kind not in self._known:
            rows = cursor.execute("SELECT id, value FROM things WHERE kind = ?", (kind,)).fetchall()
            self._known[kind] = {one: json.loads(value) for one, value in rows}
        return self._known[kind]

    def all(self, kind: str) -> dict[str, Any]:
        """Every thing of a kind by id. The values are not to be changed; a changed thing has another value."""
        with self._cursor() as cursor:
            return dict(self._things(cursor, kind))

    def get(self, kind: str, one: str) -> Any:
        with self._cursor() as cursor:
            return self._things(cursor, kind).get(one)

    def put(self, kind: str, one: str, value: Any) -> None:
        with self._cursor() as cursor:
            things = self._things(cursor, kind)
            cursor.execute("REPLACE INTO things VALUES (?, ?, ?)", (kind, one, json.dumps(value)))
            things[one] = value

    def remove(self, kind: str, one: str) -> None:
        with self._cursor() as cursor:
            things = self._things(cursor, kind)
            cursor.execute("DELETE FROM things WHERE kind = ? AND id = ?", (kind, one))
            things.pop(one, None)


def _report(instance_id: str, value: dict[str, Any]) -> MachineReport:
    running = value["power"] == "running"
    return MachineReport(
        instance_id,
        value["power"],
        value["boot_count"],
        value.get("cause", ""),
        value.get("detail", ""),
        phase="fake",
        accelerator="fake",
        reachable=True if running else None,
    )


class FakeMachines:
    def __init__(self, world: World) -> None:
        self.world = world
        self._reports: dict[str, tuple[Any, MachineReport]] = {}

    async def observe(self) -> dict[str, MachineReport]:
        """Reports are made anew only for values that are others than the last time: it is asked for thousands."""
        known = self._reports
        self._reports = {
            one: found if (found := known.get(one)) is not None and found[0] is value else (value, _report(one, value))
            for one, value in self.world.all("machine").items()
        }
        return {one: report for one, (_, report) in self._reports.items()}

    def needs_taps(self, spec: MachineSpec) -> bool:
        value = self.world.get("machine", spec.instance_id)
        return value is None or (value["power"] == "off" and value["boot_count"] < spec.boot_count)

    async def ensure_running(self, spec: MachineSpec, taps: dict[str, int]) -> MachineReport:
        value = self.world.get("machine", spec.instance_id) or {"power": "off", "boot_count": 0, "console": ""}
        if value["boot_count"] < spec.boot_count:
            line = f"haneul fake machine {spec.instance_id}: boot {spec.boot_count}\n"
            value = {"power": "running", "boot_count": spec.boot_count, "console": value["console"] + line}
            self.world.put("machine", spec.instance_id, value)
        return _report(spec.instance_id, value)

    async def ensure_stopped(self, spec: MachineSpec) -> MachineReport:
        value = self.world.get("machine", spec.instance_id)
        if value is None:
            return MachineReport(spec.instance_id, "off")
        if value["power"] != "off":
            value = value | {"power": "off", "cause": "ordered"}
            self.world.put("machine", spec.instance_id, value)
        return _report(spec.instance_id, value)

    async def ensure_absent(self, instance_id: str) -> MachineReport:
        self.world.remove("machine", instance_id)
        return MachineReport(instance_id, "absent")

    def remember(self, instance_id: str, boots: int, accelerator: str) -> None:
        """A machine that has carried out so many boots, here before or elsewhere, and is off by order."""
        known = self.world.get("machine", instance_id) or {"console": ""}
        value = {"power": "off", "boot_count": boots, "cause": "ordered", "console": known["console"]}
        self.world.put("machine", instance_id, value)

    async def console_output(self, instance_id: str) -> bytes:
        value = self.world.get("machine", instance_id)
        return str(value["console"]).encode() if value else b""

    async def screenshot(self, instance_id: str) -> bytes:
        """A real, small PNG that says nothing: a fake machine has no display."""
        import io

        from PIL import Image

        out = io.BytesIO()
        Image.new("RGB", (64, 48), "black").save(out, "PNG")
        return out.getvalue()


class FakeDisks:
    def __init__(self, world: World) -> None:
        self.world = world

    async def observe(self) -> frozenset[str]:
        return frozenset(self.world.all("volume"))

    async def ensure(self, disk: DiskSpec) -> None:
        """A volume is its size and the image that it is an overlay on. It only ever grows."""
        value = self.world.get("volume", disk.volume_id)
        if value is None and disk.made:
            raise DriverError(lost(disk.volume_id), fatal=True)
        if value is None:
            value = {"size_gib": 0, "image": disk.image}
        if value["size_gib"] < disk.size_gib:
            self.world.put("volume", disk.volume_id, value | {"size_gib": disk.size_gib})

    async def ensure_absent(self, volume_id: str) -> None:
        self.world.remove("volume", volume_id)


class FakeNetworks:
    """Holds each VPC as it was told, rule by rule: what a real one has in its kernel."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._revisions: dict[str, int] = {}
        self._applied: dict[str, NetworkSpec] = {}

    async def observe(self) -> frozenset[str]:
        return frozenset(self.world.all("network"))

    async def apply(self, network: NetworkSpec, revision: int) -> None:
        if revision < self._revisions.get(network.vpc_id, revision):
            return
        self._revisions[network.vpc_id] = revision
        if self._applied.get(network.vpc_id) is not network or self.world.get("network", network.vpc_id) is None:
            wanted = to_json(network)
            if self.world.get("network", network.vpc_id) != wanted:
                self.world.put("network", network.vpc_id, wanted)
            self._applied[network.vpc_id] = network

    def applied(self, vpc_id: str) -> NetworkSpec | None:
        """The VPC as it is now, whoever has applied it."""
        value = self.world.get("network", vpc_id)
        return from_json(NetworkSpec, value) if value is not None else None

    async def open_tap(self, nic: NicSpec) -> int:
        network = self.applied(nic.vpc_id)
        if network is None:
            raise DriverError(f"{nic.vpc_id} is not here")
        if nic.subnet_id not in {subnet.subnet_id for subnet in network.subnets}:
            raise DriverError(f"{nic.subnet_id} is not a subnet of {nic.vpc_id}", fatal=True)
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    async def ensure_absent(self, vpc_id: str) -> None:
        self.world.remove("network", vpc_id)
        self._applied.pop(vpc_id, None)

    async def reachable(self, nic: NicSpec) -> bool:
        return self.world.get("network", nic.vpc_id) is not None


class FakeMetadata:
    """Holds what it was told, instance by instance."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._told: tuple[MetadataSpec, ...] = ()

    async def apply(self, instances: tuple[MetadataSpec, ...]) -> None:
        known = {id(one) for one in self._told}
        for one in instances:
            if id(one) not in known:
                value = to_json(one)
                if self.world.get("metadata", one.instance_id) != value:
                    self.world.put("metadata", one.instance_id, value)
        for gone in self.world.all("metadata").keys() - {one.instance_id for one in instances}:
            self.world.remove("metadata", gone)
        self._told = instances

    async def ensure_absent(self) -> None:
        for one in self.world.all("metadata"):
            self.world.remove("metadata", one)


class FakeServer:
    """A server with room for everything."""

    def __init__(self, vcpus: int = 1 << 20, memory_mib: int = 1 << 30) -> None:
        self._vcpus = vcpus
        self._memory_mib = memory_mib

    async def facts(self) -> ServerFacts:
        accelerators = {"tcg": "fake", "kvm": "fake"}
        generations: dict[str, str] = dict.fromkeys(GENERATIONS, "")
        return ServerFacts(self._vcpus, self._memory_mib, socket.gethostname(), "fake", accelerators, generations)
