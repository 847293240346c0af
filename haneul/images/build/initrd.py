"""The small initial RAM disk, the modules in it, and the resume unit."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from haneul.images.build.tools import bootstrap, fresh, guest_file, in_tree, write
from haneul.images.resume import unit as resume

# Drivers for the initial RAM disk: what the usual machine has, and what is loaded only if no root disk is found then.
# Debian's cloud kernel has ext4 and NVMe built in, its full kernel has everything as modules.
USUAL_DISK = ("virtio_pci", "virtio_blk", "ext4")


OTHER_DISKS = ("ata_piix", "ata_generic", "virtio_scsi", "nvme", "sd_mod")


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


INITRD_INIT = guest_file("initrd/init")


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
