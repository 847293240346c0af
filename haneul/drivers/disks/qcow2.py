"""Volumes as qcow2 files: an overlay on an image's disk, or blank."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

from haneul.drivers.interface import DriverError, lost
from haneul.drivers.run import run
from haneul.model.assignment import DiskSpec

_MAGIC = b"QFI\xfb"
_CLUSTER = 1 << 16
#: What one cluster of the first-level table stands for: a cluster of the second level has 8,192 entries (bytes).
_PER_ENTRY = _CLUSTER * _CLUSTER // 8
#: Header extension: the format of the backing file.
_BACKING_FORMAT = 0xE2792ACA
_HEADER_LENGTH = 112


def virtual_size(path: Path) -> int | None:
    """The size in bytes that the file's header names (QEMU, docs/interop/qcow2.txt), None if it is no qcow2."""
    with path.open("rb") as file:
        header = file.read(32)
    if len(header) < 32 or header[:4] != _MAGIC:
        return None
    return int(struct.unpack(">Q", header[24:32])[0])


def backing_file(path: Path) -> str:
    """The name that the header gives for the file's backing file; empty if there is none."""
    with path.open("rb") as file:
        header = file.read(20)
        if len(header) < 20 or header[:4] != _MAGIC:
            return ""
        offset, size = struct.unpack(">QI", header[8:20])
        if not offset or size > 1023:
            return ""
        file.seek(offset)
        return file.read(size).decode(errors="replace")


def set_backing_file(path: Path, name: str) -> None:
    """Write another name of the backing file where the old one is; no file that a header names is opened.

    Raises ValueError if there is no old one, or not enough room behind it.
    """
    with path.open("r+b") as file:
        header = file.read(24)
        if len(header) < 24 or header[:4] != _MAGIC:
            raise ValueError("it is no qcow2 file")
        offset, size, cluster_bits = struct.unpack(">QII", header[8:24])
        new = name.encode()
        if not offset or not 9 <= cluster_bits <= 21 or len(new) > 1023:
            raise ValueError("its backing file cannot be given another name")
        file.seek(offset)
        room = file.read(max((1 << cluster_bits) - offset, 0))
        if len(new) > size and (len(room) < len(new) or room[size : len(new)].strip(b"\0")):
            raise ValueError("there is no room for a longer name of its backing file")
        file.seek(offset)
        file.write(new)
        file.seek(16)
        file.write(struct.pack(">I", len(new)))


def empty(size: int, backing: str = "") -> bytes:
    """A qcow2 file of `size` bytes in which nothing was written yet, as `qemu-img create` makes it (QEMU, docs/interop/qcow2.txt).

    `backing` is the path of a qcow2 file, which is not looked at. Raises ValueError if that is too long.
    """
    name = backing.encode()
    if len(name) > 1023:
        raise ValueError("the path of the backing file has more than 1,023 bytes")
    entries = -(-size // _PER_ENTRY)
    used = 3 + -(-entries * 8 // _CLUSTER)
    extensions = struct.pack(">II8s", _BACKING_FORMAT, 5, b"qcow2") if name else b""
    extensions += struct.pack(">II", 0, 0)
    name_at = _HEADER_LENGTH + len(extensions) if name else 0
    # Cluster 0 is the header, 1 the table of reference counts' blocks, 2 the only block, from 3 on the first-level table.
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQIIQ",
        _MAGIC, 3, name_at, len(name), _CLUSTER.bit_length() - 1, size, 0, entries, 3 * _CLUSTER, _CLUSTER, 1, 0, 0, 0, 0, 0, 4,
        _HEADER_LENGTH, 0,
    )  # fmt: skip
    first = (header + extensions + name).ljust(_CLUSTER, b"\0")
    table = struct.pack(">Q", 2 * _CLUSTER).ljust(_CLUSTER, b"\0")
    counts = struct.pack(f">{used}H", *[1] * used).ljust(_CLUSTER, b"\0")
    return first + table + counts + bytes(entries * 8)


class Qcow2Disks:
    """`directory` holds the volumes, `images` the image store."""

    def __init__(self, directory: Path, images: Path) -> None:
        self.directory = directory
        self.images = images

    def file(self, volume_id: str) -> Path:
        return self.directory / f"{volume_id}.qcow2"

    async def observe(self) -> frozenset[str]:
        if not self.directory.is_dir():
            return frozenset()
        names = (path.name for path in self.directory.iterdir())
        return frozenset(name.lstrip(".").partition(".")[0] for name in names)

    async def ensure(self, disk: DiskSpec) -> None:
        """The file appears whole under its name; one that is there is only ever grown."""
        file = self.file(disk.volume_id)
        wanted = disk.size_gib << 30
        if file.exists():
            present = virtual_size(file)
            # Once a machine has had it, its header is the machine's word: root opens nothing that it names.
            if present is not None and present < wanted and file.stat().st_uid == 0:
                await run(["qemu-img", "resize", "-f", "qcow2", str(file), str(wanted)])
            return
        temporary = self.directory / f".{disk.volume_id}.new"
        # Half of a new file shows that it was seen before it was whole.
        if disk.made and not temporary.exists():
            raise DriverError(lost(disk.volume_id), fatal=True)
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        backing = ""
        if disk.image:
            base = self.images / disk.image / "disk.qcow2"
            if not base.exists():
                raise DriverError(f"the image '{disk.image}' is not built; `haneul image build` builds it", fatal=True)
            # Root does not open the image, which may be imported: its size is not asked for.
            backing = str(base.absolute())
        await asyncio.to_thread(_write_sparse, temporary, empty(wanted, backing))
        temporary.replace(file)

    async def ensure_absent(self, volume_id: str) -> None:
        self.file(volume_id).unlink(missing_ok=True)
        for suffix in ("new", "cold"):
            (self.directory / f".{volume_id}.{suffix}").unlink(missing_ok=True)


def _write_sparse(path: Path, data: bytes) -> None:
    """Of what is nearly all zeros, only the clusters that are not."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
        for at in range(0, len(data), _CLUSTER):
            if any(part := data[at : at + _CLUSTER].rstrip(b"\0")):
                os.pwrite(file.fileno(), part, at)
        file.truncate(len(data))
