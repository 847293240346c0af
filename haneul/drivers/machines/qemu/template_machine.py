"""The machine that is saved as a template: booted like any other, until its guest's resume unit waits (`images/resume.c`).

It is confined as every machine is, and belongs to nobody: no network, no key, no user data. Its folder is its own while it lives;
nothing in there is looked at before the folder is root's again, and no link is followed then.

Sources: QEMU, docs/devel/migration.rst (x-ignore-shared).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from haneul.drivers.interface import DriverError
from haneul.drivers.machines import pace, qmp
from haneul.drivers.machines.folder import Places, confined
from haneul.drivers.machines.qemu import command as qemu_command
from haneul.drivers.machines.qemu.command import Accelerator, Kernel, Warm
from haneul.linux import locks
from haneul.model.assignment import MachineSpec

#: The guest's resume unit waits after so long at most (seconds); an emulated Debian needs half a minute on a quiet server.
BOOT_SECONDS = 1200.0
#: Between the unit's word and the save: what is still starting settles.
SETTLE_SECONDS = 2.0
SAVE_SECONDS = 120.0
NICE = 10
#: Devices without the guest's memory: less than one MiB is usual.
MOST_STATE = 64 << 20
#: What is left in the machine's folder at the end.
FILES = ("memory", "state", "disk.qcow2")


@dataclass(frozen=True)
class Making:
    """`image` is the folder of the machine's image, `uid` one that no other machine has now.

    `protocol` is what the resume unit speaks, `tap` opens a tap that leads nowhere, `tell` is told what is being done.
    """

    spec: MachineSpec
    places: Places
    image: Path
    uid: int
    accelerator: Accelerator
    protocol: int
    tap: Callable[[], int]
    tell: Callable[[str], None]


async def make(making: Making) -> None:
    """Boot it, and save it as `FILES` in its folder, which is root's then. Raises `DriverError`."""
    await asyncio.to_thread(_prepare, making)
    try:
        state = await _boot_and_save(making)
    finally:
        await locks.kill(making.places.lock)
    await asyncio.to_thread(_take_back, making.places, state)


def _prepare(making: Making) -> None:
    making.places.run.mkdir(mode=0o700)
    base, disk, memory = (making.image / "disk.qcow2").absolute(), *_files(making.places)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(disk)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with memory.open("wb") as file:
        file.truncate(qemu_command.guest_memory(making.spec.memory_mib, making.accelerator))
    for path in (disk, memory, making.places.run):
        os.chown(path, making.uid, making.uid)


def _files(places: Places) -> tuple[Path, Path]:
    return places.run / "disk.qcow2", places.run / "memory"


async def _boot_and_save(making: Making) -> bytes:
    here, there = socket.socketpair()
    here.setblocking(False)
    making.tell("booting a machine of it, until it waits")
    tap = await asyncio.to_thread(making.tap)
    try:
        process = _spawn(making, tap, there.fileno())
    finally:
        os.close(tap)
        there.close()
    with here:
        try:
            await _until_waiting(here, making)
            making.tell("saving that machine")
            await asyncio.sleep(SETTLE_SECONDS)
            return await _save(making)
        except TimeoutError:
            raise DriverError("the guest's resume unit did not wait in time") from None
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _spawn(making: Making, tap: int, resume: int) -> subprocess.Popen[bytes]:
    spec, places, image = making.spec, making.places, making.image
    arguments = (image / "cmdline").read_text().strip() + " haneul.template"
    kernel = Kernel(image / "vmlinuz", image / "initrd", arguments)
    disk, memory = _files(places)
    words = qemu_command.command(
        spec, places, {spec.disks[0].volume_id: disk}, {spec.nics[0].interface_id: tap}, making.accelerator, kernel,
        Warm(str(memory), resume, shared=True),
    )  # fmt: skip
    groups = [os.stat("/dev/kvm").st_gid] if making.accelerator == "kvm" else []
    lock = locks.take(places.lock)
    if lock is None:
        raise DriverError("this template is being made already")
    try:
        with open(os.open(places.errors, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as errors:
            process = subprocess.Popen(
                # What waits for a launch comes first. It ends with haneul; the signal is asked for by its own uid, or is forgotten.
                ["nice", "-n", str(NICE), *confined(making.uid, groups, ["setpriv", "--pdeathsig", "KILL", "--", *words])],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                pass_fds=(lock, tap, resume), start_new_session=True, cwd="/", env={"PATH": "/usr/bin:/bin"},
            )  # fmt: skip
        pace.set_niceness(process.pid, NICE)
        return process
    finally:
        os.close(lock)


async def _until_waiting(port: socket.socket, making: Making) -> None:
    loop, said = asyncio.get_running_loop(), b""
    async with asyncio.timeout(BOOT_SECONDS):
        while b"waiting %d\n" % making.protocol not in said.replace(b"\r", b""):
            some = await loop.sock_recv(port, 4096)
            if not some:
                why = _last_words(making.places.errors)
                raise DriverError(f"QEMU ended before the guest's resume unit waited{why and ': '}{why}")
            said = (said + some)[-4096:]


def _last_words(errors: Path) -> str:
    """QEMU's last line, as it may go onto a terminal."""
    lines = errors.read_bytes()[-400:].decode(errors="replace").strip().splitlines()
    return "".join(one if one.isprintable() and one.isascii() else "?" for one in lines[-1]) if lines else ""


async def _save(making: Making) -> bytes:
    """Stop the machine; gives its devices' state. Its memory is in its file already.

    QEMU writes to a socket: uvloop cannot hand a descriptor over, and QEMU writes to no descriptor that it has inherited.
    """
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = await _all(reader, MOST_STATE)
        if not received.done():
            received.set_result(found)
        writer.close()

    # In root's folder, where nobody puts a link in its place, and open to the machine alone.
    door = making.places.directory / "state.sock"
    server = await asyncio.start_unix_server(receive, str(door))
    try:
        door.chmod(0o600)
        os.chown(door, making.uid, making.uid)
        async with asyncio.timeout(SAVE_SECONDS), qmp.connected(making.places.qmp) as client:
            await client.execute("stop")
            await client.execute("migrate-set-capabilities", qmp.IGNORE_SHARED)
            await client.execute("migrate", {"uri": f"unix:{door}"})
            await qmp.until_migrated(client)
            state = await received
            await client.execute("quit")
    finally:
        server.close()
    if len(state) >= MOST_STATE:
        raise DriverError("the state of the devices is too large for a template")
    return state


async def _all(reader: asyncio.StreamReader, most: int) -> bytes:
    found = b""
    while len(found) < most and (some := await reader.read(most - len(found))):
        found += some
    return found


def _take_back(places: Places, state: bytes) -> None:
    """The folder is root's again, with the files of a template and nothing else. No process of the machine lives."""
    os.chown(places.run, 0, 0, follow_symlinks=False)
    places.run.chmod(0o700)
    for path in places.run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path not in _files(places):
            path.unlink()
    for path in _files(places):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise DriverError("the machine of the template has put something else in the place of its files")
            os.fchown(descriptor, 0, 0)
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    descriptor = os.open(places.run / "state", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(state)
