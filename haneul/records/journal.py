"""Files of JSON lines that are only added to: who did what (`audit.jsonl`) and what became of it (`events.jsonl`).

A line is written by one write(2) to a file that is open for appending. They are
for people and their tools; nothing of haneul depends on them, and a full disk costs lines, never an operation.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: Records that wait for the disk; more are lost, and counted.
MOST_WAITING = 5000
CLOSE_SECONDS = 5.0
AUDIT, EVENTS = "audit.jsonl", "events.jsonl"


def moment(seconds: float) -> str:
    """RFC 3339 in UTC, with microseconds: `2026-01-02T03:04:05.678901Z`. It sorts as time does."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Journal:
    """`path`, and `keep` older ones as `path.1` …; each at most `most` bytes. Thread-safe. For the owner's eyes only.

    A thread of its own writes, so that a slow disk holds nobody up.
    """

    def __init__(self, path: Path, most: int, keep: int) -> None:
        self._path = path
        self._most = most
        self._keep = keep
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._descriptor = -1
        self._failing = False
        self.lost = 0
        self._thread = threading.Thread(target=self._write_all, name="haneul-journal", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Returns at once. The record is not to be changed any more."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """When everything is written, or the disk has not taken it in time."""
        try:
            self._queue.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return  # the disk hangs: so would we
        self._thread.join(CLOSE_SECONDS)

    def _write_all(self) -> None:
        while (record := self._queue.get()) is not None:
            try:
                self._append(_line(record))
                self._failing = False
            except Exception as error:  # whatever it is, the next record is another one
                self.lost += 1
                if not self._failing:
                    log.error("%s cannot be written: %r", self._path, error)
                self._failing = True
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _append(self, line: bytes) -> None:
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o600)
            _end_the_last_line(self._path, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if size and size + len(line) > self._most:
            self._rotate()
            self._append(line)
            return
        written = os.write(self._descriptor, line)
        if written != len(line):
            # Half a line (a full disk) must not spoil the next one.
            os.ftruncate(self._descriptor, size)
            raise OSError("the line could not be written whole")

    def _rotate(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        for number in range(self._keep, 0, -1):
            older = _numbered(self._path, number - 1)
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, _numbered(self._path, number))


def _end_the_last_line(path: Path, descriptor: int) -> None:
    """A power cut may have left half a line: it is not to spoil the next one."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                os.write(descriptor, b"\n")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace") + b"\n"


def _numbered(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every record of a journal, the oldest first. Lines that are none (a disk was full) are passed over."""
    numbers = [0]
    while _numbered(path, numbers[-1] + 1).exists():
        numbers.append(numbers[-1] + 1)
    for number in reversed(numbers):
        with contextlib.suppress(FileNotFoundError), _numbered(path, number).open("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict):
                        yield found


def follow(path: Path) -> Iterator[dict[str, Any] | None]:
    """Records that come from now on; None when there is none at the moment. A rotation is followed."""
    position, inode, rest = -1, -1, b""
    while True:
        found: bytes = b""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            status = os.fstat(file.fileno())
            if position < 0:
                position = status.st_size
            elif status.st_ino != inode:
                position, rest = 0, b""
            inode = status.st_ino
            file.seek(position)
            found = file.read()
            position += len(found)
        position = max(position, 0)
        *lines, rest = (rest + found).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line)
        yield None
