"""A connection to a machine's monitor (QEMU, docs/interop/qmp-spec)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from socket import socket as Socket

from qemu.qmp import QMPClient, QMPError

from haneul.drivers.interface import DriverError

#: Memory that is mapped from a file is no part of what is saved; QEMU says when it is done.
IGNORE_SHARED = {"capabilities": [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]}
#: How long (seconds) to wait for QEMU's word before it is asked again.
ASK_AGAIN = 0.25


@contextlib.contextmanager
def socket(path: Path) -> Iterator[str]:
    """A path that leads to this very socket. The folder belongs to the machine: a link there is not followed."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise DriverError(f"{path} is not a socket")
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def connected(place: Path | Socket) -> AsyncIterator[QMPClient]:
    """On a path, or on a socket that QEMU has inherited the other end of: then it is waited for, or its end seen.

    Raises `DriverError` for whatever goes wrong on it, but for the end of the connection while it is closed.
    """
    client = QMPClient("haneul")
    try:
        if isinstance(place, Socket):
            await client.connect(place)
        else:
            with socket(place) as path:
                await client.connect(path)
        try:
            yield client
        finally:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
    except (QMPError, OSError, EOFError) as error:
        raise DriverError(f"QMP: {error or type(error).__name__}") from None


async def until_migrated(client: QMPClient) -> None:
    """Raises `DriverError` if it fails. `IGNORE_SHARED` has been set."""
    with client.listener(("MIGRATION",)) as events:
        while True:
            answer = await client.execute("query-migrate")
            status = answer.get("status") if isinstance(answer, dict) else None
            while status not in ("completed", "failed", "cancelled"):
                try:
                    event = await asyncio.wait_for(events.get(), ASK_AGAIN)
                except TimeoutError:
                    break
                data = event.get("data")
                status = data.get("status") if isinstance(data, dict) else None
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise DriverError(f"the state could not be carried over: {answer}")
