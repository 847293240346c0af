"""The engine of emulated and hardware virtual machines: QEMU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from haneul.drivers import probe, qemu_command
from haneul.drivers.engine import Boot, Launch
from haneul.drivers.places import confined
from haneul.drivers.qemu_command import Accelerator, Kernel
from haneul.model.assignment import MachineSpec


class QemuEngine:
    """`images` is the image store, `accelerator` says what hardware virtual machines use now."""

    program = "QEMU"

    def __init__(self, images: Path, accelerator: Callable[[], Accelerator]) -> None:
        self._images = images
        self._accelerator = accelerator

    def accelerator(self, spec: MachineSpec) -> Accelerator:
        """An emulated machine is emulated on every server."""
        return "tcg" if spec.generation == "emulated" else self._accelerator()

    def launch(self, boot: Boot) -> Launch:
        accelerator = self.accelerator(boot.spec)
        kernel = self._kernel(boot.spec) if boot.first else None
        own = qemu_command.command(boot.spec, boot.places, boot.files, boot.taps, accelerator)
        given = (
            qemu_command.command(boot.spec, boot.places, boot.files, boot.taps, accelerator, kernel) if kernel else None
        )
        # Where no group opens KVM's device, QEMU says so.
        groups = (probe.kvm_groups() or []) if accelerator == "kvm" else []
        return Launch(confined(boot.uid, groups, qemu_command.lives(own, given, boot.places, boot.feed)))

    def _kernel(self, spec: MachineSpec) -> Kernel | None:
        """The image's kernel: for a root disk that is an overlay on that image and was never booted."""
        if spec.generation == "emulated" or not spec.disks or spec.disks[0].image != spec.image:
            return None
        directory = self._images / spec.image
        arguments = directory / "cmdline"
        if not arguments.exists():
            return None
        return Kernel(directory / "vmlinuz", directory / "initrd", arguments.read_text().strip())
