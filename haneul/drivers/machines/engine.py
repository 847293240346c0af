"""What runs machines: a program for each kind of virtualization, behind one interface (`machines.py` is its only caller)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from haneul.drivers.machines.folder import Places
from haneul.model.assignment import MachineSpec


@dataclass(frozen=True)
class Boot:
    """A boot of a machine. `files` maps volume ids to disks, `taps` interface ids to open descriptors.

    `feed` is a descriptor that writes to the machine's standard input. `first`: its root disk was never booted.
    `warm`: it may go on from a template.
    """

    spec: MachineSpec
    places: Places
    files: dict[str, Path]
    taps: dict[str, int]
    uid: int
    first: bool
    warm: bool = True
    feed: int = -1


@dataclass(frozen=True)
class Resume:
    """How a machine that was started with a template goes on from it.

    `state` is the descriptor of the device state as the machine has it. `port` and `monitor` are the server's ends of its resume port
    and of a monitor (QMP) for this alone. `disk` is its root disk, `size` that in bytes. `plugged` are the devices that the template has not (QMP's device_add).
    """

    state: int
    port: socket.socket
    monitor: socket.socket
    disk: Path
    size: int
    plugged: tuple[dict[str, Any], ...] = ()
    #: To be told that the machine has gone on as itself (empty), or why its guest could not.
    went_on: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Launch:
    """What to start, as root, and the descriptors that it needs beside its taps; they are closed here afterwards."""

    command: list[str]
    descriptors: tuple[int, ...] = ()
    resume: Resume | None = None


class Engine(Protocol):
    """A program that runs machines. `program` is its name for people.

    What it starts speaks QMP on `places.qmp`, and writes QMP's events (BOOT, SHUTDOWN, EXIT) on its standard output.
    """

    program: str

    def accelerator(self, spec: MachineSpec) -> str:
        """What does the processor's work: `tcg`, `kvm`, `uml`."""

    def launch(self, boot: Boot) -> Launch:
        """Raises `DriverError` if it cannot."""

    def cold_booted(self, spec: MachineSpec) -> None:
        """A machine has begun its first boot, and not from a template."""
