"""How an agent and the control plane meet."""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

from haneul.model.assignment import Assignment, Report
from haneul.model.values import from_json, to_json

#: The longest line of a link: a whole assignment.
LINE_LIMIT = 64 << 20


class Link(Protocol):
    async def assignment(self, after: int) -> Assignment | None:
        """The assignment, or None if nothing has changed since revision `after`."""

    async def report(self, report: Report) -> None: ...


class Plane(Protocol):
    """What `LocalLink` needs of the control plane (`reconcile.Control`)."""

    def assignment(self, server_id: str, after: int = -1, epoch: int = 0) -> Assignment | None: ...

    def report(self, report: Report) -> None: ...


class LocalLink:
    """Agent and control plane in one process. The store is synchronous, so its work runs in threads."""

    def __init__(self, plane: Plane, server_id: str, epoch: int = 0) -> None:
        self._plane = plane
        self._server_id = server_id
        self._epoch = epoch

    async def assignment(self, after: int) -> Assignment | None:
        return await asyncio.to_thread(self._plane.assignment, self._server_id, after, self._epoch)

    async def report(self, report: Report) -> None:
        await asyncio.to_thread(self._plane.report, report)


class StreamLink:
    """An agent in a process of its own, to a control plane behind a stream: one JSON line each way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    async def _exchange(self, message: dict[str, object]) -> str | None:
        async with self._turn:
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()
            line = await self._reader.readline()
        if not line:
            raise ConnectionError("the control plane has gone away")
        answer: str | None = json.loads(line)["answer"]
        return answer

    async def assignment(self, after: int) -> Assignment | None:
        text = await self._exchange({"after": after})
        return from_json(Assignment, text) if text else None

    async def report(self, report: Report) -> None:
        await self._exchange({"report": to_json(report)})


async def serve_agent(plane: Plane, server_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The control plane's end of a `StreamLink`, until the agent hangs up."""
    while line := await reader.readline():
        message = json.loads(line)
        answer: str | None = None
        if "report" in message:
            await asyncio.to_thread(plane.report, from_json(Report, message["report"]))
        else:
            found = await asyncio.to_thread(plane.assignment, server_id, message["after"])
            answer = to_json(found) if found else None
        writer.write(json.dumps({"answer": answer}).encode() + b"\n")
        await writer.drain()
    writer.close()
