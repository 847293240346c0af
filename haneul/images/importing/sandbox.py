"""Programs that read a hostile file: run with nothing but that file, and with nowhere to go.

bubblewrap makes the place: namespaces of its own for mounts, processes, network, IPC and names, and a root of /usr
(read-only), `/input` (read-only), `/output` (one file, so that there are no links, devices or further files to look out
for) and `/dev/null`. In it setpriv(1) takes a uid that nobody has, without capabilities and without a way to new
privileges, and prlimit(1) bounds what is left. A seccomp filter refuses the doors of the kernel that a converter of
images never opens. Everything dies with the process that started it.

Sources: bwrap(1), setpriv(1), prlimit(1), setrlimit(2); Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import os
import platform
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from haneul.errors import SettingsError
from haneul.linux import seccomp

#: Above the uids of machines (`identity.py`) and below everything that is given to people. One of 65536, by the pid,
#: so that two imports at once do not share limits.
FIRST_UID = 0x71000000
_KEPT = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """`file_bytes` bounds the output. `cpu_seconds` count for each process, `seconds` are the wall clock's."""

    file_bytes: int
    cpu_seconds: int
    seconds: float
    memory_bytes: int = 2 << 30
    processes: int = 48


class ConfinedError(Exception):
    """The confined program failed or was ended; the text says how and has its last words."""


def uid() -> int:
    return FIRST_UID + os.getpid() % 65536


def run(
    words: Sequence[str], *, read: Path, write: Path, limits: Limits, heard: Callable[[bytes], None] = lambda _: None
) -> bytes:
    """Run a program of /usr over the file `read` (its `/input`), with `write`, made empty, as its `/output`.

    Gives at most 64 KiB of what it printed; `heard` gets it piece by piece. Raises `ConfinedError` if it fails or
    takes too long, `SettingsError` if this machine cannot confine.
    """
    need_tools()
    _make_output(write)
    read.chmod(0o444)
    filter_file = os.memfd_create("seccomp")
    try:
        os.write(filter_file, seccomp_filter())
        os.lseek(filter_file, 0, os.SEEK_SET)
        command = confined(words, read=read, write=write, limits=limits, user=uid(), filter_fd=filter_file)
        return _supervise(command, filter_file, limits.seconds, heard)
    finally:
        os.close(filter_file)


def need_tools() -> None:
    """Raises `SettingsError` if nothing can be confined here."""
    if platform.machine() != "x86_64":
        raise SettingsError(
            f"images are imported on x86_64 only, because only there they are confined; this is {platform.machine()}"
        )
    if os.geteuid() != 0:
        raise SettingsError("confining needs root: use sudo")
    if shutil.which("bwrap") is None:
        raise SettingsError("packages are missing: bubblewrap; `make setup` installs them")


def _make_output(path: Path) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchown(descriptor, uid(), uid())
    os.close(descriptor)


def confined(words: Sequence[str], *, read: Path, write: Path, limits: Limits, user: int, filter_fd: int) -> list[str]:
    """The command line; pure."""
    return [
        "setpriv", "--pdeathsig", "KILL", "--",
        # bwrap ends before what its program left behind is dead. As the first process of a namespace it cannot: who has
        # waited for it knows that nobody writes to the output any more. It looks itself up in /proc, which has to be that namespace's.
        "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--",
        "bwrap", "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--hostname", "import", "--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "LC_ALL", "C.UTF-8",
        # What setpriv needs to give up being root; all of it is gone when the program starts.
        "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP",
        "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
        "--symlink", "usr/lib64", "/lib64", "--perms", "0755", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null",
        "--ro-bind", str(read), "/input", "--bind", str(write), "/output", "--remount-ro", "/", "--chdir", "/",
        "--seccomp", str(filter_fd), "--",
        "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
        "--inh-caps=-all", "--",
        "prlimit", f"--as={limits.memory_bytes}", f"--cpu={limits.cpu_seconds}", f"--fsize={limits.file_bytes}",
        f"--nproc={limits.processes}", "--core=0", "--nofile=64", "--memlock=0", "--msgqueue=0", "--",
        *words,
    ]  # fmt: skip


def _supervise(command: list[str], filter_fd: int, seconds: float, heard: Callable[[bytes], None]) -> bytes:
    deadline = time.monotonic() + seconds
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[filter_fd],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    with process:
        try:
            said = _listen(process, deadline, heard)
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise ConfinedError(f"it was ended after {seconds:.0f} s") from None
        finally:
            # With it ends everything in there (`--kill-child`, `--die-with-parent`).
            process.kill()
    if code:
        raise ConfinedError(f"{_how(code, said)}{_last_words(said)}")
    return said


def _listen(process: subprocess.Popen[bytes], deadline: float, heard: Callable[[bytes], None]) -> bytes:
    """The end of what the program says, until it closes its output."""
    assert process.stdout is not None
    said = b""
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = os.read(process.stdout.fileno(), 65536)
        if not piece:
            return said
        said = (said + piece)[-_KEPT:]
        heard(piece)


def _how(code: int, said: bytes) -> str:
    """bwrap ends with 128 + the signal that ended its program (bwrap(1)); who ignores SIGXFSZ says EFBIG."""
    if os.strerror(errno.EFBIG).encode() in said:
        return "its output grew beyond the limit"
    number = -code if code < 0 else code - 128
    if number == signal.SIGXFSZ:
        return "its output grew beyond the limit"
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return "it was ended for the time that it took"
    if 0 < number < 65:
        return f"it was ended by signal {number}"
    return f"it ended with {code}"


def _last_words(said: bytes) -> str:
    text = said.replace(b"\r", b"\n").decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "/100%)" not in line]
    shown = "".join(letter if letter.isprintable() else "?" for letter in " / ".join(lines[-3:]))
    return f": {shown[-600:]}" if shown else ""


# --- seccomp -----------------------------------------------------------------------------------------------

# Namespaces and mounts of its own would give a program all capabilities there, and with them the kernel's largest doors;
# sockets it needs none.
_REFUSED = (
    *seccomp.RARE,
    "socket", "socketpair", "ptrace", "personality", "pivot_root", "chroot", "mount", "umount2",
)  # fmt: skip


def seccomp_filter() -> bytes:
    """What a converter of images is refused."""
    return seccomp.refusing(_REFUSED)
