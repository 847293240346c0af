"""A VPC's dnsmasq: started in its namespace, told of changes, found again by its lock."""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from haneul.drivers.interface import DriverError
from haneul.drivers.networks.linux import dnsmasq
from haneul.drivers.networks.linux.asking import listening
from haneul.linux import files, locks, netns
from haneul.model.assignment import NetworkSpec


@dataclass(frozen=True)
class DnsmasqProcess:
    """`place` has its files, `namespace` is the VPC's. With `uplink` it forwards what it does not know."""

    network: NetworkSpec
    place: Path
    namespace: Path
    uplink: bool

    @property
    def is_alive(self) -> bool:
        return locks.held(self.place / "dnsmasq.lock")

    async def ensure(self, told: bool) -> None:
        """It runs and knows the network. `told`: this haneul has told it before what its files then said."""
        place = self.place
        place.mkdir(parents=True, exist_ok=True)
        for directory in (place.parent.parent, place.parent, place):
            directory.chmod(0o711)
        command = dnsmasq.command(self.network, place, _resolv_conf() if self.uplink else None)
        written = _write(place / "dhcp", dnsmasq.dhcp_hosts(self.network))
        written |= _write(place / "hosts", dnsmasq.hosts(self.network))
        lock = place / "dnsmasq.lock"
        if _read(place / "command") != "\0".join(command):
            await locks.kill(lock)
            _write(place / "command", "\0".join(command))
        if locks.held(lock):
            # After a restart of haneul nobody knows whether dnsmasq was told: it is told again.
            if written or not told:
                for pid in await asyncio.to_thread(locks.holders, lock):
                    os.kill(pid, signal.SIGHUP)
            return
        (place / "leases").touch()
        (place / "leases").chmod(0o600)  # dnsmasq opens it while it is still root
        await self._start(command, lock)

    async def _start(self, command: list[str], lock: Path) -> None:
        """dnsmasq closes all descriptors that it inherits but standard error: that is its lock, and its log."""

        def start() -> None:
            descriptor = locks.take(lock)
            if descriptor is None:
                return
            try:
                os.ftruncate(descriptor, 0)
                fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=descriptor,
                    start_new_session=True,
                    cwd="/",
                )
            finally:
                os.close(descriptor)

        await netns.inside(self.namespace, start)
        deadline = time.monotonic() + 5
        while not await netns.inside(self.namespace, listening):
            if not locks.held(lock) or time.monotonic() > deadline:
                raise DriverError(f"dnsmasq does not run: {lock.read_text()[-500:].strip()}")
            await asyncio.sleep(0.005)


def _resolv_conf() -> Path | None:
    """A file that names a resolver which is not on the host's loopback, where no VPC can reach it."""
    for path in (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf")):
        servers = [line.split()[1] for line in _read(path).splitlines() if line.startswith("nameserver ")]
        if servers and not all(one.startswith(("127.", "::1")) for one in servers):
            return path
    return None


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _write(path: Path, text: str) -> bool:
    """Says whether it changed."""
    if path.exists() and path.read_text() == text:
        return False
    # dnsmasq reads it again as nobody, on SIGHUP: it has its group from the moment it is there.
    files.replace(path, text.encode(), 0o640, group=grp.getgrnam(dnsmasq.GROUP).gr_gid)
    return True
