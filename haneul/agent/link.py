"""How an agent and the control plane meet."""

from __future__ import annotations

import asyncio
from typing import Protocol

from haneul.model.assignment import Assignment, Report


class Link(Protocol):
    async def assignment(self, after: int) -> Assignment | None:
        """The assignment, or None if nothing has changed since revision `after`."""

    async def report(self, report: Report) -> None: ...


class Plane(Protocol):
    """What `LocalLink` needs of the control plane (`reconcile.Control`)."""

    def assignment(self, server_id: str, after: int = -1) -> Assignment | None: ...

    def report(self, report: Report) -> None: ...


class LocalLink:
    """Agent and control plane in one process. The store is synchronous, so its work runs in threads."""

    def __init__(self, plane: Plane, server_id: str) -> None:
        self._plane = plane
        self._server_id = server_id

    async def assignment(self, after: int) -> Assignment | None:
        return await asyncio.to_thread(self._plane.assignment, self._server_id, after)

    async def report(self, report: Report) -> None:
        await asyncio.to_thread(self._plane.report, report)
