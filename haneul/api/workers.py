"""Threads for the operations.

`loop.run_in_executor` does the same with a future for each side and a lock between them, which costs as much as a small
operation does; a queue and one callback are enough here.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from typing import Any

Job = tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop] | None


class Workers:
    """At most `most` threads, started when there is work that no other of them is free for. They end with the process."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._threads = 0
        self._unfinished = 0
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises. A caller that is cancelled does not stop it: what it began, it ends."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._unfinished += 1
            another = self._threads < min(self._unfinished, self._most)
            self._threads += another
        if another:
            threading.Thread(target=self._serve, name=f"haneul-{self._name}", daemon=True).start()
        self._jobs.put((functools.partial(contextvars.copy_context().run, work), future, loop))
        return await future

    def close(self) -> None:
        """Every thread ends after what it is doing."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future, loop = job
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            with self._lock:
                self._unfinished -= 1
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has been closed meanwhile: nobody waits any more
                return
            del job, work, future, result, error


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if isinstance(error, StopIteration):  # a future refuses it, and whoever waits would wait for ever
        error = RuntimeError(f"an operation ended in {error!r}")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
