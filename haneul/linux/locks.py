"""Processes that outlive haneul, found again by a lock that only they hold.

A daemon is started with a descriptor on which its lock file is flock()ed, and inherits it. The lock is held as
long as any process of the daemon lives, whatever becomes of haneul, and a pid can never be mistaken: a pid is
ours if it has that file open.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Sequence
from pathlib import Path


def take(path: Path) -> int | None:
    """A descriptor that holds the lock, or None if another process has it. The caller hands it on or closes it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def held(path: Path) -> bool:
    """Whether a process lives that holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        # A shared request does not disturb another haneul that asks at the same moment.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holders(path: Path) -> list[int]:
    """The pids of all processes that have the lock file open, but not ours."""
    return all_holders([path]).get(path, [])


def all_holders(paths: Sequence[Path]) -> dict[Path, list[int]]:
    """The pids of all processes that have one of the lock files open, but not ours: one look through /proc for all of them."""
    wanted: dict[tuple[int, int], Path] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            wanted[status.st_dev, status.st_ino] = path
    found: dict[Path, list[int]] = {}
    for pid in _pids() if wanted else ():
        if pid != os.getpid():
            for place in _open_files(pid) & wanted.keys():
                found.setdefault(wanted[place], []).append(pid)
    return found


def _open_files(pid: int) -> set[tuple[int, int]]:
    """(device, inode) of every file that a process has open."""
    found: set[tuple[int, int]] = set()
    directory = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                status = os.stat(f"{directory}/{name}")
                found.add((status.st_dev, status.st_ino))
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _runs_as(pid: int, uid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == uid
    except OSError:
        return False


async def kill_user(uid: int, timeout: float = 5.0) -> bool:
    """Kill every process of a uid that is a machine's own; says whether none is left."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while found := [pid for pid in await asyncio.to_thread(_pids) if _runs_as(pid, uid) and not _is_zombie(pid)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if loop.time() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


async def kill(path: Path, number: int = signal.SIGKILL, timeout: float = 5.0) -> bool:
    """Signal every holder and wait until the lock is free; says whether it is."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while held(path):
        for pid in await asyncio.to_thread(holders, path):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        if loop.time() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True
