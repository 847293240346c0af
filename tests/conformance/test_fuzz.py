"""Bad input: an EC2 error code or a closed connection, never a 500, never a stuck worker, memory bounded."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import resource
import socket
import string
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

import botocore.serialize
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haneul.api import app, http, protocol
from haneul.api.app import Api, make_app
from haneul.services.context import OPERATIONS
from tests.conformance import generate
from tests.conformance.conftest import FakeCloud
from tests.conformance.test_door import BODY, _send, _signed

JUNK = (
    "", "-1", "0", "1e400", "NaN", "²", "\x00", "\ud7ff", "a" * 5000, "i-", "i-0123456789abcdef0", "ami-0123456789abcdef0", "*", "[", "\\",
    "true", "<x>&amp;", "2026-13-45T99:99:99Z", "'; DROP TABLE instances; --", "../../etc/passwd", "9" * 40, "$Latest", "١٢٣",
)  # fmt: skip
#: A refusal that EC2 sends with 500 itself; clients try it again.
ALLOWED_500 = "InsufficientInstanceCapacity"

Pairs = list[tuple[str, str]]


def _pairs(service: str, name: str, rng: random.Random, texts: Sequence[str]) -> Pairs:
    """A request as a client would send it, with values for some or all members."""
    operation = protocol.operation_model(service, name)
    wanted = (
        generate.value(operation.input_shape, rng, every=rng.random() < 0.1, texts=texts)
        if operation.input_shape
        else {}
    )
    kind = protocol.service_model(service).protocol
    body = botocore.serialize.create_serializer(kind, include_validation=False).serialize_to_request(wanted, operation)[
        "body"
    ]
    # A dry run of a request that changes nothing is only half of the way.
    return [(key, str(value)) for key, value in body.items() if key != "DryRun" or rng.random() < 0.3]


def _broken(pairs: Pairs, rng: random.Random) -> Pairs:
    """The request with some of it replaced, left out, doubled, renamed, nested or multiplied."""
    fixed = [pair for pair in pairs if pair[0] in ("Action", "Version")]
    rest = [pair for pair in pairs if pair[0] not in ("Action", "Version")]
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        if not rest:
            rest = [("".join(rng.choices(string.ascii_letters + ".-", k=8)), rng.choice(JUNK))]
        at = rng.randrange(len(rest))
        key, value = rest[at]
        kind = rng.randrange(8)
        if kind == 0:
            rest[at] = (key, rng.choice(JUNK))
        elif kind == 1:
            del rest[at]
        elif kind == 2:
            rest.append((key, rng.choice(JUNK)))
        elif kind == 3:
            rest[at] = (key + rng.choice(("x", ".1", ".Value", ".", "..", ".999999999", ".-1")), value)
        elif kind == 4:
            rest.append((".".join([key] * rng.choice((2, 30, 300))), value))
        elif kind == 5:
            rest += [(f"{key}.{n}", value) for n in range(rng.choice((10, 3000)))]
        elif kind == 6:
            rest[at] = (key.swapcase(), value)
        else:
            rest[at] = (key, value * rng.choice((2, 400)))
    return fixed + rest


class Door:
    """The whole request path of an open haneul, without a socket."""

    def __init__(self, cloud: FakeCloud) -> None:
        running = cloud.running
        api = Api(running.cloud, running.identities, True, "000000000000", "us-east-1", time.time)
        self._app = make_app(api)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def send(self, body: bytes, method: str = "POST", headers: Any = (), query: bytes = b"") -> tuple[int, bytes]:
        answer = asyncio.run_coroutine_threadsafe(self._exchange(body, method, headers, query), self._loop)
        return answer.result(60)

    async def _exchange(self, body: bytes, method: str, headers: Any, query: bytes) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []
        credential = (
            b"AWS4-HMAC-SHA256 Credential=fuzz/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0"
        )
        scope = {
            "type": "http", "method": method, "path": "/", "raw_path": b"/", "query_string": query,
            "headers": [(b"host", b"127.0.0.1"), (b"authorization", credential), (b"x-amz-date", b"20260101T000000Z"), *headers],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]


@pytest.fixture(scope="module")
def door(start_cloud: Callable[..., FakeCloud]) -> Door:
    return Door(start_cloud(auth="open"))


def _check(status: int, body: bytes) -> str:
    """The error's code, or `ok`. An answer is always XML of the right kind."""
    root = ET.fromstring(body)
    code = root.findtext("./Errors/Error/Code") or root.findtext("./Error/Code")
    if status == 200:
        assert code is None
        return "ok"
    assert code, body[:500]
    assert status < 500 or code == ALLOWED_500 or status == 503, (status, body[:500])
    return code


def _names() -> list[str]:
    return sorted(protocol.operations("ec2"))


def _known(door: Door) -> list[str]:
    """Ids and names of what there is, so that requests get further than to `NotFound`."""
    send = lambda **given: door.send(urlencode(given).encode())[1].decode()  # noqa: E731
    send(Action="CreateKeyPair", KeyName="fuzz", KeyType="ed25519")
    send(Action="CreatePlacementGroup", GroupName="fuzz")
    template = {"LaunchTemplateData.ImageId": JUNK[11], "LaunchTemplateData.InstanceType": "t3.micro"}
    send(Action="CreateLaunchTemplate", LaunchTemplateName="fuzz", **template)
    found = send(Action="RunInstances", ImageId=JUNK[11], MinCount="3", MaxCount="3", KeyName="fuzz")
    found += (
        send(Action="DescribeLaunchTemplates") + send(Action="DescribePlacementGroups") + send(Action="DescribeVpcs")
    )
    found += send(Action="DescribeSecurityGroupRules")
    ids = sorted(set(re.findall(r"\b(?:i|vol|eni|sg|sgr|subnet|vpc|lt|pg|r)-[0-9a-f]{17}\b", found)))
    return [
        *ids,
        "fuzz",
        "default",
        "us-east-1a",
        "t3.micro",
        "m5.large",
        "1",
        "$Latest",
        "10.0.0.0/8",
        "tcp",
        "tag:Name",
    ]


def test_every_operation_of_the_model_survives_broken_requests(door: Door, record_tally: Callable[[str], None]) -> None:
    codes: Counter[str] = Counter()
    failed: list[str] = []
    ours, known = set(OPERATIONS.names("ec2")), _known(door)
    for name in _names():
        for number in range(40 if name in ours else 2):
            rng = random.Random(f"{name} {number}")
            pairs = _pairs("ec2", name, rng, [*known, *JUNK[:8]] if number % 4 else JUNK)
            body = urlencode(_broken(pairs, rng) if number % 2 else pairs, errors="surrogatepass").encode()
            status, answer = door.send(body)
            try:
                codes[_check(status, answer)] += 1
            except (AssertionError, ET.ParseError) as error:
                failed.append(f"{name} {number}: {error} {body[:600]!r}")
    tried = sum(codes.values())
    shown = ", ".join(f"{code} {count}" for code, count in codes.most_common(12))
    record_tally(f"fuzz, structured: {tried} requests of {len(_names())} operations, {len(failed)} a fault; {shown}")
    assert not failed, "\n".join(failed[:30])


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(
    name=st.sampled_from(sorted(OPERATIONS.names("ec2"))),
    pairs=st.lists(st.tuples(st.text(max_size=40), st.text(max_size=60)), max_size=8),
    raw=st.binary(max_size=200),
    form=st.integers(0, 3),
)
def test_any_bytes_are_refused_in_order(door: Door, name: str, pairs: Pairs, raw: bytes, form: int) -> None:
    """hypothesis chooses; what fails is shown at its smallest."""
    text = urlencode([("Action", name), *pairs], errors="surrogatepass").encode()
    if form == 0:
        status, body = door.send(text)
    elif form == 1:
        status, body = door.send(b"", "GET", query=text)
    elif form == 2:
        status, body = door.send(b"Action=" + name.encode() + b"&" + raw)
    else:
        status, body = door.send(raw, headers=[(b"content-type", b"text/plain")])
    _check(status, body)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(
    raw=st.one_of(st.binary(max_size=100), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["Name", "Names", "WithDecryption", "x"]), inner)).map(lambda value: __import__("json").dumps(value).encode())),
    target=st.sampled_from([b"AmazonSSM.GetParameter", b"AmazonSSM.GetParameters", b"AmazonSSM.Nothing", b"Other.Thing", b"\xff", b"."]),
)  # fmt: skip
def test_json_too(door: Door, raw: bytes, target: bytes) -> None:
    status, body = door.send(raw, headers=[(b"x-amz-target", target)])
    assert (status < 500 and b"__type" in body) or status == 200


# --- on a socket ------------------------------------------------------------------------------------


def _rss_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _answers(fake: FakeCloud) -> None:
    began = time.monotonic()
    assert _send(fake, "POST", "/", BODY, _signed(fake))[0] == 200
    assert time.monotonic() - began < 10, "an honest client waits for what the others do"


def _raw(fake: FakeCloud, data: bytes, seconds: float = 10) -> bytes:
    """What comes back, up to the length it says; empty if the connection is closed. A connection that hangs is a failure."""
    said = b""
    one = socket.create_connection(("127.0.0.1", fake.running.settings.port), timeout=seconds)
    with one, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        one.sendall(data)
        while not _whole(said) and (more := one.recv(65536)):
            said += more
    return said


def _whole(answer: bytes) -> bool:
    """Whether an answer is there with its body: that may come in a packet of its own."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


HEAD = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 4000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        HEAD + b"X: \xff\xfe\r\nContent-Length: 3\r\n\r\na=b",
        HEAD + b"Authorization: \xff\xff\r\nContent-Length: 3\r\n\r\na=b",
        HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(2000)) + b"Content-Length: 3\r\n\r\na=b",
        b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"DELETE /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /?%ff%fe=%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + b"a" * 60000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_header_games(fake: FakeCloud, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some of them never end: those are given up, after less time than in earnest.
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(app, "BODY_SECONDS", 0.5)
    answer = _raw(fake, data, 20)
    assert answer == b"" or answer.split(b" ", 2)[1] in (b"200", b"400", b"401", b"403"), answer[:200]
    _answers(fake)


def test_fifty_megabytes_are_not_kept(fake: FakeCloud) -> None:
    before = _rss_mib()
    piece = b"x" * (1 << 20)
    with socket.create_connection(("127.0.0.1", fake.running.settings.port), timeout=20) as one:
        one.sendall(HEAD + b"Content-Length: %d\r\n\r\nAction=" % (50 << 20))
        with contextlib.suppress(OSError):
            for _ in range(49):
                one.sendall(piece)
    _answers(fake)
    assert _rss_mib() - before < 40


def test_endless_headers_end(fake: FakeCloud) -> None:
    with socket.create_connection(("127.0.0.1", fake.running.settings.port), timeout=20) as one:
        one.sendall(b"POST / HTTP/1.1\r\n")
        sent = 0
        with pytest.raises(OSError):
            while sent < 64 << 20:
                sent += one.send(b"X-Filler: " + b"y" * 8000 + b"\r\n")
        assert sent < 32 << 20
    _answers(fake)


def test_a_thousand_connections_and_slow_senders(fake: FakeCloud, record_tally: Callable[[str], None]) -> None:
    """Half of them silent, half in the middle of a head or a body: everybody else is served meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(1000, hard // 3)
    held: list[socket.socket] = []
    before = _rss_mib()
    try:
        for number in range(count):
            one = socket.create_connection(("127.0.0.1", fake.running.settings.port), timeout=20)
            held.append(one)
            one.sendall((b"", b"POST / HT", HEAD, HEAD + b"Content-Length: 100\r\n\r\nAction=De")[number % 4])
        for _ in range(5):
            _answers(fake)
        grown = _rss_mib() - before
        record_tally(f"connections held open, silent or half sent: {count}; memory grew by {grown:.0f} MiB")
        assert grown < 100
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    _answers(fake)


def test_a_head_that_does_not_come_is_given_up(fake: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", fake.running.settings.port), timeout=20) as one:
        one.sendall(b"POST / HTTP/1.1\r\nHost")
        assert one.recv(1) == b"", "closed by haneul"


def test_a_body_that_does_not_come_is_given_up(fake: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)
    assert b"RequestTimeout" in _raw(fake, HEAD + b"Content-Length: 100\r\n\r\nAction=", 20)
    _answers(fake)
