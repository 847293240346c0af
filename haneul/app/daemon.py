"""haneul as a background process: one for each data directory, found again by its lock."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import logging.handlers
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

from haneul.errors import SettingsError
from haneul.linux import locks
from haneul.records.journal import moment

STOP_SECONDS = 20.0


def lock_path(data: Path) -> Path:
    return data / "haneul.lock"


def log_path(data: Path) -> Path:
    return data / "haneul.log"


def start_log_path(data: Path) -> Path:
    return data / "start.log"


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


def share_with_invoker(data: Path, environment: Mapping[str, str]) -> None:
    """Give whoever called sudo what `haneul env`, `ssh` and `status` need; that user could read it anyway."""
    uid = environment.get("SUDO_UID", "")
    if os.geteuid() != 0 or not uid.isdigit():
        return
    directory = data / "identity"
    given = (directory, *directory.iterdir(), control_path(data), lock_path(data), log_path(data), start_log_path(data))
    for path in given:
        with contextlib.suppress(FileNotFoundError):
            kind = path.lstat().st_mode
            # The directory is the user's from now on: what is there is taken for what it is, no link followed.
            if not stat.S_ISLNK(kind) and path.lstat().st_nlink <= (2 if stat.S_ISDIR(kind) else 1):
                os.chown(path, int(uid), -1, follow_symlinks=False)


def _privately(path: str, flags: int) -> int:
    """An `opener`: machines' uids may enter the data directory, and are not to read what haneul says."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


class _PrivateLog(logging.handlers.RotatingFileHandler):
    def doRollover(self) -> None:
        """Whoever called sudo goes on reading the log (`share_with_invoker`)."""
        owner = os.stat(self.baseFilename).st_uid
        super().doRollover()
        os.chown(self.baseFilename, owner, -1, follow_symlinks=False)

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, self.mode, encoding="utf-8", opener=_privately)  # type: ignore[return-value]


def log_to_file(data: Path, form: Literal["text", "json"], request: Callable[[], str]) -> None:
    """`request` gives the id of the request that is being answered, which every line of its has."""
    handler = _PrivateLog(log_path(data), maxBytes=4 << 20, backupCount=2)
    handler.setFormatter(Lines(request) if form == "json" else Plain(request))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # A full disk costs lines of the log; to say so on standard error would cost more of it.
    logging.raiseExceptions = False
    for name in ("alembic", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Plain(logging.Formatter):
    def __init__(self, request: Callable[[], str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request)s]: %(message)s")
        self._request = request

    def format(self, record: logging.LogRecord) -> str:
        record.request = self._request()
        return super().format(record)


class Lines(logging.Formatter):
    """One JSON object for each record."""

    def __init__(self, request: Callable[[], str]) -> None:
        super().__init__()
        self._request = request

    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": moment(record.created),
            "level": record.levelname,
            "logger": record.name,
            "request": self._request(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)


def start_detached(data: Path, accept_store: bool = False) -> None:
    """Start `haneul up` in a session of its own and return when it serves. Raises `SettingsError` with its words."""
    ready_read, ready_write = os.pipe()
    with open(start_log_path(data), "wb", opener=_privately) as said:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "haneul", "up", "--ready-fd", str(ready_write)),
                *(["--accept-store"] if accept_store else []),
            ],
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
        text = start_log_path(data).read_text(errors="replace").strip()
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
        if not locks.holders(path) and locks.held(path):
            raise PermissionError(errno.EPERM, "haneul belongs to another user", str(path))
        if time.monotonic() > deadline:
            for pid in locks.holders(path):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return True
