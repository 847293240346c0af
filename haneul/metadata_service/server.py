"""The process: `python -m haneul.metadata_service.server DIRECTORY`.

It reads `snapshot.json` (atomic, written by the agent) whenever that changes, listens on 169.254.169.254:80 in
the namespace of every VPC it names, and tells instances apart by VPC and source address. On 169.254.169.123:123 it tells them the
time (`ntp.py`). It also keeps the logs that machines write without bound below a limit, because it runs while haneul is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import glob
import http
import json
import os
import resource
import socket
import stat
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h11

from haneul.metadata_service import documents, ntp

ADDRESS = ("169.254.169.254", 80)
TIME_ADDRESS = ("169.254.169.123", ntp.PORT)
LOOK_SECONDS = 0.25
KEEP_SECONDS = 5.0
IDLE_SECONDS = 30.0
MAX_CONNECTIONS = 64
MAX_LOG = 1 << 20
KEPT_LOG = 128 << 10
_CLONE_NEWNET = 0x40000000
#: linux/in.h; Python has no name for it.
_IP_FREEBIND = 15


def _sockets(namespace: str) -> tuple[socket.socket, socket.socket]:
    """A listening socket in another namespace, and the clock's. setns(2) is of one thread, which ends here."""
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(descriptor)
            with contextlib.ExitStack() as undo:
                listener = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(ADDRESS)
                listener.listen(128)
                clock = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                # A network that an older haneul made has the address only when the agent has seen to it.
                clock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                clock.bind(TIME_ADDRESS)
                undo.pop_all()
            box["sockets"] = listener, clock
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    found: tuple[socket.socket, socket.socket] = box["sockets"]
    return found


class Clock(asyncio.DatagramProtocol):
    """One VPC's. It answers with no more than it was sent, and remembers nobody."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own is no instance of it in Python 3.11.
        self._transport = cast(asyncio.DatagramTransport, transport)
        self._waits = False

    def pause_writing(self) -> None:
        self._waits = True

    def resume_writing(self) -> None:
        self._waits = False

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        received = time.time_ns()
        if not self._waits and (reply := ntp.answer(data, received, time.time_ns())):
            self._transport.sendto(reply, addr)


@dataclass(frozen=True)
class Listening:
    """In the namespace that `place` names: path and inode."""

    place: tuple[str, int]
    server: asyncio.Server
    clock: asyncio.BaseTransport

    def close(self) -> None:
        self.server.close()
        self.clock.close()


class Service:
    """`directory` holds `snapshot.json` and `secret`."""

    def __init__(self, directory: Path) -> None:
        self._snapshot_path = directory / "snapshot.json"
        self._secret = (directory / "secret").read_bytes()
        self._read_at = (0, 0)
        self._instances: dict[tuple[str, str], dict[str, Any]] = {}
        self._logs: list[str] = []
        self._namespaces: dict[str, tuple[str, int]] = {}
        self._servers: dict[str, Listening] = {}
        self._connections: dict[tuple[str, str], int] = {}

    # --- the snapshot -----------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Take in a changed snapshot; says whether there was one."""
        try:
            status = self._snapshot_path.stat()
        except FileNotFoundError:
            return False
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp == self._read_at:
            return False
        snapshot = json.loads(self._snapshot_path.read_bytes())
        self._instances = {
            (one["vpc_id"], address): one for one in snapshot["instances"] for address in one["addresses"]
        }
        self._logs = snapshot["logs"]
        self._namespaces = {}
        for vpc_id, path in snapshot["namespaces"].items():
            with contextlib.suppress(FileNotFoundError):
                # A namespace that was made anew has the same path and another inode.
                self._namespaces[vpc_id] = (path, os.stat(path).st_ino)
        self._read_at = stamp
        return True

    async def follow(self) -> None:
        """Keep a listener in each VPC, for ever."""
        while True:
            self._read()
            for vpc_id in [one for one in self._servers if self._servers[one].place != self._namespaces.get(one)]:
                self._servers.pop(vpc_id).close()
            for vpc_id, place in self._namespaces.items():
                if vpc_id not in self._servers:
                    try:
                        self._servers[vpc_id] = await self._serve(vpc_id, place)
                    except OSError as error:
                        print(f"{vpc_id}: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(LOOK_SECONDS)

    async def _serve(self, vpc_id: str, place: tuple[str, int]) -> Listening:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connection(vpc_id, reader, writer)

        listener, clock = _sockets(place[0])
        server = await asyncio.start_server(connected, sock=listener)
        clock.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Clock, sock=clock)
        return Listening(place, server, transport)

    # --- connections ------------------------------------------------------------------------------------

    async def _connection(self, vpc_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        if peer is None:  # it was gone before it was accepted
            writer.close()
            return
        who = (vpc_id, peer[0])
        self._connections[who] = self._connections.get(who, 0) + 1
        try:
            if self._connections[who] <= MAX_CONNECTIONS:
                await _http(reader, writer, lambda request: self._answer(who, request))
        except (OSError, TimeoutError, h11.ProtocolError):
            pass
        finally:
            self._connections[who] -= 1
            if not self._connections[who]:
                del self._connections[who]
            writer.close()

    def _answer(self, who: tuple[str, str], request: h11.Request) -> documents.Answer:
        self._read()
        instance = self._instances.get(who)
        if instance is None:
            return documents.Answer(404)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        method, target = request.method.decode("latin-1"), request.target.decode("latin-1")
        return documents.answer(instance, method, target, headers, self._secret, time.time())

    # --- logs -------------------------------------------------------------------------------------------

    async def keep_logs_short(self) -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            for path in (path for pattern in self._logs for path in glob.glob(pattern)):
                with contextlib.suppress(OSError):
                    shorten(path)


def shorten(path: str) -> None:
    """Cut a log that is open for appending down to its end. A link that a guest's process planted is not followed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        if size > MAX_LOG and stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            end = os.pread(descriptor, KEPT_LOG, size - KEPT_LOG)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, end, 0)
    finally:
        os.close(descriptor)


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Any) -> None:
    """One connection's requests, one after another. Slow and silent peers are left."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16384)
    while True:
        request = None
        body = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await asyncio.wait_for(reader.read(16384), IDLE_SECONDS)
                connection.receive_data(data)
                if not data and request is None:
                    return
                continue
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += len(event.data)
                if body > 16384:
                    return
            else:
                break
        if request is None or not isinstance(event, h11.EndOfMessage):
            return
        reply = answer(request)
        connected = writer.get_extra_info("socket")
        if reply.ttl is not None and connected is not None:
            # The hop limit of EC2: the reply must not travel further than the instance allows.
            connected.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, reply.ttl)
        content = b"" if request.method == b"HEAD" else reply.body
        headers = [("Server", "EC2ws"), ("Content-Length", str(len(reply.body))), *reply.headers.items()]
        head = h11.Response(
            status_code=reply.status, headers=headers, reason=http.HTTPStatus(reply.status).phrase.encode()
        )
        out = connection.send(head) or b""
        if content:
            out += connection.send(h11.Data(data=content)) or b""
        out += connection.send(h11.EndOfMessage()) or b""
        writer.write(out)
        await asyncio.wait_for(writer.drain(), IDLE_SECONDS)
        if connection.our_state is h11.MUST_CLOSE:
            return
        connection.start_next_cycle()


def _many_files() -> None:
    """Some guests that hold all the connections they may have must not use up what others need."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _main(directory: Path) -> None:
    _many_files()
    service = Service(directory)
    await asyncio.gather(service.follow(), service.keep_logs_short())


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
