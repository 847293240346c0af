"""Recipes: from Debian packages to bootable disk images, without mounting anything on the host.

Each recipe is a function ``build(work, output, say)`` that leaves four files in ``output``:

``disk.qcow2``  the root disk: GPT, boot loader in its own partition, ext4 root last so that it can grow
``vmlinuz``     the kernel of that disk, for a start without firmware and boot loader
``initrd``      a small initial RAM disk for that kernel, for the same fast start
``cmdline``     the kernel arguments for the fast start

The disk also starts by itself through BIOS and GRUB; there it uses the initrd and the configuration *on the
disk*, which the guest owns and may replace when it upgrades its kernel.

Nothing is mounted outside a private mount namespace, and every tool dies with the build: killed at any moment, it leaves
files under ``work`` and ``output`` and nothing else. The recipes need root (device nodes and file owners) and these
Debian packages on the host: ``mmdebstrap``, ``e2fsprogs``, ``fdisk``, ``qemu-utils``, ``util-linux``,
``debian-archive-keyring``.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from haneul.images.build.disk import finish, make_disk
from haneul.images.build.initrd import install_resume, small_initrd
from haneul.images.build.loader import make_loader
from haneul.images.build.tools import (
    MIB,
    RecipeError,
    Say,
    bootstrap,
    fresh,
    guest_file,
    guest_files,
    in_tree,
    kernel_release,
    link,
    write,
)
from haneul.images.recipes.tiny import CLOUD_KERNEL, FULL_KERNEL
from haneul.images.resume import unit as resume

DEBIAN_PACKAGES = (
    "initramfs-tools", "zstd", "grub-pc-bin", "grub2-common",
    "systemd", "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "libpam-systemd", "dbus", "udev", "kmod",
    "cloud-init", "cloud-guest-utils", "isc-dhcp-client", "e2fsprogs", "fdisk",
    "openssh-server", "sudo", "ca-certificates", "curl", "less", "iproute2", "iputils-ping", "procps", "netbase",
    "vim-tiny",
)  # fmt: skip


DEBIAN_SIZE = 2048 * MIB


DEBIAN_ARGUMENTS = "console=tty0 console=ttyS0,115200 loglevel=5 net.ifnames=0"


# Drivers of what no virtual server has, 170 of the 390 MB of modules of the full kernel. Without those of the graphics card
# the screen stays in text mode, as with the cloud kernel: drawing letters takes an emulated processor seconds.
DEBIAN_LEFT_OUT_DRIVERS = (
    "sound", "drivers/media", "drivers/gpu", "drivers/iio", "drivers/staging",
    "drivers/net/wireless", "net/wireless", "net/mac80211", "drivers/bluetooth", "net/bluetooth",
)  # fmt: skip


# Documentation and translations that nobody reads on a virtual server; the licences stay.
DEBIAN_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/lintian/*",
    "path-include=/usr/share/doc/*/copyright", "path-include=/usr/share/locale/locale.alias",
    *(f"path-exclude=/lib/modules/*/kernel/{name}/*" for name in DEBIAN_LEFT_OUT_DRIVERS),
)  # fmt: skip


DEBIAN_DISABLED_UNITS = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "systemd-pstore.service", "remote-fs.target",
)  # fmt: skip


DEBIAN_ENABLED_UNITS = (
    "systemd-networkd.service", "systemd-resolved.service", "ssh.service", "haneul-uml.service",
)  # fmt: skip


# Modules of cloud-init that have nothing to do here: other distributions, other clouds, GRUB's own package. Each costs
# an emulated processor time to load; all others stay as Debian lists them.
CLOUD_INIT_LEFT_OUT = {
    "snap", "byobu", "fan", "landscape", "lxd", "reset_rmc", "refresh_rmc_and_interface", "rightscale_userdata",
    "grub-dpkg", "mcollective", "rsyslog",
}  # fmt: skip


# What packages read while they are being configured, and therefore has to be there before.
DEBIAN_EARLY_FILES = guest_files("debian/early")


DEBIAN_GRUB = """\
# The first configuration; update-grub replaces it.
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
echo "haneul: starting the kernel of this disk"
linux16 /boot/vmlinuz-{release} root=UUID={root} ro {arguments}
initrd16 /boot/initrd.img-{release}
boot
"""


# The data source is settled, so nothing is probed; within its time-outs the metadata service may start late.
DEBIAN_CLOUD_CONFIG = guest_file("debian/cloud.cfg.d.yaml")


DEBIAN_FILES = guest_files("debian/files")


DEBIAN_SCRIPTS = guest_files("debian/scripts")


# What must not be the same in two instances, and what the packages' installation left behind.
DEBIAN_REMOVED = (
    "etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
    "var/lib/apt/lists/*", "var/cache/apt/*", "var/cache/debconf/*-old", "var/cache/ldconfig/*", "var/cache/man/*",
    "var/lib/dpkg/*-old", "var/log/*.log", "var/log/apt/*", "var/lib/cloud/*", "etc/passwd-", "etc/group-",
    "etc/shadow-", "etc/gshadow-", "tmp/*", "run/*", "root/.bash_history",
    # A line of uname, for which every login starts five processes: half a second of an emulated processor.
    "etc/update-motd.d",
)  # fmt: skip


def cloud_init_modules(defaults: str) -> str:
    """The module lists of Debian's cloud.cfg without the modules that are left out here."""
    chosen = []
    section = ""
    for line in defaults.splitlines():
        if match := re.match(r"(cloud_(?:init|config|final)_modules):", line):
            section = match[1]
            chosen.append(f"{section}:")
        elif section and (match := re.match(r"\s+-\s+(\S+)\s*$", line)):
            if match[1] not in CLOUD_INIT_LEFT_OUT:
                chosen.append(f"  - {match[1]}")
        elif line.strip():
            section = ""
    if sum(line.endswith(":") for line in chosen) != 3:
        raise RecipeError("the module lists of cloud-init are not where they are expected")
    return "\n".join(chosen) + "\n"


def debian_packages(tree: Path, early: Path, more: Sequence[str]) -> None:
    """Install Debian into ``tree``, with the files of ``early`` in place before packages are configured."""
    for path, text in DEBIAN_EARLY_FILES.items():
        write(early / path, text)
    options = [f"--dpkgopt={option}" for option in DEBIAN_DPKG_OPTIONS]
    packages = (*DEBIAN_PACKAGES, *more)
    bootstrap(tree, "minbase", packages, [*options, f"--essential-hook=copy-in {early}/etc {early}/usr /"])


def debian_settings(tree: Path, root: str, release: str) -> None:
    """Make the installed system an image: settings, units, boot configuration, nothing that is an identity."""
    for path, text in (DEBIAN_FILES | resume.DEBIAN_FILES).items():
        write(tree / path, text)
    for path, text in (DEBIAN_SCRIPTS | resume.DEBIAN_SCRIPTS).items():
        write(tree / path, text, 0o755)
    write(tree / "etc/fstab", f"UUID={root} / ext4 rw,discard,errors=remount-ro 0 1\n")
    modules = cloud_init_modules((tree / "etc/cloud/cloud.cfg").read_text())
    write(tree / "etc/cloud/cloud.cfg.d/90_haneul.cfg", DEBIAN_CLOUD_CONFIG + modules)
    for name in ("boot/grub/fonts", "boot/grub/i386-pc"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for pattern in ("*.mod", "*.lst"):
        for module in (tree / "usr/lib/grub/i386-pc").glob(pattern):
            shutil.copyfile(module, tree / "boot/grub/i386-pc" / module.name)
    write(tree / "boot/grub/grub.cfg", DEBIAN_GRUB.format(release=release, root=root, arguments=DEBIAN_ARGUMENTS))
    in_tree(tree, ["systemctl", "--quiet", "enable", *DEBIAN_ENABLED_UNITS, *resume.DEBIAN_UNITS])
    in_tree(tree, ["systemctl", "--quiet", "disable", *DEBIAN_DISABLED_UNITS])
    for pattern in DEBIAN_REMOVED:
        for left in tree.glob(pattern):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
    link(tree / "etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")


def build_debian(work: Path, output: Path, say: Say) -> None:
    """Build ``debian-12``: Debian's cloud kernel, systemd, cloud-init and an SSH server, user ``admin``."""
    debian_image(work, output, say, [CLOUD_KERNEL])


def build_debian_generic(work: Path, output: Path, say: Say) -> None:
    """Build ``debian-12-generic``: as ``debian-12``, with Debian's kernel for all machines."""
    debian_image(work, output, say, [FULL_KERNEL])


def debian_image(
    work: Path, output: Path, say: Say, packages: Sequence[str], add: Callable[[Path], None] | None = None
) -> None:
    """Debian with ``packages``, a kernel among them, and what ``add`` puts into the tree of the installed system."""
    tree, parts = fresh(work / "tree"), fresh(work / "parts")
    say("installing Debian packages")
    debian_packages(tree, fresh(work / "early"), packages)
    bootstrap(parts, "extract", ["busybox-static"])
    release = kernel_release(tree)
    root = str(uuid.uuid4())
    say("setting it up as an image")
    install_resume(tree / "usr/lib/haneul/resume", work)
    if add is not None:
        add(tree)
    debian_settings(tree, root, release)
    loader = make_loader(tree)
    initrd = small_initrd(parts / "bin/busybox", tree / "lib/modules" / release)
    say("making the disk")
    disk = work / "disk.raw"
    make_disk(tree, disk, DEBIAN_SIZE, root, loader)
    # The fast start is for a first start: the file system is known to be clean, so it may be writable at once.
    cmdline = f"root=UUID={root} rw {DEBIAN_ARGUMENTS}"
    finish(disk, output, tree / f"boot/vmlinuz-{release}", initrd, cmdline)
    for directory in (tree, parts, work / "early"):
        shutil.rmtree(directory)
