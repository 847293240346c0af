"""haneul's own control interface, on a unix socket that only its owner can open.

It is not part of the EC2 API: what only the owner of the server may see, across accounts and regions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

Status = Callable[[], dict[str, Any]]


def make_control(status: Status) -> Starlette:
    async def get_status(request: Request) -> JSONResponse:
        return JSONResponse(await to_thread.run_sync(status))

    return Starlette(routes=[Route("/status", get_status, methods=["GET"])])
