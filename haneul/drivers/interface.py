"""The doors to the world. Read this page first.

Rules that hold for every method (docs/ARCHITECTURE.md, "Drivers"):

- It is given a whole wanted value and may be given it again at any moment; a value that is already true is
  left alone.
- It remembers nothing that it could not find again: after a crash `observe` reads pid files, locks,
  sockets, namespaces. It may be killed at any line.
- It returns soon. A machine that is still on its way answers `starting` or `stopping`; the next pass asks again.
- It raises `DriverError` when it cannot; the text is for the person who runs the server.

Every interface has a `fake` behind the same contract tests (tests/contract).
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol, runtime_checkable

from haneul.errors import WorldError
from haneul.model.assignment import (
    DiskSpec,
    MachineReport,
    MachineSpec,
    MetadataSpec,
    NetworkSpec,
    NicSpec,
    ServerFacts,
)
from haneul.model.template import TemplateReport


class DriverError(WorldError):
    """The world refused. `fatal` means that trying again cannot help (no such image, a broken command line)."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


def lost(volume_id: str) -> str:
    """What is said of a volume that was here and is not: a new one in its place would hide the loss."""
    return f"the disk of {volume_id} is missing: it was here and is not any more (is what it is on mounted?)"


class MachineDriver(Protocol):
    """Virtual servers of this physical one. What a generation can do beyond this page: `model.generation.ABILITIES`."""

    async def observe(self) -> dict[str, MachineReport]:
        """Every machine there is, wanted or not, by instance id. May be asked while machines are started and removed."""

    async def ensure_running(self, spec: MachineSpec, taps: dict[str, int]) -> MachineReport:
        """Running with at least `spec.boot_count` boots carried out.

        `taps` maps each interface id to an open tap descriptor; the driver hands them to the machine if it
        starts one, and the caller closes its own copies. A machine that ended by itself in this boot is not
        started again: it is reported `off` with its cause.
        """

    async def ensure_stopped(self, spec: MachineSpec) -> MachineReport:
        """Off: an orderly shutdown until `spec.stop_seconds` have passed, then force. Its disks stay."""

    async def ensure_absent(self, instance_id: str) -> MachineReport:
        """No process and no file of it is left."""

    def needs_taps(self, spec: MachineSpec) -> bool:
        """Whether the next `ensure_running(spec)` would start a process (and so needs its taps)."""


@runtime_checkable
class Console(Protocol):
    """Optional ability: the machine has a console to read."""

    async def console_output(self, instance_id: str) -> bytes:
        """The last 64 KiB that the machine wrote on its serial port."""


@runtime_checkable
class Screenshotter(Protocol):
    """Optional ability: the machine has a display."""

    async def screenshot(self, instance_id: str) -> bytes:
        """The display as a PNG."""


@runtime_checkable
class LaunchCounter(Protocol):
    """Optional ability: it knows how its machines came up."""

    launches: Counter[str]
    """First boots since the start: `warm` went on from a template, `cold` booted."""


class DiskDriver(Protocol):
    """Volumes of this server, as files."""

    async def observe(self) -> frozenset[str]:
        """The ids of all volumes that have a file."""

    async def ensure(self, disk: DiskSpec) -> None:
        """The volume's file exists, whole, with its size. Content that is there stays.

        Raises a fatal `DriverError` for one that was made before (`disk.made`) and is missing.
        """

    async def ensure_absent(self, volume_id: str) -> None:
        """No file of the volume is left."""


class NetworkDriver(Protocol):
    """VPCs on this server."""

    async def observe(self) -> frozenset[str]:
        """The ids of all VPCs of which anything exists."""

    async def apply(self, network: NetworkSpec, revision: int) -> None:
        """The VPC is as told: subnets, addresses, rules, DHCP and DNS.

        `revision` orders the values: one that is older than what was applied last changes nothing.
        """

    async def open_tap(self, nic: NicSpec) -> int:
        """A fresh tap descriptor on the interface's subnet, guarded. The VPC was applied. The caller closes it."""

    async def ensure_absent(self, vpc_id: str) -> None:
        """Nothing of the VPC is left."""

    async def reachable(self, nic: NicSpec) -> bool:
        """Whether the guest answers at its address (ARP); not where the VPC was not applied."""


class MetadataDriver(Protocol):
    """The process that answers 169.254.169.254 in every VPC."""

    async def apply(self, instances: tuple[MetadataSpec, ...]) -> None:
        """Serve these instances in their VPCs, and nobody else. The VPCs exist."""

    async def ensure_absent(self) -> None:
        """No process is left."""


class ServerDriver(Protocol):
    """The physical machine itself."""

    async def facts(self) -> ServerFacts:
        """What it has and can do. Slow probes run in the background; their verdict appears when it is there."""


class TemplateDriver(Protocol):
    """Templates of this server (docs/ARCHITECTURE.md, "Warm launch"). A server without warm launch has no such driver."""

    async def run(self) -> None:
        """For ever: take up what is on disk, make what is wanted, remove what nothing uses any more."""

    def observe(self) -> list[TemplateReport]:
        """Every template, those that are on their way, and those that could not be made."""

    async def order(self, image: str, instance_type: str) -> TemplateReport:
        """Have it ready soon (`run` does the work), also if it has failed before. One that is ready stays as it is.

        Raises `DriverError` if there can be none.
        """

    async def sweep(self) -> None:
        """Remove now what nothing uses any more: its image is gone or another one, or QEMU is."""
