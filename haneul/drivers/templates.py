"""Templates: machines that were booted once and saved, from which others of the same image and shape go on.

A template is a folder: `memory` (the guest's memory, sparse), `state` (QEMU's devices), `disk.qcow2` (an overlay on the image)
and `template.json`. It is made by an ordinary machine, confined as every other, which runs until the guest's resume unit
(`images/resume.c`) waits; nothing of a tenant is in it. What is used is verified first, and kept in memory as a sealed
memfd: machines map it privately, nobody can write to it, and no file of it is open to a machine's uid.

Sources: memfd_create(2), fcntl(2) (F_ADD_SEALS); QEMU, docs/devel/migration.rst (x-ignore-shared).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haneul.drivers import locks, qemu_command, qmp
from haneul.drivers.interface import DriverError
from haneul.drivers.places import Places, confined
from haneul.drivers.qemu_command import Accelerator, Kernel, Warm
from haneul.model.assignment import DiskSpec, MachineSpec, NicSpec

log = logging.getLogger(__name__)

#: Raised when templates of an older haneul would not do: the resume unit's protocol, the way they are made.
LAYOUT = 1
#: The guest's resume unit waits after so long at most (seconds); an emulated Debian needs half a minute on a quiet server.
BOOT_SECONDS = 600.0
#: Between the unit's word and the save: what is still starting settles.
SETTLE_SECONDS = 2.0
SAVE_SECONDS = 120.0
#: The address that a template's card has until its clone gets its own.
NO_MAC = "06:00:00:00:00:00"
_CHUNK = 4 << 20
#: Devices without the guest's memory: less than one MiB is usual.
MOST_STATE = 64 << 20


@dataclass(frozen=True)
class Shape:
    """What the machines of a template have in common. Memory in MiB."""

    image: str
    vcpus: int
    memory_mib: int
    accelerator: Accelerator


@dataclass
class Template:
    """`memory` is the descriptor of a sealed memfd."""

    shape: Shape
    directory: Path
    memory: int
    used: float = 0.0

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def bytes(self) -> int:
        return os.fstat(self.memory).st_blocks * 512

    def close(self) -> None:
        os.close(self.memory)


class Templates:
    """`directory` has a folder for each, `images` is the image store, `uid` one that no machine has.

    At most `most_mib` MiB of memory are kept; the least recently used goes first. `tap` opens a tap that leads nowhere.
    """

    def __init__(self, directory: Path, images: Path, uid: int, most_mib: int, tap: Callable[[], int]) -> None:
        self.directory = directory
        self._images = images
        self._uid = uid
        self._most = most_mib << 20
        self._tap = tap
        self._loaded: dict[Shape, Template] = {}
        self._wanted: dict[Shape, float] = {}
        self._failed: set[Shape] = set()
        self._worker: asyncio.Task[None] | None = None

    # --- using them ---------------------------------------------------------------------------------------

    def find(self, shape: Shape) -> Template | None:
        """A template that is ready now. Never waits."""
        found = self._loaded.get(shape)
        if found is not None and found.directory.name != self._key(shape):
            self._drop(found)  # the image was built anew, or QEMU was upgraded
            return None
        if found is not None:
            found.used = time.time()
        return found

    def supports(self, image: str) -> bool:
        """Whether the image has a resume unit."""
        try:
            return bool(json.loads((self._images / image / "image.json").read_text()).get("resume"))
        except (OSError, ValueError):
            return False

    def want(self, shape: Shape) -> None:
        """Make one in the background, if there is none and none has failed. Call it on the event loop."""
        if shape in self._loaded or shape in self._failed or not self.supports(shape.image):
            return
        self._wanted[shape] = time.time()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        await asyncio.to_thread(self._sweep)
        while self._wanted:
            shape = next(iter(self._wanted))
            try:
                await self.ensure(shape)
            except Exception as error:
                # A launch without a template is slower, and nothing else.
                self._failed.add(shape)
                log.warning(
                    "no template of %s: %s", shape, error, exc_info=not isinstance(error, DriverError | OSError)
                )
            finally:
                self._wanted.pop(shape, None)

    async def ensure(self, shape: Shape) -> Template:
        """Load the template, or make it first. Raises `DriverError`."""
        known = self.find(shape)
        if known is not None:
            return known
        began = time.monotonic()
        directory = self.directory / self._key(shape)
        template = None
        if (directory / "template.json").exists():
            try:
                template = await asyncio.to_thread(self._load, shape, directory)
            except (DriverError, OSError, ValueError, KeyError) as error:
                log.warning("a template is made anew: %s", error)
        if template is None:
            await self._make(shape, directory)
            template = await asyncio.to_thread(self._load, shape, directory)
        self._loaded[shape] = template
        log.info("a template of %s is ready after %.1f s", shape, time.monotonic() - began)
        self._forget_least_used(template)
        return template

    def _load(self, shape: Shape, directory: Path) -> Template:
        """Verified, in a memfd that can be neither written nor resized. Raises `DriverError`; what is not whole goes."""
        about = json.loads((directory / "template.json").read_text())
        descriptor = os.memfd_create("haneul-template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            digests = {"memory": _copy_memory(directory / "memory", descriptor)}
            digests |= {name: _digest(directory / name) for name in ("state", "disk.qcow2")}
            if digests != about["digests"]:
                raise DriverError(f"the template in {directory} is damaged")
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        except (DriverError, OSError, KeyError):
            os.close(descriptor)
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return Template(shape, directory, descriptor, time.time())

    def _drop(self, template: Template) -> None:
        self._loaded.pop(template.shape, None)
        template.close()
        shutil.rmtree(template.directory, ignore_errors=True)

    def _forget_least_used(self, kept: Template) -> None:
        while sum(one.bytes for one in self._loaded.values()) > self._most:
            others = [one for one in self._loaded.values() if one is not kept]
            if not others:
                return
            self._drop(min(others, key=lambda one: one.used))

    # --- what they are made of ----------------------------------------------------------------------------

    def _key(self, shape: Shape) -> str:
        """Changes with all that a saved machine depends on."""
        disk = (self._images / shape.image / "disk.qcow2").stat()
        machine = qemu_command.command(
            _spec(shape), Places(Path("/")), {"template": Path("/disk")}, {"template": 0}, shape.accelerator,
            warm=Warm("/memory", 0, shared=True),
        )  # fmt: skip
        parts = [LAYOUT, shape.image, disk.st_ino, disk.st_mtime_ns, disk.st_size, _qemu_version(), machine]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def _sweep(self) -> None:
        """What a killed haneul left of its making. Its machine is killed too."""
        for left in self.directory.glob(".making-*"):
            for pid in locks.holders(left / "lock"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            shutil.rmtree(left, ignore_errors=True)

    async def _make(self, shape: Shape, directory: Path) -> None:
        places = Places(self.directory / f".making-{directory.name}")
        shutil.rmtree(places.directory, ignore_errors=True)
        places.run.mkdir(mode=0o700, parents=True)
        self.directory.chmod(0o711)
        places.directory.chmod(0o711)
        try:
            await asyncio.to_thread(self._prepare, shape, places)
            await self._boot_and_save(shape, places)
            await asyncio.to_thread(self._finish, shape, places, directory)
        finally:
            await locks.kill(places.lock)
            shutil.rmtree(places.directory, ignore_errors=True)

    def _prepare(self, shape: Shape, places: Places) -> None:
        base = (self._images / shape.image / "disk.qcow2").absolute()
        disk, memory = places.run / "disk.qcow2", places.run / "memory"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(disk)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        with memory.open("wb") as file:
            file.truncate(shape.memory_mib << 20)
        for path in (places.run, disk, memory):
            os.chown(path, self._uid, self._uid)

    async def _boot_and_save(self, shape: Shape, places: Places) -> None:
        here, there = socket.socketpair()
        here.setblocking(False)
        tap = await asyncio.to_thread(self._tap)
        try:
            process = self._spawn(shape, places, tap, there.fileno())
        finally:
            os.close(tap)
            there.close()
        with here:
            try:
                await _until_waiting(here)
                await asyncio.sleep(SETTLE_SECONDS)
                await _save(places)
            except TimeoutError:
                raise DriverError("the guest's resume unit did not wait in time") from None
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()

    def _spawn(self, shape: Shape, places: Places, tap: int, resume: int) -> subprocess.Popen[bytes]:
        image = self._images / shape.image
        arguments = (image / "cmdline").read_text().strip() + " haneul.template"
        kernel = Kernel(image / "vmlinuz", image / "initrd", arguments)
        words = qemu_command.command(
            _spec(shape), places, {"template": places.run / "disk.qcow2"}, {"template": tap}, shape.accelerator, kernel,
            Warm(str(places.run / "memory"), resume, shared=True),
        )  # fmt: skip
        groups = [os.stat("/dev/kvm").st_gid] if shape.accelerator == "kvm" else []
        lock = locks.take(places.lock)
        if lock is None:
            raise DriverError("this template is being made already")
        try:
            return subprocess.Popen(
                # What waits for a launch comes first. It ends with haneul; the signal is asked for by its own uid, or is forgotten.
                ["nice", "-n", "10", *confined(self._uid, groups, ["setpriv", "--pdeathsig", "KILL", "--", *words])],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=(lock, tap, resume), start_new_session=True, cwd="/", env={"PATH": "/usr/bin:/bin"},
            )  # fmt: skip
        finally:
            os.close(lock)

    def _finish(self, shape: Shape, places: Places, directory: Path) -> None:
        """Root's from now on, with what each file has to be."""
        digests: dict[str, str] = {}
        for name in ("memory", "state", "disk.qcow2"):
            path = places.run / name
            os.chown(path, 0, 0, follow_symlinks=False)
            path.chmod(0o600)
            digests[name] = _memory_digest(path) if name == "memory" else _digest(path)
        shape_text = {"image": shape.image, "vcpus": shape.vcpus, "memory_mib": shape.memory_mib}
        about = {"layout": LAYOUT, "made": time.time(), "digests": digests, **shape_text}
        for path in (places.console_log, places.qmp, places.console):
            path.unlink(missing_ok=True)
        (places.run / "template.json").write_text(json.dumps(about, indent=2) + "\n")
        os.chown(places.run, 0, 0)
        shutil.rmtree(directory, ignore_errors=True)
        places.run.rename(directory)


def _spec(shape: Shape) -> MachineSpec:
    """The machine of a template: nobody's."""
    return MachineSpec(
        instance_id="template", power="running", boot_count=1, force=False, stop_seconds=0, vcpus=shape.vcpus,
        memory_mib=shape.memory_mib, image=shape.image, instance_type="template", generation="hvm",
        uuid="ec2e1e16-0000-4000-8000-000000000000", disks=(DiskSpec("template", shape.image, 1, "/dev/xvda"),),
        nics=(NicSpec("template", "", "", NO_MAC, ""),),
    )  # fmt: skip


async def _until_waiting(port: socket.socket) -> None:
    loop, said = asyncio.get_running_loop(), b""
    async with asyncio.timeout(BOOT_SECONDS):
        while b"waiting 2\n" not in said.replace(b"\r", b""):
            some = await loop.sock_recv(port, 4096)
            if not some:
                raise DriverError("QEMU ended before the guest's resume unit waited")
            said = (said + some)[-4096:]


async def _save(places: Places) -> None:
    """Stop the machine and write its devices' state; its memory is in its file already.

    QEMU writes to a socket: uvloop cannot hand a descriptor over, and QEMU writes to no descriptor that it has inherited.
    """
    received = asyncio.get_running_loop().create_future()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await _all(reader, MOST_STATE))
        writer.close()

    door = places.run / "state.sock"
    server = await asyncio.start_unix_server(receive, str(door))
    try:
        door.chmod(0o777)  # in a folder that only root and the machine enter
        async with asyncio.timeout(SAVE_SECONDS), qmp.connected(places.qmp) as client:
            await client.execute("stop")
            await client.execute("migrate-set-capabilities", qmp.IGNORE_SHARED)
            await client.execute("migrate", {"uri": f"unix:{door}"})
            await qmp.until_migrated(client)
            state: bytes = await received
            await client.execute("quit")
    finally:
        server.close()
        door.unlink(missing_ok=True)
    if len(state) >= MOST_STATE:
        raise DriverError("the state of the devices is too large for a template")
    (places.run / "state").write_bytes(state)


async def _all(reader: asyncio.StreamReader, most: int) -> bytes:
    found = b""
    while len(found) < most and (some := await reader.read(most - len(found))):
        found += some
    return found


def _qemu_version() -> str:
    """The program itself: an upgrade in place is another one."""
    found = os.stat(shutil.which(qemu_command.BINARY) or "/dev/null")
    return f"{found.st_mtime_ns} {found.st_size}"


def _holes(path: Path) -> Any:
    """(offset, length) of what a sparse file holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        end, at = os.fstat(descriptor).st_size, 0
        while at < end:
            try:
                at = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:
                return
            hole = os.lseek(descriptor, at, os.SEEK_HOLE)
            while at < hole:
                data = os.pread(descriptor, min(hole - at, _CHUNK), at)
                yield at, data
                at += len(data)
    finally:
        os.close(descriptor)


def _memory_digest(path: Path) -> str:
    found = hashlib.sha256()
    for at, data in _holes(path):
        found.update(at.to_bytes(8, "big") + data)
    return found.hexdigest()


def _copy_memory(path: Path, target: int) -> str:
    """Copy a sparse file; gives the digest of what was copied."""
    os.ftruncate(target, path.stat().st_size)
    found = hashlib.sha256()
    for at, data in _holes(path):
        found.update(at.to_bytes(8, "big") + data)
        os.pwrite(target, data, at)
    return found.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
