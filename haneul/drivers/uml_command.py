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

from haneul import seccomp
from haneul.drivers.places import OOM_SCORE, Places
from haneul.model.assignment import MachineSpec

BINARY = "/usr/bin/linux.uml"
#: Debian's own Python: the sandbox has /usr, and the machine's uid may not enter the folder of haneul's.
PYTHON = "/usr/bin/python3"
#: Modules of the server's User-mode Linux, which a guest may mount: `mount -t hostfs none /lib/modules/$(uname -r)`.
MODULES = Path("/usr/lib/uml/modules")
#: The guest's memory is a file; what the kernel needs beside it (MiB).
MEMORY_SLACK = 64
_LIBRARIES = ("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6")
#: The device with which file systems in user space are served (Linux, Documentation/admin-guide/devices.txt): major, minor.
FUSE = (10, 229)

_AF_UNIX = 1
#: What Debian's 6.1 kernel was seen to call, its I/O thread and the stubs of its processes included, and what hostfs reads with.
_CALLS = (
    "access", "arch_prctl", "bind", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "clone", "close", "connect",
    "dup", "dup2", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "execve", "exit", "exit_group",
    "faccessat", "fadvise64", "fallocate", "fcntl", "fdatasync", "fstat", "fstatfs", "fsync", "ftruncate", "futex", "getcwd",
    "getdents", "getdents64", "getegid", "geteuid", "getgid", "getpgrp", "getpid", "getppid", "getrandom", "getrlimit",
    "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "ioctl", "kill", "listen", "lseek", "lstat", "madvise",
    "mkdir", "mmap", "modify_ldt", "mprotect", "mremap", "msync", "munmap", "nanosleep", "newfstatat", "open", "openat",
    "pause", "pipe", "pipe2", "poll", "ppoll", "prctl", "pread64", "preadv", "prlimit64", "ptrace", "pwrite64", "pwritev",
    "read", "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg", "recvmsg", "rename", "rmdir", "rseq", "rt_sigaction",
    "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "sched_yield", "select", "sendmmsg", "sendmsg",
    "sendto", "set_robust_list", "set_tid_address", "setsid", "setsockopt", "shutdown", "sigaltstack", "stat", "statfs",
    "statx", "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "tkill",
    "truncate", "uname", "unlink", "unlinkat", "wait4", "write", "writev",
)  # fmt: skip


def kernel_filter() -> bytes:
    """What the guest kernel's process may ask of the server's kernel. Of sockets: those that lead to names of its sandbox."""
    return seccomp.allowing(_CALLS, {"socket": _AF_UNIX, "socketpair": _AF_UNIX})


@dataclass(frozen=True)
class Disk:
    """A volume's `file`, and the image's file that it is an overlay on."""

    file: Path
    base: Path | None


def kernel_arguments(spec: MachineSpec, first: bool) -> list[str]:
    """The guest kernel's command line. `first`: the file system is known to be clean, so it may be writable at once."""
    arguments = [f"mem={spec.memory_mib}M"]
    arguments += [f"ubd{index}=/exports/{index}" for index in range(len(spec.disks))]
    arguments += [
        f"vec{index}:transport=bess,dst=/uml/net{index},src=/uml/guest{index},depth=64,gro=1,mac={nic.mac}"
        for index, nic in enumerate(spec.nics)
    ]
    arguments += ["con=null", "con0=null", "ssl=null", "ssl0=fd:@CONSOLE@,fd:@CONSOLE@", "console=ttyS0"]
    # Without DMI a guest's cloud-init cannot know where it is: it is told. haneul's Debian images answer with the uuid
    # where they are asked for DMI data.
    arguments += ["root=/dev/ubda1", "rw" if first else "ro", "loglevel=5", "net.ifnames=0"]
    arguments += ["ci.datasource=Ec2", f"haneul.uuid={spec.uuid}"]
    return [*arguments, "umid=m", "uml_dir=/uml", "hostfs=/modules"]


def _kernel(spec: MachineSpec, first: bool, filter_fd: int, initrd: str = "") -> list[str]:
    """The inner sandbox. Its descriptors come from the outer one."""
    given = ["--ro-bind", initrd, "/initrd"] if initrd else []
    bound = [word for library in _LIBRARIES for word in ("--ro-bind", library, library)]
    size = (spec.memory_mib + MEMORY_SLACK) << 20
    return [
        "bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net",
        "--hostname", "uml", "--cap-drop", "ALL", "--clearenv", "--setenv", "TMPDIR", "/tmp",
        "--ro-bind", BINARY, "/linux", *bound, "--size", str(size), "--tmpfs", "/tmp", "--bind", "/uml", "/uml",
        "--bind", "/exports", "/exports", "--ro-bind-try", str(MODULES), "/modules", "--perms", "0755", "--dir", "/dev",
        "--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/random", "/dev/random",
        "--ro-bind", "/proc/cpuinfo", "/proc/cpuinfo", *given, "--remount-ro", "/", "--chdir", "/",
        "--seccomp", str(filter_fd), "--", "/linux", *kernel_arguments(spec, first), *(["initrd=/initrd"] if initrd else []),
    ]  # fmt: skip


def command(
    spec: MachineSpec, places: Places, disks: list[Disk], taps: list[int], filter_fd: int, first: bool
) -> list[str]:
    """The machine `spec`, to be run as its uid. `taps` are inherited descriptors, so is `filter_fd` (`kernel_filter`)."""
    return _machine(spec.instance_id, places, disks, taps, filter_fd, _kernel(spec, first, filter_fd))


def probe(spec: MachineSpec, places: Places, filter_fd: int) -> list[str]:
    """A machine without disks that boots `initrd` of its folder."""
    words = _machine(spec.instance_id, places, [], [], filter_fd, _kernel(spec, True, filter_fd, "/machine/initrd"))
    # A machine outlives haneul, a probe does not.
    return [words[0], "--die-with-parent", *words[1:]]


def _machine(
    name: str, places: Places, disks: list[Disk], taps: list[int], filter_fd: int, kernel: list[str]
) -> list[str]:
    """The outer sandbox."""
    life = {
        "disks": [f"/disks/{index}" for index in range(len(disks))],
        "taps": taps,
        "filter": filter_fd,
        "command": kernel,
        "oom_score": OOM_SCORE,
    }
    bound = []
    for index, disk in enumerate(disks):
        bound += ["--bind", str(disk.file), f"/disks/{index}"]
        if disk.base is not None:
            bound += ["--ro-bind", str(disk.base), str(disk.base)]
    return [
        "bwrap", "--unshare-user", "--uid", "0", "--gid", "0", "--unshare-pid", "--unshare-net",
        "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", name,
        # In its own user namespace: to serve the exports and to make the kernel's sandbox.
        "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP", "--cap-add", "CAP_NET_ADMIN",
        "--clearenv", "--setenv", "PATH", "/usr/bin",
        "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
        "--symlink", "usr/lib64", "/lib64", "--dir", "/tmp", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null",
        "--dev-bind", "/dev/random", "/dev/random", "--dev-bind", "/dev/urandom", "/dev/urandom",
        "--dev", "/terminals", "--symlink", "/terminals/ptmx", "/dev/ptmx", "--symlink", "/terminals/pts", "/dev/pts",
        "--dev-bind", str(places.fuse), "/dev/fuse", "--proc", "/proc", "--tmpfs", "/exports", "--tmpfs", "/uml",
        "--bind", str(places.run), "/machine", *bound, "--chdir", "/", "--",
        PYTHON, "-I", "-S", "-c", life_source(), json.dumps(life),
    ]  # fmt: skip


def life_source() -> str:
    return importlib.resources.files("haneul.drivers").joinpath("uml_life.py").read_text()
