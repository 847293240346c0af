"""The request path, as one visible list, and the ASGI application around it."""

from __future__ import annotations

import datetime as dt
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl

from anyio import to_thread
from botocore.model import OperationModel
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from haneul import __version__
from haneul.api import protocol, signature
from haneul.errors import CloudError
from haneul.model.region import is_region
from haneul.services.context import Caller, Input, Output, is_read

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
MAX_PARAMETERS = 20000
SERVICES = ("ec2", "sts")
_LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?")
_XML = "text/xml;charset=UTF-8"


class Backend(Protocol):
    """`services.Cloud`, as the API sees it."""

    def call(self, service: str, name: str, caller: Caller, params: Input) -> Output: ...


class Identities(Protocol):
    def secret_of(self, access_key: str) -> str | None: ...

    def account_of(self, access_key: str) -> str | None: ...


@dataclass
class Call:
    """One request on its way through `PATH`; every step fills in its part."""

    request: Request
    app: Api
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    body: bytes = b""
    query: tuple[tuple[str, str], ...] = ()
    parameters: list[tuple[str, str]] = field(default_factory=list)
    scope: signature.Scope | None = None
    caller: Caller | None = None
    service: str = ""
    operation: OperationModel | None = None
    params: Input = field(default_factory=dict)
    answer: bytes = b""


@dataclass
class Api:
    """`open_door` accepts any credentials; `account` and `region` are what unsigned requests then get."""

    backend: Backend
    identities: Identities
    open_door: bool
    account: str
    region: str
    clock: Callable[[], float]


# --- the steps --------------------------------------------------------------------------------------


async def read_parameters(call: Call) -> None:
    """POST form body or GET query, decoded once; bounded."""
    if call.request.method not in ("GET", "POST", "HEAD"):
        raise CloudError("InvalidRequest", f"The method {call.request.method} is not supported.")
    chunks: list[bytes] = []
    size = 0
    async for chunk in call.request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise CloudError("RequestEntityTooLarge", f"A request has at most {MAX_BODY} bytes.")
        chunks.append(chunk)
    call.body = b"".join(chunks)
    call.query = tuple(_pairs(call.request.scope["query_string"]))
    # Whatever type a body claims to be, it is read as what it is signed as: parameters.
    form = _pairs(call.body) if call.body and "x-amz-target" not in call.request.headers else []
    twice = {name for name, _ in call.query} & {name for name, _ in form}
    if twice:
        raise CloudError("InvalidRequest", f"{min(twice)[:80]} is given in the query and in the body.")
    call.parameters = [*call.query, *form]


def _pairs(text: bytes) -> list[tuple[str, str]]:
    try:
        decoded = text.decode("ascii")
        return parse_qsl(decoded, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except UnicodeDecodeError:
        raise CloudError("MalformedQueryString", "The parameters are not UTF-8 in percent-encoding.") from None
    except ValueError:
        raise CloudError("MalformedQueryString", f"A request has at most {MAX_PARAMETERS} parameters.") from None


async def refuse_foreign_pages(call: Call) -> None:
    """An open door is for programs on this machine: a web page in its browser must not get in.

    A page can send a form, but it cannot hide its Origin, and a name rebound to 127.0.0.1 shows in Host.
    """
    if not call.app.open_door:
        return
    headers = call.request.headers
    local = _LOOPBACK.fullmatch(headers.get("host", ""))
    if not local or any(name in headers for name in ("origin", "referer", "sec-fetch-site")):
        raise CloudError("AuthFailure", "With auth = open, haneul answers programs on this machine only, no web pages.")


async def authenticate(call: Call) -> None:
    """Who calls, from the signature: account by access key, region by credential scope."""
    headers = {name.lower(): value for name, value in call.request.headers.items()}
    path = call.request.scope.get("raw_path", b"/").split(b"?")[0].decode("latin-1")
    signed = signature.Request(call.request.method, path, call.query, headers, call.body)
    call.scope = scope = signature.read_scope(signed)
    if call.app.open_door:
        call.caller = _anyone(call.app, scope)
        return
    if scope is None:
        raise CloudError(
            "AuthFailure", "AWS was not able to validate the provided access credentials (the request is not signed)"
        )
    now = dt.datetime.fromtimestamp(call.app.clock(), dt.UTC)
    identities = call.app.identities
    secret = await to_thread.run_sync(identities.secret_of, scope.access_key)
    signature.verify(signed, scope, lambda _: secret, now)
    account = await to_thread.run_sync(identities.account_of, scope.access_key)
    call.caller = Caller(account or call.app.account, _region(scope.region), scope.access_key)


def _anyone(app: Api, scope: signature.Scope | None) -> Caller:
    """The open door: a twelve-digit access key is an account of its own, any other the default one."""
    if scope is None:
        return Caller(app.account, app.region, "")
    key = scope.access_key
    account = app.identities.account_of(key) or (key if len(key) == 12 and key.isdigit() else app.account)
    return Caller(account, _region(scope.region), key)


def _region(name: str) -> str:
    if not is_region(name):
        raise CloudError("AuthFailure", f"The credential scope names '{name}', which is not a region's name.")
    return name


async def find_operation(call: Call) -> None:
    names = dict(call.parameters)
    action = names.get("Action", "")
    target = call.request.headers.get("x-amz-target")
    service = call.scope.service if call.scope else ("sts" if names.get("Version") == "2011-06-15" else "ec2")
    if service not in SERVICES or target:
        raise CloudError(
            "UnsupportedOperation",
            f"haneul does not have the service {service} ({action or target or call.request.url.path}).",
        )
    call.service = service
    if not action:
        raise CloudError("MissingAction", "The request must contain the parameter Action")
    call.operation = protocol.operation_model(service, action)


async def parse_input(call: Call) -> None:
    assert call.operation is not None
    if call.scope is None and not is_read(call.operation.name):
        # An <img> of a web page can send a GET without any telling header, but no Authorization.
        raise CloudError(
            "AuthFailure", "Without any credentials there is only reading: sign the request, with any key."
        )
    parameters = [(name, value) for name, value in call.parameters if not name.startswith("X-Amz-")]
    call.params = protocol.parse(call.service, call.operation, parameters)


async def run_operation(call: Call) -> None:
    """In a worker thread: the services are plain synchronous functions."""
    assert call.operation is not None and call.caller is not None
    operation, caller = call.operation, call.caller

    def work() -> bytes:
        result = call.app.backend.call(call.service, operation.name, caller, call.params)
        return protocol.serialise(call.service, operation, result, call.request_id)

    call.answer = await to_thread.run_sync(work)


Step = Callable[[Call], Awaitable[None]]

PATH: tuple[Step, ...] = (
    read_parameters,
    refuse_foreign_pages,
    authenticate,
    find_operation,
    parse_input,
    run_operation,
)


# --- the application --------------------------------------------------------------------------------


async def _serve(call: Call) -> tuple[int, bytes]:
    try:
        for step in PATH:
            await step(call)
        return 200, call.answer
    except CloudError as error:
        return error.status, protocol.serialise_error(_error_protocol(call), error, call.request_id)
    except ClientDisconnect:
        return 400, b""
    except Exception:
        log.exception("request %s: %s failed", call.request_id, call.operation and call.operation.name)
        fault = CloudError("InternalError", "An internal error has occurred; haneul's log has the details.")
        return fault.status, protocol.serialise_error(_error_protocol(call), fault, call.request_id)


def _error_protocol(call: Call) -> str:
    service = call.scope.service if call.scope else call.service
    return "ec2" if service in ("ec2", "") else "query"


def make_app(api: Api) -> Starlette:
    """The ASGI application."""

    async def endpoint(request: Request) -> Response:
        call = Call(request, api)
        status, body = await _serve(call)
        if log.isEnabledFor(logging.INFO):
            name = call.operation.name if call.operation else "-"
            log.info("%s %s %s %d", call.request_id, call.caller.account if call.caller else "-", name, status)
        headers = {"x-amzn-RequestId": call.request_id, "Server": f"haneul/{__version__}"}
        return Response(body, status, headers, media_type=_XML)

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
    return Starlette(routes=[Route("/{path:path}", endpoint, methods=methods)])
