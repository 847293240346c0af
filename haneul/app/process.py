"""What haneul's own process is to the server: its memory, its descriptors, its keyring."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import resource
from pathlib import Path

from haneul.config import Settings


def tune() -> None:
    """What suits a process of long life with many small objects and several threads."""
    # glibc would give each thread an arena of its own, and keep what each once needed.
    m_arena_max, libc = -8, ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(m_arena_max, 2)
    # Every connection is a descriptor, and so is much of what a machine has.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Most objects live as long as their instance; looking through all of them often finds nothing.
    gc.set_threshold(20000, 20, 50)


def outlive_machines(settings: Settings) -> None:
    """When memory runs out, machines are to go first (`places.OOM_SCORE`), what serves all of them last."""
    if settings.drivers != "fake":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("-500")


def leave_keys() -> None:
    """A session keyring of our own, empty: what is in it can be read by all that we start, whatever its uid (keyrings(7))."""
    numbers, join_session_keyring = {"x86_64": 250, "aarch64": 219}, 1
    if platform.machine() in numbers:
        ctypes.CDLL(None).syscall(numbers[platform.machine()], join_session_keyring, None)
