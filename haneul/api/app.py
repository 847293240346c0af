"""The request path, as one visible list, and the ASGI application around it."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import functools
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl

from botocore.model import OperationModel

from haneul import __version__
from haneul.api import audit, protocol, signature
from haneul.api.registry import Registry
from haneul.api.workers import Workers
from haneul.errors import CloudError
from haneul.model.aws import service_model
from haneul.model.region import is_region
from haneul.records.metrics import CONTENT_TYPE
from haneul.services.context import ASKS, OPERATIONS, Caller, Input, Output, is_read

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
BODY_SECONDS = 60.0
MAX_PARAMETERS = 20000
#: Threads by what they may have to wait for: nobody, the one writer's lock, an instance's server. None holds the others up.
READERS, WRITERS, ASKERS = 12, 6, 8


@functools.cache
def registry() -> Registry:
    """The services that have operations here."""
    return Registry.of(OPERATIONS.services())


_LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?")


class Backend(Protocol):
    """`services.Cloud`, as the API sees it."""

    def call(self, service: str, name: str, caller: Caller, params: Input) -> Output: ...

    def is_quick(self, service: str, name: str, caller: Caller, params: Input) -> bool: ...


@dataclass(frozen=True)
class Key:
    """An access key: whose it is, and its secret."""

    account: str
    secret: str


class Identities(Protocol):
    def find(self, access_key: str) -> Key | None: ...

    def answers_at_once(self, access_key: str) -> bool:
        """Whether `find` waits for nothing: it is asked for every request, on the event loop if it may be."""


class Disconnected(Exception):
    """The client went away."""


@dataclass(frozen=True)
class HttpRequest:
    """What ASGI says of a request. `headers` have lower-case names; of a repeated one the last counts."""

    method: str
    path: str
    query: bytes
    headers: Mapping[str, str]
    receive: Receive
    client: str = ""


Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class Call:
    """One request on its way through `PATH`; every step fills in its part."""

    request: HttpRequest
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
    asked: str = "-"
    error: CloudError | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def target(self) -> str:
        """`AmazonSSM.GetParameter` of a JSON request, empty for the others."""
        return self.request.headers.get("x-amz-target", "")

    @property
    def protocol(self) -> str:
        """What the client speaks, as far as that is known: errors are told in it."""
        service = self.scope.service if self.scope else self.service
        if self.target:
            return "json"
        return "ec2" if service in ("ec2", "") else "query"


class Watcher(Protocol):
    """Who is told of every request that was answered."""

    def request(self, service: str, operation: str, code: str, kind: str, seconds: float) -> None: ...

    def text(self) -> bytes:
        """What /metrics answers."""


class Nobody:
    """A watcher that looks away."""

    def request(self, service: str, operation: str, code: str, kind: str, seconds: float) -> None: ...

    def text(self) -> bytes:
        return b""


#: Where records of the audit go.
Recorder = Callable[[dict[str, Any]], None]
#: The request that is being answered, for what is logged on its way.
REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="-")


@dataclass
class Api:
    """`open_door` accepts any credentials; `account` and `region` are what unsigned requests then get.

    `audited` says which operations are recorded: those that change something, all, or none.
    """

    backend: Backend
    identities: Identities
    open_door: bool
    account: str
    region: str
    clock: Callable[[], float]
    watcher: Watcher = field(default_factory=Nobody)
    recorder: Recorder = field(default=lambda record: None)
    audited: Literal["off", "writes", "all"] = "off"
    more_regions: frozenset[str] = frozenset()
    readers: Workers = field(default_factory=lambda: Workers("reads", READERS))
    writers: Workers = field(default_factory=lambda: Workers("writes", WRITERS))
    askers: Workers = field(default_factory=lambda: Workers("asks", ASKERS))

    def workers(self, operation: str) -> Workers:
        if operation in ASKS:
            return self.askers
        return self.readers if is_read(operation) else self.writers

    def close(self) -> None:
        for one in (self.readers, self.writers, self.askers):
            one.close()


# --- the steps --------------------------------------------------------------------------------------


async def read_parameters(call: Call) -> None:
    """POST form body or GET query, decoded once; bounded."""
    if call.request.method not in ("GET", "POST", "HEAD"):
        raise CloudError("InvalidRequest", f"The method {call.request.method} is not supported.")
    call.body = await _read_body(call.request)
    call.query = tuple(_pairs(call.request.query)) if call.request.query else ()
    # Whatever type a body claims to be, it is read as what it is signed as: parameters.
    form = _pairs(call.body) if call.body and not call.target else []
    twice = {name for name, _ in call.query} & {name for name, _ in form}
    if twice:
        raise CloudError("InvalidRequest", f"{min(twice)[:80]} is given in the query and in the body.")
    call.parameters = [*call.query, *form]


async def _read_body(request: HttpRequest) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _whole_body(request)
    except TimeoutError:
        raise CloudError("RequestTimeout", f"The request did not come within {BODY_SECONDS:.0f} seconds.") from None


async def _whole_body(request: HttpRequest) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY:
            raise CloudError("RequestEntityTooLarge", f"A request has at most {MAX_BODY} bytes.")
        chunks.append(chunk)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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
    request = call.request
    signed = signature.Request(request.method, request.path, call.query, request.headers, call.body)
    call.scope = scope = signature.read_scope(signed)
    key = await _find_key(call.app, scope.access_key) if scope else None
    if call.app.open_door:
        call.caller = _anyone(call.app, scope, key)
        return
    if scope is None:
        raise CloudError(
            "AuthFailure", "AWS was not able to validate the provided access credentials (the request is not signed)"
        )
    now = dt.datetime.fromtimestamp(call.app.clock(), dt.UTC)
    signature.verify(signed, scope, key.secret if key else None, now)
    assert key is not None
    call.caller = Caller(key.account, _region(call.app, scope.region), scope.access_key)


async def _find_key(app: Api, access_key: str) -> Key | None:
    if app.identities.answers_at_once(access_key):
        return app.identities.find(access_key)
    found: Key | None = await app.readers.run(lambda: app.identities.find(access_key))
    return found


def _anyone(app: Api, scope: signature.Scope | None, known: Key | None) -> Caller:
    """The open door: a twelve-digit access key is an account of its own, any other the default one."""
    if scope is None:
        return Caller(app.account, app.region, "")
    key = scope.access_key
    account = known.account if known else (key if re.fullmatch("[0-9]{12}", key) else app.account)
    return Caller(account, _region(app, scope.region), key)


def _region(app: Api, name: str) -> str:
    if not is_region(name, app.more_regions):
        raise CloudError(
            "AuthFailure",
            f"The credential scope names '{name[:64]}', which is not a region of AWS's (the setting `more_regions` adds others).",
        )
    return name


async def find_operation(call: Call) -> None:
    names = dict(call.parameters)
    prefix, _, operation = call.target.partition(".")
    action = operation if call.target else names.get("Action", "")
    signing = call.scope.service if call.scope else ""
    version = names.get("Version", "")
    found = registry().find(signing, version, prefix)
    # Without credentials and with a version of no service here, it is EC2's: its clients say what they like.
    service = call.service = found or signing or (prefix[:80] if call.target else "ec2")
    call.asked = action[:128] if action.isalnum() else "-"
    if found is None and (signing or call.target):
        raise CloudError(
            "UnsupportedOperation",
            f"haneul does not have the service {service} ({action or call.target or call.request.path}).",
        )
    if not action:
        raise CloudError("MissingAction", "The request must contain the parameter Action")
    if call.target and service_model(service).protocol != "json":
        raise CloudError("InvalidAction", f"The service {service} does not speak JSON.")
    call.operation = protocol.operation_model(service, action)


async def parse_input(call: Call) -> None:
    assert call.operation is not None
    if call.scope is None and not is_read(call.operation.name):
        # An <img> of a web page can send a GET without any telling header, but no Authorization.
        raise CloudError(
            "AuthFailure", "Without any credentials there is only reading: sign the request, with any key."
        )
    if call.target:
        call.params = protocol.parse_json(call.operation, call.body)
        return
    if service_model(call.service).protocol == "json":
        raise CloudError("InvalidAction", f"The service {call.service} speaks JSON: give X-Amz-Target.")
    parameters = [(name, value) for name, value in call.parameters if not name.startswith("X-Amz-")]
    call.params = protocol.parse(call.service, call.operation, parameters)


async def run_operation(call: Call) -> None:
    """In a worker thread: the services are plain synchronous functions. What is quicker than the way there is done here."""
    assert call.operation is not None and call.caller is not None
    operation, caller = call.operation, call.caller

    def work() -> bytes:
        result = call.app.backend.call(call.service, operation.name, caller, call.params)
        return protocol.serialise(call.service, operation, result, call.request_id)

    quick = call.app.backend.is_quick(call.service, operation.name, caller, call.params)
    call.answer = work() if quick else await call.app.workers(operation.name).run(work)


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
    REQUEST.set(call.request_id)
    try:
        for step in PATH:
            await step(call)
        return 200, call.answer
    except CloudError as error:
        call.error = error
        return error.status, protocol.serialise_error(call.protocol, error, call.request_id)
    except Disconnected:
        call.error = CloudError("Disconnected", "The client went away.")
        return 400, b""
    except Exception:
        log.exception("%s failed", call.operation and call.operation.name)
        fault = CloudError("InternalError", "An internal error has occurred; haneul's log has the details.")
        call.error = fault
        return fault.status, protocol.serialise_error(call.protocol, fault, call.request_id)


def _note(call: Call, status: int) -> None:
    """Tell the metrics, the audit and the log: one line for each request, reading for those who ask for more."""
    name = call.operation.name if call.operation else call.asked
    seconds = time.perf_counter() - call.began
    read = call.operation is not None and is_read(name)
    # Only names of the model: a client must not make up labels without end.
    service, known = call.service if call.service in registry().names else "-", name if call.operation else "-"
    kind = "-" if call.operation is None else "read" if read else "write"
    call.app.watcher.request(service, known, call.error.code if call.error else "OK", kind, seconds)
    if call.caller and call.operation and (call.app.audited == "all" or (call.app.audited == "writes" and not read)):
        call.app.recorder(_record(call, seconds))
    level = logging.DEBUG if status == 200 and read else logging.INFO
    if log.isEnabledFor(level):
        account = call.caller.account if call.caller else "-"
        log.log(level, "%s %s:%s %d %.1f ms", account, call.service or "-", name, status, seconds * 1e3)


def _record(call: Call, seconds: float) -> dict[str, Any]:
    assert call.caller is not None and call.operation is not None
    return audit.record(
        caller=call.caller,
        service=call.service,
        operation=call.operation.name,
        params=call.params,
        answer=call.answer,
        error=(call.error.code, call.error.message) if call.error else None,
        request_id=call.request_id,
        source=call.request.client,
        agent=call.request.headers.get("user-agent", ""),
        seconds=seconds,
    )


def _may_scrape(request: HttpRequest) -> bool:
    """/metrics is for programs on this machine, as the open door is: it tells of all accounts."""
    try:
        local = ipaddress.ip_address(request.client).is_loopback
    except ValueError:
        return False
    # With a proxy on this machine everybody comes from this machine.
    told = ("origin", "referer", "sec-fetch-site", "x-forwarded-for", "x-real-ip", "forwarded", "via")
    foreign = any(name in request.headers for name in told)
    return local and not foreign and _LOOPBACK.fullmatch(request.headers.get("host", "")) is not None


async def _metrics(api: Api, request: HttpRequest, send: Send) -> None:
    allowed = _may_scrape(request)
    body = await api.readers.run(api.watcher.text) if allowed else b"/metrics is for programs on this machine.\n"
    headers = [(b"content-type", CONTENT_TYPE), (b"content-length", str(len(body)).encode()), (b"server", _SERVER)]
    await send({"type": "http.response.start", "status": 200 if allowed else 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>haneul</title></head><body>
<h1>haneul 하늘</h1>
<p>This is haneul {__version__}: the EC2 API that boots a kernel. Programs speak to it; there is no console here yet.</p>
<p>In a terminal on this machine: <code>eval "$(haneul env)"</code>, then <code>aws ec2 describe-instances</code>, or <code>haneul status</code>.</p>
</body></html>
""".encode()


def _is_a_browser(request: HttpRequest) -> bool:
    """Somebody who looks at the address of the API; no AWS client sends a bare GET."""
    wants_a_page = "text/html" in request.headers.get("accept", "")
    return request.method == "GET" and request.path == "/" and not request.query and wants_a_page


async def _page(send: Send) -> None:
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(_PAGE)).encode()),
        (b"server", _SERVER),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _PAGE})


_SERVER = f"haneul/{__version__}".encode()
_TYPES = {"json": b"application/x-amz-json-1.1"}


def make_app(api: Api) -> Callable[[dict[str, Any], Receive, Send], Awaitable[None]]:
    """The ASGI application. A cloud has one path and one way to answer: no framework is between."""

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope.get("raw_path", b"/").split(b"?")[0].decode("latin-1")
        client = (scope.get("client") or ("",))[0]
        request = HttpRequest(scope["method"], path, scope["query_string"], headers, receive, client)
        if path == "/metrics" and scope["method"] == "GET":
            await _metrics(api, request, send)
            return
        if _is_a_browser(request):
            await _page(send)
            return
        call = Call(request, api)
        status, body = await _serve(call)
        answer_headers = [
            (b"content-type", _TYPES.get(call.protocol, b"text/xml;charset=UTF-8")),
            (b"content-length", str(len(body)).encode()),
            (b"x-amzn-requestid", call.request_id.encode()),
            (b"server", _SERVER),
        ]
        try:
            await send({"type": "http.response.start", "status": status, "headers": answer_headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        finally:
            # Also for a client that has gone: what it has done is done.
            _note(call, status)

    return application
