"""Filters of system calls, as programs for the kernel. Pure.

Numbers of x86_64 (Linux, arch/x86/entry/syscalls/syscall_64.tbl). A program is `struct sock_filter` after `struct
sock_filter` (linux/filter.h; Documentation/userspace-api/seccomp_filter.rst).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_NUMBERS = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24,
    "mremap": 25, "msync": 26, "madvise": 28, "dup": 32, "dup2": 33, "pause": 34, "nanosleep": 35, "getpid": 39,
    "socket": 41, "connect": 42, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "bind": 49,
    "listen": 50, "getsockname": 51, "socketpair": 53, "setsockopt": 54, "getsockopt": 55, "clone": 56, "execve": 59,
    "exit": 60, "wait4": 61, "kill": 62, "uname": 63, "fcntl": 72, "fsync": 74, "fdatasync": 75, "truncate": 76,
    "ftruncate": 77, "getdents": 78, "getcwd": 79, "rename": 82, "mkdir": 83, "rmdir": 84, "unlink": 87, "readlink": 89,
    "gettimeofday": 96, "getrlimit": 97, "ptrace": 101, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108,
    "getppid": 110, "getpgrp": 111, "setsid": 112, "rt_sigpending": 127, "rt_sigsuspend": 130, "sigaltstack": 131,
    "personality": 135, "statfs": 137, "fstatfs": 138, "modify_ldt": 154, "pivot_root": 155, "prctl": 157,
    "arch_prctl": 158, "chroot": 161, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175,
    "delete_module": 176, "gettid": 186, "tkill": 200, "time": 201, "futex": 202, "epoll_create": 213,
    "getdents64": 217, "set_tid_address": 218, "fadvise64": 221, "timer_create": 222, "timer_settime": 223,
    "timer_gettime": 224, "timer_getoverrun": 225, "timer_delete": 226, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "kexec_load": 246,
    "add_key": 248, "request_key": 249, "keyctl": 250, "openat": 257, "newfstatat": 262, "unlinkat": 263,
    "readlinkat": 267, "faccessat": 269, "ppoll": 271, "unshare": 272, "set_robust_list": 273, "epoll_pwait": 281,
    "fallocate": 285, "epoll_create1": 291, "pipe2": 293, "preadv": 295, "pwritev": 296, "perf_event_open": 298,
    "recvmmsg": 299, "fanotify_init": 300, "prlimit64": 302, "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308,
    "sendmmsg": 307, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
    "getrandom": 318, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "statx": 332, "rseq": 334, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
#: Doors of the kernel that no confined program of haneul's has a use for.
RARE = (
    "swapon", "reboot", "iopl", "ioperm", "init_module", "delete_module", "finit_module", "kexec_load", "kexec_file_load",
    "add_key", "request_key", "keyctl", "unshare", "setns", "perf_event_open", "fanotify_init", "name_to_handle_at",
    "open_by_handle_at", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "bpf", "userfaultfd",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount",
    "fspick", "mount_setattr",
)  # fmt: skip
_CLONE, _CLONE3 = _NUMBERS["clone"], 435
#: CLONE_NEW{USER,PID,NET,IPC,UTS,CGROUP,NS,TIME} (linux/sched.h).
NEW_NAMESPACES = 0x7E020080
NEW_USER, NEW_NET, NEW_CGROUP, NEW_TIME = 0x10000000, 0x40000000, 0x02000000, 0x80
_ARCH_X86_64 = 0xC000003E
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
#: Offsets in `struct seccomp_data`; of an argument its lower half.
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16


@dataclass(frozen=True)
class Argument:
    """A condition on an argument (from 0; its lower half): those bits of it that are in `mask` are `value`, or (`never`) are not."""

    index: int
    value: int
    mask: int = 0xFFFFFFFF
    never: bool = False


Conditions = Mapping[str, Iterable[Argument]]


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)


def _beginning() -> list[bytes]:
    """Other architectures' numbers mean other calls; what runs here has none of them."""
    return [
        _step(_LOAD, _ARCH),
        _step(_EQUAL, _ARCH_X86_64, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, 0x40000000, 0, 1),  # the x32 numbers
        _step(_RETURN, _KILL),
        # C libraries take clone() where there is no clone3(), whose flags a filter cannot see.
        _step(_EQUAL, _CLONE3, 0, 1),
        _step(_RETURN, _ERROR | _ENOSYS),
    ]


def _clone_within(namespaces: int) -> list[bytes]:
    """New processes, but none of these new namespaces: in one of its own a program may have every capability."""
    return [
        _step(_EQUAL, _CLONE, 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, namespaces, 0, 1),
        _step(_RETURN, _ERROR | _EPERM),
        _step(_RETURN, _ALLOW),
    ]


def _only_with(name: str, conditions: Iterable[Argument]) -> list[bytes]:
    """The call, if its arguments are so; else EPERM."""
    checks = []
    for one in conditions:
        checks += [
            _step(_LOAD, _FIRST_ARGUMENT + 8 * one.index),
            _step(_AND, one.mask),
            _step(_EQUAL, one.value, *((0, 1) if one.never else (1, 0))),
            _step(_RETURN, _ERROR | _EPERM),
        ]
    return [_step(_EQUAL, _NUMBERS[name], 0, len(checks) + 1), *checks, _step(_RETURN, _ALLOW)]


def refusing(names: Iterable[str], only: Conditions | None = None, namespaces: int = NEW_NAMESPACES) -> bytes:
    """Every call but those named, which fail with EPERM, as do clones with any of `namespaces`; those in `only` so."""
    program = _beginning()
    for name in names:
        program += [_step(_EQUAL, _NUMBERS[name], 0, 1), _step(_RETURN, _ERROR | _EPERM)]
    for name, conditions in (only or {}).items():
        program += _only_with(name, conditions)
    return b"".join([*program, *_clone_within(namespaces), _step(_RETURN, _ALLOW)])


def allowing(names: Iterable[str], only: Conditions) -> bytes:
    """No call but those named, without new namespaces, and those in `only` so. The rest: EPERM."""
    program = _beginning()
    for name in sorted(set(names) - {"clone"} - only.keys()):
        program += [_step(_EQUAL, _NUMBERS[name], 0, 1), _step(_RETURN, _ALLOW)]
    for name, conditions in only.items():
        program += _only_with(name, conditions)
    if "clone" in set(names):
        program += _clone_within(NEW_NAMESPACES)
    return b"".join([*program, _step(_RETURN, _ERROR | _EPERM)])
