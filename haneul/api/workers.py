"""Threads for the operations.

`loop.run_in_executor` does the same with a future for each side and a lock between them, which costs as much as a small
operation does; a queue and one callback are enough here.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

Job = tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop] | None


class Workers:
    """At most `most` threads, started when there is work for them. They end with the process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises. A caller that is cancelled does not stop it: what it began, it ends."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._jobs.qsize() >= self._idle and self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"haneul-api-{self._threads}", daemon=True).start()
        self._jobs.put((work, future, loop))
        return await future

    def close(self) -> None:
        """Every thread ends after what it is doing."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
            if job is None:
                return
            work, future, loop = job
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has been closed meanwhile: nobody waits any more
                return
            del job, work, future, result, error


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
