"""Headers of disk images: good ones are read, hostile ones refused, each with its reason."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from haneul.errors import SettingsError
from haneul.images.importing.formats import GIB, Header, need_boot_record, parse
from tests.unit.hostile import BOOT_SECTOR, GOOD, HOSTILE, described

LIMIT = 256 * GIB


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_refused_and_told_why(name: str) -> None:
    declared, make, why = HOSTILE[name]
    with pytest.raises(SettingsError) as refusal:
        parse(io.BytesIO(make()), declared, LIMIT)
    assert why in str(refusal.value)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_image_is_read(name: str) -> None:
    declared, make, size = GOOD[name]
    found = parse(io.BytesIO(make()), declared, LIMIT)
    assert (found.format, found.virtual_size) == (declared, size)


@pytest.mark.parametrize("name", GOOD)
def test_damage_raises_nothing_else_than_a_refusal(name: str) -> None:
    """Bytes at random places of what is parsed, and every length."""
    declared, make, _ = GOOD[name]
    good, chance = make(), random.Random(name)
    for _ in range(400):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.choice((chance.randrange(1024), chance.randrange(-512, 0), chance.randrange(len(good))))] = (
                chance.randrange(256)
            )
        _parsed_or_refused(bytes(damaged), declared)
    for length in [*range(0, 1600, 7), *(chance.randrange(len(good)) for _ in range(50))]:
        _parsed_or_refused(good[:length], declared)


def _parsed_or_refused(image: bytes, declared: str) -> Header | None:
    try:
        return parse(io.BytesIO(image), declared, LIMIT)
    except SettingsError:
        return None


@pytest.mark.parametrize(
    "change",
    [
        ("RW 2048", "RDONLY 2048"),  # VMware's exports: a stream is written once
        ("# Disk DescriptorFile", "# Description file created by VMDK stream converter"),
    ],
)
def test_descriptors_of_the_writers_in_use_are_read(change: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(described(*change))
    with (tmp_path / "disk").open("rb") as opened:
        assert parse(opened, "vmdk", LIMIT).virtual_size == 2048 * 512


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize(
    ("declared", "options"),
    [
        ("qcow2", "-f qcow2"),
        ("qcow2", "-f qcow2 -o compat=0.10"),
        ("qcow2", "-f qcow2 -o compression_type=zstd,extended_l2=on,lazy_refcounts=on"),
        ("qcow2", "-f qcow2 -o cluster_size=512"),
        ("qcow2", "-f qcow2 -o cluster_size=2M,refcount_bits=64"),
        ("qcow2", "-f qcow2 -o preallocation=metadata"),
        ("vmdk", "-f vmdk"),
        ("vmdk", "-f vmdk -o subformat=streamOptimized"),
        ("vhd", "-f vpc -o force_size=on"),
        ("vhd", "-f vpc -o force_size=on,subformat=fixed"),
    ],
)
def test_what_qemu_makes_is_read(declared: str, options: str, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", *options.split(), str(file), "48M"], check=True)
    with file.open("rb") as opened:
        assert parse(opened, declared, LIMIT).virtual_size == 48 << 20


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize(
    ("declared", "options", "why"),
    [
        ("qcow2", "-f qcow2 -o data_file=DIRECTORY/data,data_file_raw=on", "external data file"),
        ("qcow2", "-f qcow2 -b DIRECTORY/base -F raw", "backing file"),
        ("vmdk", "-f vmdk -o subformat=monolithicFlat", "that is one file"),
        ("vmdk", "-f vmdk -o subformat=twoGbMaxExtentSparse", "that is one file"),
        ("vmdk", "-f vmdk -b DIRECTORY/base.vmdk -F vmdk", "names a parent"),
        ("qcow2", "-f qcow2 --object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "encrypted"),
    ],
)  # fmt: skip
def test_what_qemu_makes_of_other_files_is_refused(declared: str, options: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(BOOT_SECTOR * 98304)
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(tmp_path / "base.vmdk"), "48M"], check=True)
    file = tmp_path / "disk.vmdk"
    words = options.replace("DIRECTORY", str(tmp_path)).split()
    subprocess.run(["qemu-img", "create", "-q", *words, str(file), "48M"], check=True)
    with file.open("rb") as opened, pytest.raises(SettingsError, match=why):
        parse(opened, declared, LIMIT)


def test_the_limit_counts() -> None:
    declared, make, size = GOOD["raw"]
    assert parse(io.BytesIO(make()), declared, size).virtual_size == size
    with pytest.raises(SettingsError, match="import_max_gib"):
        parse(io.BytesIO(make()), declared, size - 512)


def test_a_boot_record_has_code_and_a_signature() -> None:
    need_boot_record(BOOT_SECTOR)
    for sector in (b"", BOOT_SECTOR[:511], BOOT_SECTOR[:510] + b"\xaa\x55"):
        with pytest.raises(SettingsError, match="could not boot"):
            need_boot_record(sector)


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) >= 60
