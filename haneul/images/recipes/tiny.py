"""`tiny`: a guest of busybox and little else, for tests that need many."""

from __future__ import annotations

import gzip
import shutil
import uuid
from pathlib import Path

from haneul.images.build.disk import finish, make_disk
from haneul.images.build.initrd import OTHER_DISKS, USUAL_DISK, install_resume, small_initrd, with_dependencies
from haneul.images.build.loader import make_loader
from haneul.images.build.tools import (
    MIB,
    Say,
    bootstrap,
    copy_into,
    fresh,
    guest_files,
    in_tree,
    kernel_release,
    libraries,
    link,
    write,
)
from haneul.images.resume import unit as resume

# Debian's kernel for virtual machines, and the one for all machines: only that has drivers of real network cards.
CLOUD_KERNEL = "linux-image-cloud-amd64"


FULL_KERNEL = "linux-image-amd64"


TINY_PACKAGES = (
    "busybox-static", "dropbear-bin", "grub-pc-bin", "grub-common", "e2fsprogs", "fdisk",
    "util-linux", "kmod",
)  # fmt: skip


TINY_PROGRAMS = ("/usr/sbin/dropbear", "/usr/bin/dropbearkey", "/usr/bin/partx", "/sbin/sfdisk", "/sbin/resize2fs")


TINY_START_MODULES = ("evdev", "button", "virtio_net", "e1000")


TINY_MORE_MODULES = (
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "vmxnet3",
    "ena",
    "e1000e",
    "overlay",
    *OTHER_DISKS,
)


TINY_SIZE = 256 * MIB


# "linux16" starts a kernel as the BIOS would. GRUB's "linux" reserves what the unpacked kernel needs and, on these
# machines, moves all of that byte by byte: 66 MB, which takes an emulated processor three seconds.
TINY_GRUB = """\
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
echo "haneul: starting the kernel of this disk"
linux16 /boot/vmlinuz {cmdline}
initrd16 /boot/initrd
boot
"""


TINY_FILES = guest_files("tiny/files")


TINY_SCRIPTS = guest_files("tiny/scripts")


def tiny_tree(tree: Path, parts: Path) -> None:
    """The files of the tiny image, taken from a tree of unpacked packages."""
    for name in ("bin", "boot/grub", "dev", "etc/dropbear", "proc", "root/.ssh", "run", "sys", "tmp", "usr/local/bin",
                 "usr/sbin", "var/lib/haneul", "var/log"):  # fmt: skip
        (tree / name).mkdir(parents=True, exist_ok=True)
    for private in ("root", "root/.ssh", "etc/dropbear", "var/lib/haneul"):
        (tree / private).chmod(0o700)
    (tree / "tmp").chmod(0o1777)
    copy_into(tree, parts, "/bin/busybox")
    for path in TINY_PROGRAMS:
        for file in (path, *libraries(parts, path)):
            copy_into(tree, parts, file)
    for applet in in_tree(tree, ["/bin/busybox", "--list-full"]).split():
        if not (tree / applet).exists() and applet not in ("linuxrc", "usr/bin/dpkg", "usr/bin/dpkg-deb", "bin/rpm"):
            link(tree / applet, "/bin/busybox")
    for path, text in TINY_FILES.items():
        write(tree / path, text)
    for path, text in (TINY_SCRIPTS | resume.TINY_SCRIPTS).items():
        write(tree / path, text, 0o755)
    write(tree / "etc/shadow", "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n", 0o600)
    link(tree / "usr/bin/imds", "/lib/haneul/imds")


def tiny_modules(tree: Path, parts: Path, release: str) -> None:
    """The kernel modules of the tiny image, and the list of those that it loads at its start."""
    modules = parts / "lib/modules" / release
    for path in with_dependencies(modules, (*USUAL_DISK, *TINY_START_MODULES, *TINY_MORE_MODULES)):
        copy_into(tree, parts, str(path.relative_to(parts)))
    for index in modules.glob("modules.*"):
        copy_into(tree, parts, str(index.relative_to(parts)))
    in_initrd = set(with_dependencies(modules, USUAL_DISK))
    wanted = [path for path in with_dependencies(modules, TINY_START_MODULES) if path not in in_initrd]
    write(tree / "lib/haneul/modules", "".join(f"/{path.relative_to(parts)}\n" for path in wanted))


def build_tiny(work: Path, output: Path, say: Say) -> None:
    """Build ``tiny``: Debian's cloud kernel, busybox and dropbear; for tests and for servers without hardware help."""
    _build_tiny(work, output, say, CLOUD_KERNEL)


def build_tiny_generic(work: Path, output: Path, say: Say) -> None:
    """Build ``tiny-generic``: as ``tiny``, with Debian's full kernel, which takes an emulated processor twice as long."""
    _build_tiny(work, output, say, FULL_KERNEL)


def _build_tiny(work: Path, output: Path, say: Say, kernel_package: str) -> None:
    parts, tree = work / "parts", fresh(work / "tree")
    say("fetching packages")
    bootstrap(fresh(parts), "extract", (kernel_package, *TINY_PACKAGES))
    release = kernel_release(parts)
    in_tree(parts, ["/sbin/depmod", release])
    say("putting the system together")
    tiny_tree(tree, parts)
    install_resume(tree / "lib/haneul/resume", work)
    tiny_modules(tree, parts, release)
    root = str(uuid.uuid4())
    cmdline = f"root=UUID={root} rw console=tty0 console=ttyS0,115200 loglevel=5 panic=5"
    kernel = parts / f"boot/vmlinuz-{release}"
    initrd = small_initrd(parts / "bin/busybox", parts / "lib/modules" / release)
    shutil.copyfile(kernel, tree / "boot/vmlinuz")
    # Compressed on the disk: reading through the BIOS is slower than unpacking.
    (tree / "boot/initrd").write_bytes(gzip.compress(initrd, mtime=0))
    write(tree / "boot/grub/grub.cfg", TINY_GRUB.format(cmdline=cmdline))
    say("making the disk")
    disk = work / "disk.raw"
    make_disk(tree, disk, TINY_SIZE, root, make_loader(parts))
    finish(disk, output, kernel, initrd, cmdline)
    shutil.rmtree(tree)
    shutil.rmtree(parts)
