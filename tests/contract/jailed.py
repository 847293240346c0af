"""What would be tried in a paravirtual machine by whoever runs in the place of its kernel, or of its supervisor.

Standard library only, for the system's own Python: it is given what to try as JSON and says what came of it, as JSON, on a
descriptor. The real places have no interpreter (the kernel's) or nothing but this one (the supervisor's).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
results: dict[str, str] = {}
CLONE, NEW = 56, {"user": 0x10000000, "net": 0x40000000, "mnt": 0x20000, "pid": 0x20000000, "ipc": 0x8000000,
                  "uts": 0x4000000, "cgroup": 0x2000000, "time": 0x80}  # fmt: skip
MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MNT_DETACH = 2, 4, 32, 4096, 2
MIB = 1 << 20


def attempt(name: str, act: Callable[[], Any]) -> None:
    """Nothing but an error is a refusal."""
    try:
        act()
    except OSError as error:
        results[name] = errno.errorcode.get(error.errno or 0, str(error))
    else:
        results[name] = "done"


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def call(number: int, *arguments: int) -> int:
    return checked(libc.syscall(number, *(ctypes.c_long(one) for one in arguments)))


def child(act: Callable[[], Any]) -> int:
    """A process that does it and ends."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            act()
        os._exit(0)
    return pid


# --- what both try ----------------------------------------------------------------------------------------


def files(paths: list[str]) -> None:
    for path in paths:
        for name, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY), ("link", os.O_PATH)):
            attempt(f"{name} {path}", lambda: os.close(os.open(path, flags | os.O_NONBLOCK)))  # noqa: B023


def unix_sockets(paths: list[str]) -> None:
    for path in paths:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            with socket.socket(socket.AF_UNIX, kind) as one:
                attempt(f"connect {path!r} {kind}", lambda: one.connect(path))  # noqa: B023


def processes(pids: list[int]) -> None:
    for pid in pids:
        for number in (0, signal.SIGURG):
            attempt(f"signal {number} to {pid}", lambda: os.kill(pid, number))  # noqa: B023
        attempt(f"ptrace {pid}", lambda: checked(libc.ptrace(0x4206, pid, None, None)))  # noqa: B023
        attempt(f"priority of {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))  # noqa: B023
        for name, number in (("pidfd_open", 434), ("vm_readv", 310), ("vm_writev", 311), ("kcmp", 312)):
            attempt(f"{name} {pid}", lambda: call(number, pid, 0, 0, 0, 0, 0))  # noqa: B023


def families(allowed: int) -> None:
    for family in range(47):
        for kind in (1, 2, 3, 5, 10):
            for protocol in (0, 1, 255):
                if family != allowed:
                    made = f"socket {family} {kind} {protocol}"
                    attempt(made, lambda: os.close(call(41, family, kind, protocol)))  # noqa: B023


def namespaces(names: list[str]) -> None:
    for name in names:
        attempt(f"clone into a new {name}", lambda: _clone(NEW[name]))  # noqa: B023
        attempt(f"unshare {name}", lambda: call(272, NEW[name]))  # noqa: B023


def _clone(flags: int) -> None:
    if call(CLONE, flags | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


def count(act: Callable[[int], Any], most: int) -> int:
    """How often it can be done."""
    for number in range(most):
        try:
            act(number)
        except OSError:
            return number
    return most


def fork_bomb() -> int:
    """How many processes there can be beside this one."""
    made: list[int] = []
    found = count(lambda _: made.append(child(signal.pause)), 20000)
    for pid in made:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return found


def filled(folder: str) -> dict[str, int]:
    """Bytes and files that can be put there; nothing stays."""
    made = 0

    def make(number: int) -> None:
        nonlocal made
        os.close(os.open(f"{folder}/made-{number}", os.O_CREAT | os.O_WRONLY, 0o600))
        made += 1

    count(make, 100000)
    size = 0
    if made:
        with open(f"{folder}/made-0", "wb", buffering=0) as file:
            size = count(lambda _: _whole(file.write(bytes(65536))), 1 << 20) * 65536
    for number in range(made):
        os.unlink(f"{folder}/made-{number}")
    return {"bytes": size, "files": made}


def _whole(written: int) -> None:
    if written != 65536:
        raise OSError(errno.ENOSPC, "full")


def _tree(top: str) -> list[str]:
    """All that is there, but not in the real place: Python's own /usr."""
    found = [top]
    for folder, names, others in os.walk(top):
        names[:] = [name for name in names if os.path.join(folder, name) != "/usr"]
        found += [os.path.join(folder, name) for name in (*names, *others)]
    return found


# --- in the kernel's place --------------------------------------------------------------------------------


def every_call(allowed: list[int]) -> None:
    """All system calls by number but those that a kernel needs.

    Not uretprobe() and uprobe(): Linux lets them pass any filter, and ends who has no probe.
    """
    for number in (one for one in range(512) if one not in (*allowed, 335, 336)):
        attempt(f"system call {number}", lambda: call(number, 0, 0, 0, 0, 0, 0))  # noqa: B023
    for number in (0x40000000 + 1, 0x40000000 + 41):  # x32
        pid = child(lambda: call(number, 1, 0, 0))  # noqa: B023
        results[f"x32 {number:x}"] = "killed" if os.WIFSIGNALED(os.waitpid(pid, 0)[1]) else "done"


def memory() -> None:
    anonymous, size = mmap.MAP_ANONYMOUS, 64 * MIB
    attempt("shared memory without a file", lambda: mmap.mmap(-1, 4096, mmap.MAP_SHARED | anonymous))
    attempt("memory that grows", lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | anonymous | 0x100))
    attempt("much private memory", lambda: mmap.mmap(-1, size, mmap.MAP_PRIVATE | anonymous))
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_ssize_t, [ctypes.c_ssize_t]
    attempt("much by brk", lambda: checked(libc.sbrk(size)))


def volume() -> None:
    """It is as long as it is, by whatever call."""
    with open("/exports/0", "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        attempt("truncate the volume", lambda: os.truncate("/exports/0", end + MIB))
        attempt("ftruncate the volume", lambda: os.ftruncate(file.fileno(), end + MIB))
        attempt("write behind the volume", lambda: os.pwrite(file.fileno(), b"x" * 4096, end))
        for mode in (0, 2, 8, 16, 32):
            attempt(f"fallocate {mode}", lambda: call(285, file.fileno(), mode, end, MIB))  # noqa: B023
        for mode in (1, 3, 17):
            with contextlib.suppress(OSError):
                call(285, file.fileno(), mode, end, MIB)
        attempt("the volume grew", lambda: _shorter(file.seek(0, os.SEEK_END) - end))


def _shorter(difference: int) -> None:
    if difference == 0:
        raise OSError(errno.EPERM, "it is as it was")


def root() -> dict[str, list[str]]:
    """What of its root it can write, where it can make files, and what is a device."""
    found: dict[str, list[str]] = {"written": [], "made": [], "devices": []}
    for path in _tree("/"):
        status = os.stat(path, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(OSError):
                os.close(os.open(f"{path}/made", os.O_CREAT | os.O_WRONLY))
                os.unlink(f"{path}/made")
                found["made"].append(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            found["devices"].append(path)
        elif stat.S_ISREG(status.st_mode):
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY))
                found["written"].append(path)
    return found


def in_the_kernels_place(given: dict[str, Any]) -> dict[str, Any]:
    kept = {"written": [], "made": [], "devices": []} | root()
    every_call(given["allowed"])
    families(socket.AF_UNIX)
    namespaces(list(NEW))
    memory()
    volume()
    limits = {
        "processes": fork_bomb(),
        "descriptors": count(lambda _: os.dup(0), 100000),
    }
    os.closerange(30, 10000)
    limits |= {f"{what} in {place}": value for place in ("/tmp", "/uml") for what, value in filled(place).items()}
    return {"root": kept, "limits": limits}


# --- in the supervisor's place ----------------------------------------------------------------------------


def mounts(given: dict[str, Any]) -> None:
    """Root of its own namespaces mounts what it likes; what is below is the server's, and guarded as such."""
    for place in (given["base"], "/usr"):
        flags = MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV
        with contextlib.suppress(OSError):
            checked(libc.mount(None, place.encode(), None, flags, None))
    attempt("write the image", lambda: os.close(os.open(given["base"], os.O_WRONLY)))
    attempt("write Python", lambda: os.close(os.open("/usr/bin/python3", os.O_WRONLY)))
    for folder in ("/usr", "/usr/bin", "/usr/lib/x86_64-linux-gnu"):
        attempt(f"make in {folder}", lambda: os.close(os.open(f"{folder}/made", os.O_CREAT | os.O_WRONLY)))  # noqa: B023
    attempt("a device", lambda: os.mknod("/tmp/disk", 0o060600, os.makedev(254, 0)))
    attempt("a memory device", lambda: os.mknod("/tmp/mem", 0o020600, os.makedev(1, 1)))
    for kind in ("ext4", "devtmpfs", "debugfs", "tracefs", "securityfs", "bpf", "sysfs", "hugetlbfs", "configfs", "9p"):
        attempt(f"mount {kind}", lambda: checked(libc.mount(b"none", b"/tmp", kind.encode(), 0, None)))  # noqa: B023
    for kind in ("cgroup", "cgroup2", "mqueue"):
        if libc.mount(b"none", b"/tmp", kind.encode(), 0, b"memory" if kind == "cgroup" else None) == 0:
            for path in _tree("/tmp"):
                attempt(f"write {kind} {path}", lambda: os.close(os.open(path, os.O_WRONLY)))  # noqa: B023
            libc.umount2(b"/tmp", MNT_DETACH)


def below(names: list[str]) -> None:
    """When everything that can be taken away is: is the server's root below?"""
    with open("/proc/self/mountinfo") as file:
        places = [line.split()[4] for line in file]
    for place in reversed(places):
        if place != "/" and not place.startswith("/proc"):
            libc.umount2(place.encode(), MNT_DETACH)
    attempt("unmount the root", lambda: checked(libc.umount2(b"/", MNT_DETACH)))
    for name in names:
        attempt(f"below: {name}", lambda: os.stat(name))  # noqa: B023
    for name in ("/proc/1/root", "/proc/self/root"):
        found = os.stat(f"{name}/") if os.path.isdir(name) else None
        same = found is None or found.st_ino == os.stat("/").st_ino
        results[f"another root by {name}"] = "EXDEV" if same else "done"


def tap(number: int) -> None:
    """It has the tap of its own interface: no other, no network namespace by it."""

    def ask(request: int, data: bytes) -> bytes:
        return fcntl.ioctl(number, request, data)

    other = struct.pack("16sH22x", b"other0", 0x5002)
    attempt("another tap by this one", lambda: ask(0x400454CA, other))
    attempt("detach the tap", lambda: ask(0x400454D9, struct.pack("16sH22x", b"", 0x0400)))
    attempt("the network namespace of the tap", lambda: ask(0x54E3, bytes(4)))
    attempt("the namespace of its socket", lambda: ask(0x894C, bytes(4)))
    attempt("put the link up or down", lambda: ask(0x8914, struct.pack("16sH22x", b"lo", 1)))
    attempt("a program on the tap", lambda: ask(0x800454E0, struct.pack("i", 0)))
    attempt("another MAC for the port", lambda: ask(0x8924, struct.pack("16sH6s16x", b"", 1, b"\x06" * 6)))
    attempt("a tap that stays", lambda: checked(libc.ioctl(number, 0x400454CB, 1)))


def sees_only_itself() -> None:
    others = [one for one in os.listdir("/proc") if one.isdigit() and one != str(os.getpid())]
    results["other processes in /proc"] = "done" if others else "ESRCH"


def kernel_settings(own: list[str]) -> None:
    """Those of its namespaces for processes and their communication are its own."""
    for path in _tree("/proc/sys"):
        if os.access(path, os.W_OK) and not os.path.isdir(path) and not path.startswith(tuple(own)):
            attempt(f"open {path} for writing", lambda: os.close(os.open(path, os.O_WRONLY)))  # noqa: B023
    for path in ("sysrq-trigger", "kcore", "kmsg", "sys/kernel/core_pattern", "sys/kernel/modprobe", "mtrr", "bus/pci"):
        attempt(f"open /proc/{path} for writing", lambda: os.close(os.open(f"/proc/{path}", os.O_WRONLY)))  # noqa: B023
    attempt("kernel log", lambda: checked(libc.klogctl(5, None, 0)))
    attempt("be gone last when memory runs out", _oom)


def _oom() -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-500")


def in_the_supervisors_place(given: dict[str, Any]) -> dict[str, Any]:
    sees_only_itself()
    kernel_settings(given["own_settings"])
    families(socket.AF_UNIX)
    namespaces(["user", "net", "cgroup", "time"])
    mounts(given)
    for number in given["taps"]:
        tap(number)
    for number, name in given["refused"].items():
        attempt(f"system call {name}", lambda: call(int(number), 0, 0, 0, 0, 0, 0))  # noqa: B023
    found = {"processes": fork_bomb(), "descriptors": count(lambda _: os.dup(0), 100000)}
    os.closerange(60, 10000)
    below(given["below"])
    return {"limits": found}


def main() -> None:
    given = json.loads(sys.argv[1])
    output = int(sys.argv[2])
    files(given["files"])
    unix_sockets(given["sockets"])
    processes(given["pids"])
    found = {"kernel": in_the_kernels_place, "supervisor": in_the_supervisors_place}[given["place"]](given)
    text = json.dumps(found | {"tried": results}).encode() + b"\n"
    while text:
        text = text[os.write(output, text) :]


main()
