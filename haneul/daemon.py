"""haneul as a background process: one for each data directory, found again by its lock."""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from haneul.drivers import locks
from haneul.errors import SettingsError

START_SECONDS = 60.0
STOP_SECONDS = 20.0


def lock_path(data: Path) -> Path:
    return data / "haneul.lock"


def log_path(data: Path) -> Path:
    return data / "haneul.log"


def control_path(data: Path) -> Path:
    return data / "control.sock"


def is_running(data: Path) -> bool:
    return locks.held(lock_path(data))


def be_the_only_one(data: Path) -> int:
    """The lock of this data directory, held until this process ends. Raises `SettingsError` if another has it."""
    descriptor = locks.take(lock_path(data))
    if descriptor is None:
        raise SettingsError(f"another haneul runs on {data}; `haneul status` shows it, `haneul down` stops it")
    return descriptor


def log_to_file(data: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(log_path(data), maxBytes=4 << 20, backupCount=2)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("alembic", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)


def start_detached(data: Path) -> None:
    """Start `haneul up` in a session of its own and return when it serves. Raises `SettingsError` with its words."""
    ready_read, ready_write = os.pipe()
    with open(data / "start.log", "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "haneul", "up", "--ready-fd", str(ready_write)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(ready_write,),
            start_new_session=True,
        )
    os.close(ready_write)
    with os.fdopen(ready_read, "rb") as ready:
        # The pipe says "ready" or, when the process ends, nothing.
        answer = ready.read(1)
    if not answer:
        process.wait(5)
        text = (data / "start.log").read_text(errors="replace").strip()
        raise SettingsError(text.removeprefix("haneul: ") or "haneul ended while starting; `haneul logs` may say why")


def stop(data: Path) -> bool:
    """End the haneul of this data directory; says whether there was one. Machines go on."""
    path = lock_path(data)
    if not locks.held(path):
        return False
    for pid in locks.holders(path):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
    deadline = time.monotonic() + STOP_SECONDS
    while locks.held(path):
        if time.monotonic() > deadline:
            for pid in locks.holders(path):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return True
