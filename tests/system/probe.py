"""What a QEMU that was taken over would try: run as the uid of its machine, without the seccomp filter.

Standard library only, for the system's own Python: it reads what to try as JSON and says what came of it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
NEWNET, NEWUSER, NEWNS = 0x40000000, 0x10000000, 0x00020000
PTRACE_SEIZE, VM_READV, VM_WRITEV, PIDFD_OPEN, PIDFD_GETFD = 0x4206, 310, 311, 434, 438
results: dict[str, str] = {}


def attempt(name: str, act: Callable[[], Any]) -> None:
    """Nothing but an error is a refusal."""
    try:
        act()
    except (OSError, ValueError) as error:  # Python's word for a limit that may not be raised is ValueError
        results[name] = errno.errorcode.get(getattr(error, "errno", None) or 0, str(error))
    else:
        results[name] = "done"


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def opened(path: str, flags: int, mode: int = 0o600) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode))


def files(paths: list[str]) -> None:
    for path in paths:
        attempt(f"read {path}", lambda: opened(path, os.O_RDONLY))  # noqa: B023
        attempt(f"write {path}", lambda: opened(path, os.O_WRONLY))  # noqa: B023


def write_only(paths: list[str]) -> None:
    for path in paths:
        attempt(f"write {path}", lambda: opened(path, os.O_WRONLY))  # noqa: B023


def away(path: str) -> None:
    os.rename(path, path + ".away")
    os.rename(path + ".away", path)


def folders(paths: list[str]) -> None:
    for path in paths:
        attempt(f"list {path}", lambda: os.listdir(path))  # noqa: B023


def make_in(paths: list[str]) -> None:
    for path in paths:
        attempt(f"make in {path}", lambda: opened(f"{path}/made", os.O_WRONLY | os.O_CREAT))  # noqa: B023
        attempt(f"link in {path}", lambda: os.symlink("/etc/shadow", f"{path}/planted"))  # noqa: B023


def sockets(paths: list[str]) -> None:
    for path in paths:
        one = socket.socket(socket.AF_UNIX)
        attempt(f"connect {path}", lambda: one.connect(path))  # noqa: B023
        one.close()


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def memory(pid: int, call: int, address: int) -> None:
    buffer = ctypes.create_string_buffer(16)
    near, far = Vector(ctypes.addressof(buffer), 16), Vector(address, 16)
    checked(libc.syscall(call, pid, ctypes.byref(near), 1, ctypes.byref(far), 1, 0))


def steal_descriptor(pid: int) -> None:
    one = checked(libc.syscall(PIDFD_OPEN, pid, 0))
    try:
        checked(libc.syscall(PIDFD_GETFD, one, 0, 0))
    finally:
        os.close(one)


def enter(path: str) -> None:
    one = os.open(path, os.O_RDONLY)
    try:
        checked(libc.setns(one, 0))
    finally:
        os.close(one)


def processes(pids: dict[str, int]) -> None:
    for name, pid in pids.items():
        for number in (0, 23):  # SIGURG, which nobody minds, were it to arrive
            attempt(f"signal {number} {name}", lambda: os.kill(pid, number))  # noqa: B023
        attempt(f"ptrace {name}", lambda: checked(libc.ptrace(PTRACE_SEIZE, pid, None, None)))  # noqa: B023
        attempt(f"vm_readv {name}", lambda: memory(pid, VM_READV, 0x400000))  # noqa: B023
        attempt(f"vm_writev {name}", lambda: memory(pid, VM_WRITEV, 0x400000))  # noqa: B023
        attempt(f"descriptor of {name}", lambda: steal_descriptor(pid))  # noqa: B023
        attempt(f"priority of {name}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))  # noqa: B023
        attempt(f"processors of {name}", lambda: os.sched_setaffinity(pid, {0}))  # noqa: B023
        for part in ("mem", "environ", "maps", "auxv", "stack", "syscall"):
            attempt(f"{part} of {name}", lambda: os.read(os.open(f"/proc/{pid}/{part}", os.O_RDONLY), 1))  # noqa: B023
        attempt(f"descriptors of {name}", lambda: os.listdir(f"/proc/{pid}/fd"))  # noqa: B023
        attempt(f"oom score of {name}", lambda: opened(f"/proc/{pid}/oom_score_adj", os.O_WRONLY))  # noqa: B023
        for part in ("root", "cwd", "exe"):
            attempt(f"{part} of {name}", lambda: os.readlink(f"/proc/{pid}/{part}"))  # noqa: B023
            attempt(f"through {part} of {name}", lambda: os.stat(f"/proc/{pid}/{part}/"))  # noqa: B023
        for part in ("net", "mnt", "user", "pid"):
            attempt(f"enter {part} of {name}", lambda: enter(f"/proc/{pid}/ns/{part}"))  # noqa: B023


def tap() -> None:
    one = os.open("/dev/net/tun", os.O_RDWR)
    try:
        import fcntl

        fcntl.ioctl(one, 0x400454CA, struct.pack("16sH22x", b"probe0", 0x1002))
    finally:
        os.close(one)


def low_port(kind: int, port: int) -> None:
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", port))


def raw(family: int, kind: int) -> None:
    socket.socket(family, kind, 0 if family == socket.AF_INET and kind != socket.SOCK_RAW else 1).close()


def powers() -> None:
    """What only root may do."""
    attempt("mount", lambda: checked(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)))
    attempt("chroot", lambda: os.chroot("/var/empty" if os.path.isdir("/var/empty") else "/tmp"))
    attempt("become root", lambda: os.setuid(0))
    attempt("become another", lambda: os.setresuid(1, 1, 1))
    attempt("join groups", lambda: os.setgroups([0]))
    attempt("new network namespace", lambda: checked(libc.unshare(NEWNET)))
    attempt("new mount namespace", lambda: checked(libc.unshare(NEWNS)))
    attempt("make a device", lambda: os.mknod("/tmp/probe-device", 0o020600, os.makedev(1, 1)))
    attempt("host name", lambda: socket.sethostname("taken"))
    attempt("a tap", tap)
    attempt("TCP port 80", lambda: low_port(socket.SOCK_STREAM, 80))
    attempt("UDP port 53", lambda: low_port(socket.SOCK_DGRAM, 53))
    attempt("raw socket", lambda: raw(socket.AF_INET, socket.SOCK_RAW))
    attempt("packet socket", lambda: raw(socket.AF_PACKET, socket.SOCK_RAW))
    attempt("kernel setting", lambda: opened("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY))
    attempt("kernel log", lambda: checked(libc.klogctl(5, None, 0)))
    attempt("core files", lambda: __import__("resource").setrlimit(4, (1 << 20, 1 << 20)))


def devices() -> None:
    import stat

    for name in os.listdir("/dev"):
        path = f"/dev/{name}"
        try:
            kind = os.stat(path).st_mode
        except OSError:
            continue
        if stat.S_ISBLK(kind) or name in ("mem", "kmem", "port", "kmsg", "vhost-net", "vhost-vsock", "vfio", "kvm"):
            files([path])


def others(given: dict[str, Any]) -> None:
    """All that belongs to somebody else."""
    files(given["files"])
    write_only(given["write"])
    folders(given["folders"])
    make_in(given["make_in"])
    sockets(given["sockets"])
    processes(given["pids"])
    for path in given["namespaces"]:
        attempt(f"enter {path}", lambda: enter(path))  # noqa: B023
    for path in given["fixed"]:
        attempt(f"remove {path}", lambda: away(path))  # noqa: B023
    devices()


def as_root_of_a_user_namespace(given: dict[str, Any]) -> None:
    """Every user may have one, where the kernel lets them: root in there is still nobody out here."""
    before = (os.getuid(), os.getgid())
    try:
        checked(libc.unshare(NEWUSER))
        with open("/proc/self/setgroups", "w") as file:
            file.write("deny")
        for name, number in zip(("uid_map", "gid_map"), before, strict=True):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(f"0 {number} 1")
    except OSError:
        return
    outside = dict(results)
    results.clear()
    others(given)
    inside = {f"in a user namespace: {name}": outcome for name, outcome in results.items()}
    results.clear()
    results.update(outside | inside)


def main() -> None:
    given = json.loads(sys.argv[1])
    files(given["own_files"])
    sockets(given["own_sockets"])
    own = dict(results)
    results.clear()
    others(given)
    powers()
    as_root_of_a_user_namespace(given)
    print(json.dumps({"own": own, "tried": results}))


main()
