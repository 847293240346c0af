"""The image store: a folder for each built image, made whole or not at all.

`NAME/` holds `disk.qcow2` and `image.json`, and what a recipe built also `vmlinuz`, `initrd` and `cmdline`. A build works in
`.building-NAME`, under the lock `.lock-NAME`; what a killed build left there is removed by the next one, of any name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haneul.errors import SettingsError
from haneul.images.recipes import debian, lab, tiny
from haneul.images.resume import unit as resume
from haneul.model import generation
from haneul.model.generation import Generation
from haneul.model.image import CatalogueImage

Say = Callable[[str], None]
#: Fills the output folder, with the help of a working folder that only root enters; gives the keys of image.json.
Fill = Callable[[Path, Path], dict[str, Any]]

#: A name of a folder and of an EC2 image (EC2 API Reference, "RegisterImage": 3 to 128 characters; backups take 100).
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,99}")
_LEFT = (".building-", ".old-", ".gone-", ".lock-")


@dataclass(frozen=True)
class Recipe:
    """How an image is made. `size_gib` is the least size of its root volumes, `user` who logs in.

    `generations` are those that the image has drivers for: paravirtual brings its own kernel. `resume` is the protocol of its
    resume unit, 0 if it has none.
    """

    name: str
    description: str
    size_gib: int
    user: str
    build: Callable[[Path, Path, Say], None]
    generations: tuple[Generation, ...] = generation.GENERATIONS
    default: bool = False
    resume: int = 0


#: Debian's cloud kernel has no driver of an emulated network card.
_CLOUD_KERNEL: tuple[Generation, ...] = ("paravirtual", "hvm")


RECIPES = {
    one.name: one
    for one in (
        Recipe(
            "debian-12",
            "Debian 12 (bookworm) with cloud-init, built from packages",
            8,
            "admin",
            debian.build_debian,
            _CLOUD_KERNEL,
            default=True,
            resume=resume.PROTOCOL,
        ),
        Recipe(
            "debian-12-generic",
            "Debian 12 (bookworm) with the kernel for all machines: boots under every generation",
            8,
            "admin",
            debian.build_debian_generic,
            resume=resume.PROTOCOL,
        ),
        Recipe(
            "debian-12-lab",
            "Debian 12 (bookworm) for `haneul compare`: debian-12-generic with programs that measure",
            8,
            "admin",
            lab.build_debian_lab,
            resume=resume.PROTOCOL,
        ),
        Recipe(
            "tiny",
            "busybox and dropbear, for many guests and fast tests",
            1,
            "root",
            tiny.build_tiny,
            _CLOUD_KERNEL,
            resume=resume.PROTOCOL,
        ),
        Recipe(
            "tiny-generic",
            "tiny with drivers of emulated devices: boots under every generation",
            1,
            "root",
            tiny.build_tiny_generic,
            resume=resume.PROTOCOL,
        ),
    )
}


def recipe_images() -> list[CatalogueImage]:
    """What the recipes would build, for a cloud that boots nothing."""
    return [
        CatalogueImage(one.name, one.description, "x86_64", one.size_gib, 0.0, one.user, generations=one.generations)
        for one in RECIPES.values()
    ]


DEFAULT = next(one.name for one in RECIPES.values() if one.default)


class ImageStore:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def catalogue(self) -> list[CatalogueImage]:
        """The images that are whole."""
        if not self.directory.is_dir():
            return []
        found = []
        for path in sorted(self.directory.iterdir()):
            if not path.name.startswith(".") and (path / "image.json").exists():
                found.append(_read(path))
        return found

    def has(self, name: str) -> bool:
        return (self.directory / name / "image.json").exists()

    def build(self, name: str, say: Say, *, again: bool = False) -> CatalogueImage:
        """Build an image by its recipe, unless it is there. Raises `SettingsError` for an unknown name."""
        recipe = RECIPES.get(name)
        if recipe is None and self.has(name) and not again:
            return _read(self.directory / name)
        if recipe is None:
            raise SettingsError(f"there is no recipe {name!r}; there are: {', '.join(RECIPES)}")
        with self._one_builder(name, say):
            if self.has(name) and not again:
                return _read(self.directory / name)
            began = time.monotonic()
            self._make(name, lambda work, output: _by_recipe(recipe, work, output, say))
            say(f"{name} is built ({time.monotonic() - began:.0f} s)")
        return _read(self.directory / name)

    def add(self, name: str, fill: Fill, say: Say, *, again: bool = False) -> CatalogueImage:
        """Make an image that has no recipe. Raises `SettingsError` if the name is taken, unless `again`."""
        check_name(name)
        with self._one_builder(name, say):
            if not again:
                self._need_free(name)
            self._make(name, fill)
        return _read(self.directory / name)

    def _need_free(self, name: str) -> None:
        if self.has(name):
            raise SettingsError(f"there is an image {name!r} already; --again replaces it")
        if name in RECIPES:
            raise SettingsError(f"{name!r} is the name of a recipe; choose another one, or --again")

    def _make(self, name: str, fill: Fill) -> None:
        """Fill a folder and give it its name: whole, or not at all."""
        building = self.directory / f".building-{name}"
        work, output = building / "work", building / "output"
        work.mkdir(parents=True)
        output.mkdir()
        work.chmod(0o700)
        try:
            about = {"architecture": "x86_64"} | fill(work, output) | {"created": int(time.time())}
            (output / "image.json").write_text(json.dumps(about, indent=2) + "\n")
            for path in (output, *output.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
                _to_disk(path)
            old, target = self.directory / f".old-{name}", self.directory / name
            if target.exists():
                target.rename(old)
            output.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    @contextmanager
    def _one_builder(self, name: str, say: Say) -> Iterator[None]:
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._sweep()
        descriptor = self._lock(name)
        if descriptor is None:
            say(f"another process builds {name}; waiting for it")
            descriptor = self._lock(name, wait=True)
        assert descriptor is not None
        try:
            self._remove_leftovers(name)
            yield
        finally:
            self._lock_file(name).unlink(missing_ok=True)
            os.close(descriptor)

    def _lock_file(self, name: str) -> Path:
        return self.directory / f".lock-{name}"

    def _lock(self, name: str, *, wait: bool = False) -> int | None:
        """The lock of one name, None if another process has it. Whoever has it unlinks its file at the end."""
        while True:
            descriptor = os.open(self._lock_file(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(descriptor)
                return None
            # The one who had it may have unlinked the file meanwhile: then a third process locks a new one.
            if _is_still(self._lock_file(name), descriptor):
                return descriptor
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what killed builds and imports of other names left behind."""
        left = [path.name for path in self.directory.iterdir() if path.name.startswith(_LEFT)]
        for name in {one.partition("-")[2] for one in left}:
            descriptor = self._lock(name)
            if descriptor is None:
                continue
            self._remove_leftovers(name)
            self._lock_file(name).unlink(missing_ok=True)
            os.close(descriptor)

    def _remove_leftovers(self, name: str) -> None:
        """With the lock of the name held."""
        old, target = self.directory / f".old-{name}", self.directory / name
        if old.exists() and not target.exists():
            old.rename(target)  # killed between the two renames: the old image is whole, the new one is not there
        for path in (old, self.directory / f".building-{name}", self.directory / f".gone-{name}"):
            shutil.rmtree(path, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Raises `SettingsError` if there is no such image."""
        if not self.has(name):
            raise SettingsError(f"there is no image {name!r}; `haneul image list` shows them")
        gone = self.directory / f".gone-{name}"
        shutil.rmtree(gone, ignore_errors=True)
        (self.directory / name).rename(gone)
        shutil.rmtree(gone)


def check_name(name: str) -> None:
    """Raises `SettingsError` for what is no name of an image."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} is no name of an image: 3 to 100 letters, digits and ._-, not a dot or a dash first"
        )


def _by_recipe(recipe: Recipe, work: Path, output: Path, say: Say) -> dict[str, Any]:
    recipe.build(work, output, say)
    return {
        "description": recipe.description,
        "size_gib": recipe.size_gib,
        "user": recipe.user,
        "generations": list(recipe.generations),
        "resume": recipe.resume,
    }


def _to_disk(path: Path) -> None:
    """What gets its name has its content, also after a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        found, mine = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _read(path: Path) -> CatalogueImage:
    about = json.loads((path / "image.json").read_text())
    return CatalogueImage(
        path.name,
        about["description"],
        about["architecture"],
        about["size_gib"],
        float(about["created"]),
        about["user"],
        about.get("imported", {}).get("format", ""),
        generation.parse(about.get("generations", generation.COMMON)),
    )
