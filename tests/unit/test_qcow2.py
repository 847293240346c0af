"""New volumes (drivers/qcow2.py): QEMU's own tool says what they are."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from haneul.drivers.disks.qcow2 import Qcow2Disks, backing_file, empty, virtual_size
from haneul.model.assignment import DiskSpec

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def info(file: Path) -> dict[str, Any]:
    subprocess.run(["qemu-img", "check", "-q", str(file)], check=True)
    # -U: nothing but the file itself is opened, and its backing file may be nothing.
    said = subprocess.run(["qemu-img", "info", "-U", "--output=json", str(file)], check=True, capture_output=True)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


@needs_qemu
@pytest.mark.parametrize("gib", [1, 3, 8, 4096, 16384])
def test_a_new_volume_is_as_qemu_img_makes_it(tmp_path: Path, gib: int) -> None:
    base, file, other = tmp_path / "base.qcow2", tmp_path / "one.qcow2", tmp_path / "two.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*create, str(base), "1G"], check=True)
    subprocess.run([*create, "-b", str(base), "-F", "qcow2", str(other), f"{gib}G"], check=True)
    file.write_bytes(empty(gib << 30, str(base)))
    ours, theirs = info(file), info(other)
    for name in ("virtual-size", "cluster-size", "format-specific", "full-backing-filename", "backing-filename-format"):
        assert ours[name] == theirs[name], name
    assert (virtual_size(file), backing_file(file)) == (gib << 30, str(base))
    assert file.stat().st_size == other.stat().st_size


@needs_qemu
def test_what_is_written_into_a_new_volume_is_there(tmp_path: Path) -> None:
    file = tmp_path / "one.qcow2"
    file.write_bytes(empty(8 << 30))
    words = [word for one in ("write -P 7 5G 3M", "read -P 7 5G 3M", "read -P 0 0 1M") for word in ("-c", one)]
    said = subprocess.run(["qemu-io", *words, str(file)], check=True, capture_output=True, text=True).stdout
    assert "Pattern verification failed" not in said
    assert "backing-filename" not in info(file)


def test_a_path_that_no_header_has_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="1,023"):
        empty(1 << 30, "/" + "x" * 1023)


def test_a_volume_of_an_image_takes_little_room(tmp_path: Path) -> None:
    (tmp_path / "images/tiny").mkdir(parents=True)
    (tmp_path / "images/tiny/disk.qcow2").touch()
    disks = Qcow2Disks(tmp_path / "volumes", tmp_path / "images")
    asyncio.run(disks.ensure(DiskSpec("vol-1", "tiny", 16384, "/dev/xvda")))
    file = disks.file("vol-1")
    assert backing_file(file) == str(tmp_path / "images/tiny/disk.qcow2")
    assert (file.stat().st_mode & 0o777, file.stat().st_blocks * 512 < 65536) == (0o600, True)
    assert [one.name for one in disks.directory.iterdir()] == ["vol-1.qcow2"]


def test_a_volume_of_which_half_was_written_is_made_and_not_lost(tmp_path: Path) -> None:
    """A full disk, or a kill: the half is observed, so that it can be removed, and was told as made."""
    disks = Qcow2Disks(tmp_path / "volumes", tmp_path / "images")
    disks.directory.mkdir()
    (disks.directory / ".vol-1.new").write_bytes(b"half")
    assert asyncio.run(disks.observe()) == {"vol-1"}
    asyncio.run(disks.ensure(DiskSpec("vol-1", "", 1, "/dev/sda1", made=True)))
    assert [path.name for path in disks.directory.iterdir()] == ["vol-1.qcow2"]
