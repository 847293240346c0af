"""What backups ask of this server (`haneul.backup.Server`), and restores that were interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from haneul.app import daemon
from haneul.app.compose import real_parts
from haneul.config import Settings
from haneul.errors import SettingsError

if TYPE_CHECKING:
    from haneul.backup import Machine
    from haneul.drivers.fake import FakeMachines
    from haneul.drivers.machines.driver import Machines


class ThisServer:
    """What backups ask of this server's drivers (`haneul.backup.Server`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def _drivers(self) -> Machines | FakeMachines:
        from haneul import identity

        if self._settings.drivers == "fake":
            from haneul.drivers.fake import FakeMachines, World

            return FakeMachines(World(self._settings.data / "fake-world.db"))
        # What is asked here depends on no slot, and there may be no identity yet.
        who = identity.load(self._settings.data) or identity.Identity(self._settings.data / "identity", 0)
        return real_parts(self._settings, who, lambda: None).machines

    def machines(self) -> dict[str, Machine]:
        from haneul.backup import Machine

        found = asyncio.run(self._drivers().observe())
        return {name: Machine(one.power in ("running", "stopping"), one.boot_count) for name, one in found.items()}

    def remember(self, instance_id: str, boots: int, accelerator: str) -> None:
        self._drivers().remember(instance_id, boots, accelerator)

    def leave(self) -> None:
        from haneul import identity

        who = identity.load(self._settings.data)
        if self._settings.drivers != "fake" and who is not None:
            parts = real_parts(self._settings, who, lambda: None)

            async def leave() -> None:
                await parts.metadata.ensure_absent()
                await parts.networks.remove_all()

            asyncio.run(leave())
            shutil.rmtree(parts.runtime, ignore_errors=True)

    def backing(self, volume: Path) -> str:
        from haneul.drivers.disks.qcow2 import backing_file

        return backing_file(volume)

    def rebase(self, volume: Path, base: Path) -> None:
        from haneul.drivers.disks.qcow2 import set_backing_file

        set_backing_file(volume, str(base))


@contextlib.contextmanager
def alone(data: Path, why: str) -> Iterator[None]:
    """With haneul's lock, for a command that must be alone. Raises `SettingsError`."""
    try:
        lock = daemon.be_the_only_one(data)
    except SettingsError:
        raise SettingsError(f"haneul runs on {data}, and {why}: `haneul down` first (instances go on)") from None
    try:
        yield
    finally:
        os.close(lock)


def is_between(data: Path) -> bool:
    """Whether a restore was interrupted (haneul/backup/swap.py)."""
    return any((data / name).exists() for name in (".restore", ".restoring", ".restored"))


def finish_restore(settings: Settings) -> None:
    """A restore that was interrupted; the caller holds the lock."""
    if is_between(settings.data):
        from haneul.backup import swap

        swap.finish(settings.data, settings.database_url, ThisServer(settings).remember)
