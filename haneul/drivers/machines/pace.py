"""Whoever is launched comes before the background of those that were launched before.

A guest that has gone on from a template has answered, and lets people in. What else a first boot does (cloud-init: a minute of an emulated
processor) it begins when the server hangs up its resume port (images/resume.py). Of fifty guests that begin at once none gets anything done, and nobody can log in
to any of them; begun one after the other, as the server has processors for it, each is done as early or earlier.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: Whoever waits to log in comes first: a login takes two seconds of a quiet emulated processor, five of a busy one.
LOGIN_SECONDS = 5.0
#: A server without a free processor lets one go on all the same after so long: what keeps it busy may be somebody else's. cloud-init takes two processors
#: 15 to 30 s, so that a burst leaves some of them for logins.
PATIENCE = 30.0
TICK = 0.5
#: Of a machine until its guest has answered: what was launched before it goes on a little slower meanwhile.
LAUNCHING = -5


@dataclass(frozen=True)
class Held:
    """A guest that waits. `urgent`: nobody can log in to it before its background has begun. `since` is a monotonic time (s)."""

    port: socket.socket
    urgent: bool
    since: float


def chosen(held: Sequence[Held], now: float, idle: float, launching: int, last: float) -> list[Held]:
    """Which of them may begin. `idle` is how many processors have had nothing to do, `last` when one began or the first came."""
    ready = [one for one in held if one.urgent or now - one.since >= LOGIN_SECONDS]
    ready.sort(key=lambda one: (not one.urgent, one.since))
    room = 0 if launching else int(idle + 0.5)
    return ready[: max(room, int(now - last >= PATIENCE))]


def idle_ticks(stat: str) -> int:
    """What all processors had left for somebody new, in ticks since the boot (proc(5), /proc/stat).

    Who works at a low priority (`nice`: the making of a template) gives way, and counts as nobody.
    """
    _, _, nice, _, idle, iowait, *_ = stat.split("\n", 1)[0].split()
    return int(nice) + int(idle) + int(iowait)


def set_niceness(pid: int, nice: int) -> None:
    """Of the whole session of `pid`: Linux compares niceness within a session only (sched(7), autogroup). A kernel without that goes without."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


class Pace:
    """Of one server; belongs to the loop that it is used in."""

    def __init__(self, processors: int | None = None) -> None:
        # More at a time are not done sooner, and the first of them is as late as the last.
        self._places = asyncio.Semaphore(2 * (processors or os.cpu_count() or 1))
        self._launching = 0
        self._held: list[Held] = []
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def launch(self) -> AsyncIterator[None]:
        """While a machine is launched: waits until there are few others."""
        self._launching += 1
        try:
            async with self._places:
                yield
        finally:
            self._launching -= 1

    def hold(self, port: socket.socket, urgent: bool) -> None:
        """The guest at the other end of `port` may begin some time: then, or when it has ended, the port is closed."""
        self._held.append(Held(port, urgent, time.monotonic()))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._let_go())

    @property
    def waiting(self) -> int:
        """How many guests wait for their background."""
        return len(self._held)

    async def _let_go(self) -> None:
        last, before, ticks = time.monotonic(), time.monotonic(), _idle_ticks()
        try:
            while self._held:
                await asyncio.sleep(TICK)
                now, ticks_now = time.monotonic(), _idle_ticks()
                idle = (ticks_now - ticks) / os.sysconf("SC_CLK_TCK") / (now - before)
                before, ticks = now, ticks_now
                self._release([one for one in self._held if _has_ended(one.port)])
                if some := chosen(self._held, now, idle, self._launching, last):
                    self._release(some)
                    last = now
        finally:
            # Whatever becomes of this: no guest waits for ever.
            self._release(list(self._held))

    def _release(self, some: Sequence[Held]) -> None:
        for one in some:
            one.port.close()
            self._held.remove(one)


def _idle_ticks() -> int:
    with open("/proc/stat") as file:
        return idle_ticks(file.readline())


def _has_ended(port: socket.socket) -> bool:
    try:
        return port.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
