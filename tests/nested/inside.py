"""Runs in the emulated server: haneul's own probe, machine driver and templates, under a KVM that works.

Says each step as it goes, and at last one line of JSON: what took how long (seconds), what was seen, what failed.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import struct
import subprocess
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from haneul.drivers.disks.qcow2 import Qcow2Disks
from haneul.drivers.host.linux import LinuxServer
from haneul.drivers.interface import DiskDriver, DriverError, MachineDriver
from haneul.drivers.machines.driver import Machines
from haneul.drivers.machines.qemu.command import Accelerator
from haneul.drivers.machines.qemu.engine import QemuEngine, shape
from haneul.drivers.machines.qemu.templates import Server, Templates
from haneul.images.resume import unit as resume
from haneul.linux import locks
from haneul.model.assignment import DiskSpec, GuestIdentity, MachineReport, MachineSpec, NicSpec
from tests.nested import recipe

RESULT = "nested: result "
IMAGES = Path("/project/images")
DATA = Path("/var/lib/haneul")
FIRST_UID = 0x70000000
#: Everything here is emulated twice: the product's own deadline is for servers.
PROBE_SECONDS = 240.0
BOOT_SECONDS = 300.0
SPEC = MachineSpec(
    instance_id="i-0123456789abcdef0",
    power="running",
    boot_count=1,
    force=False,
    stop_seconds=120,
    vcpus=1,
    memory_mib=192,
    image="tiny",
    instance_type="t3.nano",
    generation="hvm",
    uuid="ec2f0f4f-6e0c-4c57-9a9f-0a7d2a3b6c11",
    disks=(DiskSpec("vol-0123456789abcdef0", "tiny", 1, "/dev/xvda"),),
    nics=(),
)
#: One that a template can be for: it is told who it is.
WARM = replace(
    SPEC,
    instance_id="i-0fedcba9876543210",
    uuid="ec2d3c1a-52f7-4a0b-8a41-6a1e0f9b7c22",
    disks=(DiskSpec("vol-0fedcba9876543210", "tiny", 1, "/dev/xvda"),),
    nics=(NicSpec("eni-0fedcba9876543210", "vpc-1", "subnet-1", "06:00:00:00:00:22", "10.77.0.9"),),
    identity=GuestIdentity("ip-10-77-0-9", "ec2.internal", 24, "10.77.0.1", "10.77.0.2", ()),
)


@dataclass
class Told:
    """What the test reads."""

    seconds: dict[str, float] = field(default_factory=dict)
    console: str = ""
    failure: str = ""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        print(f"nested: {name} …", flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        print(f"nested: {name}: {self.seconds[name]} s", flush=True)


@dataclass
class Driver:
    """What is relied on of the driver: the interface, the folder of its machine `spec`, how it is made."""

    spec: MachineSpec
    machines: MachineDriver
    disks: DiskDriver
    console: Callable[[], Awaitable[bytes]]
    screenshot: Callable[[], Awaitable[bytes]]

    @property
    def directory(self) -> Path:
        return DATA / "instances" / self.spec.instance_id


def make_driver(server: LinuxServer, spec: MachineSpec = SPEC, templates: Templates | None = None) -> Driver:
    disks = Qcow2Disks(DATA / "volumes", IMAGES)
    engines = {"hvm": QemuEngine(IMAGES, server.accelerator, templates)}
    machines = Machines(DATA / "instances", disks.file, FIRST_UID, engines, lambda: None)
    return Driver(
        spec,
        machines,
        disks,
        lambda: machines.console_output(spec.instance_id),
        lambda: machines.screenshot(spec.instance_id),
    )


def make_templates(server: LinuxServer) -> Templates:
    async def accelerator() -> Accelerator:
        return server.accelerator()

    about = Server(FIRST_UID - 1, vcpus=1, memory_mib=512, tap=_tap, accelerator=accelerator)
    return Templates(DATA / "templates", IMAGES, about, 512, resume.PROTOCOL)


def _tap() -> int:
    """It leads nowhere: nobody has set it up."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap%d", 0x5002))
    return tap


async def _until(ask: Callable[[], Awaitable[MachineReport]], power: str, seconds: float) -> MachineReport:
    """Tell it again, as the agent's passes do, until it is so."""
    async with asyncio.timeout(seconds):
        while (report := await ask()).power != power:
            assert not report.cause, report
            await asyncio.sleep(0.2)
        return report


async def _console_says(driver: Driver, text: bytes, seconds: float = BOOT_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while text not in await driver.console():
            report = (await driver.machines.observe())[driver.spec.instance_id]
            assert report.power == "running", report
            await asyncio.sleep(0.2)


# --- the probe -----------------------------------------------------------------------------------------------


async def _no_paravirtual() -> str:
    return "not asked for here"


async def probed(told: Told) -> LinuxServer:
    """As haneul does it: the facts are there at once, the verdict comes from behind and changes the accelerator."""
    changed = asyncio.Event()

    def make() -> LinuxServer:
        return LinuxServer(DATA / "probes.json", IMAGES, "auto", changed.set, _no_paravirtual, PROBE_SECONDS)

    server = make()
    assert "no /dev/kvm" in await server.kvm(), "before the module is loaded"
    with told.step("kvm-amd loaded"):
        subprocess.run(["modprobe", "kvm-amd"], check=True)
    assert (await server.kvm()).startswith("only root may open"), "the device as the kernel makes it, without udev"
    os.chown("/dev/kvm", 0, recipe.KVM_GROUP)
    os.chmod("/dev/kvm", 0o660)
    with told.step("probe"):
        assert (await server.facts()).accelerators["kvm"] == "not probed yet"
        assert server.accelerator() == "tcg", "no launch waits for the probe"
        async with asyncio.timeout(PROBE_SECONDS + 60):
            while (await server.facts()).accelerators["kvm"] == "not probed yet":
                await changed.wait()
                changed.clear()
    assert (await server.facts()).accelerators["kvm"] == "" and server.accelerator() == "kvm"
    with told.step("verdict that was kept"):
        assert await make().kvm() == ""
    assert told.seconds["verdict that was kept"] < 2, "nothing was booted for it"
    return server


# --- the machine ---------------------------------------------------------------------------------------------


def _qemu(directory: Path) -> int:
    pids = locks.holders(directory / "lock")
    return next(pid for pid in pids if "qemu-system" in os.readlink(f"/proc/{pid}/exe"))


def _owners(pid: int) -> dict[str, list[int]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    split = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    return {name: [int(one) for one in split[name]] for name in ("Uid", "Groups")}


def _has_a_virtual_machine(pid: int) -> bool:
    """KVM's own word that a process runs a guest by it (kvm.h, KVM_CREATE_VM gives `anon_inode:kvm-vm`)."""
    directory = f"/proc/{pid}/fd"
    return any("kvm-vm" in os.readlink(f"{directory}/{name}") for name in os.listdir(directory))


async def first_boot(told: Told, driver: Driver) -> None:
    with told.step("disk made"):
        await driver.disks.ensure(SPEC.disks[0])
    began = time.monotonic()
    with told.step("launch to running"):
        report = await _until(lambda: driver.machines.ensure_running(SPEC, {}), "running", BOOT_SECONDS)
    assert (report.boot_count, report.accelerator) == (1, "kvm"), report
    pid = _qemu(driver.directory)
    owners = _owners(pid)
    assert set(owners["Uid"]) == {FIRST_UID + 1} and owners["Groups"] == [recipe.KVM_GROUP], owners
    assert _has_a_virtual_machine(pid)
    with told.step("to its kernel"):
        await _console_says(driver, b"Hypervisor detected: KVM")
    with told.step("to its init"):
        await _console_says(driver, b"haneul-tiny: ")
    with told.step("to ready"):
        await _console_says(driver, b"haneul-tiny: ready")
    told.seconds["first boot: launch to ready"] = round(time.monotonic() - began, 1)


async def looked_at(told: Told, driver: Driver, server: LinuxServer) -> None:
    """By a haneul that knows nothing of it."""
    another = make_driver(server)
    with told.step("observed, told again, screenshot"):
        found = (await another.machines.observe())[SPEC.instance_id]
        assert (found.power, found.boot_count, found.accelerator) == ("running", 1, "kvm"), found
        assert (await another.machines.ensure_running(SPEC, {})).power == "running"
        assert (await another.screenshot()).startswith(b"\x89PNG")


async def stopped(told: Told, driver: Driver, spec: MachineSpec, name: str) -> None:
    with told.step(name):
        order = replace(spec, power="stopped")
        report = await _until(lambda: driver.machines.ensure_stopped(order), "off", BOOT_SECONDS)
    assert (report.cause, report.boot_count) == ("ordered", spec.boot_count), report
    assert "guest-shutdown" in (driver.directory / "events.log").read_text(), "it ended itself, it was not cut off"


async def second_boot(told: Told, driver: Driver) -> None:
    """By the firmware and the disk's own boot loader."""
    spec = replace(SPEC, boot_count=2)
    with told.step("second boot: start to ready"):
        await _until(lambda: driver.machines.ensure_running(spec, {}), "running", BOOT_SECONDS)
        await _console_says(driver, b"starting the kernel of this disk")
        await _console_says(driver, b"haneul-tiny: ready")
    assert _has_a_virtual_machine(_qemu(driver.directory))
    await stopped(told, driver, spec, "second boot: orderly stop")


async def warm_launch(told: Told, driver: Driver, templates: Templates) -> None:
    """Saved under KVM, and gone on from: the driver has compared what the guest answers with what it was told."""
    subprocess.run(["modprobe", "tun"], check=True)
    spec = driver.spec
    await driver.disks.ensure(spec.disks[0])
    with told.step("template made"):
        await templates.ensure(shape(spec, "kvm"))
    tap = _tap()
    try:
        with told.step("warm launch to the guest's answer"):
            report = await driver.machines.ensure_running(spec, {spec.nics[0].interface_id: tap})
    finally:
        os.close(tap)
    assert (report.power, report.boot_count, report.accelerator) == ("running", 1, "kvm"), report
    assert driver.machines.launches == {"warm": 1}, "it has booted instead"
    pid = _qemu(driver.directory)
    assert _owners(pid)["Groups"] == [recipe.KVM_GROUP] and _has_a_virtual_machine(pid)
    await stopped(told, driver, spec, "warm: orderly stop")
    await driver.machines.ensure_absent(spec.instance_id)


async def refused(told: Told, driver: Driver) -> None:
    """The device is taken away after the probe: the launch fails with QEMU's reason, and nothing is left of it."""
    os.chmod("/dev/kvm", 0)
    with told.step("launch without the device"):
        try:
            await driver.machines.ensure_running(replace(SPEC, boot_count=3), {})
        except DriverError as error:
            assert "KVM" in str(error) and "ermission denied" in str(error), error
        else:
            raise AssertionError("it was launched")
    assert not locks.holders(driver.directory / "lock")


async def everything(told: Told) -> None:
    server = await probed(told)
    driver, templates = make_driver(server), make_templates(server)
    warm = make_driver(server, WARM, templates)
    at = driver
    try:
        await first_boot(told, driver)
        await looked_at(told, driver, server)
        await stopped(told, driver, SPEC, "orderly stop")
        await second_boot(told, driver)
        at = warm
        await warm_launch(told, warm, templates)
        at = driver
        await refused(told, driver)
    finally:
        told.console = (await at.console()).decode(errors="replace")[-6000:]
    await driver.machines.ensure_absent(SPEC.instance_id)
    assert await driver.machines.observe() == {}


def main() -> None:
    told = Told()
    DATA.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(everything(told))
    except Exception:
        told.failure = traceback.format_exc()
    print(RESULT + json.dumps(told.__dict__), flush=True)


if __name__ == "__main__":
    print("nested: Python is up", flush=True)
    main()
