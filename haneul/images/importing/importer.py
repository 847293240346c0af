"""A disk image of somebody else becomes an image of the catalogue.

The way of a file, every step for the case that the one before was fooled: a private copy (`fetch`), its header
(`formats`), the conversion to qcow2 by a program that has nothing but this file (`sandbox`), the header of the result,
because root's tools will open it below every volume, and its first sector.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from haneul.errors import SettingsError
from haneul.images.importing import fetch, formats, sandbox
from haneul.images.importing.formats import GIB, MIB, SECTOR, Header
from haneul.images.store import ImageStore, Say, check_name
from haneul.model.generation import Generation
from haneul.model.image import CatalogueImage

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}")
#: Format -> QEMU's block driver and its options (qemu-img(1), "--image-opts"). A VHD says its size twice, in bytes and as
#: a geometry that rounds: the bytes are what Hyper-V and Azure go by.
_DRIVERS = {
    "qcow2": "driver=qcow2",
    "raw": "driver=raw",
    "vmdk": "driver=vmdk",
    "vhd": "driver=vpc,force_size_calc=current_size",
}
#: What an imported disk is taken to boot under: it has a boot record, and whose drivers it has is not known. User-mode
#: Linux is for what was made for it.
GENERATIONS: tuple[Generation, ...] = ("emulated", "hvm")
_PERCENT = re.compile(rb"\((\d{1,3})\.\d+/100%\)")


@dataclass(frozen=True)
class Wanted:
    """What to import: `source` is a file or a URL, `sha256` may be empty, `size_gib` 0 for as large as the disk."""

    source: str
    name: str
    format: str
    user: str = "root"
    description: str = ""
    sha256: str = ""
    size_gib: int = 0


@dataclass(frozen=True)
class Bounds:
    """In bytes: of the disk as a guest sees it, and of the file that is given or that becomes of it."""

    virtual: int
    file: int


def import_image(
    store: ImageStore,
    wanted: Wanted,
    bounds: Bounds,
    say: Say,
    *,
    again: bool = False,
    need_unused: Callable[[], None] = lambda: None,
) -> CatalogueImage:
    """Raises `SettingsError` that says why the file is refused; then there is nothing of it.

    `need_unused` is asked again at the end, because volumes may have been made of the old image meanwhile.
    """
    _check(wanted)
    sandbox.need_tools()

    def fill(work: Path, output: Path) -> dict[str, Any]:
        about = _fill(wanted, bounds, work, output, say)
        need_unused()
        return about

    return store.add(wanted.name, fill, say, again=again)


def _check(wanted: Wanted) -> None:
    check_name(wanted.name)
    if wanted.format not in formats.FORMATS:
        raise SettingsError(f"--format is one of: {', '.join(formats.FORMATS)}")
    if wanted.sha256 and not _SHA256.fullmatch(wanted.sha256):
        raise SettingsError("--sha256 is 64 hexadecimal digits")
    if not _USER.fullmatch(wanted.user):
        raise SettingsError(f"--user {wanted.user!r} is no name of a user")
    if len(wanted.description) > 255 or not wanted.description.isprintable():
        raise SettingsError("--description is at most 255 printable characters")


def _fill(wanted: Wanted, bounds: Bounds, work: Path, output: Path, say: Say) -> dict[str, Any]:
    copy, disk = work / "input", work / "disk.qcow2"
    copied = fetch.copy(wanted.source, copy, bounds.file, say, digest=wanted.sha256)
    with copy.open("rb") as file:
        header = formats.parse(file, wanted.format, bounds.virtual)
    size_gib = _size_gib(header, wanted.size_gib)
    say("converting")
    _convert(copy, disk, header, bounds, say)
    _check_result(disk, work / "boot", header)
    os.chown(disk, 0, 0)
    disk.rename(output / "disk.qcow2")
    source = fetch.shown(wanted.source)
    return {
        "description": wanted.description or f"Imported from {source}"[:255],
        "size_gib": size_gib,
        "user": wanted.user,
        "generations": list(GENERATIONS),
        "imported": {"format": wanted.format, "sha256": copied.sha256, "source": source},
    }


def _size_gib(header: Header, wanted: int) -> int:
    least = -(-header.virtual_size // GIB)
    if wanted and wanted < least:
        raise SettingsError(f"--size-gib {wanted} is too small: the disk has {least} GiB")
    if wanted > 16384:
        raise SettingsError(f"--size-gib {wanted} is more than the 16384 GiB that a volume may have")
    return wanted or least


def _limits(header: Header, most: int) -> sandbox.Limits:
    """Enough for an honest image. The metadata of a qcow2 file is below a thousandth of the disk."""
    gib = -(-header.virtual_size // GIB)
    room = header.virtual_size + header.virtual_size // 1000 + 16 * MIB
    return sandbox.Limits(min(room, most), cpu_seconds=120 + 60 * gib, seconds=300.0 + 180 * gib)


def _convert(copy: Path, disk: Path, header: Header, bounds: Bounds, say: Say) -> None:
    def heard(piece: bytes) -> None:
        found = _PERCENT.findall(piece)
        if found:
            say(f"converting {int(found[-1])} %")

    most = min(bounds.file, fetch.room(disk.parent))
    source = f"{_DRIVERS[header.format]},file.driver=file,file.filename=/input"
    words = ["qemu-img", "convert", "-p", "--image-opts", source, "-O", "qcow2", "/output"]
    try:
        sandbox.run(words, read=copy, write=disk, limits=_limits(header, most), heard=heard)
    except sandbox.ConfinedError as error:
        raise SettingsError(f"the disk image is refused: qemu-img could not convert it; {error}") from None


def _check_result(disk: Path, boot: Path, header: Header) -> None:
    """What the sandbox left is as hostile as what went in."""
    _need_plain(disk)
    with _opened(disk) as file:
        result = formats.parse(file, "qcow2", header.virtual_size)
    if result.virtual_size != header.virtual_size or result.snapshots:
        raise SettingsError("the disk image is refused: the converted disk is another one than its header promised")
    words = ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", f"bs={SECTOR}", "count=1", "if=/input", "of=/output"]
    try:
        sandbox.run(words, read=disk, write=boot, limits=sandbox.Limits(1 * MIB, cpu_seconds=60, seconds=120.0))
    except sandbox.ConfinedError as error:
        raise SettingsError(f"the disk image is refused: the converted disk could not be read; {error}") from None
    _need_plain(boot)
    with _opened(boot) as file:
        formats.need_boot_record(file.read(SECTOR))


def _need_plain(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise SettingsError("the disk image is refused: the sandbox left something else than a file")


def _opened(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
