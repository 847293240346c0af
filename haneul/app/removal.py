"""`haneul down --purge`: the data directory goes, killed in between or not."""

from __future__ import annotations

import shutil
from pathlib import Path


def leftover(data: Path) -> Path:
    return data.with_name(f".{data.name}.purging")


def remove_all(data: Path) -> None:
    """The data directory. What is mounted in it (a disk for volumes, say) is emptied and stays mounted."""
    mounted = [path for path in data.iterdir() if path.is_mount()]
    for place in mounted:
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if mounted or data.is_mount():
        # The identity last: killed in between, the next purge still knows whose data this is.
        for path in sorted(data.iterdir(), key=lambda one: one.name == "identity"):
            if path not in mounted:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return
    # Renamed first: killed in the middle, the next purge finds what is left.
    gone = leftover(data)
    shutil.rmtree(gone, ignore_errors=True)
    data.rename(gone)
    shutil.rmtree(gone)
