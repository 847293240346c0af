"""Boots of the physical server."""

from __future__ import annotations

import subprocess
from pathlib import Path


def boot_id() -> str:
    """Which boot of the server this is (proc(5), random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def goes_down() -> bool:
    """Whether the server is shutting down or rebooting (systemctl(1), is-system-running). Blocks: call it in a thread."""
    try:
        said = subprocess.run(
            ["systemctl", "is-system-running"], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return said.stdout.strip() == "stopping"
