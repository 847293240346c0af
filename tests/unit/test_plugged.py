"""Which machines go on from a template, and what is made ready for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from haneul.drivers.machines.driver import Machines
from haneul.drivers.machines.engine import Boot
from haneul.drivers.machines.folder import Places, cold
from haneul.drivers.machines.qemu import command as qemu_command
from haneul.drivers.machines.qemu import engine as qemu
from haneul.drivers.machines.qemu.engine import QemuEngine
from haneul.drivers.machines.qemu.templates import Templates
from haneul.images.recipes import tiny
from haneul.images.resume import unit as resume
from haneul.linux import locks
from haneul.model.assignment import DiskSpec, GuestIdentity, NicSpec
from tests.contract.test_machines import SPEC

IDENTITY = GuestIdentity("ip-10-0-0-9", "ec2.internal", 20, "10.0.0.1", "10.0.0.2", ())


@dataclass
class _Templates:
    """One template, of whatever is asked for."""

    directory: Path
    memory: int = field(default_factory=lambda: os.memfd_create("test"))

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    def find(self, _: object) -> _Templates:
        return self

    def went_on(self, template: object, began: float, why: str) -> None:
        assert template is self


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[QemuEngine]:
    image = tmp_path / "images" / "tiny"
    image.mkdir(parents=True)
    for name in ("vmlinuz", "initrd", "cmdline"):
        (image / name).write_text("root=/dev/vda1")
    templates = _Templates(tmp_path / "template")
    templates.directory.mkdir()
    templates.state.write_bytes(b"state")
    templates.disk.write_bytes(b"overlay")
    yield QemuEngine(tmp_path / "images", lambda: "tcg", cast(Templates, templates), tb_mib=64)
    os.close(templates.memory)


def _boot(tmp_path: Path, sizes: list[int], nics: int = 1) -> Boot:
    """The first boot of a machine with volumes whose files have so many bytes."""
    disks = tuple(DiskSpec(f"vol-{index}", "" if index else "tiny", 1, "", not index) for index in range(len(sizes)))
    files = {disk.volume_id: tmp_path / f"{disk.volume_id}.qcow2" for disk in disks}
    for file, size in zip(files.values(), sizes, strict=True):
        file.write_bytes(b"d" * size)
    cards = tuple(
        NicSpec(f"eni-{index}", "vpc-1", "subnet-1", "06:00:00:00:00:09", "10.0.0.9") for index in range(nics)
    )
    taps = {card.interface_id: 9 for card in cards}
    return Boot(
        replace(SPEC, disks=disks, nics=cards, identity=IDENTITY),
        Places(tmp_path),
        files,
        taps,
        os.getuid(),
        first=True,
    )


@pytest.mark.parametrize(
    ("sizes", "nics", "why"),
    [
        ([9], 1, None),
        ([9, 9, 9], 3, None),
        ([9] * 10, 1, "10 volumes, 9 at most"),
        ([9], 10, "10 network interfaces, 9 at most"),
        ([9, qemu.MOST_COPIED + 1], 1, "vol-1 is not empty"),
    ],
)
def test_which_machines_go_on_from_a_template(
    engine: QemuEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, sizes: list[int], nics: int, why: str | None
) -> None:
    """The others boot cold, and the log says why. No descriptor is lost, and every volume is kept as it was."""
    caplog.set_level("INFO")
    boot = _boot(tmp_path, sizes, nics)
    launch = engine.launch(boot)
    assert "tb-size=64" in launch.command[-1]
    if why is not None:
        assert launch.resume is None and why in caplog.text
        return
    assert launch.resume is not None and caplog.text == ""
    assert len(launch.resume.plugged) == len(sizes) + nics - 2
    assert f"socket,id=launch,fd={launch.descriptors[-1]}" in launch.command[-1]
    launch.resume.port.close()
    launch.resume.monitor.close()
    for descriptor in launch.descriptors:
        os.close(descriptor)
    for file, size in zip(boot.files.values(), sizes, strict=True):
        assert cold(file).read_bytes() == b"d" * size and cold(file).stat().st_ino != file.stat().st_ino
    assert boot.files["vol-0"].read_bytes() == b"overlay"


def _descriptors() -> set[tuple[str, str]]:
    """This process's descriptors and what they are of. Earlier tests' may go at any time, by the garbage collector, and
    a thread of theirs may be reading /proc (haneul.metrics)."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return {one for one in found if not one[1].startswith("/proc/")}


def test_a_disk_that_cannot_be_exchanged_costs_no_descriptor(engine: QemuEngine, tmp_path: Path) -> None:
    boot = _boot(tmp_path, [9, 9])
    cold(boot.files["vol-1"]).write_bytes(b"in the way")
    before = _descriptors()
    assert engine.launch(boot).resume is None, "it boots cold"
    assert not cold(boot.files["vol-1"]).exists()
    assert _descriptors() - before == set()


@pytest.mark.parametrize("how", ["stop", "power off"])
def test_what_a_dead_haneul_left_half_resumed_ends_when_it_is_stopped(tmp_path: Path, how: str) -> None:
    """Its process goes and, when the cloud stops it, its volume is again as it was made."""
    disk = tmp_path / "vol-1.qcow2"
    machines = Machines(tmp_path / "instances", lambda _: disk, 1, {}, lambda: None)
    places = machines.places("i-1")
    places.directory.mkdir(parents=True)
    disk.write_bytes(b"the template's")
    cold(disk).write_bytes(b"its own")
    places.boot.write_text(json.dumps({"boot_count": 1, "accelerator": "tcg", "begun": False, "resuming": True}))
    lock = locks.take(places.lock)
    assert lock is not None
    process = subprocess.Popen(["sleep", "600"], pass_fds=(lock,))
    os.close(lock)
    try:
        asyncio.run(
            machines.ensure_stopped(replace(SPEC, instance_id="i-1")) if how == "stop" else machines.power_off(5)
        )
        assert process.wait(10) == -signal.SIGKILL and not locks.held(places.lock)
        report = asyncio.run(machines.observe())["i-1"]
        assert (report.power, report.boot_count) == ("off", 0), "that boot has not happened"
        assert disk.read_bytes() == (b"its own" if how == "stop" else b"the template's")
    finally:
        process.kill()


def test_server_and_guest_mean_the_same_port() -> None:
    files, taps = {SPEC.disks[0].volume_id: Path("/disk")}, {nic.interface_id: 9 for nic in SPEC.nics}
    warm = qemu_command.Warm("/m", 5, shared=True)
    words = qemu_command.command(SPEC, Places(Path("/")), files, taps, "tcg", warm=warm)
    assert any(word.endswith(f"name={resume.PORT}") for word in words)
    assert f"resume {resume.PORT} " in tiny.TINY_SCRIPTS["lib/haneul/boot"]
