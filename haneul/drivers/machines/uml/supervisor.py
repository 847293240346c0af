"""The life of a paravirtual machine: what runs inside its sandbox, beside User-mode Linux. Standard library only.

It is given to Python as text (`uml_command.py`), because the sandbox has /usr and nothing of haneul. It starts what makes
the volumes readable (qemu-storage-daemon(1), FUSE exports of their qcow2 files) and then the guest kernel in a place of its
own (bwrap(1)), serves the console, carries the frames between the tap and the guest, and speaks so much of QMP (QEMU,
docs/interop/qmp-spec) on the control socket, and of its events on standard output, that the driver need not tell the two
kinds of machine apart. When it ends, all of that ends.

Sources: Linux, Documentation/virt/uml/user_mode_linux_howto_v2.rst; arch/um/drivers/{mconsole,vector_user}.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import tty
from functools import partial
from typing import Any, NoReturn

#: Frames that are carried before anybody else is looked after, and the longest one.
BATCH, FRAME = 64, 65536
#: virtio_net_hdr, which the tap's frames begin with: 10 bytes, all zero when nothing is offloaded.
NO_OFFLOAD = bytes(10)
EXPORT_SECONDS, FLUSH_SECONDS = 15.0, 20.0
#: `struct mconsole_request`: magic, version, length, 512 bytes of text (arch/um/drivers/mconsole.h).
MCONSOLE = struct.Struct("=III512s")
#: What User-mode Linux says on standard output whenever it starts, also when it starts itself again.
BANNER = b"Core dump limits"
#: Said on standard error; the rest of it is not kept.
LAST_WORDS = 2000
#: A command is shorter than this.
MOST_WAITING = 65536
#: Of each kind; when one more comes, the oldest goes.
MOST_CONNECTIONS = 32
#: Logs are cut from outside, before they are so long; if nobody does that, here. Bytes.
MOST_LOG, KEPT_LOG = 4 << 20, 128 << 10
#: Flags of mount(2).
MS_NOSUID, MS_NODEV, MS_REMOUNT = 2, 4, 32


def bound(place: str, mebibytes: int, files: int) -> None:
    """So much may be in a tmpfs at most: what a guest writes there is the server's memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={mebibytes}m,nr_inodes={files}".encode()
    if libc.mount(None, place.encode(), None, MS_REMOUNT | MS_NOSUID | MS_NODEV, options):
        sys.exit(f"{place} cannot be bounded: {os.strerror(ctypes.get_errno())}")


def keep(descriptor: int, said: bytes) -> None:
    """Write to a log. A full disk costs lines of it, and nothing else."""
    with contextlib.suppress(OSError):
        size = os.fstat(descriptor).st_size
        if size > MOST_LOG:
            said = os.pread(descriptor, KEPT_LOG, size - KEPT_LOG) + said
            os.ftruncate(descriptor, 0)
        os.write(descriptor, said)


def event(name: str, **data: object) -> None:
    """One line of the machine's event log, in QEMU's form."""
    now = time.time()
    stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}
    keep(1, (json.dumps({"timestamp": stamp, "event": name, "data": data}) + "\n").encode())


def listen(path: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    found = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    found.bind(path)
    found.listen(128)
    return found


def export(disks: list[str]) -> subprocess.Popen[bytes]:
    """Make every volume a file below /exports; gives the process that does it."""
    words = ["qemu-storage-daemon"]
    for index, disk in enumerate(disks):
        place = f"/exports/{index}"
        os.close(os.open(place, os.O_CREAT, 0o600))
        name = disk.replace(",", ",,")
        words += ["--blockdev", f"driver=qcow2,node-name=d{index},discard=unmap,file.driver=file,file.filename={name}"]
        # A guest's flush gets no further than its kernel: User-mode Linux 6.1 gives up a request that carries no data
        # (arch/um/drivers/ubd_kern.c, io_thread). So every write is flushed, else a guest's fsync would be a lie.
        share = f"type=fuse,id=e{index},node-name=d{index},mountpoint={place},writable=on,writethrough=on"
        words += ["--export", share]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=2)
    waiting = {f"/exports/{index}" for index in range(len(disks))}
    outside = os.stat("/exports").st_dev
    deadline = time.monotonic() + EXPORT_SECONDS
    while waiting:
        waiting = {place for place in waiting if os.stat(place).st_dev == outside}
        if process.poll() is not None:
            sys.exit(f"qemu-storage-daemon ended with {process.returncode}")
        if time.monotonic() > deadline:
            sys.exit("qemu-storage-daemon made no export in time")
        time.sleep(0.005)
    return process


class Life:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.selector = selectors.DefaultSelector()
        self.clients: dict[socket.socket, bytes] = {}
        self.viewers: dict[socket.socket, bytes] = {}
        self.links: dict[int, socket.socket | None] = {}
        self.buffer = bytearray(FRAME)
        self.view = memoryview(self.buffer)
        self.going_down = False
        self.quitting = False
        self.starts = 0
        self.log = os.open("/machine/console.log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    # --- the guest kernel ---------------------------------------------------------------------------------

    def start(self) -> None:
        master, slave = os.openpty()
        tty.setraw(master)
        os.set_inheritable(slave, True)
        said_read, said_write = os.pipe()
        words = [word.replace("@CONSOLE@", str(slave)) for word in self.config["command"]]
        given = [slave, self.config["filter"]]
        self.guest = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=said_write,
            stderr=said_write,
            pass_fds=given,
            start_new_session=True,
        )
        os.close(slave)
        os.close(said_write)
        os.set_blocking(master, False)
        self.console = master
        self.said = said_read
        os.set_blocking(said_read, False)
        self.selector.register(master, selectors.EVENT_READ, self.from_console)
        self.selector.register(said_read, selectors.EVENT_READ, self.from_kernel)
        self.ended = os.pidfd_open(self.guest.pid)
        self.selector.register(self.ended, selectors.EVENT_READ, self.over)
        self.last_words = b""

    def from_kernel(self, descriptor: int) -> None:
        """What the kernel says before it has a console, and when it dies."""
        said = self.read(descriptor)
        if not said:
            return
        fresh = self.last_words[1 - len(BANNER) :] + said
        self.last_words = (self.last_words + said)[-LAST_WORDS:]
        if BANNER not in fresh:
            return
        self.starts += 1
        if self.starts > 1:
            event("RESET", guest=True, reason="guest-reset")
            # Ctrl-Alt-Del means a reboot to the guest; who has pressed it here wants the machine off.
            if self.going_down:
                self.finish("guest-shutdown")

    def over(self, _descriptor: int) -> None:
        """The kernel has ended: by its own poweroff, by order, or in a crash."""
        code = self.guest.wait()
        for _ in range(BATCH):  # its last words
            self.from_console(self.console)
            self.from_kernel(self.said)
        if code == 0:
            self.finish("guest-shutdown")
        os.write(2, self.last_words[-600:])
        self.end(code if code > 0 else 128 - code)

    def finish(self, reason: str) -> NoReturn:
        event("SHUTDOWN", guest=reason == "guest-shutdown", reason=reason)
        self.end(0)

    def end(self, code: int) -> NoReturn:
        """Volumes whole first: what the guest has flushed is in the qcow2 files when the exports are closed."""
        with contextlib.suppress(ProcessLookupError):
            self.guest.kill()
        self.guest.wait()
        self.exports.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.exports.wait(FLUSH_SECONDS)
        event("EXIT", code=code)
        os._exit(code)

    def no_exports(self, _descriptor: int) -> None:
        os.write(2, b"qemu-storage-daemon ended: the machine has no disks any more\n")
        self.end(1)

    def mconsole(self, command: str) -> None:
        """A command for the management console of the kernel. It may be too young to hear it, or too ill: nothing is waited for."""
        text = command.encode()
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as sender, contextlib.suppress(OSError):
            sender.sendto(MCONSOLE.pack(0xCAFEBABE, 2, len(text), text), "/uml/m/mconsole")

    # --- the console --------------------------------------------------------------------------------------

    def read(self, descriptor: int) -> bytes:
        """Nothing if there is nothing; and nothing ever more, when the last one who could say something has closed it."""
        try:
            said = os.read(descriptor, 65536)
        except BlockingIOError:
            return b""
        except OSError:
            said = b""
        if not said:
            with contextlib.suppress(KeyError):
                self.selector.unregister(descriptor)
        return said

    def from_console(self, descriptor: int) -> None:
        said = self.read(descriptor)
        if not said:
            return
        keep(self.log, said)
        for viewer in list(self.viewers):
            try:
                viewer.send(said)
            except BlockingIOError:
                pass  # who does not read does not hold the guest up
            except OSError:
                self.leave(viewer)

    def new_viewer(self, server: socket.socket) -> None:
        viewer = self.accept(server, self.viewers)
        if viewer is not None:
            self.selector.register(viewer, selectors.EVENT_READ, self.from_viewer)

    def from_viewer(self, viewer: socket.socket) -> None:
        try:
            typed = viewer.recv(4096)
        except OSError:
            typed = b""
        if not typed:
            self.leave(viewer)
            return
        with contextlib.suppress(OSError):
            os.write(self.console, typed)

    def accept(self, server: socket.socket, others: dict[socket.socket, bytes]) -> socket.socket | None:
        try:
            found, _ = server.accept()
        except OSError:
            return None
        if len(others) >= MOST_CONNECTIONS:
            self.leave(next(iter(others)))
        found.setblocking(False)
        others[found] = b""
        return found

    def leave(self, connection: socket.socket) -> None:
        self.viewers.pop(connection, None)
        self.clients.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(connection)
        connection.close()

    # --- control ------------------------------------------------------------------------------------------

    def new_client(self, server: socket.socket) -> None:
        client = self.accept(server, self.clients)
        if client is None:
            return
        self.selector.register(client, selectors.EVENT_READ, self.from_client)
        version = {"qemu": {"micro": 0, "minor": 0, "major": 1}, "package": "haneul, User-mode Linux"}
        self.tell(client, {"QMP": {"version": version, "capabilities": []}})

    def tell(self, client: socket.socket, value: object) -> None:
        try:
            client.send((json.dumps(value) + "\r\n").encode())
        except OSError:  # it is gone, or asks without hearing
            self.leave(client)

    def from_client(self, client: socket.socket) -> None:
        try:
            said = client.recv(65536)
        except OSError:
            said = b""
        # Commands are JSON one after the other; nothing need stand between them.
        waiting = self.clients[client] + said
        if not said or len(waiting) > MOST_WAITING:
            self.leave(client)
            return
        text = waiting.decode(errors="replace")
        while client in self.clients and (text := text.lstrip()):
            try:
                asked, length = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            except RecursionError:
                self.leave(client)
                return
            text = text[length:]
            self.carry_out(client, asked)
        if client in self.clients:
            self.clients[client] = text.encode()
        if self.quitting:
            self.finish("host-qmp-quit")

    def carry_out(self, client: socket.socket, asked: Any) -> None:
        command = asked.get("execute") if isinstance(asked, dict) else None
        tag = {"id": asked["id"]} if command is not None and "id" in asked else {}
        answer: dict[str, object] = {}
        if command == "query-status":
            answer = {"status": "running", "running": True, "singlestep": False}
        elif command == "system_powerdown":
            self.going_down = True
            self.mconsole("cad")
        elif command == "quit":
            self.quitting = True
        elif command != "qmp_capabilities":
            error = {"class": "CommandNotFound", "desc": f"a paravirtual machine has no {str(command)[:50]}"}
            self.tell(client, {"error": error} | tag)
            return
        self.tell(client, {"return": answer} | tag)

    # --- the network --------------------------------------------------------------------------------------

    def serve_network(self) -> None:
        """The guest's driver connects to a socket whenever its interface goes up (transport `bess`)."""
        for index, tap in enumerate(self.config["taps"]):
            os.set_blocking(tap, False)
            server = listen(f"/uml/net{index}", socket.SOCK_SEQPACKET)
            self.links[index] = None
            self.selector.register(server, selectors.EVENT_READ, partial(self.link, index=index))
            self.selector.register(tap, selectors.EVENT_READ, partial(self.to_guest, index=index))

    def link(self, server: socket.socket, index: int) -> None:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        self.unlink(index)
        connection.setblocking(False)
        self.links[index] = connection
        self.selector.register(connection, selectors.EVENT_READ, partial(self.to_tap, index=index))

    def unlink(self, index: int) -> None:
        connection, self.links[index] = self.links[index], None
        if connection is not None:
            self.selector.unregister(connection)
            connection.close()

    def to_guest(self, tap: int, index: int) -> None:
        header, frame, guest = bytearray(len(NO_OFFLOAD)), self.buffer, self.links[index]
        for _ in range(BATCH):
            try:
                length = os.readv(tap, [header, frame]) - len(header)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EIO:  # the link is down for a moment
                    self.selector.unregister(tap)
                return
            if guest is None:
                continue
            try:
                guest.send(self.view[:length])
            except BlockingIOError:
                pass  # as on a wire, what nobody takes is lost
            except OSError:
                self.unlink(index)
                return

    def to_tap(self, guest: socket.socket, index: int) -> None:
        tap = self.config["taps"][index]
        for _ in range(BATCH):
            try:
                length = guest.recv_into(self.buffer)
            except BlockingIOError:
                return
            except OSError:
                length = 0
            if not length:
                self.unlink(index)
                return
            with contextlib.suppress(OSError):
                os.writev(tap, [NO_OFFLOAD, self.view[:length]])

    # --- from the beginning to the end --------------------------------------------------------------------

    def live(self) -> NoReturn:
        for place, bounds in self.config["bounds"].items():
            bound(place, *bounds)
        self.exports = export(self.config["disks"])
        self.selector.register(os.pidfd_open(self.exports.pid), selectors.EVENT_READ, self.no_exports)
        self.serve_network()
        self.start()
        self.selector.register(listen("/machine/console.sock"), selectors.EVENT_READ, self.new_viewer)
        self.selector.register(listen("/machine/qmp.sock"), selectors.EVENT_READ, self.new_client)
        while True:
            for key, _ in self.selector.select():
                # What an earlier one of this round has closed is not asked any more, nor what has its number now.
                if self.selector.get_map().get(key.fd) is key:
                    key.data(key.fileobj)


def main() -> None:
    config = json.loads(sys.argv[1])
    # When memory runs out, a machine goes first.
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write(str(config["oom_score"]))
    Life(config).live()


if __name__ == "__main__":
    main()
