"""haneul's own control interface, on a unix socket that only its owner can open.

It is not part of the EC2 API: what only the machine's owner may see or do (status, stopping all).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

Status = Callable[[], dict[str, Any]]


def make_control(status: Status, stop_instances: Callable[[], Awaitable[int]]) -> Starlette:
    async def get_status(request: Request) -> JSONResponse:
        from anyio import to_thread

        return JSONResponse(await to_thread.run_sync(status))

    async def post_stop(request: Request) -> JSONResponse:
        return JSONResponse({"stopping": await stop_instances()})

    return Starlette(
        routes=[
            Route("/status", get_status, methods=["GET"]),
            Route("/stop-instances", post_stop, methods=["POST"]),
        ]
    )
