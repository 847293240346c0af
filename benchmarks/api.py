#!/usr/bin/env python
"""The speed of the API with fake drivers, beside moto's server, in the same run on the same cores.

    .venv/bin/python benchmarks/api.py [--json] [--sizes 10,1000,10000] [--no-moto]

The client holds raw keep-alive connections, sends signed requests and reads every answer to its last byte. moto
comes from PyPI into build/moto. For each size: p50 of RunInstances and CreateTags in milliseconds, describing all in
pages of 1000 in seconds (the first time, and again: the median of three), requests per second by id over 8
connections, p50 by a tag filter, memory (PSS) in MiB. Start-up: from the command to the first answer. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ROOT = Path(__file__).resolve().parents[1]
MOTO = "moto[ec2,server]==5.2.3"
AMI = "ami-0123456789abcdef0"
SAMPLES, SECONDS, CONNECTIONS, BATCH = 40, 3.0, 8, 500


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Server:
    name: str
    port: int
    pid: int
    started_s: float
    access_key: str
    secret: str
    data: Path | None = None
    connection: Connection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = Connection(self.port)

    def request(self, action: str, **parameters: Any) -> bytes:
        body = urlencode({"Action": action, "Version": "2016-11-15"} | parameters).encode()
        url = f"http://127.0.0.1:{self.port}/"
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8", "Host": f"127.0.0.1:{self.port}"}
        signed = AWSRequest("POST", url, data=body, headers=headers)
        SigV4Auth(Credentials(self.access_key, self.secret), "ec2", "us-east-1").add_auth(signed)
        lines = "".join(f"{name}: {value}\r\n" for name, value in signed.headers.items())
        return f"POST / HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def call(self, action: str, **parameters: Any) -> bytes:
        return self.connection.exchange(self.request(action, **parameters))

    def memory_mib(self) -> float:
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
        return int(found.group(1)) / 1024 if found else 0.0


class Connection:
    """One keep-alive connection; opened again where the server closes it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket: socket.socket | None = None
        self.pending = b""

    def open(self) -> socket.socket:
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=1200)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.socket

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def exchange(self, request: bytes) -> bytes:
        """The answer's body, of a request that succeeds."""
        head, body = self.answer(request)
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")), body[:400]
        return body

    def answer(self, request: bytes) -> tuple[bytes, bytes]:
        """(head, body), whatever the status."""
        self.open().sendall(request)
        head, _, chunk = self._head()
        found = re.search(rb"(?i)content-length: (\d+)", head)
        assert found, head
        chunks, left = [chunk], int(found.group(1)) - len(chunk)
        while left > 0:
            part = self.open().recv(min(left, 1 << 20))
            assert part, "the answer ended early"
            chunks.append(part)
            left -= len(part)
        if b"connection: close" in head.lower():
            self.close()
        return head, b"".join(chunks)

    def _head(self) -> tuple[bytes, bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.open().recv(65536)
            assert part, "the server closed the connection"
            data += part
        return data.partition(b"\r\n\r\n")


def _until_it_answers(process: subprocess.Popen[bytes], port: int, began: float) -> float:
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as one:
            one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            if one.recv(10):
                return time.monotonic() - began
        assert process.poll() is None, "the server ended"
        time.sleep(0.005)


@contextlib.contextmanager
def haneul(**settings: object) -> Iterator[Server]:
    """A haneul with fake drivers, and with settings by their names."""
    with tempfile.TemporaryDirectory(prefix="haneul-api-") as data:
        port = free_port()
        (Path(data) / "haneul.toml").write_text("")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HANEUL_")}
        environment = kept | {
            "HANEUL_CONFIG": f"{data}/haneul.toml",
            "HANEUL_DATA": data,
            "HANEUL_PORT": str(port),
            "HANEUL_DRIVERS": "fake",
            "HANEUL_PUBLIC_POOL": "198.18.0.0/16",
            "HANEUL_QUOTA_INSTANCES": "100000",
            "HANEUL_QUOTA_VCPUS": "1000000",
        }
        environment |= {f"HANEUL_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", "haneul", "up"]
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            started = _until_it_answers(process, port, began)
            access_key, secret = (Path(data) / "identity" / "credentials").read_text().split()
            yield Server("haneul", port, process.pid, started, access_key, secret, Path(data))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _moto_python() -> Path:
    place = ROOT / "build" / "moto"
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", MOTO], check=True)
        (place / "installed").touch()
    return python


@contextlib.contextmanager
def moto() -> Iterator[Server]:
    python = _moto_python()
    port = free_port()
    command = [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    began = time.monotonic()
    environment = os.environ | {"MOTO_EC2_LOAD_DEFAULT_AMIS": "true"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        started = _until_it_answers(process, port, began)
        yield Server("moto", port, process.pid, started, "AKIAIOSFODNN7EXAMPLE", "secret")
    finally:
        process.terminate()
        process.wait(60)


# --- what is measured -------------------------------------------------------------------------------


def _image(server: Server) -> str:
    if server.name == "haneul":
        return AMI
    found = re.search(rb"<imageId>(ami-[0-9a-f]+)</imageId>", server.call("DescribeImages"))
    assert found
    return found.group(1).decode()


def _subnets(server: Server) -> list[str]:
    return [
        one.decode() for one in re.findall(rb"<subnetId>(subnet-[0-9a-f]+)</subnetId>", server.call("DescribeSubnets"))
    ]


def _launch(server: Server, image: str, subnet: str, count: int) -> list[str]:
    parameters = {
        "ImageId": image, "InstanceType": "t3.micro", "MinCount": count, "MaxCount": count, "SubnetId": subnet,
        "TagSpecification.1.ResourceType": "instance",
        "TagSpecification.1.Tag.1.Key": "Name", "TagSpecification.1.Tag.1.Value": f"n-{time.monotonic_ns()}",
        "TagSpecification.1.Tag.2.Key": "team", "TagSpecification.1.Tag.2.Value": "sky",
    }  # fmt: skip
    answer = server.call("RunInstances", **parameters)
    return [one.decode() for one in re.findall(rb"<instanceId>(i-[0-9a-f]+)</instanceId>", answer)]


def _settled(server: Server) -> None:
    """Until no instance is pending and the server has gone quiet."""
    while b"<name>pending</name>" in server.call("DescribeInstances", **{"MaxResults": 1000}):
        time.sleep(0.2)
    stat = Path(f"/proc/{server.pid}/stat")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        before = sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))
        time.sleep(1.0)
        if sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13])) - before < 20:
            return


def _p50_ms(server: Server, requests: list[bytes]) -> float:
    times = []
    for one in requests:
        began = time.perf_counter()
        server.connection.exchange(one)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def _describe_all(server: Server) -> tuple[float, int]:
    began, found, token = time.perf_counter(), 0, b""
    while True:
        parameters: dict[str, Any] = {"MaxResults": 1000} | ({"NextToken": token.decode()} if token else {})
        body = server.call("DescribeInstances", **parameters)
        found += body.count(b"<instanceState>")
        token = next(iter(re.findall(rb"<nextToken>([^<]+)</nextToken>", body[:400] + body[-4000:])), b"")
        if not token:
            return time.perf_counter() - began, found


def _per_second(server: Server, requests: list[bytes]) -> float:
    """Requests answered in a second over several connections, one in flight on each."""
    selector = selectors.DefaultSelector()
    connections = [Connection(server.port) for _ in range(CONNECTIONS)]
    sent = done = 0
    for one in connections:
        one.open().sendall(requests[sent % len(requests)])
        sent += 1
        selector.register(one.open(), selectors.EVENT_READ, one)
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        for key, _ in selector.select(1):
            connection: Connection = key.data
            part = connection.open().recv(1 << 18)
            connection.pending += part
            head, found, body = connection.pending.partition(b"\r\n\r\n")
            if part and not (found and len(body) >= int(re.search(rb"(?i)content-length: (\d+)", head).group(1))):  # type: ignore[union-attr]
                continue
            assert head.split(b" ", 2)[1] == b"200", body[:300]
            done += 1
            connection.pending = b""
            if not part or b"connection: close" in head.lower():
                selector.unregister(connection.open())
                connection.close()
                selector.register(connection.open(), selectors.EVENT_READ, connection)
            connection.open().sendall(requests[sent % len(requests)])
            sent += 1
    took = time.perf_counter() - began
    for one in connections:
        one.close()
    return done / took


def measure(server: Server, sizes: list[int]) -> dict[str, Any]:
    image, subnets = _image(server), _subnets(server)
    results: dict[str, Any] = {"started_s": round(server.started_s, 3)}
    ids: list[str] = []
    for size in sizes:
        began = time.perf_counter()
        while len(ids) < size:
            count = min(BATCH, size - len(ids))
            ids += _launch(server, image, subnets[len(ids) * 3 // 12000 % 3], count)
        filled = time.perf_counter() - began
        if server.name == "haneul":
            _settled(server)
        few = server.name == "moto" and size > 2000
        first, found = _describe_all(server)
        assert found >= size, (found, size)
        again = first if few else statistics.median(_describe_all(server)[0] for _ in range(3))
        chosen = [ids[n * len(ids) // 200] for n in range(200)] if len(ids) >= 200 else ids
        by_id = [server.request("DescribeInstances", **{"InstanceId.1": one}) for one in chosen]
        name = f"special-{size}"
        server.call("CreateTags", **{"ResourceId.1": ids[size // 2], "Tag.1.Key": "Name", "Tag.1.Value": name})
        by_tag = server.request("DescribeInstances", **{"Filter.1.Name": "tag:Name", "Filter.1.Value.1": name})
        tag = [
            server.request("CreateTags", **{"ResourceId.1": one, "Tag.1.Key": "k", "Tag.1.Value": f"{n}"})
            for n, one in enumerate(chosen[:SAMPLES])
        ]
        launch = server.request(
            "RunInstances", ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1, SubnetId=subnets[2]
        )
        results[str(size)] = {
            "fill_s": round(filled, 3),
            "describe_all_first_s": round(first, 4),
            "describe_all_s": round(again, 4),
            "by_id_per_s": round(_per_second(server, by_id), 1),
            "by_tag_ms": round(_p50_ms(server, [by_tag] * (3 if few else SAMPLES)), 3),
            "create_tags_ms": round(_p50_ms(server, tag), 3),
            "run_instances_ms": round(_p50_ms(server, [launch] * SAMPLES), 3),
            "memory_mib": round(server.memory_mib(), 1),
        }
        print(f"{server.name} {size}: {results[str(size)]}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,1000,10000")
    parser.add_argument("--no-moto", action="store_true")
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    sizes = [int(one) for one in options.sizes.split(",")]
    results: dict[str, Any] = {}
    for name, start in (("haneul", haneul), ("moto", moto)):
        if name == "moto" and options.no_moto:
            continue
        with start() as server:
            results[name] = measure(server, sizes)
    if "moto" in results:
        results["describe_all_ratio"] = {
            str(size): round(
                results["moto"][str(size)]["describe_all_s"] / results["haneul"][str(size)]["describe_all_s"], 1
            )
            for size in sizes
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
