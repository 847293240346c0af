"""`python -m tests.nursery`: starts haneuls by fork(2), so that a test can kill hundreds of them.

A line on standard input is a JSON object {"arguments": [...], "environment": {...}}; the answer is the child's pid. The child is
the command itself (`haneul up`, `haneul agent`), with its imports done. Children die with the nursery.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path


class Nursery:
    """The test's end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        self._lock = threading.Lock()

    def start(self, arguments: list[str], environment: Mapping[str, str], said: Path) -> int:
        """The pid of a new `haneul ARGUMENTS`, whose output goes to the file `said`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"arguments": arguments, "environment": dict(environment), "said": str(said)}
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def gone(pid: int) -> bool:
    """Whether a process has ended (the nursery reaps it)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _child(request: dict[str, object]) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    descriptor = os.open(str(request["said"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    os.closerange(3, 64)
    os.environ.update(request["environment"])  # type: ignore[arg-type]
    from haneul.app.lifecycle import Lifecycle
    from haneul.cli.run import run

    sys.argv = ["haneul", *request["arguments"]]  # type: ignore[misc]
    code = 1
    try:
        code = run(Lifecycle())
    finally:
        sys.stdout.flush()
        os._exit(code)


def _main() -> None:
    import haneul.__main__
    import haneul.agent.agent
    import haneul.agent.link
    import haneul.app.control_plane
    import haneul.drivers.disks.qcow2
    import haneul.drivers.fake
    import haneul.drivers.host.linux
    import haneul.drivers.machines.qemu.engine
    import haneul.drivers.machines.uml.engine
    import haneul.drivers.metadata
    import haneul.drivers.networks.linux.driver
    import haneul.identity
    import haneul.store.migrations  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(json.loads(line))
        print(pid, flush=True)


if __name__ == "__main__":
    _main()
