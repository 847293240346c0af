"""haneul's own control interface, on a unix socket that only its owner can open.

It is not part of the EC2 API: what only the owner of the server may see and do, across accounts and regions.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from haneul.errors import CloudError

Status = Callable[[], dict[str, Any]]
#: (what to do, its arguments) -> what came of it. Raises `CloudError`.
Act = Callable[[str, dict[str, str]], Any]
#: The same, on the event loop.
AsyncAct = Callable[[str, dict[str, str]], Awaitable[Any]]


def make_control(status: Status, accounts: Act, templates: AsyncAct, unclaimed: AsyncAct) -> Starlette:
    async def get_status(request: Request) -> JSONResponse:
        return JSONResponse(await to_thread.run_sync(status))

    async def post_accounts(request: Request) -> JSONResponse:
        arguments = json.loads(await request.body())
        try:
            done = await to_thread.run_sync(lambda: accounts(request.path_params["what"], arguments))
        except CloudError as error:
            return JSONResponse({"error": error.message}, 400)
        return JSONResponse(done)

    def post(act: AsyncAct) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def answer(request: Request) -> JSONResponse:
            arguments = json.loads(await request.body())
            try:
                return JSONResponse(await act(request.path_params["what"], arguments))
            except CloudError as error:
                return JSONResponse({"error": error.message}, 400)

        return answer

    return Starlette(
        routes=[
            Route("/status", get_status, methods=["GET"]),
            Route("/accounts/{what}", post_accounts, methods=["POST"]),
            Route("/templates/{what}", post(templates), methods=["POST"]),
            Route("/unclaimed/{what}", post(unclaimed), methods=["POST"]),
        ]
    )
