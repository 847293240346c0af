"""Starts and feeds the metadata process (`agent/metadata/server.py`), which outlives haneul."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from haneul.drivers.interface import DriverError
from haneul.linux import files, locks
from haneul.model.assignment import MetadataSpec

MODULE = "haneul.metadata_service.server"


class MetadataProcess:
    """`namespace_of` says where a VPC's network namespace is; `logs` are patterns of files to be kept short."""

    def __init__(self, directory: Path, namespace_of: Callable[[str], Path], logs: Callable[[], list[str]]) -> None:
        self.directory = directory
        self._namespace_of = namespace_of
        self._logs = logs
        self._written = ""
        self._told: tuple[tuple[MetadataSpec, ...], list[int]] | None = None
        self._applying = asyncio.Lock()

    @property
    def _lock(self) -> Path:
        return self.directory / "lock"

    async def apply(self, instances: tuple[MetadataSpec, ...]) -> None:
        # In the order in which they were asked for: two at once would have one temporary file, and the older could be the last.
        async with self._applying:
            await asyncio.to_thread(self._apply, instances)

    def _apply(self, instances: tuple[MetadataSpec, ...]) -> None:
        vpcs = sorted({one.vpc_id for one in instances})
        inodes = [_inode(self._namespace_of(vpc)) for vpc in vpcs]
        # Mostly these very values were told before: to write all of them as text only to compare it takes long for many.
        if (
            self._told is not None
            and self._told[1] == inodes
            and _are_same(self._told[0], instances)
            and locks.held(self._lock)
        ):
            return
        self._told = None
        snapshot = {
            "instances": [dataclasses.asdict(one) for one in instances],
            "namespaces": {vpc: str(self._namespace_of(vpc)) for vpc in vpcs},
            "inodes": inodes,
            "logs": self._logs(),
        }
        text = json.dumps(snapshot)
        alive = locks.held(self._lock)
        if alive and text == self._written:
            self._told = (instances, inodes)
            return
        if not instances and not alive:
            return
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if text != self._written:
            files.replace(self.directory / "snapshot.json", text.encode())
            self._written = text
        if not alive:
            self._start()
        self._told = (instances, inodes)

    def _start(self) -> None:
        secret = self.directory / "secret"
        if not secret.exists():
            files.replace(secret, secrets.token_bytes(32))
        descriptor = locks.take(self._lock)
        if descriptor is None:
            return
        try:
            with open(self.directory / "log", "wb") as log:
                subprocess.Popen(
                    [sys.executable, "-m", MODULE, str(self.directory)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(descriptor,),
                    start_new_session=True,
                    cwd="/",
                    env=_environment(),
                )
        finally:
            os.close(descriptor)

    async def ensure_absent(self) -> None:
        if not await locks.kill(self._lock):
            raise DriverError("the metadata process cannot be killed")
        for name in ("snapshot.json", "secret", "log", "lock"):
            (self.directory / name).unlink(missing_ok=True)
        if self.directory.is_dir():
            self.directory.rmdir()
        self._written = ""
        self._told = None


def _are_same(one: tuple[MetadataSpec, ...], other: tuple[MetadataSpec, ...]) -> bool:
    """Whether both are the very same values; equal ones may be others, and cost a look."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _environment() -> dict[str, str]:
    """Where this haneul's own package is, so that the process runs the same code."""
    package = Path(__file__).resolve().parents[2]
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
