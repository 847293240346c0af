"""The physical server: what it has, and whether KVM works on it (probed once a boot, in the background)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from haneul.drivers import probe
from haneul.drivers.qemu_command import Accelerator
from haneul.model.assignment import ServerFacts

log = logging.getLogger(__name__)


def _memory_mib() -> int:
    with open("/proc/meminfo") as lines:
        return int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) // 1024


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_kernel(images: Path) -> Path | None:
    """Any kernel of a built image: what the probe boots. An imported image has none."""
    return next(iter(sorted(images.glob("*/vmlinuz"))), None)


class LinuxServer:
    """`verdict` is the file in which the probe's result is kept, for this boot of the server."""

    def __init__(self, verdict: Path, images: Path, wanted: str, changed: Callable[[], None]) -> None:
        self._file = verdict
        self._images = images
        self._wanted = wanted
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._kvm: str | None = None

    def accelerator(self) -> Accelerator:
        """What machines use now. While the probe runs that is TCG: no launch ever waits for it."""
        if self._wanted == "tcg":
            return "tcg"
        if self._wanted == "kvm":
            return "kvm"
        return "kvm" if self._kvm == "" else "tcg"

    async def kvm(self) -> str:
        """Why KVM is not usable; empty if it is. Probes if that was not done in this boot."""
        missing = probe.kvm_device()
        if missing:
            return missing
        known = self._remembered()
        if known is not None:
            return known
        kernel = find_kernel(self._images)
        if kernel is None:
            return "not probed yet: no image is built by a recipe (`haneul image build`)"
        found = await probe.boots(kernel, "kvm")
        self._file.write_text(json.dumps({"boot_id": _boot_id(), "kvm": found}))
        return found

    def _remembered(self) -> str | None:
        try:
            value = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return str(value["kvm"]) if value.get("boot_id") == _boot_id() else None

    async def _probe(self) -> None:
        try:
            self._kvm = await self.kvm()
        except OSError as error:
            self._kvm = f"the probe failed: {error}"
        log.info("KVM: %s", self._kvm or "usable")
        self._changed()

    async def facts(self) -> ServerFacts:
        if self._wanted == "auto":
            if self._kvm is None and self._task is None:
                self._kvm = probe.kvm_device() or self._remembered()
            if self._kvm is None and self._task is None and find_kernel(self._images) is not None:
                self._task = asyncio.create_task(self._probe())
        kvm = "accelerator = tcg in the settings" if self._wanted == "tcg" else self._kvm
        if self._wanted == "kvm":
            kvm = ""
        accelerators = {"tcg": "", "kvm": "not probed yet" if kvm is None else kvm}
        return ServerFacts(os.cpu_count() or 1, _memory_mib(), socket.gethostname(), "real", accelerators)
