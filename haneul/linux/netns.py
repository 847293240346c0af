"""Network namespaces: made, entered, removed.

Entering is a matter of one thread (setns(2)), which ends afterwards and is never returned to a pool; the other
threads stay where they were. Programs that such a thread starts are in its namespace too.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def in_new_thread(work: Callable[[], T]) -> T:
    box: dict[str, Any] = {}

    def body() -> None:
        try:
            box["result"] = work()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    result: T = box["result"]
    return result


def leave_for_nowhere() -> None:
    """This thread is in a new namespace that has no name; it is for `in_new_thread`."""
    _check(_libc.unshare(_CLONE_NEWNET), "unshare(CLONE_NEWNET)")


def _mounted(path: Path) -> bool:
    """Whether something is mounted on the file itself. /proc/self/mountinfo would also name what another mount hides,
    a container's own /run for example."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def exists(path: Path) -> bool:
    return _mounted(path)


def create(path: Path) -> None:
    """A new namespace that lasts as long as `path` is mounted; nothing happens if it is there."""
    if exists(path):
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)

    def work() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare(CLONE_NEWNET)")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
        _check(_libc.mount(source, str(path).encode(), None, _MS_BIND, None), f"mount {path}")

    in_new_thread(work)


def remove(path: Path) -> None:
    """The namespace goes with the last process and device in it."""
    while _mounted(path):
        _check(_libc.umount2(str(path).encode(), _MNT_DETACH), f"umount {path}")
    path.unlink(missing_ok=True)


def call(path: Path, work: Callable[[], T]) -> T:
    """Run `work` in the namespace, in a thread of its own."""

    def body() -> T:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, _CLONE_NEWNET), f"setns {path}")
        finally:
            os.close(descriptor)
        return work()

    return in_new_thread(body)


async def inside(path: Path, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(call, path, work)
