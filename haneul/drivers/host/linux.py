"""The physical server: what it has, and what guests run on it (probed once a boot, in the background)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from haneul.drivers.host import probe
from haneul.drivers.machines.qemu.command import Accelerator
from haneul.linux import files
from haneul.linux.kvm import kvm_device
from haneul.model.assignment import ServerFacts

log = logging.getLogger(__name__)

NO_KERNEL = "not probed yet: no image is built by a recipe (`haneul image build`)"


def memory_mib() -> int:
    """What the server has in all."""
    with open("/proc/meminfo") as lines:
        return int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) // 1024


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_kernel(images: Path) -> Path | None:
    """Any kernel of a built image: what the probe boots. An imported image has none."""
    return next(iter(sorted(images.glob("*/vmlinuz"))), None)


Probe = Callable[[], Awaitable[str]]


class LinuxServer:
    """`verdicts` is the file in which what the probes found is kept, for this boot of the server.

    `paravirtual` boots a paravirtual guest and says why none ran (empty text: one did). Others have `deadline` seconds for it.
    """

    def __init__(
        self, verdicts: Path, images: Path, wanted: str, changed: Callable[[], None], paravirtual: Probe,
        deadline: float = probe.DEADLINE,
    ) -> None:  # fmt: skip
        self._file = verdicts
        self._images = images
        self._wanted = wanted
        self._changed = changed
        self._paravirtual = paravirtual
        self._deadline = deadline
        self._task: asyncio.Task[None] | None = None
        self._found: dict[str, str] = {}

    def accelerator(self) -> Accelerator:
        """What machines use now. While the probe runs that is TCG: no launch ever waits for it."""
        if self._wanted == "tcg":
            return "tcg"
        if self._wanted == "kvm":
            return "kvm"
        return "kvm" if self._found.get("kvm") == "" else "tcg"

    async def settled(self) -> Accelerator:
        """What machines use, once the probe has said so. It is run if it was not in this boot."""
        if self._wanted == "auto":
            if self._task is not None:
                await asyncio.wait([self._task])
            if "kvm" not in self._found and (found := await self.kvm()) != NO_KERNEL:
                self._found["kvm"] = found
        return self.accelerator()

    async def kvm(self) -> str:
        """Why KVM is not usable; empty if it is. Probes if that was not done in this boot."""
        return kvm_device() or await self._verdict("kvm", self._probe_kvm)

    async def paravirtual(self) -> str:
        """Why there are no paravirtual machines; empty if there are. Probes if that was not done in this boot."""
        return await self._verdict("paravirtual", self._paravirtual)

    async def emulated(self) -> str:
        """Why no emulated guest runs; empty if one did, just now."""
        kernel = find_kernel(self._images)
        return NO_KERNEL if kernel is None else await probe.boots(kernel, "tcg", self._deadline)

    async def _probe_kvm(self) -> str:
        kernel = find_kernel(self._images)
        return NO_KERNEL if kernel is None else await probe.boots(kernel, "kvm", self._deadline)

    async def _verdict(self, name: str, ask: Probe) -> str:
        known = self._remembered().get(name)
        if known is not None:
            return known
        found = await ask()
        # A refusal is not kept: it is had again at once, and what it was for can go away.
        if found != NO_KERNEL and not found.startswith(probe.REFUSED):
            value = {"boot_id": _boot_id(), **self._remembered(), name: found}
            files.replace(self._file, json.dumps(value).encode())
        return found

    def _remembered(self) -> dict[str, str]:
        try:
            value = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        if not isinstance(value, dict) or value.pop("boot_id", "") != _boot_id():
            return {}
        return {str(name): str(found) for name, found in value.items()}

    async def _probe(self) -> None:
        for name, ask in (("paravirtual", self.paravirtual), ("kvm", self.kvm)):
            try:
                found = await ask()
            except OSError as error:
                found = f"the probe failed: {error}"
            if found != NO_KERNEL:
                self._found[name] = found
            log.info("%s: %s", name, found or "usable")
            self._changed()

    def _is_worth_probing(self) -> bool:
        if self._task is not None and not self._task.done():
            return False
        return "paravirtual" not in self._found or ("kvm" not in self._found and find_kernel(self._images) is not None)

    async def facts(self) -> ServerFacts:
        if self._task is None:
            self._found = self._remembered()
            if missing := kvm_device():
                self._found["kvm"] = missing
        if self._is_worth_probing():
            self._task = asyncio.create_task(self._probe())
        kvm = self._found.get("kvm", "not probed yet")
        if self._wanted != "auto":
            kvm = "accelerator = tcg in the settings" if self._wanted == "tcg" else ""
        # Until the probe has said otherwise, a paravirtual machine is tried: it says itself what it lacks.
        generations = {"emulated": "", "paravirtual": self._found.get("paravirtual", ""), "hvm": ""}
        return ServerFacts(
            os.cpu_count() or 1, memory_mib(), socket.gethostname(), "real", {"tcg": "", "kvm": kvm}, generations
        )
