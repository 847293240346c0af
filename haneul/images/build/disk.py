"""The disk: GPT, the loader's partition, ext4 last so that it can grow."""

from __future__ import annotations

import shutil
from pathlib import Path

from haneul.images.build.loader import Loader, install_loader
from haneul.images.build.tools import BOOT_START, MIB, ROOT_START, SECTOR, run


def make_disk(tree: Path, disk: Path, size: int, root: str, loader: Loader) -> None:
    """A raw disk with GPT, boot loader and the tree as its ext4 root, sparse and without a mount.

    The root is partition 1, as on Debian's cloud images, and lies behind the boot partition (14) so that it can grow.
    Blocks are of 4 KiB also on a small disk, because it will grow, and growing many small blocks is slow.
    Tables are zeroed here, in a sparse file where it costs nothing, so that no kernel thread does it in the guest.
    """
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(size)
    first, length = ROOT_START // SECTOR, (size - ROOT_START - MIB) // SECTOR
    bios = "21686148-6449-6E6F-744E-656564454649"
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk],
        f"label: gpt\n14: start={BOOT_START // SECTOR}, size={MIB // SECTOR}, type={bios}, name=bios\n"
        f"1: start={first}, size={length}, type=L, name=root\n")  # fmt: skip
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-i", "16384", "-I", "256", "-L", "haneul-root",
         "-U", root, "-m", "1", "-d", tree,
         "-E", f"offset={ROOT_START},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
         disk, f"{length * SECTOR // 1024}k"])  # fmt: skip
    install_loader(disk, loader)


def finish(disk: Path, output: Path, kernel: Path, initrd: bytes, cmdline: str) -> None:
    """Put the four files of an image into ``output``, the disk last: when it is there, the image is complete."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kernel, output / "vmlinuz")
    (output / "initrd").write_bytes(initrd)
    (output / "cmdline").write_text(cmdline + "\n")
    partial = output / "disk.qcow2.part"
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, partial])
    partial.rename(output / "disk.qcow2")
    disk.unlink()
