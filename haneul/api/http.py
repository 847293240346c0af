"""uvicorn's HTTP, with bounds that it does not have: how long and how large the head of a request may be.

Without them a connection that sends one header byte a minute, or headers for ever, is held for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0
HEAD_BYTES = 64 << 10


class BoundedHttp(HttpToolsProtocol):
    """The head of each request comes within `HEAD_SECONDS` of its first byte (or of the connection) and `HEAD_BYTES`."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes: int = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head():
            if self._deadline is None:
                self._await_head()
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES + len(data):
                self._give_up()
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._head_is_there()
        super().on_headers_complete()

    def _in_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _head_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
