"""The engine of paravirtual machines: User-mode Linux, on any server, without hardware virtualization."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from haneul.drivers import uml_command
from haneul.drivers.engine import Boot, Launch
from haneul.drivers.interface import DriverError
from haneul.drivers.places import Places, confined
from haneul.model.assignment import MachineSpec

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
        if len(boot.spec.disks) > uml_command.MOST_DISKS:
            raise DriverError(f"a paravirtual machine has at most {uml_command.MOST_DISKS} disks", fatal=True)
        _make_fuse(boot.places, boot.uid)
        descriptor = os.memfd_create("seccomp")
        try:
            os.write(descriptor, uml_command.kernel_filter())
            os.lseek(descriptor, 0, os.SEEK_SET)
            disks = [
                uml_command.Disk(boot.files[one.volume_id], self._base(one.image) if one.image else None)
                for one in boot.spec.disks
            ]
            words = uml_command.command(boot.spec, boot.places, disks, list(boot.taps.values()), descriptor, boot.first)
        except BaseException:
            os.close(descriptor)
            raise
        return Launch(confined(boot.uid, [], words), (descriptor,))

    def _base(self, image: str) -> Path:
        return (self._images / image / "disk.qcow2").absolute()


def _make_fuse(places: Places, uid: int) -> None:
    """A device node of the machine's own: the server's belongs to root alone."""
    node = places.fuse
    if not node.exists():
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(*uml_command.FUSE))
    os.chown(node, uid, uid)
