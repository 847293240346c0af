"""The image store: a folder for each built image, made whole or not at all.

`NAME/` holds `disk.qcow2`, `vmlinuz`, `initrd`, `cmdline` and `image.json`. A build works in `.building-NAME`, under
a lock; what a killed build left there is removed by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from haneul.errors import SettingsError
from haneul.images import recipes
from haneul.model.image import CatalogueImage

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """How an image is made. `size_gib` is the least size of its root volumes, `user` who logs in."""

    name: str
    description: str
    size_gib: int
    user: str
    build: Callable[[Path, Path, Say], None]
    default: bool = False


RECIPES = {
    one.name: one
    for one in (
        Recipe(
            "debian-12",
            "Debian 12 (bookworm) with cloud-init, built from packages",
            8,
            "admin",
            recipes.build_debian,
            default=True,
        ),
        Recipe("tiny", "busybox and dropbear, for many guests and fast tests", 1, "root", recipes.build_tiny),
    )
}
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
        if recipe is None:
            raise SettingsError(f"there is no recipe {name!r}; there are: {', '.join(RECIPES)}")
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._one_builder(name, say):
            if self.has(name) and not again:
                return _read(self.directory / name)
            self._build(recipe, say)
        return _read(self.directory / name)

    def _build(self, recipe: Recipe, say: Say) -> None:
        building = self.directory / f".building-{recipe.name}"
        shutil.rmtree(building, ignore_errors=True)
        work, output = building / "work", building / "output"
        work.mkdir(parents=True)
        output.mkdir()
        began = time.monotonic()
        try:
            recipe.build(work, output, say)
            about = {
                "description": recipe.description,
                "architecture": "x86_64",
                "size_gib": recipe.size_gib,
                "user": recipe.user,
                "created": int(time.time()),
            }
            (output / "image.json").write_text(json.dumps(about, indent=2) + "\n")
            for path in (output, *output.iterdir()):
                path.chmod(0o755 if path.is_dir() else 0o644)
            old = self.directory / f".old-{recipe.name}"
            shutil.rmtree(old, ignore_errors=True)
            target = self.directory / recipe.name
            if target.exists():
                target.rename(old)
            output.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        say(f"{recipe.name} is built ({time.monotonic() - began:.0f} s)")

    @contextmanager
    def _one_builder(self, name: str, say: Say) -> Iterator[None]:
        path = self.directory / f".lock-{name}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process builds {name}; waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """Raises `SettingsError` if there is no such image."""
        if not self.has(name):
            raise SettingsError(f"there is no image {name!r}; `haneul image list` shows them")
        gone = self.directory / f".old-{name}"
        shutil.rmtree(gone, ignore_errors=True)
        (self.directory / name).rename(gone)
        shutil.rmtree(gone)


def _read(path: Path) -> CatalogueImage:
    about = json.loads((path / "image.json").read_text())
    return CatalogueImage(
        path.name,
        about["description"],
        about["architecture"],
        about["size_gib"],
        float(about["created"]),
        about["user"],
    )
