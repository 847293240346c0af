"""GRUB for BIOS, in a partition of its own."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from haneul.images.build.tools import BOOT_START, ROOT_START, SECTOR, RecipeError, in_tree

# What the boot loader needs to find and start a kernel even when /boot/grub is damaged.
GRUB_MODULES = (
    "biosdisk", "part_gpt", "ext2", "normal", "linux", "linux16", "search", "search_label", "search_fs_uuid", "configfile",
    "echo", "test", "ls", "cat", "serial", "terminal", "gzio", "minicmd", "reboot", "halt", "all_video", "sleep",
)  # fmt: skip


@dataclass(frozen=True)
class Loader:
    """GRUB for BIOS: the code of the first sector and the image that it loads."""

    boot: bytes
    core: bytes


def make_loader(tools: Path) -> Loader:
    """Make GRUB's images with the tools of a tree that holds grub-common and grub-pc-bin.

    The prefix names a partition without a disk, which for GRUB means the disk that the firmware started: that stays
    right when a second volume with the same file system identifier is attached.
    """
    made = tools / "core.img"
    in_tree(tools, ["/usr/bin/grub-mkimage", "-O", "i386-pc", "-d", "/usr/lib/grub/i386-pc",
                    "-p", "(,gpt1)/boot/grub", "-o", "/core.img", *GRUB_MODULES])  # fmt: skip
    loader = Loader((tools / "usr/lib/grub/i386-pc/boot.img").read_bytes(), made.read_bytes())
    made.unlink()
    return loader


def install_loader(disk: Path, loader: Loader) -> None:
    """Write GRUB into the first sector (code only, the partition table stays) and into the BIOS boot partition.

    grub-install wants a mounted file system and a block device. What it does for this layout is little: the first
    sector gets the place of the second stage (8 bytes at 0x5c), and the second stage's own first sector gets the
    place and length of the rest (block list at 0x1f4: 8 bytes first sector, 2 bytes count, 2 bytes segment).
    """
    start = BOOT_START // SECTOR
    core = bytearray(loader.core + b"\0" * (-len(loader.core) % SECTOR))
    if len(core) > ROOT_START - BOOT_START:
        raise RecipeError("the boot loader does not fit into its partition")
    struct.pack_into("<QH", core, 0x1F4, start + 1, len(core) // SECTOR - 1)
    with disk.open("r+b") as file:
        sector = bytearray(file.read(SECTOR))
        sector[:0x1B8] = loader.boot[:0x1B8]
        struct.pack_into("<Q", sector, 0x5C, start)
        file.seek(0)
        file.write(sector)
        file.seek(BOOT_START)
        file.write(core)
