"""The engine of paravirtual machines: User-mode Linux, on any server, without hardware virtualization."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from haneul.drivers.interface import DriverError
from haneul.drivers.machines import probe_guest as guest
from haneul.drivers.machines.engine import Boot, Launch
from haneul.drivers.machines.folder import Places, confined
from haneul.drivers.machines.uml import command as uml_command
from haneul.model.assignment import MachineSpec

#: A probe's guest has answered in less than a second (seconds).
DEADLINE = 15.0
#: Program -> the Debian package that has it.
PROGRAMS = {
    uml_command.BINARY: "user-mode-linux",
    "qemu-storage-daemon": "qemu-utils",
    "bwrap": "bubblewrap",
    uml_command.PYTHON: "python3",
}


def missing() -> str:
    """Why this server cannot even try; empty if it can."""
    absent = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if absent:
        return f"packages are missing: {' '.join(absent)}"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse: the module fuse is not loaded (modprobe fuse)"
    return ""


class UmlEngine:
    """`images` is the image store."""

    program = "User-mode Linux"

    def __init__(self, images: Path, why_not: Callable[[], str] = missing) -> None:
        self._images = images
        self._why_not = why_not

    def accelerator(self, spec: MachineSpec) -> str:
        return "uml"

    def launch(self, boot: Boot) -> Launch:
        """Raises `DriverError` where no paravirtual machine can be run."""
        why = self._why_not()
        if why:
            raise DriverError(f"paravirtual machines cannot be run here: {why}", fatal=True)
        _make_fuse(boot.places, boot.uid)
        disks = [
            uml_command.Disk(boot.files[one.volume_id], self._base(one.image) if one.image else None)
            for one in boot.spec.disks
        ]
        filters = _filters()
        words = uml_command.command(boot.spec, boot.places, disks, list(boot.taps.values()), filters, boot.first)
        return Launch(confined(boot.uid, [], words), (filters.kernel, filters.machine))

    def cold_booted(self, spec: MachineSpec) -> None:
        """There are no templates of paravirtual machines."""

    def _base(self, image: str) -> Path:
        return (self._images / image / "disk.qcow2").absolute()


def _filters() -> uml_command.Filters:
    return uml_command.Filters(_filter(uml_command.kernel_filter()), _filter(uml_command.machine_filter()))


def _filter(program: bytes) -> int:
    """A descriptor of a filter of system calls, as bwrap(1) takes it."""
    descriptor = os.memfd_create("seccomp")
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _make_fuse(places: Places, uid: int) -> None:
    """A device node of the machine's own: the server's belongs to root alone."""
    node = places.fuse
    if not node.exists():
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(*uml_command.FUSE))
    os.chown(node, uid, uid)


#: A machine that only says that it ran.
_PROBE = MachineSpec(
    instance_id="probe", power="running", boot_count=1, force=False, stop_seconds=0, vcpus=1, memory_mib=64, image="",
    instance_type="", generation="paravirtual", uuid="", disks=(), nics=(),
)  # fmt: skip


async def probe(data: Path, uid: int, deadline: float = DEADLINE) -> str:
    """Why this server runs no paravirtual machines; empty if one ran here, in a machine's own confinement, as `uid`."""
    why = missing()
    if why:
        return why
    data.mkdir(mode=0o711, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=data) as directory:
        places = Places(Path(directory))
        places.directory.chmod(0o711)
        places.run.mkdir(mode=0o700)
        places.run.joinpath("initrd").write_bytes(guest.initramfs())
        for path in (places.run, places.run / "initrd"):
            os.chown(path, uid, uid)
        _make_fuse(places, uid)
        said = await _until_it_ran(places, uid, deadline)
        return said and f"a guest did not run: {said}"


async def _until_it_ran(places: Places, uid: int, deadline: float) -> str:
    """Empty once the guest has said that it runs; else what its processes said on standard error."""
    filters = _filters()
    words = ["setpriv", "--pdeathsig", "KILL", "--", *confined(uid, [], uml_command.probe(_PROBE, places, filters))]
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=(filters.kernel, filters.machine), cwd="/", env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    finally:
        os.close(filters.kernel)
        os.close(filters.machine)
    until = time.monotonic() + deadline
    try:
        while guest.MARKER not in _content(places.console_log):
            if process.returncode is not None:
                assert process.stderr is not None
                said = (await process.stderr.read()).decode(errors="replace").split()
                return " ".join(said)[-200:] or "it said nothing"
            if time.monotonic() > until:
                return f"nothing from its init within {deadline:.0f} s"
            await asyncio.sleep(0.02)
        return ""
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
