"""The system of the emulated server: Debian packages on an ext4 disk, and an init of our own.

Built once (`python -m tests.nested.recipe`, as root; it needs the package mirror) and kept below build/, under a name that
follows from this text. What is tested is not in it: haneul, the image and the script come on a second disk, made anew each time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from haneul.images.build import tools as recipes
from haneul.images.build.tools import Say

PLACE = Path(__file__).parents[2] / "build" / "nested"
#: Configured by nobody: nothing here needs what their maintainers' scripts do.
PACKAGES = (
    "linux-image-cloud-amd64", "kmod", "busybox-static", "bash", "dash", "coreutils", "grep", "libc-bin", "base-files",
    "util-linux", "python3", "python3-cryptography", "qemu-system-x86", "qemu-utils",
)  # fmt: skip
SIZE = "1g"
#: The accelerator's device gets the group that udev gives it in Debian (50-udev-default.rules).
KVM_GROUP = 104
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": f"root:x:0:\nkvm:x:{KVM_GROUP}:\nnogroup:x:65534:\n",
}
INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t ext4 -o ro /dev/nvme1n1 /project
echo 'nested: the server is up'
cd /project && PYTHONPATH=/project python3 -m tests.nested.inside
echo "nested: the script ended with $?"
sync
busybox poweroff -f
"""


@dataclass(frozen=True)
class System:
    kernel: Path
    disk: Path


def _named() -> Path:
    return PLACE / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def built() -> System | None:
    """The system if it is there: whole, and by this recipe."""
    place = _named()
    return System(place / "vmlinuz", place / "disk.raw") if place.is_dir() else None


def build(say: Say) -> System:
    found = built()
    if found is not None:
        return found
    work = recipes.fresh(PLACE)  # what an older recipe left goes
    tree, output = work / "tree", recipes.fresh(work / "output")
    say("nested: fetching packages")
    recipes.bootstrap(tree, "extract", PACKAGES)
    release = recipes.kernel_release(tree)
    recipes.in_tree(tree, ["/sbin/depmod", release])
    recipes.in_tree(tree, ["/sbin/ldconfig"])
    recipes.in_tree(tree, ["/usr/bin/python3", "-m", "compileall", "-q", "/usr/lib/python3.11"])
    for path, text in FILES.items():
        recipes.write(tree / path, text)
    recipes.write(tree / "init", INIT, 0o755)
    (tree / "project").mkdir()
    for unread in ("doc", "info", "locale", "man"):
        shutil.rmtree(tree / "usr/share" / unread)
    say("nested: making the disk")
    recipes.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, output / "disk.raw", SIZE])
    shutil.copyfile(tree / f"boot/vmlinuz-{release}", output / "vmlinuz")
    output.rename(_named())
    shutil.rmtree(tree)
    return System(_named() / "vmlinuz", _named() / "disk.raw")


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("it needs root (device nodes and file owners)")
    build(print)
