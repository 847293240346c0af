"""The contract of `MachineDriver`, over the fake, QEMU (every device emulated; fast devices) and User-mode Linux."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from haneul.drivers.disks.qcow2 import Qcow2Disks, virtual_size
from haneul.drivers.fake import FakeDisks, FakeMachines, World
from haneul.drivers.interface import DiskDriver, DriverError, MachineDriver
from haneul.drivers.machines.driver import Machines
from haneul.drivers.machines.qemu.engine import QemuEngine
from haneul.drivers.machines.uml.engine import UmlEngine, missing
from haneul.linux import locks
from haneul.model.assignment import DiskSpec, MachineReport, MachineSpec
from haneul.model.generation import ABILITIES, parse

IMAGES = Path(os.environ.get("HANEUL_TEST_IMAGES", "/var/lib/haneul/images"))


@dataclass
class Server:
    """A driver of machines, the disks it needs, and how to make it anew as after a crash of haneul."""

    machines: MachineDriver
    disks: DiskDriver
    again: Callable[[], MachineDriver]
    break_machine: Callable[[str], None]
    spec: MachineSpec


def _fake(directory: Path) -> Server:
    world = World(directory / "world.db")

    def crash(instance_id: str) -> None:
        value = world.get("machine", instance_id)
        world.put("machine", instance_id, value | {"power": "off", "cause": "crash", "detail": "a test broke it"})

    return Server(
        FakeMachines(world), FakeDisks(world), lambda: FakeMachines(World(directory / "world.db")), crash, SPEC
    )


def _real(directory: Path, spec: MachineSpec) -> Server:
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None or not (IMAGES / "tiny").is_dir():
        pytest.skip("machines need root, QEMU and the tiny image: run `make test`")
    disks = Qcow2Disks(directory / "volumes", IMAGES)
    # A machine's uid is its own, and what runs as it is killed: two runs of this suite must not share any.
    first_uid = 0x6F000000 + os.getpid() % 4096 * 16
    qemu = QemuEngine(IMAGES, lambda: "tcg")
    engines = {"emulated": qemu, "hvm": qemu, "paravirtual": UmlEngine(IMAGES)}

    def make() -> Machines:
        return Machines(directory / "instances", disks.file, first_uid, engines, lambda: None)

    def kill(instance_id: str) -> None:
        for pid in locks.holders(directory / "instances" / instance_id / "lock"):
            os.kill(pid, 9)

    return Server(make(), disks, make, kill, spec)


def _emulated(directory: Path) -> Server:
    return _real(directory, replace(SPEC, generation="emulated", instance_type="e1.nano"))


def _fast(directory: Path) -> Server:
    return _real(directory, SPEC)


def _uml(directory: Path) -> Server:
    if missing():
        pytest.skip(f"no paravirtual machines: {missing()}")
    return _real(directory, replace(SPEC, generation="paravirtual", instance_type="t1.micro"))


#: QEMU with every device emulated, QEMU with fast devices, User-mode Linux.
DRIVERS = {"fake": _fake, "emulated": _emulated, "fast": _fast, "uml": _uml}


@pytest.fixture(params=DRIVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="haneul-contract-", dir="/var/tmp"))
    directory.chmod(0o711)
    try:
        found = DRIVERS[request.param](directory)
    except pytest.skip.Exception:
        shutil.rmtree(directory)
        raise
    yield found

    async def clean() -> None:
        for one in await found.machines.observe():
            await found.machines.ensure_absent(one)

    asyncio.run(clean())
    shutil.rmtree(directory)


SPEC = MachineSpec(
    instance_id="i-0123456789abcdef0",
    power="running",
    boot_count=1,
    force=False,
    stop_seconds=30,
    vcpus=1,
    memory_mib=256,
    image="tiny",
    instance_type="t3.nano",
    generation="hvm",
    uuid="ec2f0f4f-6e0c-4c57-9a9f-0a7d2a3b6c11",
    disks=(DiskSpec("vol-0123456789abcdef0", "tiny", 1, "/dev/xvda"),),
    nics=(),
)


async def _until(ask: Callable[[], Awaitable[MachineReport]], good: Callable[[MachineReport], bool]) -> MachineReport:
    """Tell it again, as the agent's passes do, until it is so."""
    async with asyncio.timeout(60):
        while not good(report := await ask()):
            await asyncio.sleep(0.05)
        return report


async def _run(server: Server, spec: MachineSpec | None = None) -> MachineReport:
    spec = spec or server.spec
    for disk in spec.disks:
        await server.disks.ensure(disk)
    return await _until(lambda: server.machines.ensure_running(spec, {}), lambda report: report.power == "running")


def _async(test: Callable[..., Awaitable[None]]) -> Any:
    def run(server: Server) -> None:
        asyncio.run(test(server))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@_async
async def test_nothing_is_there_at_first(server: Server) -> None:
    assert await server.machines.observe() == {}
    assert server.machines.needs_taps(server.spec)


@_async
async def test_running_may_be_told_again(server: Server) -> None:
    first = await _run(server)
    assert (first.power, first.boot_count) == ("running", 1)
    assert not server.machines.needs_taps(server.spec)
    second = await server.machines.ensure_running(server.spec, {})
    assert (second.power, second.boot_count) == ("running", 1)
    assert set(await server.machines.observe()) == {server.spec.instance_id}


@_async
async def test_another_haneul_finds_what_runs(server: Server) -> None:
    await _run(server)
    after_a_crash = server.again()
    found = (await after_a_crash.observe())[server.spec.instance_id]
    assert (found.power, found.boot_count) == ("running", 1)
    assert (await after_a_crash.ensure_running(server.spec, {})).power == "running"


def test_a_machine_outlives_who_started_it(server: Server) -> None:
    """haneul is killed; whatever it started a moment ago goes on, and is adopted."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(_run(server))
        finally:
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    time.sleep(0.3)  # what ends with its starter has time to
    found = asyncio.run(server.again().observe())[server.spec.instance_id]
    assert (found.power, found.boot_count) == ("running", 1)


@_async
async def test_forced_stop_and_start_again(server: Server) -> None:
    await _run(server)
    stop = replace(server.spec, power="stopped", force=True)
    off = await _until(lambda: server.machines.ensure_stopped(stop), lambda report: report.power == "off")
    assert off.cause == "ordered"
    assert (await server.machines.ensure_stopped(stop)).power == "off", "told again"
    again = replace(server.spec, boot_count=2)
    assert server.machines.needs_taps(again)
    assert (await _run(server, again)).boot_count == 2


@_async
async def test_a_machine_that_ended_by_itself_is_not_started_again(server: Server) -> None:
    await _run(server)
    server.break_machine(server.spec.instance_id)
    report = await _until(lambda: server.machines.ensure_running(server.spec, {}), lambda report: report.power == "off")
    assert report.cause == "crash" and report.detail
    assert (await server.machines.ensure_running(server.spec, {})).power == "off"
    assert (await _run(server, replace(server.spec, boot_count=2))).power == "running", "but it is when that is ordered"


@_async
async def test_absent_leaves_nothing_and_may_be_told_again(server: Server) -> None:
    await _run(server)
    for _ in range(2):
        assert (await server.machines.ensure_absent(server.spec.instance_id)).power == "absent"
        assert await server.machines.observe() == {}


@_async
async def test_stopping_what_never_was(server: Server) -> None:
    report = await server.machines.ensure_stopped(replace(server.spec, power="stopped"))
    assert report.power in ("off", "absent")


@_async
async def test_disks_are_made_once_and_go(server: Server) -> None:
    (disk,) = server.spec.disks
    await server.disks.ensure(disk)
    await server.disks.ensure(disk)
    assert await server.disks.observe() == {disk.volume_id}
    if isinstance(server.disks, Qcow2Disks):
        assert virtual_size(server.disks.file(disk.volume_id)) == disk.size_gib << 30
        await server.disks.ensure(replace(disk, size_gib=2))
        assert virtual_size(server.disks.file(disk.volume_id)) == 2 << 30
    await server.disks.ensure_absent(disk.volume_id)
    await server.disks.ensure_absent(disk.volume_id)
    assert await server.disks.observe() == frozenset()


@_async
async def test_a_boot_that_was_never_heard_of_has_not_happened(server: Server) -> None:
    """haneul is killed between writing a boot down and hearing from QEMU: the boot is done, once."""
    if not isinstance(server.machines, Machines):
        pytest.skip("the fake has no such moment")
    places = server.machines.places(server.spec.instance_id)
    places.directory.mkdir(parents=True)
    places.boot.write_text('{"boot_count": 1, "accelerator": "tcg", "begun": false}')
    assert (await server.machines.observe())[server.spec.instance_id].boot_count == 0
    assert server.machines.needs_taps(server.spec)
    assert (await _run(server)).boot_count == 1
    places.boot.write_text('{"boot_count": 1, "accelerator": "tcg", "begun": false}')
    assert (await server.again().observe())[server.spec.instance_id].boot_count == 1, "its lock is held: it is adopted"


@_async
async def test_what_a_machine_left_in_its_folder_does_not_keep_it(server: Server) -> None:
    if not isinstance(server.machines, Machines):
        pytest.skip("the fake has no folders")
    await _run(server)
    run = server.machines.places(server.spec.instance_id).run
    (run / "folder" / "deep").mkdir(parents=True)
    (run / "link").symlink_to("/etc")
    assert (await server.machines.ensure_absent(server.spec.instance_id)).power == "absent"
    assert Path("/etc/passwd").exists()


@_async
async def test_folders_too_deep_for_a_path_do_not_keep_a_machine(server: Server) -> None:
    if not isinstance(server.machines, Machines):
        pytest.skip("the fake has no folders")
    await _run(server)
    run = server.machines.places(server.spec.instance_id).run
    deep = "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')"
    for boot_count in (2,):
        subprocess.run([sys.executable, "-c", deep], cwd=run, check=True)
        stop = replace(server.spec, power="stopped", force=True, boot_count=boot_count - 1)
        await _until(lambda: server.machines.ensure_stopped(stop), lambda report: report.power == "off")  # noqa: B023
        assert (await _run(server, replace(server.spec, boot_count=boot_count))).power == "running"
    subprocess.run([sys.executable, "-c", deep], cwd=run, check=True)
    assert (await server.machines.ensure_absent(server.spec.instance_id)).power == "absent"


@_async
async def test_a_process_that_outlived_its_machine_does_not_keep_a_disk(server: Server) -> None:
    """It let go of the lock, so that the machine seemed off; its disk then went to another machine."""
    if not isinstance(server.machines, Machines) or not isinstance(server.disks, Qcow2Disks):
        pytest.skip("the fake has no processes")
    await _run(server)
    uid = int(server.machines.places(server.spec.instance_id).uid.read_text())
    (disk,) = server.spec.disks
    with open(server.disks.file(disk.volume_id), "r+b") as file:
        rogue = subprocess.Popen(["sleep", "600"], user=uid, group=uid, extra_groups=[], stdin=file)
    stop = replace(server.spec, power="stopped", stop_seconds=1)
    for pid in locks.holders(server.machines.places(server.spec.instance_id).lock):
        os.kill(pid, 9)
    await _until(lambda: server.machines.ensure_stopped(stop), lambda report: report.power == "off")
    assert rogue.poll() is None
    other = replace(server.spec, instance_id="i-0123456789abcdef1")
    await _run(server, other)
    assert rogue.wait(5) == -9


@_async
async def test_a_socket_that_is_a_link_is_not_followed(server: Server) -> None:
    """A machine that was taken over must not make haneul talk to another machine's QEMU."""
    if not isinstance(server.machines, Machines):
        pytest.skip("the fake has no sockets")
    await _run(server)
    places = server.machines.places(server.spec.instance_id)
    places.qmp.rename(places.run / "victim.sock")
    places.qmp.symlink_to("victim.sock")
    with pytest.raises(DriverError):
        await server.machines.screenshot(server.spec.instance_id)


@_async
async def test_a_guest_that_does_not_hear_is_cut_at_the_deadline(server: Server) -> None:
    """Right after its start no guest hears the power button."""
    await _run(server)
    stop = replace(server.spec, power="stopped", stop_seconds=1)
    off = await _until(lambda: server.machines.ensure_stopped(stop), lambda report: report.power == "off")
    assert off.cause == "ordered"


@_async
async def test_what_its_generation_can_do_is_what_is_declared(server: Server) -> None:
    if not isinstance(server.machines, Machines):
        pytest.skip("the fake can do what nobody has to")
    able = ABILITIES[parse([server.spec.generation])[0]]
    await _run(server)
    if able.screenshot:
        assert (await server.machines.screenshot(server.spec.instance_id)).startswith(b"\x89PNG")
    else:
        with pytest.raises(DriverError):
            await server.machines.screenshot(server.spec.instance_id)
    console = server.machines.places(server.spec.instance_id).console

    async def said() -> bytes:
        return await server.machines.console_output(server.spec.instance_id)

    if able.given_kernel:
        async with asyncio.timeout(120):
            while b"haneul-tiny" not in await said():
                await asyncio.sleep(0.1)
    assert console.is_socket()
    most = able.volumes
    if most is not None:
        many = tuple(replace(server.spec.disks[0], volume_id=f"vol-{number:017x}") for number in range(most + 1))
        with pytest.raises(DriverError):
            await _run(server, replace(server.spec, instance_id="i-0123456789abcdef1", disks=many))


@_async
async def test_an_orderly_stop_is_heard_by_a_guest_that_is_up(server: Server) -> None:
    """Its shutdown is its own; only the paravirtual guest is up soon enough for a test of every driver."""
    if server.spec.generation != "paravirtual" or not isinstance(server.machines, Machines):
        pytest.skip("system tests show it")
    await _run(server)
    async with asyncio.timeout(60):
        while b"haneul-tiny: ready" not in await server.machines.console_output(server.spec.instance_id):
            await asyncio.sleep(0.05)
    stop = replace(server.spec, power="stopped", stop_seconds=50)
    off = await _until(lambda: server.machines.ensure_stopped(stop), lambda report: report.power == "off")
    assert off.cause == "ordered"
    said = await server.machines.console_output(server.spec.instance_id)
    assert b"The system is going down" in said
    reboot = replace(server.spec, boot_count=3)
    await _run(server, replace(server.spec, boot_count=2))
    again = await _until(lambda: server.machines.ensure_running(reboot, {}), lambda report: report.boot_count == 3)
    assert again.power == "running"


@_async
async def test_nothing_of_a_machine_is_left_in_the_server(server: Server) -> None:
    """No process of its uid, no mount of its disks."""
    if not isinstance(server.machines, Machines):
        pytest.skip("the fake has no processes")
    await _run(server)
    uid = int(server.machines.places(server.spec.instance_id).uid.read_text())
    assert _processes(uid)
    await server.machines.ensure_absent(server.spec.instance_id)
    assert not _processes(uid)
    assert "exports" not in Path("/proc/self/mountinfo").read_text()


def _processes(uid: int) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_uid == uid:
                    found.append(int(path.name))
    return found
