"""The metadata process under fire, in a namespace whose addresses are two instances of one VPC."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from haneul.linux import netns
from tests.contract.world import why_not

VPC = "vpc-0000000000000000f"
A, B = "10.0.0.10", "10.0.0.11"
ADDRESS, TIME_ADDRESS = ("169.254.169.254", 80), ("169.254.169.123", 123)
#: A client's question of RFC 5905, with something to know it by again.
WHAT_TIME = b"\x23\0\6\0" + bytes(36) + b"question"
PUT = b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n%s\r\n"
GET = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n"


def _instance(letter: str, address: str) -> dict[str, object]:
    return {
        "instance_id": f"i-OWN-{letter}", "vpc_id": VPC, "addresses": [address], "http_tokens": "required",
        "http_endpoint": "enabled", "hop_limit": 1, "tree": {"meta-data/instance-id": f"i-OWN-{letter}"},
        "public_keys": [], "tags": {}, "user_data": None,
    }  # fmt: skip


@dataclass
class Service:
    namespace: Path

    def connect(self, source: str, timeout: float = 5.0) -> socket.socket:
        """From one of the instances' addresses."""

        def work() -> socket.socket:
            return socket.create_connection(ADDRESS, timeout, (source, 0))

        return netns.call(self.namespace, work)

    def ask(self, source: str, request: bytes, timeout: float = 5.0) -> bytes:
        """All that comes back until the end, or until it is silent."""
        with self.connect(source, timeout) as link, contextlib.suppress(OSError):
            out = b""
            link.sendall(request)
            link.shutdown(socket.SHUT_WR)
            while data := link.recv(65536):
                out += data
        return out

    def token(self, source: str) -> bytes:
        return self.ask(source, PUT % b"").rpartition(b"\r\n\r\n")[2]

    def whoami(self, source: str) -> bytes:
        return self.ask(source, GET % (b"X-aws-ec2-metadata-token: " + self.token(source) + b"\r\n"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if why := why_not():
        pytest.skip(why)
    directory = tmp_path_factory.mktemp("metadata")
    namespace = Path("/run/haneul-metadata-test") / VPC
    netns.create(namespace)
    found = Service(namespace)
    inside = ["nsenter", f"--net={namespace}", "ip"]
    subprocess.run([*inside, "link", "set", "lo", "up"], check=True)
    for address in (A, B, ADDRESS[0], TIME_ADDRESS[0]):
        subprocess.run([*inside, "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    (directory / "secret").write_bytes(os.urandom(32))
    snapshot = {"instances": [_instance("A", A), _instance("B", B)], "namespaces": {VPC: str(namespace)}, "logs": []}
    (directory / "snapshot.json").write_text(json.dumps(snapshot))
    process = subprocess.Popen([sys.executable, "-m", "haneul.metadata_service.server", str(directory)])
    try:
        _until(lambda: b"i-OWN-B" in found.whoami(B))
        yield found
    finally:
        process.kill()
        process.wait()
        netns.remove(namespace)
        shutil.rmtree(namespace.parent)


def _clock(service: Service, source: str) -> socket.socket:
    def work() -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((source, 0))
        one.connect(TIME_ADDRESS)
        return one

    return netns.call(service.namespace, work)


def _told(clock: socket.socket) -> bytes:
    """Asked again, as a client does: what comes while the port's queue is full is lost."""
    clock.settimeout(0.2)
    for _ in range(50):
        clock.send(WHAT_TIME)
        with contextlib.suppress(TimeoutError):
            return clock.recv(200)
    raise AssertionError("nobody tells the time")


def _until(good: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if good():
                return
        time.sleep(0.05)
    raise AssertionError("not in time")


_PATHS = (
    *[b"/latest/meta-data/instance-id"] * 5,
    b"/latest/meta-data/instance-id", b"http://169.254.169.254/latest/meta-data/instance-id", b"//latest//meta-data//instance-id",
    b"/latest/../latest/meta-data/instance-id", b"/latest/%2e%2e/meta-data/", b"/latest%2fmeta-data%2finstance-id", b"/\0/latest",
    b"/latest/meta-data/" + b"A" * 20000, b"/latest/meta-data/instance-id\r\nX-Forwarded-For: 10.0.0.11", b"*", b"10.0.0.11:80",
    b"http://10.0.0.11/latest/meta-data/instance-id", b"/latest/meta-data/instance-id?x=i-OWN-B", b"/latest/api/token", b"/i-OWN-B",
)  # fmt: skip
_METHODS = (*[b"GET"] * 9, b"PUT", b"HEAD", b"TRACE", b"CONNECT", b"OPTIONS", b"POST", b"PRI", b"G\0T", b"")
_LINES = (
    b"X-Forwarded-For: 10.0.0.11", b"Forwarded: for=10.0.0.11", b"X-Real-IP: 10.0.0.11", b"Host: 10.0.0.11", b"Host: a\r\nHost: b",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked", b"Content-Length: -1", b"Content-Length: 99999999",
    b"Expect: 100-continue", b"Upgrade: h2c\r\nConnection: upgrade", b"X: " + b"y" * 20000, b" folded: yes", b"No colon", b"A: b\nC: d",
    b"X-aws-ec2-metadata-token-ttl-seconds: 60\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600", b"Range: bytes=0-1",
)  # fmt: skip


def _requests(tokens: list[bytes], count: int) -> Iterator[bytes]:
    choose = random.Random(7).choice
    chance = random.Random(8).random
    for _ in range(count):
        lines = [choose(_LINES) for _ in range(int(chance() ** 2 * 4))]
        lines += [b"Host: 169.254.169.254"] * (chance() < 0.8)
        if chance() < 0.8:
            lines.append(b"X-aws-ec2-metadata-token: " + choose(tokens))
        version = choose((*[b"HTTP/1.1"] * 9, b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b""))
        one = choose(_METHODS) + b" " + choose(_PATHS) + b" " + version + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
        one += choose((b"", b"", b"5\r\nhello\r\n0\r\n\r\n", b"hello"))
        yield one * choose((1, 1, 1, 5))  # sometimes without waiting for the answer


def test_games_with_requests_tell_nothing_of_another(service: Service, record_tally: Callable[[str], None]) -> None:
    count, told = 2000, 0
    own, others = service.token(A), service.token(B)
    tokens = [own, own, others, others, own[:-1], b"", own + b", " + others]
    for request in _requests(tokens, count):
        reply = service.ask(A, request, 2.0)
        assert b"OWN-B" not in reply, request[:300]
        if b"i-OWN-A" in reply:
            told += 1
            assert own in request
    assert told > 20
    assert b" 401 " in service.ask(A, GET % (b"X-aws-ec2-metadata-token: " + others + b"\r\n"))
    assert b"i-OWN-B" in service.whoami(B)
    record_tally(f"raw requests to the metadata process: {count}, {told} answered about the asker; 0 about another")


def _hammer(service: Service, until: threading.Event, count: list[int]) -> None:
    while not until.is_set():
        with contextlib.suppress(OSError):
            service.ask(A, GET % b"", 1.0)
            count[0] += 1


def test_one_guests_flood_leaves_the_others_their_answers(
    service: Service, record_tally: Callable[[str], None]
) -> None:
    """Three hundred connections, silent or half sent, and requests without end."""
    held: list[socket.socket] = []
    stop, count, slowest = threading.Event(), [0], 0.0
    threads = [threading.Thread(target=_hammer, args=(service, stop, count)) for _ in range(4)]
    try:
        for number in range(300):
            with contextlib.suppress(OSError):
                held.append(service.connect(A))
                held[-1].sendall(
                    (b"", b"GET /latest/meta-da", b"PUT / HTTP/1.1\r\nContent-Length: 9999\r\n\r\nx")[number % 3]
                )
        for thread in threads:
            thread.start()
        for _ in range(20):
            begun = time.monotonic()
            assert b"i-OWN-B" in service.whoami(B)  # it gives up where nothing comes for five seconds
            slowest = max(slowest, time.monotonic() - begun)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for one in held:
            one.close()
    assert slowest < 3
    _until(lambda: b"i-OWN-A" in service.whoami(A))
    record_tally(
        f"metadata under a flood ({len(held)} connections held, {count[0]} requests): B's slowest token and answer {slowest * 1000:.0f} ms"
    )


def test_the_clock_tells_the_servers_time(service: Service, record_tally: Callable[[str], None]) -> None:
    """Beside whatever else comes to its port, and to who asks, nobody else."""
    noise, count = random.Random(20261124), 2000
    with _clock(service, A) as a, _clock(service, B) as b:
        for number in range(count):
            with contextlib.suppress(OSError):
                a.send(noise.randbytes(noise.randrange(200)) if number % 2 else WHAT_TIME)
        before = time.time()
        reply = _told(b)
        after = time.time()
        assert len(reply) == 48 and reply[0] == 0x24 and reply[24:32] == b"question"
        received = int.from_bytes(reply[32:40], "big") / 2**32 - 2208988800
        assert before - 0.001 <= received <= after + 0.001
        a.setblocking(False)
        told = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                assert a.recv(200)[0] & 7 == 4
                told += 1
    assert told > 0
    assert b"i-OWN-B" in service.whoami(B)
    record_tally(
        f"packets to a server's clock: {count}, {told} answered; another's question beside them in {after - before:.3f} s"
    )
