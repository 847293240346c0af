"""The one door to other programs: what ran, how it ended and what it said, in one error."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence

from haneul.drivers.interface import DriverError

TIMEOUT = 60.0


async def run(command: Sequence[str], *, stdin: str | None = None, timeout: float = TIMEOUT) -> str:
    """The command's standard output. Raises `DriverError` with command, exit code and what it said.

    The child dies with a timeout or a cancellation of ours; it never outlives the call.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise DriverError(f"{command[0]} is not installed; `make setup` installs it", fatal=True) from None
    try:
        data = stdin.encode() if stdin is not None else None
        out, err = await asyncio.wait_for(process.communicate(data), timeout)
    except TimeoutError:
        raise DriverError(f"{shlex.join(command)} did not end within {timeout:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = err.decode(errors="replace").strip()[-2000:]
        raise DriverError(f"{shlex.join(command)[:500]} ended with {process.returncode}: {said}")
    return out.decode(errors="replace")
