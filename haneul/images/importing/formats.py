"""The headers of disk images that somebody else made: what is not understood to the last bit is refused.

Pure: a seekable binary file in, a `Header` out, or a `SettingsError` that says what is wrong. A format is declared and
never guessed, because a guess is what an attacker chooses: a guest can write the header of a qcow2 file, which names
any file of the host, into the first sector of a raw disk.

Sources: QEMU, docs/interop/qcow2.txt; VMware, "Virtual Disk Format 5.0" (VMDK); Microsoft, "Virtual Hard Disk Image
Format Specification", October 2006 (VHD); UEFI specification, section 5.2 (MBR). Offsets and sizes are in bytes if not
said otherwise.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

from haneul.errors import SettingsError

SECTOR = 512
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Header:
    """What a file's header promises. `virtual_size` is the disk's, in bytes; `kind` the format's variant."""

    format: str
    virtual_size: int
    kind: str = ""
    snapshots: int = 0


class _Disk:
    """The file with bounds: nothing is read that the file does not have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)

    def has(self, offset: int, length: int) -> bool:
        return offset >= 0 and length >= 0 and offset + length <= self.size

    def at(self, offset: int, length: int, what: str) -> bytes:
        self.need(offset, length, what)
        self._file.seek(offset)
        found = self._file.read(length)
        _need(len(found) == length, f"{what} could not be read to its end")
        return found

    def peek(self, offset: int, length: int) -> bytes:
        """As much of it as there is."""
        if offset < 0 or offset >= self.size:
            return b""
        self._file.seek(offset)
        return self._file.read(length)

    def need(self, offset: int, length: int, what: str) -> None:
        _need(self.has(offset, length), f"{what} ({length} bytes at {offset}) is beyond the file's end at {self.size}")


def _need(right: bool, why: str) -> None:
    if not right:
        raise SettingsError(f"the disk image is refused: {why[:300]}")


def parse(file: BinaryIO, declared: str, limit: int) -> Header:
    """The header of a file in the `declared` format, whose disk has at most `limit` bytes. Raises `SettingsError`."""
    disk = _Disk(file)
    _need(declared in FORMATS, f"there is no format {declared!r}; there are: {', '.join(FORMATS)}")
    _need(disk.size > 0, "it is empty")
    _need_declared(disk, declared)
    header = FORMATS[declared](disk)
    _need(header.virtual_size > 0, "its virtual size is 0")
    _need(header.virtual_size % SECTOR == 0, f"its virtual size {header.virtual_size} is no multiple of {SECTOR}")
    _need(
        header.virtual_size <= limit,
        f"its virtual size of {_amount(header.virtual_size)} is above the limit of {_amount(limit)} (import_max_gib)",
    )
    return header


def need_boot_record(sector: bytes) -> None:
    """The first sector of a disk has to start it by BIOS. Raises `SettingsError`."""
    _need(len(sector) >= SECTOR and sector[510:512] == b"\x55\xaa", "it has no boot record and could not boot")
    _need(
        any(sector[:440]),
        "its boot record has no code and could not boot (is it made for UEFI only? haneul boots by BIOS)",
    )


def _amount(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size} bytes"


# --- which format a file looks like ------------------------------------------------------------------------

# Offset, bytes, name. What is no format of an import is here so that its refusal can say what it is.
_MAGICS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"conectix", "vhd"),
    (0, b"vhdxfile", "VHDX"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"QED\0", "QED"),
    (0, b"LUKS\xba\xbe", "LUKS (an encrypted disk)"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (257, b"ustar", "tar (an OVA is one: unpack it)"),
)


_PACKED = ("gzip", "xz", "zstd", "bzip2", "zip", "7z")


def _looks_like(disk: _Disk) -> str:
    for offset, magic, name in _MAGICS:
        if disk.peek(offset, len(magic)) == magic:
            return name
    if disk.peek(0, 512).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(b"# disk descriptorfile"):
        return "vmdk"
    # Last, because the end of a file of another format may be data.
    if disk.peek(disk.size - SECTOR, 8) == b"conectix":
        return "vhd"
    return "raw" if disk.size % SECTOR == 0 and disk.peek(510, 2) == b"\x55\xaa" else ""


def _need_declared(disk: _Disk, declared: str) -> None:
    found = _looks_like(disk)
    if found == declared or (declared == "raw" and not found):
        return
    if found in FORMATS:
        raise SettingsError(f"the disk image is refused: this looks like {found}; say --format {found}")
    if found in _PACKED:
        raise SettingsError(f"the disk image is refused: this looks like {found}, which packs a file; unpack it first")
    if found:
        raise SettingsError(
            f"the disk image is refused: this looks like {found}, which is not imported; make it {declared} first"
        )
    raise SettingsError(f"the disk image is refused: this is no {declared}, it does not begin as one")


# --- raw ---------------------------------------------------------------------------------------------------


def _raw(disk: _Disk) -> Header:
    _need(disk.size % SECTOR == 0, f"its size {disk.size} is no multiple of {SECTOR}")
    need_boot_record(disk.at(0, SECTOR, "the first sector"))
    return Header("raw", disk.size)


# --- qcow2 -------------------------------------------------------------------------------------------------

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = 1, 2, 4, 8, 16
#: Snapshots are dropped by the conversion; a table of many is work for QEMU and nothing that an image needs.
_SNAPSHOTS = 16
_L1_BYTES, _REFCOUNT_TABLE_BYTES = 32 * MIB, 8 * MIB


def _qcow2(disk: _Disk) -> Header:
    """docs/interop/qcow2.txt, "Header"; all numbers are big-endian."""
    fixed = disk.at(0, 72, "the qcow2 header")
    (
        _, version, backing, backing_length, cluster_bits, size, encryption, l1_size, l1_table, refcounts,
        refcount_clusters, snapshots, snapshot_table,
    ) = struct.unpack(">4sIQIIQIIQQIIQ", fixed)  # fmt: skip
    _need(version in (2, 3), f"its qcow2 version is {version}, not 2 or 3")
    _need(not backing and not backing_length, "it has a backing file; make it whole (`qemu-img convert`)")
    _need(encryption == 0, f"it is encrypted (method {encryption})")
    _need(9 <= cluster_bits <= 21, f"its cluster_bits is {cluster_bits}, not 9 to 21")
    header_length = _qcow2_version_3(disk, cluster_bits) if version == 3 else 72
    cluster = 1 << cluster_bits
    _qcow2_extensions(disk, header_length, cluster)
    _need(size > 0, "its virtual size is 0")
    # One L1 entry is for a whole L2 table, of one cluster; an extended L2 entry has 16 bytes instead of 8.
    extended = version == 3 and bool(struct.unpack(">Q", disk.at(72, 8, "the features"))[0] & _EXTENDED_L2)
    needed = -(-size // (cluster * (cluster // (16 if extended else 8))))
    _need(l1_size * 8 <= _L1_BYTES, f"its L1 table of {l1_size} entries is too large")
    _need(l1_size >= needed, f"its L1 table of {l1_size} entries is too small for its size, which needs {needed}")
    _qcow2_table(disk, "its L1 table", l1_table, l1_size * 8, cluster)
    _need(refcount_clusters > 0, "it has no refcount table")
    length = refcount_clusters * cluster
    _need(length <= _REFCOUNT_TABLE_BYTES, f"its refcount table of {refcount_clusters} clusters is too large")
    _qcow2_table(disk, "its refcount table", refcounts, length, cluster)
    _need(snapshots <= _SNAPSHOTS, f"it has {snapshots} internal snapshots, more than {_SNAPSHOTS}")
    if snapshots:
        _qcow2_table(disk, "its snapshot table", snapshot_table, snapshots * 40, cluster)
    return Header("qcow2", size, f"version {version}", snapshots)


def _qcow2_table(disk: _Disk, what: str, offset: int, length: int, cluster: int) -> None:
    _need(offset >= cluster, f"{what} at {offset} would be in the header")
    _need(offset % cluster == 0, f"{what} at {offset} does not begin at a cluster")
    disk.need(offset, length, what)


def _qcow2_version_3(disk: _Disk, cluster_bits: int) -> int:
    """Checks what version 3 added; gives the header's length."""
    incompatible, _, _, refcount_order, length = struct.unpack(">QQQII", disk.at(72, 32, "the header of version 3"))
    _need(not incompatible & _CORRUPT, "it is marked as corrupt; `qemu-img check -r all` may repair it")
    _need(not incompatible & _DATA_FILE, "it has an external data file")
    unknown = incompatible & ~(_DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2)
    _need(not unknown, f"it has unknown incompatible features {unknown:#x}")
    _need(not incompatible & _EXTENDED_L2 or cluster_bits >= 14, "it has extended L2 entries in too small clusters")
    _need(refcount_order <= 6, f"its refcount_order is {refcount_order}, above 6")
    _need(104 <= length <= 4 * KIB and length <= 1 << cluster_bits, f"its header's length is {length}")
    _need(length % 8 == 0, f"its header's length is {length}, no multiple of 8")
    compression = disk.at(104, 1, "the compression type")[0] if length > 104 else 0
    _need(compression in (0, 1), f"its compression type is {compression}, not 0 (zlib) or 1 (zstd)")
    marked = bool(incompatible & _COMPRESSION)
    _need(bool(compression) == marked, "its compression type and its incompatible features do not agree")
    return int(length)


_END, _FEATURE_NAMES = 0, 0x6803F857
_REFUSED_EXTENSIONS = {
    0x44415441: "it has an external data file (header extension)",
    0x0537BE77: "it is encrypted (LUKS header extension)",
    0xE2792ACA: "it names the format of a backing file",
    0x23852875: "it has persistent bitmaps; `qemu-img convert -O qcow2` leaves them out",
}


def _qcow2_extensions(disk: _Disk, offset: int, cluster: int) -> None:
    """docs/interop/qcow2.txt, "Header extensions": type, length, data padded to 8, in the first cluster."""
    end = min(cluster, disk.size)
    while offset + 8 <= end:
        kind, length = struct.unpack(">II", disk.at(offset, 8, "a header extension"))
        if kind == _END:
            return
        _need(kind not in _REFUSED_EXTENSIONS, _REFUSED_EXTENSIONS.get(kind, ""))
        _need(kind == _FEATURE_NAMES, f"it has an unknown header extension {kind:#010x}")
        _need(offset + 8 + length <= end, f"a header extension of {length} bytes is longer than its cluster")
        offset += 8 + -(-length // 8) * 8
    raise SettingsError("the disk image is refused: its header extensions have no end")


# --- vmdk --------------------------------------------------------------------------------------------------

_NEWLINES, _SECOND_TABLE, _ZERO_GRAINS, _COMPRESSED, _MARKERS = 1, 2, 4, 1 << 16, 1 << 17
_AT_END = (1 << 64) - 1
_DESCRIPTOR_BYTES = 64 * KIB
_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+(\w+)(?:\s+"([^"]*)")?(?:\s+(\S+))?(?:\s+\S+)*')
#: What writers of descriptors begin with: VMware's disk library, its stream converter (ovftool and what took over from it).
_FIRST_LINES = ("# disk descriptorfile", "# description file created by vmdk stream converter")
_PAIR = re.compile(r"([A-Za-z0-9_.]+)\s*=\s*(.*)")


@dataclass(frozen=True)
class _Sparse:
    """SparseExtentHeader ("Hosted Sparse Extents"), little-endian. Offsets and sizes in sectors."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_size: int
    entries: int
    second_directory: int
    directory: int
    newlines: bytes
    compression: int


def _sparse(found: bytes) -> _Sparse:
    (
        magic, version, flags, capacity, grain, descriptor, descriptor_size, entries, second, directory, _, _,
        newlines, compression,
    ) = struct.unpack("<4sIIQQQQIQQQB4sH", found[:79])  # fmt: skip
    _need(magic == b"KDMV", "its footer is no header of a sparse extent")
    return _Sparse(
        version, flags, capacity, grain, descriptor, descriptor_size, entries, second, directory, newlines, compression
    )


def _vmdk(disk: _Disk) -> Header:
    _need(disk.peek(0, 4) == b"KDMV", "only a VMDK that is one file is imported (monolithicSparse, streamOptimized)")
    header = _sparse(disk.at(0, SECTOR, "the VMDK header"))
    _vmdk_fields(header)
    kind = _vmdk_descriptor(disk, header)
    compressed = bool(header.flags & _COMPRESSED)
    _need((kind == "streamOptimized") == compressed, f"it says {kind} but its flags are {header.flags:#x}")
    if header.directory == _AT_END:
        _need(compressed, "only a streamOptimized VMDK has its grain directory at the end")
        header = _vmdk_footer(disk, header)
    # One entry of the directory is for a table of 512 grains.
    length = -(-header.capacity // (header.grain * header.entries)) * 4
    _need(header.directory > 0, "its grain directory would be in the header")
    disk.need(header.directory * SECTOR, length, "its grain directory")
    if header.flags & _SECOND_TABLE:
        disk.need(header.second_directory * SECTOR, length, "its second grain directory")
    return Header("vmdk", header.capacity * SECTOR, kind)


def _vmdk_fields(header: _Sparse) -> None:
    _need(header.version in (1, 2, 3), f"its VMDK version is {header.version}")
    unknown = header.flags & ~(_NEWLINES | _SECOND_TABLE | _ZERO_GRAINS | _COMPRESSED | _MARKERS)
    _need(not unknown, f"it has unknown VMDK flags {unknown:#x}")
    _need(
        not header.flags & _NEWLINES or header.newlines == b"\n \r\n",
        "its line ends were changed: it was transferred as text",
    )
    # QEMU takes a capacity of 0 for a descriptor that names other files.
    _need(header.capacity > 0, "its virtual size is 0")
    _need(header.capacity < 1 << 40, f"its capacity of {header.capacity} sectors is absurd")
    _need(8 <= header.grain <= 2048, f"its grain size of {header.grain} sectors is not 8 to 2048")
    _need(header.grain & (header.grain - 1) == 0, f"its grain size of {header.grain} sectors is no power of two")
    _need(header.entries == 512, f"its grain tables have {header.entries} entries, not 512")
    compressed, markers = bool(header.flags & _COMPRESSED), bool(header.flags & _MARKERS)
    _need(compressed == markers, "its flags for compression and markers do not agree")
    _need(header.compression == int(compressed), f"its compression algorithm {header.compression} is unknown")


def _vmdk_footer(disk: _Disk, header: _Sparse) -> _Sparse:
    """The copy of the header at the end, which alone says where the grain directory is ("Stream-Optimized")."""
    # Footer marker, footer, end-of-stream marker: a sector each. A marker: value (8), size (4), type (4).
    found = disk.at(disk.size - 3 * SECTOR, 3 * SECTOR, "the footer")
    length, size, kind = struct.unpack("<QII", found[:16])
    _need((length, size, kind) == (1, 0, 3), "its footer has no marker")
    _need(not any(found[2 * SECTOR : 2 * SECTOR + 16]), "its stream has no end")
    footer = _sparse(found[SECTOR : 2 * SECTOR])
    plain = replace(footer, directory=header.directory, second_directory=header.second_directory)
    _need(plain == header, "its footer and its header do not agree")
    _need(footer.directory != _AT_END, "its footer does not say where the grain directory is")
    return footer


def _vmdk_descriptor(disk: _Disk, header: _Sparse) -> str:
    """Checks the embedded descriptor; gives its createType ("The Descriptor File")."""
    _need(header.descriptor > 0 and header.descriptor_size > 0, "it has no embedded descriptor")
    length = header.descriptor_size * SECTOR
    _need(length <= _DESCRIPTOR_BYTES, f"its descriptor of {length} bytes is too long")
    found = disk.at(header.descriptor * SECTOR, length, "its descriptor")
    text, end, rest = found.partition(b"\0")
    # QEMU reads 20 sectors whatever the header says: what has no end goes on in what is not looked at here.
    _need(bool(end), "its descriptor has no end")
    _need(not any(rest), "its descriptor goes on behind its end")
    # QEMU searches for these words anywhere in the text: none may hide in a comment or in a value.
    lower = text.lower()
    _need(b"parentfilenamehint" not in lower, "it names a parent (parentFileNameHint)")
    for word in (b"parentcid", b"createtype"):
        _need(lower.count(word) == 1, f"its descriptor says {word.decode()} {lower.count(word)} times, not once")
    pairs, extents = _vmdk_lines(text.decode("utf-8", "replace"))
    parent = pairs.get("parentcid", "")
    _need(parent.lower() == "ffffffff", f"it has a parent (parentCID is {parent!r})")
    kind = pairs.get("createtype", "")
    _need(
        kind in ("monolithicSparse", "streamOptimized"),
        f"its createType is {kind!r}; only monolithicSparse and streamOptimized are imported",
    )
    _vmdk_extent(extents, header.capacity)
    return kind


def _vmdk_lines(text: str) -> tuple[dict[str, str], list[str]]:
    """Pairs with small names and plain values, and the lines of extents."""
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    _need(lines[0].lower() in _FIRST_LINES, "its descriptor does not begin as one")
    pairs: dict[str, str] = {}
    extents = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        if line.split()[0] in ("RW", "RDONLY", "NOACCESS"):
            extents.append(line)
            continue
        pair = _PAIR.fullmatch(line)
        _need(pair is not None, f"its descriptor has a line that means nothing: {line[:60]!r}")
        assert pair is not None
        name = pair[1].lower()
        _need(name not in pairs, f"its descriptor says {name} twice")
        pairs[name] = pair[2].strip('"')
    return pairs, extents


def _vmdk_extent(extents: list[str], capacity: int) -> None:
    """There is one extent, and it is this file."""
    _need(len(extents) == 1, f"it has {len(extents)} extents, not one")
    found = _EXTENT.fullmatch(extents[0])
    _need(found is not None, f"its extent is not understood: {extents[0][:60]!r}")
    assert found is not None
    access, sectors, kind, name, more = found.groups()
    # A stream is written once: VMware's exports say so (RDONLY).
    _need(access in ("RW", "RDONLY"), f"its extent is {access}")
    _need(kind == "SPARSE", f"its extent is {kind}: it would be another file or a device")
    _need(
        bool(name) and not set(name) & set("/\\:") and name not in (".", ".."),
        f"its extent {name!r} is no plain file name",
    )
    _need(more in (None, "0"), f"its extent begins at {more}, not at 0")
    _need(int(sectors) == capacity, f"its extent has {sectors} sectors and its header {capacity}")


# --- vhd ---------------------------------------------------------------------------------------------------

_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_VHD_MOST = 2040 * GIB


def _vhd(disk: _Disk) -> Header:
    """ "Hard Disk Footer Format"; all numbers are big-endian."""
    _need(disk.size >= 2 * SECTOR, "it is shorter than a VHD can be")
    footer = disk.at(disk.size - SECTOR, SECTOR, "the footer")
    _need(footer[:8] == b"conectix", "it has no footer at its end")
    _checksum(footer, 64, "its footer")
    version, dynamic_header = struct.unpack(">IQ", footer[12:24])
    size = struct.unpack(">Q", footer[48:56])[0]
    kind = struct.unpack(">I", footer[60:64])[0]
    _need(version == 0x10000, f"its VHD version is {version:#x}")
    _need(kind != _DIFFERENCING, "it is a differencing disk, which needs its parent")
    _need(kind in (_FIXED, _DYNAMIC), f"its disk type is {kind}, not 2 (fixed) or 3 (dynamic)")
    _need(footer[84] == 0, "it is the disk of a suspended machine (saved state)")
    _need(size > 0, "its virtual size is 0")
    _need(size <= _VHD_MOST, f"its size of {size} bytes is more than a VHD can have")
    copy = disk.at(0, SECTOR, "the first sector")
    if kind == _FIXED:
        # Whoever looks at the beginning first would take a fixed disk's own data for the footer.
        _need(copy[:8] != b"conectix", "it is fixed by its footer, but its first sector is another footer")
        _need(disk.size == size + SECTOR, f"a fixed VHD of {size} bytes cannot be {disk.size} bytes long")
        return Header("vhd", size, "fixed")
    _need(copy == footer, "the copy of its footer at the beginning is another one")
    _vhd_dynamic(disk, dynamic_header, size)
    return Header("vhd", size, "dynamic")


def _vhd_dynamic(disk: _Disk, offset: int, size: int) -> None:
    """ "Dynamic Disk Header Format"."""
    _need(offset >= SECTOR, f"its dynamic header at {offset} would be in the footer's copy")
    found = disk.at(offset, 1024, "its dynamic header")
    _need(found[:8] == b"cxsparse", "it has no dynamic header")
    _checksum(found, 36, "its dynamic header")
    table, version, entries, block = struct.unpack(">QIII", found[16:36])
    _need(version == 0x10000, f"its dynamic header's version is {version:#x}")
    _need(64 * KIB <= block <= 64 * MIB, f"its block size is {block}, not 64 KiB to 64 MiB")
    _need(block & (block - 1) == 0, f"its block size {block} is no power of two")
    _need(not any(found[40:60]) and not any(found[64:576]), "it names a parent")
    _need(not any(found[576:768]), "it has parent locators")
    _need(entries >= -(-size // block), f"its table of {entries} blocks is too small for its size")
    _need(entries <= _VHD_MOST // block, f"its table of {entries} blocks is absurd")
    _need(table >= SECTOR, f"its block table at {table} would be in the footer's copy")
    disk.need(table, entries * 4, "its block table")


def _checksum(found: bytes, place: int, what: str) -> None:
    """The one's complement of the sum of all bytes without the checksum's own."""
    told = struct.unpack(">I", found[place : place + 4])[0]
    wanted = ~(sum(found) - sum(found[place : place + 4])) & 0xFFFFFFFF
    _need(told == wanted, f"{what} has a wrong checksum")


FORMATS: dict[str, Callable[[_Disk], Header]] = {"qcow2": _qcow2, "raw": _raw, "vmdk": _vmdk, "vhd": _vhd}
