"""Where workloads run: the server itself, and guests by SSH. The same programs in both, found in different places."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from haneul.lab.workloads import WORKLOADS

Words = list[str]
Tools = Mapping[str, Sequence[str]]

#: Tool -> how its program is called in guests. The compiler proper needs no other program.
PROGRAMS = {
    "bench": "haneul-bench", "sysbench": "sysbench", "fio": "fio", "iperf3": "iperf3", "cc1": "haneul-cc1",
}  # fmt: skip
SOURCE = "/usr/local/share/haneul-bench/bench.i"
#: The image that has the programs, and a copy of them for the server (haneul/images).
IMAGE = "debian-12-lab"

#: Disk files of the workloads, in a guest. /tmp may be memory.
GUEST_FILE = "/var/tmp/haneul-compare"
SENT = "/tmp/haneul-bench"


class PlaceError(Exception):
    """A program ended badly, or not in time: what it said."""


class Place(Protocol):
    """Somewhere that workloads run. `tools` are there; a network workload reaches it at `address`."""

    tools: Tools
    address: str
    file: str

    def run(self, words: Sequence[str], seconds: float) -> str:
        """What a command prints. Raises `PlaceError`."""
        ...

    def serve(self, words: Sequence[str]) -> contextlib.AbstractContextManager[None]:
        """A command that goes on meanwhile."""
        ...

    def port(self, wanted: int) -> int:
        """Where the serving end of a network workload listens."""
        ...


def _run(words: Sequence[str], seconds: float, text: str | None = None) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
            input=text if text is not None else "", env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PlaceError(f"not done after {seconds:.0f} s") from None
    except OSError as error:
        raise PlaceError(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise PlaceError(f"ended with {done.returncode}: {said or 'it said nothing'}")
    return done.stdout


@contextlib.contextmanager
def _meanwhile(words: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Server:
    """The server itself. Programs run on one of its processors, as in a guest of one; a network has two ends, and two."""

    address = "127.0.0.1"

    def __init__(self, tools: Tools, scratch: Path) -> None:
        self.tools = tools
        self.file = str(scratch / "file")
        self._processor = str(min(os.sched_getaffinity(0)))

    def run(self, words: Sequence[str], seconds: float) -> str:
        return _run(["taskset", "--cpu-list", self._processor, *words], seconds)

    def run_anywhere(self, words: Sequence[str], seconds: float) -> str:
        """On whatever processor: as the other end of a guest's network."""
        return _run(words, seconds)

    def serve(self, words: Sequence[str]) -> contextlib.AbstractContextManager[None]:
        return _meanwhile(words)

    def port(self, wanted: int) -> int:
        with socket.socket() as found:
            found.bind((self.address, 0))
            return int(found.getsockname()[1])


class Guest:
    """A guest, through one SSH connection that stays open: a login may take seconds."""

    file = GUEST_FILE

    def __init__(self, ssh: Sequence[str], address: str, control: Path) -> None:
        """`ssh` is the command that logs in, its destination last; `control` is its shared connection, once there is one."""
        self.address = address
        self.tools: Tools = {}
        self._ssh = [*ssh[:-1], "-o", f"ControlPath={control}", "-o", "ControlMaster=no", ssh[-1]]

    def run(self, words: Sequence[str], seconds: float) -> str:
        return _run([*self._ssh, shlex.join(words)], seconds)

    def script(self, text: str, seconds: float = 60) -> str:
        """What a shell prints that is given `text`."""
        return _run([*self._ssh, "sh -s"], seconds, text)

    def serve(self, words: Sequence[str]) -> contextlib.AbstractContextManager[None]:
        # What goes on without its SSH session would keep its port.
        return _meanwhile([*self._ssh, shlex.join(["timeout", "60", *words])])

    def port(self, wanted: int) -> int:
        return wanted

    def find_tools(self, bench: Path | None) -> None:
        """Look for the programs. `bench` is the server's copy of ours, which is sent where there is none."""
        told = self.script(_FIND_TOOLS)
        self.tools = found_tools(told)
        if "bench" not in self.tools and bench is not None:
            with contextlib.suppress(PlaceError):
                self._send(bench)
                self.tools = {**self.tools, "bench": [SENT]}

    def _send(self, program: Path) -> None:
        """It needs no library, so that it runs wherever a kernel of its architecture does."""
        command = [*self._ssh, f"cat >{SENT} && chmod 755 {SENT} && {SENT} list >/dev/null"]
        with program.open("rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True, timeout=60, check=False)
        if done.returncode:
            raise PlaceError(done.stderr.decode(errors="replace")[-200:])


_FIND_TOOLS = f"""\
PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin
for name in {" ".join(PROGRAMS.values())}; do
    found=$(command -v "$name") && echo "$name $found"
done
[ -r {SOURCE} ] && echo "source {SOURCE}"
exit 0
"""


def found_tools(told: str) -> Tools:
    by_program = {program: tool for tool, program in PROGRAMS.items()} | {"source": "source"}
    pairs = [line.split(None, 1) for line in told.splitlines() if " " in line]
    return {by_program[name]: [path.strip()] for name, path in pairs if name in by_program}


def server_tools(folder: Path) -> Tools:
    """The image's programs with the image's libraries: what the guests run, bit for bit."""
    loader = folder / "lib" / "ld-linux-x86-64.so.2"
    found: dict[str, Sequence[str]] = {}
    for tool, program in PROGRAMS.items():
        names = (program, program.removeprefix("haneul-"))
        place = next((path for name in names if (path := folder / "bin" / name).is_file()), None)
        if place is None:
            continue
        # Ours has no libraries, and runs by itself.
        alone = tool == "bench" or not loader.exists()
        found[tool] = [str(place)] if alone else [str(loader), "--library-path", str(loader.parent), str(place)]
    name = Path(SOURCE).name
    sources = [
        path
        for path in (folder / name, folder / "share" / name, folder / "share/haneul-bench" / name)
        if path.is_file()
    ]
    if sources:
        found["source"] = [str(sources[0])]
    return found


def tools_folder(images: Path) -> Path:
    return images / IMAGE / "tools"


def missing_tools(name: str, tools: Tools) -> list[str]:
    """The programs that a workload needs and that are not there."""
    return [PROGRAMS.get(tool, tool) for tool in WORKLOADS[name].tools if tool not in tools]


@contextlib.contextmanager
def connection(ssh: Sequence[str]) -> Iterator[Path]:
    """An SSH connection that others share: the path of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="haneul-ssh-", dir="/tmp"))
    control = folder / "s"
    alive = ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8"]
    words = [*ssh[:-1], *alive, "-o", "ControlMaster=yes", "-o", f"ControlPath={control}", "-N", ssh[-1]]
    try:
        with _meanwhile(words):
            deadline = time.monotonic() + 60
            # Without it everything works too, more slowly.
            while not control.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            yield control
    finally:
        shutil.rmtree(folder, ignore_errors=True)
