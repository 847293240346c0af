"""Disk images that are good, and what hostile people make of them: name -> (declared format, bytes, why it is refused).

The good ones hold a boot record and convert; each hostile one differs from a good one in one thing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

MIB = 1 << 20
CLUSTER = 65536
#: What an image names that must never become part of another one.
SECRET = "/etc/shadow"

Hostile = tuple[str, Callable[[], bytes], str]

#: Jump to itself, and the signature.
BOOT_SECTOR = b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"
DISK = BOOT_SECTOR.ljust(MIB, b"\0")


def put(found: bytes, offset: int, form: str, *values: Any) -> bytes:
    """The same bytes with others at one place."""
    new = struct.pack(form, *values)
    return found[:offset] + new + found[offset + len(new) :]


# --- qcow2: header, refcount table, refcount block, L1, L2, data: a cluster each -----------------------------


def qcow2(version: int = 3, size: int = MIB, extensions: bytes = struct.pack(">II", 0, 0)) -> bytes:
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, 16, size, 0, 1, 3 * CLUSTER, CLUSTER, 1, 0, 0)
    if version == 3:
        head += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    table = struct.pack(">Q", 2 * CLUSTER)
    block = struct.pack(">6H", *[1] * 6)
    copied = 1 << 63
    l1, l2 = struct.pack(">Q", copied | 4 * CLUSTER), struct.pack(">Q", copied | 5 * CLUSTER)
    return b"".join(one.ljust(CLUSTER, b"\0") for one in (head + extensions, table, block, l1, l2, BOOT_SECTOR))


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8) + struct.pack(">II", 0, 0)


def backed(path: str, version: int = 3) -> bytes:
    """A backing file, named behind the header."""
    return put(put(qcow2(version), 8, ">QI", 1024, len(path)), 1024, f"{len(path)}s", path.encode())


def compressed_bomb(size: int) -> bytes:
    """Every cluster of a large disk is the same compressed one: a small file that holds random bytes many times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    noise = bytes((i * 7 + i // 256 * 13) % 251 for i in range(CLUSTER))
    packed = packer.compress(noise) + packer.flush()
    clusters = size // CLUSTER
    tables = -(-clusters // 8192)
    # Bits below 62 - (cluster_bits - 8) are the place, those above the number of further sectors.
    entry = (1 << 62) | ((-(-len(packed) // 512)) << 54) | 5 * CLUSTER
    l2 = struct.pack(">Q", entry) * 8192
    l1 = struct.pack(f">{tables}Q", *[4 * CLUSTER] * tables)
    head = qcow2(size=size)[: 3 * CLUSTER]
    whole = head + l1.ljust(CLUSTER, b"\0") + l2 + packed.ljust(CLUSTER, b"\0")
    return put(whole, 36, ">I", tables)


QCOW2: dict[str, Hostile] = {
    "backing file": ("qcow2", lambda: backed(SECRET), "backing file"),
    "backing file, version 2": ("qcow2", lambda: backed(SECRET, 2), "backing file"),
    "backing file by json:": ("qcow2", lambda: backed('json:{"driver":"raw","file":{"filename":"/etc/shadow"}}'), "backing"),
    "backing file by nbd:": ("qcow2", lambda: backed("nbd:127.0.0.1:10809"), "backing file"),
    "backing length without offset": ("qcow2", lambda: put(qcow2(), 16, ">I", 11), "backing file"),
    "backing offset without length": ("qcow2", lambda: put(qcow2(), 8, ">Q", 1024), "backing file"),
    "backing format": ("qcow2", lambda: qcow2(extensions=extension(0xE2792ACA, b"raw")), "format of a backing file"),
    "data file bit": ("qcow2", lambda: put(qcow2(), 72, ">Q", 4), "external data file"),
    "data file extension": ("qcow2", lambda: qcow2(extensions=extension(0x44415441, SECRET.encode())), "data file (header"),
    "data file, both": (
        "qcow2",
        lambda: put(qcow2(extensions=extension(0x44415441, SECRET.encode())), 72, ">Q", 4),
        "external data file",
    ),
    "data file extension, version 2": (
        "qcow2",
        lambda: qcow2(2, extensions=extension(0x44415441, SECRET.encode())),
        "data file (header",
    ),
    "encrypted, AES": ("qcow2", lambda: put(qcow2(), 32, ">I", 1), "encrypted (method 1)"),
    "encrypted, LUKS": ("qcow2", lambda: put(qcow2(), 32, ">I", 2), "encrypted (method 2)"),
    "encrypted, unknown": ("qcow2", lambda: put(qcow2(), 32, ">I", 77), "encrypted (method 77)"),
    "LUKS extension": ("qcow2", lambda: qcow2(extensions=extension(0x0537BE77, b"\0" * 16)), "LUKS header extension"),
    "corrupt": ("qcow2", lambda: put(qcow2(), 72, ">Q", 2), "corrupt"),
    "unknown feature": ("qcow2", lambda: put(qcow2(), 72, ">Q", 1 << 5), "unknown incompatible features 0x20"),
    "unknown feature, last bit": ("qcow2", lambda: put(qcow2(), 72, ">Q", 1 << 63), "unknown incompatible features 0x8"),
    "bitmaps": ("qcow2", lambda: qcow2(extensions=extension(0x23852875, b"\0" * 24)), "persistent bitmaps"),
    "unknown extension": ("qcow2", lambda: qcow2(extensions=extension(0x12345678, b"x")), "extension 0x12345678"),
    "endless extension": ("qcow2", lambda: qcow2(extensions=struct.pack(">II", 0x6803F857, 1 << 31)), "longer than its"),
    "extension of 4 GiB": ("qcow2", lambda: qcow2(extensions=struct.pack(">II", 0x6803F857, 0xFFFFFFFF)), "longer than"),
    "extensions without an end": (
        "qcow2",
        lambda: qcow2(extensions=struct.pack(">II", 0x6803F857, 0) * ((CLUSTER - 104) // 8)),
        "have no end",
    ),
    "version 1": ("qcow2", lambda: put(qcow2(), 4, ">I", 1), "version is 1"),
    "version 4": ("qcow2", lambda: put(qcow2(), 4, ">I", 4), "version is 4"),
    "clusters of 256 bytes": ("qcow2", lambda: put(qcow2(), 20, ">I", 8), "cluster_bits is 8"),
    "clusters of 4 MiB": ("qcow2", lambda: put(qcow2(), 20, ">I", 22), "cluster_bits is 22"),
    "cluster_bits 0": ("qcow2", lambda: put(qcow2(), 20, ">I", 0), "cluster_bits is 0"),
    "cluster_bits of 2^32-1": ("qcow2", lambda: put(qcow2(), 20, ">I", 0xFFFFFFFF), "cluster_bits is 4294967295"),
    "extended L2 in small clusters": (
        "qcow2",
        lambda: put(put(qcow2(), 20, ">I", 9), 72, ">Q", 16),
        "extended L2 entries in too small",
    ),
    "virtual size 0": ("qcow2", lambda: qcow2(size=0), "virtual size is 0"),
    "virtual size no multiple": ("qcow2", lambda: qcow2(size=MIB + 1), "no multiple of 512"),
    "virtual size above the limit": ("qcow2", lambda: put(qcow2(size=1 << 42), 36, ">I", 8192), "above the limit"),
    "virtual size just above the limit": ("qcow2", lambda: put(qcow2(size=(256 << 30) + 512), 36, ">I", 513), "above the limit"),
    "virtual size of 2^64-512": ("qcow2", lambda: qcow2(size=(1 << 64) - 512), "L1 table of 1 entries is too small"),
    "L1 too small": ("qcow2", lambda: qcow2(size=1 << 31), "too small for its size"),
    "L1 of no entries": ("qcow2", lambda: put(qcow2(), 36, ">I", 0), "L1 table of 0 entries"),
    "L1 huge": ("qcow2", lambda: put(qcow2(), 36, ">I", 0xFFFFFFFF), "L1 table of 4294967295 entries is too large"),
    "L1 beyond the end": ("qcow2", lambda: put(qcow2(), 40, ">Q", 1 << 40), "L1 table (8 bytes at 1099511627776)"),
    "L1 at 2^64": ("qcow2", lambda: put(qcow2(), 40, ">Q", (1 << 64) - CLUSTER), "beyond the file's end"),
    "L1 not at a cluster": ("qcow2", lambda: put(qcow2(), 40, ">Q", CLUSTER + 8), "does not begin at a cluster"),
    "L1 in the header": ("qcow2", lambda: put(qcow2(), 40, ">Q", 0), "L1 table at 0 would be in the header"),
    "refcounts beyond the end": ("qcow2", lambda: put(qcow2(), 48, ">Q", 1 << 40), "refcount table (65536 bytes"),
    "refcounts in the header": ("qcow2", lambda: put(qcow2(), 48, ">Q", 0), "refcount table at 0"),
    "refcounts not at a cluster": ("qcow2", lambda: put(qcow2(), 48, ">Q", CLUSTER + 1), "refcount table at 65537"),
    "refcounts of no clusters": ("qcow2", lambda: put(qcow2(), 56, ">I", 0), "no refcount table"),
    "refcounts huge": ("qcow2", lambda: put(qcow2(), 56, ">I", 0x7FFFFFFF), "refcount table of 2147483647 clusters"),
    "refcount_order": ("qcow2", lambda: put(qcow2(), 96, ">I", 7), "refcount_order is 7"),
    "header too short": ("qcow2", lambda: put(qcow2(), 100, ">I", 96), "header's length is 96"),
    "header too long": ("qcow2", lambda: put(qcow2(), 100, ">I", 1 << 31), "header's length is 2147483648"),
    "header odd": ("qcow2", lambda: put(qcow2(), 100, ">I", 105), "no multiple of 8"),
    "compression unknown": ("qcow2", lambda: put(put(qcow2(), 100, ">I", 112), 104, ">B", 2), "compression type is 2"),
    "compression without its bit": ("qcow2", lambda: put(put(qcow2(), 100, ">I", 112), 104, ">B", 1), "do not agree"),
    "compression bit alone": ("qcow2", lambda: put(qcow2(), 72, ">Q", 8), "do not agree"),
    "many snapshots": ("qcow2", lambda: put(qcow2(), 60, ">I", 65536), "65536 internal snapshots"),
    "snapshots beyond the end": ("qcow2", lambda: put(qcow2(), 60, ">IQ", 3, 1 << 40), "snapshot table"),
    "cut in the header": ("qcow2", lambda: qcow2()[:50], "the qcow2 header (72 bytes at 0)"),
    "cut in the header of version 3": ("qcow2", lambda: qcow2()[:80], "the header of version 3"),
    "cut before L1": ("qcow2", lambda: qcow2()[: 3 * CLUSTER], "L1 table"),
    "magic only": ("qcow2", lambda: b"QFI\xfb", "the qcow2 header"),
}  # fmt: skip

# --- vmdk --------------------------------------------------------------------------------------------------

DESCRIPTOR = """\
# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="{kind}"

# Extent description
{extent}

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "2"
ddb.adapterType = "ide"
"""
EXTENT = 'RW 2048 SPARSE "disk.vmdk"'
#: An offset that an image has in its header if its grain directory is at the end.
AT_END = (1 << 64) - 1


def vmdk_header(flags: int = 1, version: int = 1, directory: int = 21, capacity: int = 2048) -> bytes:
    compression = flags >> 16 & 1
    overhead = 21 if compression else 128
    return struct.pack(
        "<4sIIQQQQIQQQB4sH", b"KDMV", version, flags, capacity, 128, 1, 20, 512, 0, directory, overhead, 0, b"\n \r\n", compression
    ).ljust(512, b"\0")  # fmt: skip


def vmdk(descriptor: str | bytes | None = None, header: bytes | None = None, extent: str = EXTENT) -> bytes:
    """monolithicSparse: header, descriptor (1-20), grain directory (21), table (22-25), one grain at sector 128."""
    text = descriptor if descriptor is not None else DESCRIPTOR.format(kind="monolithicSparse", extent=extent)
    text = text.encode() if isinstance(text, str) else text
    head = (header or vmdk_header()) + text.ljust(20 * 512, b"\0")
    tables = struct.pack("<I", 22).ljust(512, b"\0") + struct.pack("<I", 128).ljust(2048, b"\0")
    return (head + tables).ljust(128 * 512, b"\0") + BOOT_SECTOR.ljust(CLUSTER, b"\0")


def stream(footer: bytes | None = None, marker: bytes = struct.pack("<QII", 1, 0, 3), end: bytes = b"") -> bytes:
    """streamOptimized: one packed grain at sector 21, its table, the directory, the footer, the end."""
    flags, kind = 0x30001, "streamOptimized"
    head = vmdk_header(flags, 3, AT_END) + DESCRIPTOR.format(kind=kind, extent=EXTENT).encode().ljust(20 * 512, b"\0")
    packed = zlib.compress(BOOT_SECTOR.ljust(CLUSTER, b"\0"))
    grain = (struct.pack("<QI", 0, len(packed)) + packed).ljust(-(-(12 + len(packed)) // 512) * 512, b"\0")
    body = head + grain
    table = len(body) // 512 + 1
    body += struct.pack("<QII", 4, 0, 1).ljust(512, b"\0") + struct.pack("<I", 21).ljust(2048, b"\0")
    directory = len(body) // 512 + 1
    body += struct.pack("<QII", 1, 0, 2).ljust(512, b"\0") + struct.pack("<I", table).ljust(512, b"\0")
    last = footer if footer is not None else vmdk_header(flags, 3, directory)
    return body + marker.ljust(512, b"\0") + last + end.ljust(512, b"\0")


def described(old: str, new: str) -> bytes:
    text = DESCRIPTOR.format(kind="monolithicSparse", extent=EXTENT)
    assert old in text
    return vmdk(text.replace(old, new))


def extents(*lines: str) -> bytes:
    return vmdk(extent="\n".join(lines))


def _full_sector() -> bytes:
    """A descriptor of 512 bytes to the last one, which is of a comment."""
    text = DESCRIPTOR.format(kind="monolithicSparse", extent=EXTENT)
    return text.encode() + b"#".ljust(511 - len(text), b"x") + b"\n"


VMDK: dict[str, Hostile] = {
    "descriptor only": ("vmdk", lambda: DESCRIPTOR.format(kind="monolithicFlat", extent='RW 2048 FLAT "/etc/shadow" 0').encode(), "that is one file"),
    "descriptor with a device": ("vmdk", lambda: DESCRIPTOR.format(kind="fullDevice", extent='RW 2048 FLAT "/dev/sda" 0').encode(), "that is one file"),
    "COWD": ("vmdk", lambda: b"COWD".ljust(4096, b"\0"), "that is one file"),
    "flat extent": ("vmdk", lambda: extents('RW 2048 FLAT "/etc/shadow" 0'), "extent is FLAT"),
    "VMFS extent": ("vmdk", lambda: extents('RW 2048 VMFS "other-flat.vmdk"'), "extent is VMFS"),
    "device extent": ("vmdk", lambda: extents('RW 2048 VMFSRDM "/dev/sda"'), "extent is VMFSRDM"),
    "zero extent": ("vmdk", lambda: extents("RW 2048 ZERO"), "extent is ZERO"),
    "sparse extent elsewhere": ("vmdk", lambda: extents('RW 2048 SPARSE "/etc/shadow"'), "no plain file name"),
    "sparse extent above": ("vmdk", lambda: extents('RW 2048 SPARSE "../../secret.vmdk"'), "no plain file name"),
    "sparse extent by protocol": ("vmdk", lambda: extents('RW 2048 SPARSE "nbd:localhost:1"'), "no plain file name"),
    "sparse extent without name": ("vmdk", lambda: extents("RW 2048 SPARSE"), "no plain file name"),
    "two extents": ("vmdk", lambda: extents(EXTENT, 'RW 2048 SPARSE "second.vmdk"'), "2 extents"),
    "good extent and flat one": ("vmdk", lambda: extents(EXTENT, 'RW 2048 FLAT "/etc/shadow" 0'), "2 extents"),
    "no extent": ("vmdk", extents, "0 extents"),
    "extent without access": ("vmdk", lambda: extents('NOACCESS 2048 SPARSE "disk.vmdk"'), "extent is NOACCESS"),
    "extent of another size": ("vmdk", lambda: extents('RW 4096 SPARSE "disk.vmdk"'), "4096 sectors"),
    "extent with an offset": ("vmdk", lambda: extents('RW 2048 SPARSE "disk.vmdk" 77'), "begins at 77"),
    "extent not understood": ("vmdk", lambda: extents('RW many SPARSE "disk.vmdk"'), "not understood"),
    "parentCID": ("vmdk", lambda: described("ffffffff", "12345678"), "it has a parent"),
    "parentFileNameHint": ("vmdk", lambda: described("version=1", 'version=1\nparentFileNameHint="/etc/shadow"'), "names a parent"),
    "parentFileNameHint in a comment": ("vmdk", lambda: described("#DDB", '#parentFileNameHint="/etc/shadow"'), "names a parent"),
    "parentCID in a comment before": ("vmdk", lambda: described("version=1", "#parentCID=00000001"), "parentcid 2 times"),
    "parentCID not there": ("vmdk", lambda: described("parentCID=ffffffff\n", ""), "parentcid 0 times"),
    "createType twice": ("vmdk", lambda: described("version=1", 'createType="monolithicFlat"'), "createtype 2 times"),
    "createType monolithicFlat": ("vmdk", lambda: described("monolithicSparse", "monolithicFlat"), "'monolithicFlat'"),
    "createType twoGbMaxExtentSparse": ("vmdk", lambda: described("monolithicSparse", "twoGbMaxExtentSparse"), "'twoGb"),
    "createType fullDevice": ("vmdk", lambda: described("monolithicSparse", "fullDevice"), "'fullDevice'"),
    "createType of the other kind": ("vmdk", lambda: described("monolithicSparse", "streamOptimized"), "flags are 0x1"),
    "a key twice": ("vmdk", lambda: described("version=1", "version=1\nversion=2"), "says version twice"),
    "a line of nonsense": ("vmdk", lambda: described("version=1", "version=1\nhello world"), "line that means nothing"),
    "text behind the end": ("vmdk", lambda: vmdk(DESCRIPTOR.format(kind="monolithicSparse", extent=EXTENT).encode() + b'\0\nparentFileNameHint="x"'), "goes on behind its end"),
    "parent behind the descriptor's size": ("vmdk", lambda: put(vmdk(_full_sector() + b'parentFileNameHint="/etc/shadow"\n'), 36, "<Q", 1), "descriptor has no end"),
    "no descriptor": ("vmdk", lambda: put(vmdk(), 28, "<QQ", 0, 0), "no embedded descriptor"),
    "descriptor not one": ("vmdk", lambda: vmdk(b"parentCID=ffffffff\ncreateType=x\n"), "does not begin as one"),
    "descriptor too long": ("vmdk", lambda: put(vmdk(), 36, "<Q", 129), "descriptor of 66048 bytes is too long"),
    "descriptor of 2^64": ("vmdk", lambda: put(vmdk(), 36, "<Q", (1 << 64) - 1), "is too long"),
    "descriptor beyond the end": ("vmdk", lambda: put(vmdk(), 28, "<Q", 1 << 50), "its descriptor (10240 bytes"),
    "capacity 0": ("vmdk", lambda: put(vmdk(), 12, "<Q", 0), "virtual size is 0"),
    "capacity huge": ("vmdk", lambda: put(vmdk(), 12, "<Q", 1 << 60), "capacity of 1152921504606846976 sectors is absurd"),
    "capacity above the limit": (
        "vmdk",
        lambda: vmdk(extent='RW 536870920 SPARSE "d.vmdk"', header=put(vmdk_header(), 12, "<Q", 536870920)),
        "above the limit",
    ),
    "grain 0": ("vmdk", lambda: put(vmdk(), 20, "<Q", 0), "grain size of 0"),
    "grain 1": ("vmdk", lambda: put(vmdk(), 20, "<Q", 1), "grain size of 1 "),
    "grain no power of two": ("vmdk", lambda: put(vmdk(), 20, "<Q", 100), "100 sectors is no power of two"),
    "grain huge": ("vmdk", lambda: put(vmdk(), 20, "<Q", 1 << 40), "grain size of 1099511627776"),
    "grain tables of no entries": ("vmdk", lambda: put(vmdk(), 44, "<I", 0), "have 0 entries"),
    "grain tables huge": ("vmdk", lambda: put(vmdk(), 44, "<I", 1 << 30), "have 1073741824 entries"),
    "directory beyond the end": ("vmdk", lambda: put(vmdk(), 56, "<Q", 1 << 40), "its grain directory"),
    "directory in the header": ("vmdk", lambda: put(vmdk(), 56, "<Q", 0), "directory would be in the header"),
    "directory at the end, monolithic": ("vmdk", lambda: put(vmdk(), 56, "<Q", AT_END), "only a streamOptimized"),
    "second directory beyond the end": ("vmdk", lambda: put(put(vmdk(), 8, "<I", 3), 48, "<Q", 1 << 40), "second grain directory"),
    "VMDK version 9": ("vmdk", lambda: put(vmdk(), 4, "<I", 9), "VMDK version is 9"),
    "VMDK flags unknown": ("vmdk", lambda: put(vmdk(), 8, "<I", 1 | 1 << 20), "unknown VMDK flags 0x100000"),
    "compressed without markers": ("vmdk", lambda: put(put(vmdk(), 8, "<I", 0x10001), 77, "<H", 1), "compression and markers"),
    "compression algorithm": ("vmdk", lambda: put(vmdk(), 77, "<H", 7), "algorithm 7 is unknown"),
    "transferred as text": ("vmdk", lambda: put(vmdk(), 73, "4s", b"\n \n\n"), "transferred as text"),
    "cut in the VMDK header": ("vmdk", lambda: vmdk()[:100], "the VMDK header (512 bytes"),
    "stream without a footer": ("vmdk", lambda: stream()[: -3 * 512], "footer has no marker"),
    "stream with another marker": ("vmdk", lambda: stream(marker=struct.pack("<QII", 1, 0, 2)), "footer has no marker"),
    "stream with no end": ("vmdk", lambda: stream(end=b"x"), "stream has no end"),
    "footer no header": ("vmdk", lambda: stream(footer=b"x" * 512), "no header of a sparse extent"),
    # QEMU believes the footer: with a capacity of 0 it would take the descriptor for a list of other files.
    "footer with capacity 0": ("vmdk", lambda: stream(footer=vmdk_header(0x30001, 3, 30, capacity=0)), "do not agree"),
    "footer with another descriptor": ("vmdk", lambda: stream(footer=put(vmdk_header(0x30001, 3, 30), 28, "<Q", 9)), "do not agree"),
    "footer with no directory": ("vmdk", lambda: stream(footer=vmdk_header(0x30001, 3, AT_END)), "does not say where"),
    "footer with a directory beyond": ("vmdk", lambda: stream(footer=vmdk_header(0x30001, 3, 1 << 40)), "its grain directory"),
}  # fmt: skip

# --- vhd ---------------------------------------------------------------------------------------------------


def summed(found: bytes, place: int, length: int, start: int = 0) -> bytes:
    """With the right checksum."""
    part = put(found[start : start + length], place, ">I", 0)
    return put(found, start + place, ">I", ~sum(part) & 0xFFFFFFFF)


def vhd_footer(kind: int = 2, size: int = MIB, version: int = 0x10000, saved: int = 0) -> bytes:
    at = AT_END if kind == 2 else 512
    found = struct.pack(
        ">8sIIQI4sI4sQQHBBI", b"conectix", 2, version, at, 0, b"qem2", 0x50003, b"Wi2k", size, size, 30, 4, 17, kind
    )
    return summed(put(found.ljust(512, b"\0"), 84, "B", saved), 64, 512)


def vhd_fixed(footer: bytes | None = None, disk: bytes = DISK) -> bytes:
    return disk + (footer or vhd_footer())


def vhd(footer: bytes | None = None, **fields: Any) -> bytes:
    """Dynamic: the footer's copy, the header at 512, the table at 1536, the first block (64 KiB) at 2048."""
    foot = footer or vhd_footer(3)
    head = {"cookie": b"cxsparse", "table": 1536, "version": 0x10000, "entries": 16, "block": 65536} | fields
    dynamic = struct.pack(
        ">8sQQIIII", head["cookie"], AT_END, head["table"], head["version"], head["entries"], head["block"], 0
    ).ljust(1024, b"\0")
    for offset, text in fields.get("put", ()):
        dynamic = put(dynamic, offset, f"{len(text)}s", text)
    dynamic = summed(dynamic, 36, 1024)
    table = struct.pack(">16I", 4, *[0xFFFFFFFF] * 15).ljust(512, b"\xff")
    block = b"\xff" * 16 + b"\0" * 496 + BOOT_SECTOR.ljust(65536, b"\0")
    return foot + dynamic + table + block + foot


VHD: dict[str, Hostile] = {
    "differencing": ("vhd", lambda: vhd(vhd_footer(4)), "differencing disk"),
    "disk type 0": ("vhd", lambda: vhd(vhd_footer(0)), "disk type is 0"),
    "disk type 77": ("vhd", lambda: vhd(vhd_footer(77)), "disk type is 77"),
    "parent name": ("vhd", lambda: vhd(put=[(64, "/etc/shadow".encode("utf-16-be"))]), "names a parent"),
    "parent uuid": ("vhd", lambda: vhd(put=[(40, b"x" * 16)]), "names a parent"),
    "parent locator": ("vhd", lambda: vhd(put=[(576, struct.pack(">4sIIIQ", b"W2ku", 512, 22, 0, 4096))]), "parent locators"),
    "footer's checksum": ("vhd", lambda: put(vhd(), len(vhd()) - 512 + 64, ">I", 1), "footer has a wrong checksum"),
    "dynamic header's checksum": ("vhd", lambda: put(vhd(), 512 + 36, ">I", 1), "dynamic header has a wrong checksum"),
    "copies differ": ("vhd", lambda: vhd_footer(3, 2 * MIB) + vhd()[512:], "another one"),
    "no dynamic header": ("vhd", lambda: vhd(cookie=b"somethin"), "no dynamic header"),
    "dynamic header beyond the end": ("vhd", lambda: vhd(summed(put(vhd_footer(3), 16, ">Q", 1 << 50), 64, 512)), "its dynamic header (1024"),
    "dynamic header at 0": ("vhd", lambda: vhd(summed(put(vhd_footer(3), 16, ">Q", 0), 64, 512)), "dynamic header at 0"),
    "dynamic header's version": ("vhd", lambda: vhd(version=0x20000), "dynamic header's version"),
    "block size 0": ("vhd", lambda: vhd(block=0), "block size is 0"),
    "block size 2^31": ("vhd", lambda: vhd(block=1 << 31), "block size is 2147483648"),
    "block size no power of two": ("vhd", lambda: vhd(block=65536 * 3), "no power of two"),
    "table too small": ("vhd", lambda: vhd(entries=1), "table of 1 blocks is too small"),
    "table huge": ("vhd", lambda: vhd(entries=0xFFFFFFFF), "table of 4294967295 blocks is absurd"),
    "table longer than the file": ("vhd", lambda: vhd(entries=1 << 20), "its block table"),
    "table beyond the end": ("vhd", lambda: vhd(table=1 << 50), "its block table"),
    "table in the footer": ("vhd", lambda: vhd(table=0), "block table at 0"),
    "VHD version": ("vhd", lambda: vhd_fixed(vhd_footer(version=0x20000)), "VHD version is 0x20000"),
    "saved state": ("vhd", lambda: vhd_fixed(vhd_footer(saved=1)), "saved state"),
    "VHD of size 0": ("vhd", lambda: vhd_fixed(vhd_footer(size=0)), "virtual size is 0"),
    "VHD of 2^64": ("vhd", lambda: vhd_fixed(vhd_footer(size=(1 << 64) - 512)), "more than a VHD can have"),
    "VHD above the limit": (
        "vhd",
        lambda: (foot := vhd_footer(3, 512 << 30)) + vhd(foot, entries=1 << 13, block=64 * MIB)[512:-512].ljust(1 << 16, b"\0") + foot,
        "above the limit",
    ),
    "fixed and too short": ("vhd", lambda: vhd_fixed(vhd_footer(size=2 * MIB)), "cannot be"),
    "fixed and too long": ("vhd", lambda: vhd_fixed(vhd_footer(size=MIB // 2)), "cannot be"),
    # A guest of the fixed disk may write its first sector: whoever looks there first believes the guest.
    "fixed with a footer of its guest": ("vhd", lambda: vhd_fixed(disk=vhd_footer(3) + DISK[512:]), "another footer"),
    "footer at the beginning only": ("vhd", lambda: vhd()[:-512] + b"\0" * 512, "no footer at its end"),
    "footer of 511 bytes": ("vhd", lambda: vhd()[:-1], "no footer at its end"),
    "footer alone": ("vhd", vhd_footer, "shorter than a VHD"),
}  # fmt: skip

# --- raw, and what is something else than it is said to be ---------------------------------------------------

RAW: dict[str, Hostile] = {
    "empty": ("raw", lambda: b"", "it is empty"),
    "no multiple of 512": ("raw", lambda: DISK + b"x", "no multiple of 512"),
    "no boot record": ("raw", lambda: b"\0" * MIB, "it has no boot record and could not boot"),
    "no boot code": ("raw", lambda: (b"\0" * 510 + b"\x55\xaa").ljust(MIB, b"\0"), "made for UEFI only"),
    "shadow": ("raw", lambda: b"root:$y$j9T$secret:19000:0:99999:7:::\n".ljust(1024, b"\n"), "no boot record"),
    "qcow2 said to be raw": ("raw", qcow2, "looks like qcow2; say --format qcow2"),
    "qcow2 with a backing file said to be raw": ("raw", lambda: put(backed(SECRET), 510, "2s", b"\x55\xaa"), "say --format qcow2"),
    "vmdk said to be raw": ("raw", vmdk, "say --format vmdk"),
    "descriptor said to be raw": ("raw", lambda: DESCRIPTOR.encode().ljust(1024), "say --format vmdk"),
    "dynamic vhd said to be raw": ("raw", vhd, "say --format vhd"),
    "fixed vhd said to be raw": ("raw", vhd_fixed, "say --format vhd"),
    "raw said to be qcow2": ("qcow2", lambda: DISK, "looks like raw; say --format raw"),
    "raw said to be vmdk": ("vmdk", lambda: DISK, "looks like raw; say --format raw"),
    "raw said to be vhd": ("vhd", lambda: DISK, "looks like raw; say --format raw"),
    "qcow2 said to be vmdk": ("vmdk", qcow2, "say --format qcow2"),
    "qcow2 said to be vhd": ("vhd", qcow2, "say --format qcow2"),
    "vmdk said to be qcow2": ("qcow2", vmdk, "say --format vmdk"),
    "vhd said to be qcow2": ("qcow2", vhd, "say --format vhd"),
    "text said to be qcow2": ("qcow2", lambda: b"hello, this is a text\n" * 99, "this is no qcow2"),
    "VHDX": ("vhd", lambda: b"vhdxfile".ljust(4096, b"\0"), "looks like VHDX"),
    "VDI": ("raw", lambda: put(DISK, 0x40, "4s", b"\x7f\x10\xda\xbe"), "looks like VDI"),
    "QED": ("qcow2", lambda: b"QED\0".ljust(4096, b"\0"), "looks like QED"),
    "LUKS": ("raw", lambda: put(DISK, 0, "6s", b"LUKS\xba\xbe"), "looks like LUKS"),
    "gzip": ("raw", lambda: b"\x1f\x8b\x08".ljust(4096, b"\0"), "looks like gzip"),
    "xz": ("qcow2", lambda: b"\xfd7zXZ\0".ljust(4096, b"\0"), "looks like xz"),
    "OVA": ("vmdk", lambda: put(b"\0" * 4096, 257, "5s", b"ustar"), "an OVA is one"),
    "a format that there is not": ("vdi", lambda: DISK, "there is no format 'vdi'"),
}  # fmt: skip

HOSTILE: dict[str, Hostile] = {
    f"{kind}: {name}": one
    for kind, table in (("qcow2", QCOW2), ("vmdk", VMDK), ("vhd", VHD), ("raw", RAW))
    for name, one in table.items()
}

#: Name -> (format, bytes, virtual size). All of them convert, and boot into a loop.
GOOD: dict[str, tuple[str, Callable[[], bytes], int]] = {
    "qcow2, version 3": ("qcow2", qcow2, MIB),
    "qcow2, version 2": ("qcow2", lambda: qcow2(2), MIB),
    "qcow2 with feature names": ("qcow2", lambda: qcow2(extensions=extension(0x6803F857, b"\0" * 48)), MIB),
    "qcow2, dirty": ("qcow2", lambda: put(qcow2(), 72, ">Q", 1), MIB),
    "vmdk, monolithicSparse": ("vmdk", vmdk, MIB),
    "vmdk, streamOptimized": ("vmdk", stream, MIB),
    "vhd, dynamic": ("vhd", vhd, MIB),
    "vhd, fixed": ("vhd", vhd_fixed, MIB),
    "raw": ("raw", lambda: DISK, MIB),
}
