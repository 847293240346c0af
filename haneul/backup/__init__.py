"""Backups: the store, the identity and, if wanted, the volumes of one haneul in one file.

`archive` is the format and what is believed of it, `make` writes a backup, `restore` checks one and prepares a data
directory, `swap` puts that in force, whatever interrupts it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol


class Machine(NamedTuple):
    """A machine of this server: whether it runs, and the last boot that it has carried out."""

    running: bool
    boots: int


class Server(Protocol):
    """What backups ask of this server's drivers."""

    def machines(self) -> dict[str, Machine]:
        """Every machine there is, by instance id."""

    def remember(self, instance_id: str, boots: int, accelerator: str) -> None:
        """From now on the machine is there, off, after so many boots: its disk is not booted as if it were new."""

    def leave(self) -> None:
        """Networks and the metadata process of the present identity go; no machine runs."""

    def backing(self, volume: Path) -> str:
        """The name of the volume's backing file that its header gives; empty if there is none."""

    def rebase(self, volume: Path, base: Path) -> None:
        """The same disk, found on this server. Raises ValueError if the header cannot be rewritten."""
