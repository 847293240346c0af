"""A user's disk, imported with the command, boots by its own boot loader and answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Haneul


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where machines may enter, which a folder of pytest's is not."""
    made = Path(tempfile.mkdtemp(prefix="haneul-import-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_an_imported_disk_boots_and_answers(make_haneul: Callable[..., Haneul], folder: Path) -> None:
    given = folder / "tiny.vmdk"
    haneul = make_haneul(HANEUL_IMAGES=str(folder / "images"))
    original = os.environ.get("HANEUL_TEST_IMAGES", "/var/lib/haneul/images")
    options = ["-f", "qcow2", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", *options, f"{original}/tiny/disk.qcow2", str(given)], check=True)
    said = haneul.run("image", "import", str(given), "--name", "my-own", "--format", "vmdk", "--size-gib", "2").stdout
    assert sorted(path.name for path in (folder / "images" / "my-own").iterdir()) == ["disk.qcow2", "image.json"]
    haneul.up()
    assert haneul.image("my-own") in said
    (instance,) = haneul.launch("my-own")
    haneul.until_ssh(instance)
    assert haneul.ssh(instance, "cat /sys/block/vda/size") == str(2 << 21), "its volume has the size that was asked for"
    # The boot loader of the disk started it: haneul gives a kernel by this name in memory only.
    assert "BOOT_IMAGE" in haneul.ssh(instance, "cat /proc/cmdline")
    refused = haneul.run("image", "import", str(given), "--name", "my-own", "--format", "vmdk", "--again", check=False)
    assert refused.returncode == 3 and "terminate their instances first" in refused.stderr
    haneul.terminate(instance)
    haneul.run("down", "--purge")
