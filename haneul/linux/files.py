"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, data: bytes, mode: int = 0o600, group: int = -1, durable: bool = False) -> None:
    """Write `path` anew: whoever reads it sees the old content or the new one; if `durable`, after a power cut too."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, mode)
        file.write(data)
        if durable:
            file.flush()
            os.fsync(descriptor)
    temporary.replace(path)
