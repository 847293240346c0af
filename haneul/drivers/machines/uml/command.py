"""The command line of a paravirtual machine. Pure: values in, arguments out.

Two sandboxes, one in the other (bwrap(1)). The outer one is the machine's: its volumes, its folder, what makes FUSE exports
of them, and the supervisor (`uml_life.py`), which is root in a user namespace and the machine's own uid outside. The inner
one is the guest kernel's: User-mode Linux is a process like any other, so whoever breaks out of the guest is that process.
It finds a root with the kernel and its C library, the exported volumes, no capability, no network, no other process, and
of the system calls those that the kernel needs.

Sources: Linux, Documentation/virt/uml/user_mode_linux_howto_v2.rst; `linux.uml --help`.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path

from haneul.drivers.machines.folder import OOM_SCORE, Places
from haneul.linux import seccomp
from haneul.linux.seccomp import Argument
from haneul.model.assignment import MachineSpec

BINARY = "/usr/bin/linux.uml"
#: Debian's own Python: the sandbox has /usr, and the machine's uid may not enter the folder of haneul's.
PYTHON = "/usr/bin/python3"
#: Modules of the server's User-mode Linux, which a guest may mount: `mount -t hostfs none /lib/modules/$(uname -r)`.
MODULES = Path("/usr/lib/uml/modules")
#: The guest's memory is a file; what the kernel needs beside it (MiB).
MEMORY_SLACK = 64
#: Every process of the guest is one of the server's, and a guest whose kernel was taken over may have as many: so many, and one
#: for each MiB of its memory. Each may open FILES, and have so much data and stack (MiB; a kernel has 5 and less than one).
PROCESSES, FILES, DATA, STACK = 256, 4096, 16, 1
#: What may be written to the places that the kernel's sandbox shares with the supervisor: MiB, and files.
_SHARED_MIB, _SHARED_FILES = 1, 64
_LIBRARIES = ("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6")
#: The device with which file systems in user space are served (Linux, Documentation/admin-guide/devices.txt): major, minor.
FUSE = (10, 229)

_AF_UNIX = 1
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN, _FALLOC_FL_KEEP_SIZE = 1, 0x20, 0x100, 1
#: What Debian's 6.1 kernel was seen to call, its I/O thread and the stubs of its processes included, and what hostfs reads with.
_CALLS = (
    "access", "arch_prctl", "bind", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "clone", "close", "connect",
    "dup", "dup2", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "execve", "exit", "exit_group",
    "faccessat", "fadvise64", "fallocate", "fcntl", "fdatasync", "fstat", "fstatfs", "fsync", "futex", "getcwd",
    "getdents", "getdents64", "getegid", "geteuid", "getgid", "getpgrp", "getpid", "getppid", "getrandom", "getrlimit",
    "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "ioctl", "kill", "listen", "lseek", "lstat", "madvise",
    "mkdir", "mmap", "modify_ldt", "mprotect", "mremap", "msync", "munmap", "nanosleep", "newfstatat", "open", "openat",
    "pause", "pipe", "pipe2", "poll", "ppoll", "prctl", "pread64", "preadv", "prlimit64", "ptrace", "pwrite64", "pwritev",
    "read", "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg", "recvmsg", "rename", "rmdir", "rseq", "rt_sigaction",
    "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "sched_yield", "select", "sendmmsg", "sendmsg",
    "sendto", "set_robust_list", "set_tid_address", "setsid", "setsockopt", "shutdown", "sigaltstack", "stat", "statfs",
    "statx", "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "tkill",
    "uname", "unlink", "unlinkat", "wait4", "write", "writev",
)  # fmt: skip


#: A guest's root is as good as the kernel's process (it loads modules). The file of a volume stays as long as it is, and
#: what memory a process takes is counted (RLIMIT_DATA).
_ONLY = {
    "socket": [Argument(0, _AF_UNIX)],
    "socketpair": [Argument(0, _AF_UNIX)],
    "fallocate": [Argument(1, _FALLOC_FL_KEEP_SIZE, mask=_FALLOC_FL_KEEP_SIZE)],
    "mmap": [
        Argument(3, _MAP_SHARED | _MAP_ANONYMOUS, mask=_MAP_SHARED | _MAP_ANONYMOUS, never=True),
        Argument(3, _MAP_GROWSDOWN, mask=_MAP_GROWSDOWN, never=True),
    ],
}
#: SIOCSIFHWADDR, TUNSETPERSIST: what the holder of a tap may do to its port beyond frames (Linux, drivers/net/tun.c).
_TAP_REQUESTS = (0x8924, 0x400454CB)
#: The supervisor and the exports make mounts, and the kernel's sandbox; for networks and other users they have no use.
_NO_NAMESPACES = seccomp.NEW_USER | seccomp.NEW_NET | seccomp.NEW_CGROUP | seccomp.NEW_TIME


def kernel_filter() -> bytes:
    """What the guest kernel's process may ask of the server's kernel. Of sockets: those that lead to names of its sandbox."""
    return seccomp.allowing(_CALLS, _ONLY)


def machine_filter() -> bytes:
    """What all processes of the machine are refused."""
    only = {name: _ONLY[name] for name in ("socket", "socketpair")}
    only["ioctl"] = [Argument(1, request, never=True) for request in _TAP_REQUESTS]
    return seccomp.refusing(seccomp.RARE, only, _NO_NAMESPACES)


@dataclass(frozen=True)
class Filters:
    """Inherited descriptors: of `kernel_filter`, and of `machine_filter`."""

    kernel: int
    machine: int


@dataclass(frozen=True)
class Disk:
    """A volume's `file`, and the image's file that it is an overlay on."""

    file: Path
    base: Path | None


def kernel_arguments(spec: MachineSpec, first: bool) -> list[str]:
    """The guest kernel's command line. `first`: the file system is known to be clean, so it may be writable at once."""
    arguments = [f"mem={spec.memory_mib}M"]
    arguments += [f"ubd{index}=/exports/{index}" for index in range(len(spec.disks))]
    # Without a name of its own (`src`): a second connection would find it taken, and a driver that failed once fails for ever.
    arguments += [
        f"vec{index}:transport=bess,dst=/uml/net{index},depth=64,gro=1,mac={nic.mac}"
        for index, nic in enumerate(spec.nics)
    ]
    arguments += ["con=null", "con0=null", "ssl=null", "ssl0=fd:@CONSOLE@,fd:@CONSOLE@", "console=ttyS0"]
    # Without DMI a guest's cloud-init cannot know where it is: it is told. haneul's Debian images answer with the uuid
    # where they are asked for DMI data.
    arguments += ["root=/dev/ubda1", "rw" if first else "ro", "loglevel=5", "net.ifnames=0"]
    arguments += ["ci.datasource=Ec2", f"haneul.uuid={spec.uuid}"]
    return [*arguments, "umid=m", "uml_dir=/uml", "hostfs=/modules"]


def _kernel(spec: MachineSpec, first: bool, filter_fd: int, initrd: str = "") -> list[str]:
    """The inner sandbox. Its descriptors come from the outer one.

    The guest's root sees all of it, because `hostfs` follows `..` out of /modules.
    """
    given = ["--ro-bind", initrd, "/initrd"] if initrd else []
    bound = [word for library in _LIBRARIES for word in ("--ro-bind", library, library)]
    for index in range(len(spec.disks)):
        bound += ["--bind", f"/exports/{index}", f"/exports/{index}"]
    return [
        "prlimit", f"--data={DATA << 20}", f"--stack={STACK << 20}", "--",
        # The network is the outer sandbox's, which has none.
        "bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
        "--hostname", "uml", "--cap-drop", "ALL", "--clearenv", "--setenv", "TMPDIR", "/tmp",
        "--ro-bind", BINARY, "/linux", *bound, "--bind", "/memory", "/tmp", "--bind", "/uml", "/uml",
        "--ro-bind-try", str(MODULES), "/modules", "--perms", "0755", "--dir", "/dev",
        "--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/random", "/dev/random",
        "--ro-bind", "/proc/cpuinfo", "/proc/cpuinfo", *given, "--remount-ro", "/", "--chdir", "/",
        "--seccomp", str(filter_fd), "--", "/linux", *kernel_arguments(spec, first), *(["initrd=/initrd"] if initrd else []),
    ]  # fmt: skip


def command(
    spec: MachineSpec, places: Places, disks: list[Disk], taps: list[int], filters: Filters, first: bool
) -> list[str]:
    """The machine `spec`, to be run as its uid. `taps` are inherited descriptors."""
    return _machine(spec, places, disks, taps, filters, _kernel(spec, first, filters.kernel))


def probe(spec: MachineSpec, places: Places, filters: Filters) -> list[str]:
    """A machine without disks that boots `initrd` of its folder, and ends with its starter."""
    words = _machine(spec, places, [], [], filters, _kernel(spec, True, filters.kernel, "/machine/initrd"))
    return [words[0], "--die-with-parent", *words[1:]]


def _machine(
    spec: MachineSpec, places: Places, disks: list[Disk], taps: list[int], filters: Filters, kernel: list[str]
) -> list[str]:
    """The outer sandbox. The supervisor is its first process: with it ends everything in there, and with nothing else.

    Without `--die-with-parent`, that is: who starts a machine may end, and the machine goes on.
    """
    life = {
        "disks": [f"/disks/{index}" for index in range(len(disks))],
        "taps": taps,
        "filter": filters.kernel,
        "command": kernel,
        "oom_score": OOM_SCORE,
        "bounds": {
            "/memory": [spec.memory_mib + MEMORY_SLACK, _SHARED_FILES],
            "/uml": [_SHARED_MIB, _SHARED_FILES],
            "/exports": [_SHARED_MIB, _SHARED_FILES],
        },
    }
    bound = []
    for index, disk in enumerate(disks):
        bound += ["--bind", str(disk.file), f"/disks/{index}"]
        if disk.base is not None:
            bound += ["--ro-bind", str(disk.base), str(disk.base)]
    return [
        "bwrap", "--as-pid-1", "--unshare-user", "--uid", "0", "--gid", "0", "--unshare-pid", "--unshare-net",
        "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", spec.instance_id,
        # In its own user namespace: to serve the exports and to make the kernel's sandbox.
        "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP",
        "--clearenv", "--setenv", "PATH", "/usr/bin",
        "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
        "--symlink", "usr/lib64", "/lib64", "--dir", "/tmp", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null",
        "--dev-bind", "/dev/random", "/dev/random", "--dev-bind", "/dev/urandom", "/dev/urandom",
        "--dev", "/terminals", "--symlink", "/terminals/ptmx", "/dev/ptmx", "--symlink", "/terminals/pts", "/dev/pts",
        "--dev-bind", str(places.fuse), "/dev/fuse", "--proc", "/proc",
        "--tmpfs", "/exports", "--tmpfs", "/uml", "--tmpfs", "/memory",
        "--bind", str(places.run), "/machine", *bound, "--chdir", "/", "--seccomp", str(filters.machine), "--",
        # A crash writes no core file: it would hold the guest's memory.
        "prlimit", "--core=0", f"--nproc={PROCESSES + spec.memory_mib}", f"--nofile={FILES}", "--",
        PYTHON, "-I", "-S", "-c", life_source(), json.dumps(life),
    ]  # fmt: skip


def life_source() -> str:
    return importlib.resources.files("haneul.drivers.machines.uml").joinpath("supervisor.py").read_text()
