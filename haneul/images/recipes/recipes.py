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

import gzip
import os
import re
import shutil
import stat
import struct
import subprocess
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from haneul.errors import WorldError
from haneul.images.resume import unit as resume

Say = Callable[[str], None]

SUITE = "bookworm"
SECTOR = 512
MIB = 1024 * 1024
ROOT_START = 2 * MIB
BOOT_START = 1 * MIB

# Debian's kernel for virtual machines, and the one for all machines: only that has drivers of real network cards.
CLOUD_KERNEL = "linux-image-cloud-amd64"
FULL_KERNEL = "linux-image-amd64"

# Drivers for the initial RAM disk: what the usual machine has, and what is loaded only if no root disk is found then.
# Debian's cloud kernel has ext4 and NVMe built in, its full kernel has everything as modules.
USUAL_DISK = ("virtio_pci", "virtio_blk", "ext4")
OTHER_DISKS = ("ata_piix", "ata_generic", "virtio_scsi", "nvme", "sd_mod")

# What the boot loader needs to find and start a kernel even when /boot/grub is damaged.
GRUB_MODULES = (
    "biosdisk", "part_gpt", "ext2", "normal", "linux", "linux16", "search", "search_label", "search_fs_uuid", "configfile",
    "echo", "test", "ls", "cat", "serial", "terminal", "gzio", "minicmd", "reboot", "halt", "all_video", "sleep",
)  # fmt: skip


class RecipeError(WorldError):
    """An image could not be built; the message holds the last lines of the tool that failed."""


# ---------------------------------------------------------------------------------------------------------------------
# Running tools
# ---------------------------------------------------------------------------------------------------------------------


TOOL_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def run(command: Sequence[str | Path], text: str = "") -> str:
    """Run one tool with ``text`` as its input and give back what it printed.

    The tool is killed when the thread that runs the recipe ends, however that happens: a build that was killed must
    not go on writing into the folder in which the next one has begun.
    """
    words = [str(word) for word in command]
    if shutil.which(words[0], path=TOOL_PATH) is None:
        raise RecipeError(f"{words[0]} is not installed")
    kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy") or name == "TMPDIR"}
    environment = kept | {"PATH": TOOL_PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    bound = ["setpriv", "--pdeathsig", "KILL", "--", *words]
    done = subprocess.run(
        bound, input=text, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise RecipeError(f"{' '.join(words[:6])} ... ended with {done.returncode}:\n{tail}")
    return done.stdout


def isolated(command: Sequence[str | Path]) -> list[str | Path]:
    """The command in mount and process namespaces of its own.

    mmdebstrap mounts /proc and /sys in the tree that it fills. Here those mounts are private, so they end with the
    processes; and since all processes end with the first one, killing a build cannot leave a mount or a process.
    """
    return ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL",
            "--mount-proc", "--", *command]  # fmt: skip


def in_tree(tree: Path, command: Sequence[str | Path]) -> str:
    """Run a program of the tree, with the tree as its root directory."""
    return run(isolated(["chroot", tree, *command]))


# ---------------------------------------------------------------------------------------------------------------------
# Trees of files
# ---------------------------------------------------------------------------------------------------------------------


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file of the tree, whatever was there before (also a link, which must not be followed out of it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def fresh(directory: Path) -> Path:
    """An empty directory, also when an earlier build was killed in the middle of it."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    return directory


def bootstrap(tree: Path, variant: str, packages: Iterable[str], options: Iterable[str] = ()) -> None:
    """Fill ``tree`` with Debian packages; no mirror is named, so that mmdebstrap's default applies."""
    run(isolated(["mmdebstrap", "--mode=root", "--format=directory", f"--variant={variant}",
                  f"--include={','.join(packages)}", "--aptopt=APT::Install-Recommends false",
                  "--aptopt=Acquire::Languages none", *options, SUITE, tree]))  # fmt: skip


def kernel_release(tree: Path) -> str:
    """The release of the one kernel in the tree, as in /lib/modules."""
    releases = sorted(path.name for path in (tree / "lib/modules").iterdir() if path.is_dir())
    if len(releases) != 1:
        raise RecipeError(f"expected one kernel in the tree, found {releases}")
    return releases[0]


def with_dependencies(modules: Path, names: Iterable[str]) -> list[Path]:
    """The files of kernel modules and of all that they need, in an order in which they can be loaded.

    ``modules`` is /lib/modules/RELEASE after depmod. Its modules.dep lists the needs of a module nearest first, so
    reversed they load. What a module only asks for while it works (ext4 for a checksum) is its "soft" dependency: where
    there is no modprobe to answer, it has to be loaded before. A name that is not there is built into the kernel.
    """
    index = _module_index(modules)
    begun: set[str] = set()  # soft dependencies may go round in circles
    ordered: list[Path] = []

    def add(name: str) -> None:
        for path in index.load_order(name):
            if path not in begun:
                begun.add(path)
                for wanted in index.soft.get(_module_name(path), ()):
                    add(wanted)
                ordered.append(modules / path)

    for name in names:
        add(name)
    return ordered


@dataclass(frozen=True)
class _ModuleIndex:
    """What depmod wrote: the file of each module, the files that each file needs, soft dependencies, other names."""

    files: dict[str, str]
    needs: dict[str, list[str]]
    soft: dict[str, list[str]]
    aliases: dict[str, list[str]]

    def load_order(self, name: str) -> list[str]:
        """A module's file behind those it needs; for an alias all modules that have it."""
        plain = _module_name(name)
        found = [plain] if plain in self.files else self.aliases.get(name, [])
        files = [self.files[one] for one in found if one in self.files]
        return [path for file in files for path in (*reversed(self.needs[file]), file)]


def _module_index(modules: Path) -> _ModuleIndex:
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    soft: dict[str, list[str]] = {}
    for line in (modules / "modules.softdep").read_text().splitlines():
        match line.split():
            case ["softdep", name, "pre:", *wanted]:
                soft.setdefault(name, []).extend(wanted[: wanted.index("post:")] if "post:" in wanted else wanted)
    aliases: dict[str, list[str]] = {}
    for line in (modules / "modules.alias").read_text().splitlines():
        match line.split():
            case ["alias", alias, name]:
                aliases.setdefault(alias, []).append(name)
    return _ModuleIndex({_module_name(path): path for path in needs}, needs, soft, aliases)


def _module_name(path: str) -> str:
    """The name under which the kernel knows a module: that of its file, with underscores."""
    return Path(path).stem.replace("-", "_")


def libraries(tree: Path, program: str) -> list[str]:
    """The shared libraries of a program of the tree, the dynamic loader included, as the loader itself finds them."""
    listed = in_tree(tree, ["/lib64/ld-linux-x86-64.so.2", "--list", program])
    return re.findall(r"(/\S+) \(0x", listed)


def copy_into(tree: Path, source: Path, path: str) -> None:
    """Copy one file of another tree, following links, to the same place."""
    target = tree / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / path.lstrip("/"), target)
    target.chmod(0o755)


# ---------------------------------------------------------------------------------------------------------------------
# The small initial RAM disk
# ---------------------------------------------------------------------------------------------------------------------

INITRD_INIT = """\
#!/bin/busybox sh
# Load the disk's driver, mount the root file system, hand over to its init.
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys

load() { for module in $(cat "/modules/$1"); do insmod "/modules/$module" 2>/dev/null; done; }

root= init=/sbin/init options=ro
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    init=*) init=${word#init=} ;;
    rw) options=rw ;;
    esac
done

find_root() {
    case $root in
    /dev/*) [ -b "$root" ] && device=$root ;;
    *) device=$(findfs "$root" 2>/dev/null) && [ -n "$device" ] ;;
    esac
}

load first
tries=0
until find_root; do
    [ $tries -eq 1 ] && load others
    tries=$((tries + 1))
    if [ $tries -gt 300 ]; then
        echo "initrd: no root file system $root; restarting in 10 s"
        cat /proc/partitions
        sleep 10
        reboot -f
    fi
    usleep 100000
done
mount -t ext4 -o $options "$device" /root || { sleep 10; reboot -f; }
mount --move /dev /root/dev
umount /proc
umount /sys
exec switch_root /root "$init"
"""


def _cpio_entry(name: str, mode: int, content: bytes, number: int, device: tuple[int, int] = (0, 0)) -> bytes:
    """One file in the kernel's initramfs format ("newc")."""
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def install_resume(program: Path, work: Path) -> None:
    """The resume unit's program, static. Its compiler is not part of the image."""
    tree = fresh(work / "compiler")
    bootstrap(tree, "extract", ["gcc", "libc6-dev", "libc-bin"])
    write(tree / "resume.c", resume.source())
    in_tree(tree, ["/usr/bin/gcc", "-O2", "-static", "-s", "-o", "/resume", "/resume.c"])
    program.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tree / "resume", program)
    program.chmod(0o755)
    shutil.rmtree(tree)


def small_initrd(busybox: Path, modules: Path) -> bytes:
    """An initial RAM disk of busybox and the disk drivers.

    It is made here rather than by Debian's tools because it saves seconds of an emulated start (no udev), and not
    compressed because an emulated machine unpacks more slowly than QEMU hands it over.
    """
    files = {"init": INITRD_INIT.encode(), "bin/busybox": busybox.read_bytes()}
    for group, names in (("first", USUAL_DISK), ("others", OTHER_DISKS)):
        paths = with_dependencies(modules, names)
        files[f"modules/{group}"] = "".join(f"{path.name}\n" for path in paths).encode()
        files.update({f"modules/{path.name}": path.read_bytes() for path in paths})
    parents = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    folders = sorted(parents | {"dev", "proc", "sys", "root"})
    entries = [_cpio_entry(name, stat.S_IFDIR | 0o755, b"", number) for number, name in enumerate(folders, 1)]
    entries.append(_cpio_entry("dev/console", stat.S_IFCHR | 0o600, b"", 99, (5, 1)))
    for number, (name, content) in enumerate(files.items(), 100):
        entries.append(_cpio_entry(name, stat.S_IFREG | 0o755, content, number))
    return b"".join([*entries, _cpio_entry("TRAILER!!!", 0, b"", 0)])


# ---------------------------------------------------------------------------------------------------------------------
# The disk and its boot loader
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# tiny: busybox and dropbear, an emulated start in seconds
# ---------------------------------------------------------------------------------------------------------------------

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

TINY_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shells": "/bin/sh\n",
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/profile": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\n",
    "etc/os-release": 'NAME="haneul tiny"\nID=haneul-tiny\nID_LIKE=debian\nPRETTY_NAME="haneul tiny (Debian 12 parts)"\n',
    "etc/issue": "haneul tiny \\n \\l\n",
    # The long part is "once", not "sysinit": while sysinit runs, init does not look at a request to power off.
    "etc/inittab": """\
::sysinit:/lib/haneul/early
::once:/lib/haneul/boot
ttyS0::respawn:/sbin/getty -L ttyS0 115200 vt100
::ctrlaltdel:/sbin/reboot
::shutdown:/lib/haneul/shutdown
""",
}

TINY_SCRIPTS = {
    # First what makes the power button work, because a server may be told to stop at any moment.
    "lib/haneul/early": """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
[ -c /dev/null ] || mount -t devtmpfs dev /dev
# User-mode Linux brings a kernel of its own, to which these modules do not belong, and has no power button.
if [ -d "/lib/modules/$(uname -r)" ]; then
    while read -r module; do insmod "$module"; done </lib/haneul/modules
    acpid -l /dev/null
fi
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
grep -q ' / .* ro[, ]' /proc/mounts && mount -o remount,rw /
hostname -F /etc/hostname
ip link set lo up
# User-mode Linux calls its Ethernet interfaces vec0, vec1, ...: let them have their usual names.
for path in /sys/class/net/vec*; do
    [ -e "$path" ] && ip link set "${path##*/}" name "eth${path##*/vec}"
done
""",
    "etc/acpi/PWRF/00000080": "#!/bin/sh\nexec poweroff\n",
    "lib/haneul/shutdown": """\
#!/bin/sh
# Init would end the other programs only after this; then the root file system could not be made read-only.
kill -TERM -1
usleep 200000
kill -KILL -1
sync
umount -a -r 2>/dev/null
mount -o remount,ro / 2>/dev/null
""",
    "lib/haneul/dhcp": """\
#!/bin/sh
# Called by udhcpc with what the DHCP server said.
case $1 in
deconfig)
    # A clone of a template has the address already that it is about to ask for.
    [ -e /run/haneul/instance-id ] || ip address flush dev "$interface" scope global
    ip link set "$interface" up
    ;;
bound | renew)
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    ip address replace "$ip/$mask" broadcast + dev "$interface"
    if [ -n "$staticroutes" ]; then
        # With classless static routes (option 121) the router option must be ignored (RFC 3442).
        set -- $staticroutes
    else
        set --
        for gateway in $router; do set -- 0.0.0.0/0 "$gateway"; break; done
    fi
    while [ $# -ge 2 ]; do
        case $2 in
        0.0.0.0) ip route replace "$1" dev "$interface" ;;
        *) ip route replace "$2" dev "$interface"; ip route replace "$1" via "$2" dev "$interface" ;;
        esac
        shift 2
    done
    {
        [ -n "$domain" ] && echo "search $domain"
        for server in $dns; do echo "nameserver $server"; done
    } >/etc/resolv.conf.new
    mv /etc/resolv.conf.new /etc/resolv.conf
    ;;
esac
""",
    # "nc -e" gives the script the connection itself: with a pipe, nc would close its sending half after the request,
    # which many HTTP servers take for a client that has gone away.
    "lib/haneul/put-token": """\
#!/bin/sh
# Ask the metadata service for a token on stdin/stdout; the answer's body goes to the file $1.
printf 'PUT /latest/api/token HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\n'
printf 'X-aws-ec2-metadata-token-ttl-seconds: 21600\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n'
return=$(printf '\\r')
read -r protocol status reason
[ "$status" = 200 ] || exit 1
length=
while read -r name value; do
    value=${value%"$return"}
    case $name in
    "$return" | '') break ;;
    [Cc]ontent-[Ll]ength:) length=$value ;;
    esac
done
[ -n "$length" ] && head -c "$length" >"$1"
""",
    "lib/haneul/imds": """\
#!/bin/sh
# imds PATH: print a value of the instance metadata service (version 2), for example: imds meta-data/instance-id
file=/run/haneul/token
if ! [ -s $file ]; then
    mkdir -p /run/haneul
    umask 077
    nc -w 5 169.254.169.254 80 -e /lib/haneul/put-token $file.new 2>/dev/null
    [ -s $file.new ] || exit 2
    mv $file.new $file
fi
# Not "wget -T": that option crashes busybox 1.35.
token="X-aws-ec2-metadata-token: $(cat $file)"
if ! timeout 10 wget -q -O - --header "$token" "http://169.254.169.254/latest/$1" 2>/run/haneul/error; then
    grep -q ' 401' /run/haneul/error && rm -f $file
    exit 1
fi
""",
    "lib/haneul/grow": """\
#!/bin/sh
# Grow the root partition and its file system to the size of the disk.
partition=$(basename "$(readlink -f "$(findfs LABEL=haneul-root)")")
disk=$(basename "$(readlink -f "/sys/class/block/$partition/..")")
number=$(cat "/sys/class/block/$partition/partition")
end=$(($(cat "/sys/class/block/$partition/start") + $(cat "/sys/class/block/$partition/size")))
[ $(($(cat "/sys/class/block/$disk/size") - end)) -gt 8192 ] || exit 0
echo ', +' | sfdisk --quiet --force --no-reread --no-tell-kernel -N "$number" "/dev/$disk" >/dev/null 2>&1 &&
    partx --update --nr "$number" "/dev/$disk" &&
    resize2fs "/dev/$partition" >/dev/null 2>&1
""",
    "lib/haneul/boot": """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec </dev/null >/dev/console 2>&1
say() { echo "haneul-tiny: $*"; }
# A template waits here, and its clones go on below.
if [ -z "$1" ] && grep -q haneul.template /proc/cmdline; then
    modprobe virtio_console
    exec /lib/haneul/resume haneul.resume eth0 root /lib/haneul/resumed
fi
imds() { /lib/haneul/imds "$@"; }
state=/var/lib/haneul

/lib/haneul/grow &
id=
if [ -e /sys/class/net/eth0 ]; then
    say 'asking for an address'
    udhcpc -i eth0 -s /lib/haneul/dhcp -O staticroutes -O mtu -O dns -O domain -t 10 -T 1 -A 2 -b -S >/dev/null 2>&1
    say "address $(ip -4 -o address show dev eth0 | awk '{ print $4; exit }')"
    tries=0
    until id=$(imds meta-data/instance-id) && [ -n "$id" ]; do
        tries=$((tries + 1))
        [ $tries -gt 240 ] && break
        sleep 1
    done
fi

if [ -n "$id" ]; then
    name=$(imds meta-data/local-hostname)
    name=${name%%.*}
    if [ -n "$name" ]; then
        hostname "$name"
        echo "$name" >/etc/hostname
        printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n::1 localhost\\n' "$name" >/etc/hosts
    fi
    # A disk that became the image of another instance must not bring its identity along.
    if [ "$id" != "$(cat $state/instance-id 2>/dev/null)" ]; then
        rm -f /etc/dropbear/*_host_key
        echo "$id" >$state/instance-id
    fi
    for key in $(imds meta-data/public-keys/); do
        line=$(imds "meta-data/public-keys/${key%%=*}/openssh-key") && [ -n "$line" ] || continue
        grep -qxF "$line" /root/.ssh/authorized_keys 2>/dev/null || echo "$line" >>/root/.ssh/authorized_keys
    done
else
    say 'no instance metadata'
fi

key=/etc/dropbear/dropbear_ed25519_host_key
if ! [ -s $key ]; then
    dropbearkey -t ed25519 -f $key >/dev/null 2>&1
    sync $key
fi
dropbear -s -r $key
say "host key $(dropbearkey -y -f $key | grep -i '^fingerprint')"

if [ -n "$id" ] && ! [ -e "$state/user-data.$id" ]; then
    data=$state/user-data
    if imds user-data >$data && [ "$(head -c 2 $data)" = '#!' ]; then
        : >"$state/user-data.$id"
        chmod 700 $data
        say 'running user data'
        $data >$state/user-data.log 2>&1
        status=$?
        cat $state/user-data.log
        say "user data ended with status $status"
    fi
fi
wait
say "ready $id"
""",
}


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


# ---------------------------------------------------------------------------------------------------------------------
# debian-12: the real thing, with systemd and cloud-init
# ---------------------------------------------------------------------------------------------------------------------

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
DEBIAN_EARLY_FILES = {
    # "dep" would look at the building host's disk, and "most" makes every start slow: name what the product offers.
    "etc/initramfs-tools/conf.d/haneul": "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=3\nRESUME=none\nFSTYPE=ext4\n",
    "usr/share/initramfs-tools/modules.d/haneul": "".join(f"{name}\n" for name in (*USUAL_DISK, *OTHER_DISKS)),
    "etc/default/grub.d/50-haneul.cfg": f"""\
# Every start is visible on the serial console, where an EC2 client reads the console output.
GRUB_DISTRIBUTOR=Debian
GRUB_TIMEOUT=0
GRUB_TIMEOUT_STYLE=hidden
GRUB_RECORDFAIL_TIMEOUT=0
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="{DEBIAN_ARGUMENTS}"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_DISABLE_OS_PROBER=true
""",
    "etc/default/grub": "# The settings of this image are in grub.d/50-haneul.cfg.\nGRUB_DEFAULT=0\n",
}

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
DEBIAN_CLOUD_CONFIG = """\
datasource_list: [ Ec2 ]
datasource:
  Ec2:
    timeout: 20
    max_wait: 240
    # Without this list two more names are looked up before there is a name server, which takes seconds.
    metadata_urls: ['http://169.254.169.254']
system_info:
  default_user:
    name: admin
  network:
    renderers: ['networkd']
manage_etc_hosts: true
locale: C.UTF-8
apt:
  preserve_sources_list: true
# An RSA host key takes an emulated processor many seconds.
ssh_genkeytypes: ['ed25519', 'ecdsa']
"""

DEBIAN_FILES = {
    "etc/hostname": "localhost\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    # Empty, not missing: systemd then makes an identity, but does not take the start for an installation.
    "etc/machine-id": "",
    # Names come from DHCP's name server only; asking the neighbours for a name makes every failed look-up slow.
    "etc/systemd/resolved.conf.d/haneul.conf": "[Resolve]\nLLMNR=no\nMulticastDNS=no\n",
    # Short names are looked up in the VPC's domain, which DHCP tells (the file is the one that cloud-init writes for networkd).
    "etc/systemd/network/10-cloud-init-eth0.network.d/haneul.conf": "[DHCPv4]\nUseDomains=true\n",
    # As on EC2: the server's clock. Debian's pool is asked for its addresses again and again where there is no way to it.
    "etc/systemd/timesyncd.conf.d/haneul.conf": "[Time]\nNTP=169.254.169.123\nFallbackNTP=\n",
    # User-mode Linux calls its Ethernet interfaces vec0, vec1, ...: let them have their usual names.
    "etc/udev/rules.d/70-haneul.rules": 'SUBSYSTEM=="net", ACTION=="add", KERNEL=="vec[0-9]*", NAME="eth%n"\n',
    # The kernel of User-mode Linux is the server's, and so are its modules: the server shows the guest that folder. Its
    # watchdog wants a program of the server's, and complains when systemd arms it for a reboot.
    "etc/systemd/system/haneul-uml.service": """\
[Unit]
Description=What User-mode Linux needs: modules of its kernel, no watchdog
DefaultDependencies=no
ConditionVirtualization=uml
After=systemd-remount-fs.service
Before=systemd-modules-load.service systemd-udevd.service sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=-/bin/sh -c 'r=$(uname -r) && mkdir -p /lib/modules/$r && mount -t hostfs -o /$r,ro none /lib/modules/$r'
ExecStart=-/bin/rm -f /dev/watchdog /dev/watchdog0

[Install]
WantedBy=sysinit.target
""",
    # Modules are in use until the very end, and so is their folder.
    "etc/systemd/system/usr-lib-modules-.mount.d/haneul.conf": "[Unit]\nDefaultDependencies=no\n",
    # cloud-init's ssh_pwauth writes 50-cloud-init.conf, which comes first and wins.
    "etc/ssh/sshd_config.d/60-haneul.conf": "PasswordAuthentication no\n",
}

DEBIAN_SCRIPTS = {
    # Found before Debian's dmidecode. By this cloud-init knows that it is on EC2, and asks the metadata service version 2.
    "usr/local/sbin/dmidecode": """\
#!/bin/sh
# User-mode Linux has no DMI tables: what is asked most often of them comes on the kernel's command line.
read -r line </proc/cmdline
case " $line" in
*" haneul.uuid="*)
    uuid=${line##*haneul.uuid=}
    case "$*" in
    *system-uuid* | *system-serial-number*) echo "${uuid%% *}" ;;
    *system-manufacturer* | *chassis-asset-tag*) echo 'Amazon EC2' ;;
    *) exit 1 ;;
    esac
    ;;
*) exec /usr/sbin/dmidecode "$@" ;;
esac
""",
}

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
