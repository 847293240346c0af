"""Templates: machines that were booted once and saved, from which others of the same image and shape go on.

A template is a folder: `memory` (the guest's memory, sparse), `state` (QEMU's devices), `disk.qcow2` (an overlay on the image)
and `template.json`. It is made by an ordinary machine, confined as every other, which runs until the guest's resume unit
(`images/resume.c`) waits; nothing of a tenant is in it. What is used is verified first, and kept in memory as a sealed
memfd: machines map it privately, nobody can write to it, and no file of it is open to a machine's uid.

Their life: one is *wanted* after a cold boot, or *ordered*; it is made, *saved* on disk and *loaded* into memory. After a start what is
saved is loaded again. What was not used for longest goes first: from memory, and later from disk. What a clone still maps stays
its own. Where the rules are decided is `model/template.py`.

Sources: memfd_create(2), fcntl(2) (F_ADD_SEALS).
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
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from haneul.drivers.interface import DriverError
from haneul.drivers.machines.folder import Places
from haneul.drivers.machines.qemu import command as qemu_command
from haneul.drivers.machines.qemu import template_machine
from haneul.drivers.machines.qemu.command import Accelerator, Warm
from haneul.drivers.machines.qemu.template_machine import Making
from haneul.linux import locks
from haneul.model import template as rules
from haneul.model.assignment import DiskSpec, MachineSpec, NicSpec
from haneul.model.instance_types import instance_types
from haneul.model.template import DISK_FACTOR, Failure, State, TemplateReport

log = logging.getLogger(__name__)

#: Raised when templates of an older haneul would not do: the resume unit's protocol, the way they are made.
LAYOUT = 2
#: How often what nothing uses any more is looked for; a launch and `haneul image` notice it at once.
SWEEP_SECONDS = 600.0
#: A server that has less memory than this available (bytes) keeps no template in memory, and takes none: machines need it.
LEAST_AVAILABLE = 256 << 20
LOOK_SECONDS = 5.0
#: The address that a template's card has until its clone gets its own.
NO_MAC = "06:00:00:00:00:00"
_CHUNK = 4 << 20


class DamagedError(DriverError):
    """What was saved is not what was made."""


@dataclass(frozen=True)
class Shape:
    """What the machines of a template have in common. Memory in MiB.

    The type is part of it: a guest reads the name of its product (DMI) once, when it boots.
    """

    image: str
    instance_type: str
    vcpus: int
    memory_mib: int
    accelerator: Accelerator


@dataclass(frozen=True)
class Saved:
    """A template's folder, and what it says of itself. Sizes in bytes, as they are on disk."""

    directory: Path
    shape: Shape
    made: float
    seconds: float
    used: float
    memory: int
    disk: int


@dataclass
class Template:
    """`memory` is the descriptor of a sealed memfd, which is closed with the last who has this value.

    A launch has it in a thread of its own, perhaps just when the template is dropped: the number must not be another file's by then.
    """

    shape: Shape
    directory: Path
    memory: int
    used: float = 0.0
    #: Launches in a row that could not go on from it; when one last did (seconds of the monotonic clock).
    misses: int = 0
    worked: float = 0.0

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
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1

    __del__ = close


@dataclass(frozen=True)
class Server:
    """What templates need to know of their server.

    `uid` is one that no machine has, `vcpus` and `memory_mib` are what one instance may have at most. `tap` opens a tap that leads
    nowhere. `accelerator` says what machines of the HVM types use, once that is known.
    """

    uid: int
    vcpus: int
    memory_mib: int
    tap: Callable[[], int]
    accelerator: Callable[[], Awaitable[Accelerator]]


class Templates:
    """`directory` has a folder for each, `images` is the image store, `protocol` what its resume units are spoken to in.

    At most `most_mib` MiB of memory are kept, and `DISK_FACTOR` times as much on disk; the least recently used goes first.
    """

    def __init__(self, directory: Path, images: Path, server: Server, most_mib: int, protocol: int) -> None:
        self.directory = directory
        #: Told what is being done, in words.
        self.say: Callable[[str], None] = lambda _: None
        self._images = images
        self._server = server
        self._most = most_mib << 20
        self._protocol = protocol
        self._loaded: dict[Shape, Template] = {}
        self._wanted: dict[Shape, None] = {}
        self._failures: dict[Shape, Failure] = {}
        self._at: Shape | None = None
        self._phase = ""
        self._woken = asyncio.Event()

    # --- using them ---------------------------------------------------------------------------------------

    def find(self, shape: Shape) -> Template | None:
        """A template that is ready now. Never waits, and may be called in any thread."""
        found = self._loaded.get(shape)
        if found is None:
            return None
        try:
            fits = self._fits(shape, found.directory)
            os.utime(_about(found.directory))  # last use is known after a restart too
        except OSError:
            fits = False  # somebody has removed the folder, and its disk is gone with it
        if not fits:
            self._drop(found)
            return None
        found.used = time.time()
        return found

    def went_on(self, template: Template, began: float, why: str) -> None:
        """A launch that began at that moment (monotonic clock) went on from the template, or could not (`why`).

        One that does it to several in a row is dropped. Who is late began before others that it let go on, and says nothing.
        """
        if not why:
            template.misses, template.worked = 0, time.monotonic()
            self._failures.pop(template.shape, None)
            return
        if began < template.worked or self._loaded.get(template.shape) is not template:
            return
        template.misses += 1
        if template.misses >= rules.MOST_MISSES:
            self._drop(template)
            text = f"{rules.MOST_MISSES} launches in a row could not go on from it: {why}"
            self._has_failed(template.shape, DriverError(text))

    def why_not(self, image: str) -> str:
        """Why machines of the image go on from no template; empty if they can."""
        try:
            about = json.loads((self._images / image / "image.json").read_text())
        except (OSError, ValueError):
            return "there is no such image"
        return rules.why_not_image(about, self._protocol)

    def want(self, shape: Shape) -> None:
        """Have one soon, if it did not fail lately. Call it on the event loop."""
        if shape in self._loaded or self.why_not(shape.image):
            return
        failure = self._failures.get(shape)
        if failure is not None and failure.key == self._key_or_none(shape) and time.time() < failure.retry:
            return
        self._wanted.setdefault(shape)
        self._woken.set()

    async def order(self, image: str, instance_type: str) -> TemplateReport:
        """Have one soon, before what is wanted otherwise, and whatever failed before."""
        shape = await self.shape(image, instance_type)
        if self.find(shape) is None:
            self._failures.pop(shape, None)
            self._wanted = {shape: None} | self._wanted
            self._woken.set()
        return next(one for one in self.observe() if _is_of(one, shape))

    async def make(self, image: str, instance_type: str) -> TemplateReport:
        """Make it now, without `run`: while no haneul runs. Raises `DriverError`."""
        await asyncio.to_thread(self._remove_unfinished)
        await self.sweep()
        shape = await self.shape(image, instance_type)
        await self.ensure(shape)
        return next(one for one in self.observe() if _is_of(one, shape))

    async def shape(self, image: str, instance_type: str) -> Shape:
        """Of the machines that have this image and type here. Raises `DriverError` if there is no template for them."""
        if why := rules.why_not_type(instance_type):
            raise DriverError(why, fatal=True)
        found = instance_types()[instance_type]
        why = rules.why_not_here(found, self._server.vcpus, self._server.memory_mib)
        if why or (why := self.why_not(image)):
            raise DriverError(f"no template of {image} for {instance_type}: {why}", fatal=True)
        return Shape(image, instance_type, found.vcpus, found.memory_mib, await self._server.accelerator())

    def observe(self) -> list[TemplateReport]:
        found: dict[Shape, TemplateReport] = {}
        for saved in self._saved():
            if not self._fits(saved.shape, saved.directory):
                continue  # `sweep` removes it
            loaded = self._loaded.get(saved.shape)
            state: State = "saved" if loaded is None else "loaded"
            memory = saved.memory if loaded is None else loaded.bytes
            found[saved.shape] = replace(
                _report(saved.shape, state), memory_bytes=memory, disk_bytes=saved.disk, made=saved.made,
                seconds=saved.seconds, used=saved.used,
            )  # fmt: skip
        for shape, failure in list(self._failures.items()):
            if shape not in found:
                found[shape] = replace(_report(shape, "failed"), reason=failure.reason, retry=failure.retry)
        at, phase = self._at, self._phase
        for shape in (*self._wanted, *([at] if at else [])):
            state, what = ("being made", phase) if shape == at else ("waiting", "")
            known = found.get(shape, _report(shape, state))
            found[shape] = replace(known, state=state, phase=what, reason="", retry=0.0)
        return sorted(found.values(), key=lambda one: (one.image, one.instance_type, one.accelerator))

    # --- their life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        await asyncio.gather(self._work(), self._make_way())

    async def _make_way(self) -> None:
        """For ever. A template costs the server memory that is promised to nobody, but a guest may need it."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._guarded(self._look())

    async def _look(self) -> None:
        loaded = list(self._loaded.values())
        if loaded and _available() < LEAST_AVAILABLE:
            template = min(loaded, key=lambda one: one.used)
            log.warning("the server is short of memory: the template of %s makes way", template.shape)
            self._unload(template)

    async def _work(self) -> None:
        await self._guarded(self._take_up())
        while True:
            while self._wanted:
                await self._fulfil(next(iter(self._wanted)))
            self._woken.clear()
            try:
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                await self._guarded(self.sweep())

    async def _guarded(self, work: Awaitable[None]) -> None:
        """A launch without a template is slower, and nothing else: no failure ends the server's work."""
        try:
            await work
        except Exception:
            log.exception("templates")

    async def _fulfil(self, shape: Shape) -> None:
        self._at = shape
        try:
            # What failed before is forgotten when a machine has gone on from it.
            await self.ensure(shape)
        except Exception as error:
            self._has_failed(shape, error)
        finally:
            self._wanted.pop(shape, None)
            self._at, self._phase = None, ""

    def _has_failed(self, shape: Shape, error: Exception) -> None:
        expected = isinstance(error, DriverError | OSError | subprocess.SubprocessError)
        text = str(error) if isinstance(error, DriverError) else f"{type(error).__name__}: {error}"
        try:
            key = self._key(shape)
        except OSError:
            return  # the image is gone: nobody asks for it again
        failure = rules.failed(self._failures.get(shape), text, key, time.time())
        self._failures[shape] = failure
        log.warning("no template of %s: %s (again in %.0f s)", shape, text, failure.pause, exc_info=not expected)

    async def _take_up(self) -> None:
        """After a start: what is saved is loaded, the last used first, as far as there is room."""
        await asyncio.to_thread(self._remove_unfinished)
        await self.sweep()
        for saved in sorted(self._saved(), key=lambda one: one.used, reverse=True):
            if self._in_memory() + saved.memory > self._most:
                continue
            self._at = saved.shape
            try:
                await self._load(saved.shape, saved.directory)
                log.info("a template of %s is taken up", saved.shape)
            except (DriverError, OSError) as error:
                log.warning("a template of %s is not taken up: %s", saved.shape, error)
            finally:
                self._at, self._phase = None, ""

    async def sweep(self) -> None:
        for template in list(self._loaded.values()):
            if not self._fits(template.shape, template.directory):
                self._drop(template)
        for shape, failure in list(self._failures.items()):
            if self._key_or_none(shape) != failure.key:
                del self._failures[shape]
        await asyncio.to_thread(self._remove_unused)

    async def ensure(self, shape: Shape) -> Template:
        """Load the template, or make it first. Raises `DriverError`."""
        known = self.find(shape)
        if known is not None:
            return known
        if why := self.why_not(shape.image):
            raise DriverError(why, fatal=True)
        began = time.monotonic()
        directory = self.directory / self._key(shape)
        template = None
        if _about(directory).exists():
            try:
                template = await self._load(shape, directory)
            except DamagedError as error:
                log.warning("a template is made anew: %s", error)
        if template is None:
            await self._make(shape, directory)
            template = await self._load(shape, directory)
        log.info("a template of %s is ready after %.1f s", shape, time.monotonic() - began)
        await asyncio.to_thread(self._bound_disk, directory.name)
        return template

    async def _load(self, shape: Shape, directory: Path) -> Template:
        """Into memory; others go for it that were not used for longer. Raises `DriverError`."""
        self._tell("verifying what was saved")
        size = _allocated(directory / "memory")
        if size > self._most:
            raise DriverError(
                f"it takes {size >> 20} MiB of memory, and all templates {self._most >> 20} at most (setting warm_max_mib)"
            )
        loaded = {one.directory.name: one for one in self._loaded.values()}
        sizes = [(name, one.bytes, one.used) for name, one in loaded.items()]
        for name in rules.surplus(sizes, self._most - size):
            self._unload(loaded[name])
        if _available() - size < LEAST_AVAILABLE:
            raise DriverError(f"the server has too little memory available for it ({size >> 20} MiB)")
        template = await asyncio.to_thread(self._read, shape, directory)
        self._loaded[shape] = template
        return template

    def _read(self, shape: Shape, directory: Path) -> Template:
        """Verified, in a memfd that can be neither written nor resized. Raises `DamagedError`; what is not whole goes."""
        descriptor = os.memfd_create("haneul-template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            about = json.loads(_about(directory).read_text())
            used = _about(directory).stat().st_mtime
            digests = {"memory": _copy_memory(directory / "memory", descriptor)}
            digests |= {name: _digest(directory / name) for name in ("state", "disk.qcow2")}
            if digests != about["digests"]:
                raise DamagedError(f"the template in {directory} is damaged")
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        except (DamagedError, FileNotFoundError, ValueError, KeyError, TypeError) as error:
            os.close(descriptor)
            shutil.rmtree(directory, ignore_errors=True)
            raise DamagedError(f"the template in {directory} is damaged") from error
        except BaseException:
            os.close(descriptor)
            raise
        return Template(shape, directory, descriptor, used)

    def _unload(self, template: Template) -> None:
        """From memory; it stays saved. What clones have mapped is theirs until they end, and counts to them."""
        self._loaded.pop(template.shape, None)

    def _drop(self, template: Template) -> None:
        self._unload(template)
        shutil.rmtree(template.directory, ignore_errors=True)

    def _in_memory(self) -> int:
        return sum(one.bytes for one in list(self._loaded.values()))

    # --- on disk --------------------------------------------------------------------------------------------

    def _folders(self) -> Iterator[Path]:
        if self.directory.is_dir():
            yield from (one for one in self.directory.iterdir() if not one.name.startswith("."))

    def _saved(self) -> Iterator[Saved]:
        return (found for one in self._folders() if (found := _saved(one)) is not None)

    def _fits(self, shape: Shape, directory: Path) -> bool:
        """Whether the folder is a template of what there is now: of this very image, and this QEMU."""
        return not self.why_not(shape.image) and directory.name == self._key_or_none(shape)

    def _remove_unused(self) -> None:
        for directory in list(self._folders()):
            saved = _saved(directory)
            if saved is None or not self._fits(saved.shape, directory):
                log.info("a template that nothing uses is removed: %s", saved.shape if saved else directory.name)
                shutil.rmtree(directory, ignore_errors=True)

    def _bound_disk(self, kept: str) -> None:
        """`kept` was made just now."""
        found = {one.directory.name: one for one in self._saved()}
        sizes = [(name, one.disk, time.time() if name == kept else one.used) for name, one in found.items()]
        for name in rules.surplus(sizes, DISK_FACTOR * self._most):
            if name != kept:
                self._loaded.pop(found[name].shape, None)
                shutil.rmtree(found[name].directory, ignore_errors=True)

    # --- what they are made of ----------------------------------------------------------------------------

    def _key(self, shape: Shape) -> str:
        """Changes with all that a saved machine depends on."""
        image = self._images / shape.image
        disk, about = (image / "disk.qcow2").stat(), (image / "image.json").read_text()
        machine = qemu_command.command(
            _spec(shape), Places(Path("/")), {"template": Path("/disk")}, {"template": 0}, shape.accelerator,
            warm=Warm("/memory", 0, shared=True),
        )  # fmt: skip
        which = [shape.image, disk.st_ino, disk.st_mtime_ns, disk.st_size, about]
        # Under KVM the processor is the server's own, and what a guest once found in it has to be there again.
        server = [_processor()] if shape.accelerator == "kvm" else []
        parts = [LAYOUT, self._protocol, *which, _qemu_version(), machine, *server]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def _key_or_none(self, shape: Shape) -> str | None:
        try:
            return self._key(shape)
        except OSError:
            return None  # there is no such image

    def _tell(self, phase: str) -> None:
        self._phase = phase
        self.say(phase)

    def _remove_unfinished(self) -> None:
        """What a killed haneul left of its making. Its machine is killed too."""
        for left in self.directory.glob(".making-*"):
            for pid in locks.holders(left / "lock"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            shutil.rmtree(left, ignore_errors=True)

    async def _make(self, shape: Shape, directory: Path) -> None:
        began = time.monotonic()
        places = Places(self.directory / f".making-{directory.name}")
        shutil.rmtree(places.directory, ignore_errors=True)
        places.directory.mkdir(mode=0o711, parents=True)
        for path in (self.directory, places.directory):
            path.chmod(0o711)
        server = self._server
        making = Making(
            _spec(shape), places, self._images / shape.image, server.uid, shape.accelerator, self._protocol, server.tap, self._tell
        )  # fmt: skip
        try:
            await template_machine.make(making)
            await asyncio.to_thread(self._finish, shape, places, directory, time.monotonic() - began)
        finally:
            shutil.rmtree(places.directory, ignore_errors=True)

    def _finish(self, shape: Shape, places: Places, directory: Path, seconds: float) -> None:
        """With what each file has to be, and under its name: whole, or not at all."""
        digests = {"memory": _memory_digest(places.run / "memory")}
        digests |= {name: _digest(places.run / name) for name in ("state", "disk.qcow2")}
        about = {"layout": LAYOUT, "made": time.time(), "seconds": seconds, "digests": digests, "shape": asdict(shape)}
        _about(places.run).write_text(json.dumps(about, indent=2) + "\n")
        shutil.rmtree(directory, ignore_errors=True)
        places.run.rename(directory)


def _spec(shape: Shape) -> MachineSpec:
    """The machine of a template: nobody's."""
    return MachineSpec(
        instance_id="template", power="running", boot_count=1, force=False, stop_seconds=0, vcpus=shape.vcpus,
        memory_mib=shape.memory_mib, image=shape.image, instance_type=shape.instance_type, generation="hvm",
        uuid="ec2e1e16-0000-4000-8000-000000000000", disks=(DiskSpec("template", shape.image, 1, "/dev/xvda"),),
        nics=(NicSpec("template", "", "", NO_MAC, ""),),
    )  # fmt: skip


def _is_of(report: TemplateReport, shape: Shape) -> bool:
    return (report.image, report.instance_type, report.accelerator) == (
        shape.image,
        shape.instance_type,
        shape.accelerator,
    )


def _report(shape: Shape, state: State) -> TemplateReport:
    return TemplateReport(**asdict(shape), state=state)


def _about(directory: Path) -> Path:
    """What a template says of itself. When it was changed last is when the template was used last."""
    return directory / "template.json"


def _saved(directory: Path) -> Saved | None:
    """None if that is no template, or one of an older haneul."""
    try:
        about = json.loads(_about(directory).read_text())
        return Saved(
            directory, Shape(**about["shape"]), float(about["made"]), float(about["seconds"]), _about(directory).stat().st_mtime,
            _allocated(directory / "memory"), sum(_allocated(one) for one in directory.iterdir()),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _allocated(path: Path) -> int:
    """What a file takes: the memory of a machine is mostly holes."""
    return path.stat().st_blocks * 512


def _available() -> int:
    """Memory that the server could give without swapping (proc(5), /proc/meminfo)."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def _qemu_version() -> str:
    """The program itself: an upgrade in place is another one."""
    found = os.stat(shutil.which(qemu_command.BINARY) or "/dev/null")
    return f"{found.st_mtime_ns} {found.st_size}"


@cache
def _processor() -> str:
    """What a guest may see of this server's first processor (proc(5), /proc/cpuinfo); not its speed, which changes."""
    seen = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0].strip() in seen)


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
