"""The engine of emulated and hardware virtual machines: QEMU."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from haneul.drivers import probe, qemu_command
from haneul.drivers.engine import Boot, Launch, Resume
from haneul.drivers.places import confined
from haneul.drivers.qemu_command import Accelerator, Kernel, Warm
from haneul.drivers.templates import Shape, Template, Templates
from haneul.model.assignment import MachineSpec


class QemuEngine:
    """`images` is the image store, `accelerator` says what hardware virtual machines use now.

    A first boot goes on from a template, if there is one among `templates`.
    """

    program = "QEMU"

    def __init__(
        self, images: Path, accelerator: Callable[[], Accelerator], templates: Templates | None = None
    ) -> None:
        self._images = images
        self._templates = templates
        self._accelerator = accelerator

    def accelerator(self, spec: MachineSpec) -> Accelerator:
        """An emulated machine is emulated on every server."""
        return "tcg" if spec.generation == "emulated" else self._accelerator()

    def launch(self, boot: Boot) -> Launch:
        accelerator = self.accelerator(boot.spec)
        own = qemu_command.command(boot.spec, boot.places, boot.files, boot.taps, accelerator)
        # Where no group opens KVM's device, QEMU says so.
        groups = (probe.kvm_groups() or []) if accelerator == "kvm" else []

        def launched(
            given: list[str] | None, descriptors: tuple[int, ...] = (), resume: Resume | None = None
        ) -> Launch:
            words = confined(boot.uid, groups, qemu_command.lives(own, given, boot.places, boot.feed))
            return Launch(words, descriptors, resume)

        kernel = self._kernel(boot.spec) if boot.first else None
        template = self._template(boot, accelerator) if kernel is not None and boot.warm else None
        if template is not None:
            return self._from_template(boot, template, accelerator, launched)
        if kernel is None:
            return launched(None)
        return launched(qemu_command.command(boot.spec, boot.places, boot.files, boot.taps, accelerator, kernel))

    def _template(self, boot: Boot, accelerator: Accelerator) -> Template | None:
        """For a machine of a template's shape: the root disk and one card, and a guest that can be told who it is."""
        spec = boot.spec
        if self._templates is None or spec.identity is None or len(spec.disks) != 1 or len(spec.nics) != 1:
            return None
        return self._templates.find(shape(spec, accelerator))

    def cold_booted(self, spec: MachineSpec) -> None:
        """A machine has begun its first boot without a template: the next one of its kind shall find one."""
        if self._templates is not None and spec.generation == "hvm" and self._kernel(spec) is not None:
            self._templates.want(shape(spec, self.accelerator(spec)))

    def _from_template(
        self, boot: Boot, template: Template, accelerator: Accelerator, launched: Callable[..., Launch]
    ) -> Launch:
        (disk,) = boot.files.values()
        cold = disk.with_name(f".{disk.stem}.cold")
        here, there = socket.socketpair()
        state = os.open(template.state, os.O_RDONLY | os.O_CLOEXEC)
        memory = os.dup(template.memory)
        warm = Warm(f"/proc/self/fd/{memory}", there.fileno(), shared=False)
        words = qemu_command.command(boot.spec, boot.places, boot.files, boot.taps, accelerator, warm=warm)
        _exchange(disk, cold, template.disk, boot.uid)
        resume = Resume(state, here, boot.spec.disks[0].size_gib << 30, disk, cold)
        return launched(words, (memory, state, there.detach()), resume)

    def _kernel(self, spec: MachineSpec) -> Kernel | None:
        """The image's kernel: for a root disk that is an overlay on that image and was never booted."""
        if spec.generation == "emulated" or not spec.disks or spec.disks[0].image != spec.image:
            return None
        directory = self._images / spec.image
        arguments = directory / "cmdline"
        if not arguments.exists():
            return None
        return Kernel(directory / "vmlinuz", directory / "initrd", arguments.read_text().strip())


def shape(spec: MachineSpec, accelerator: Accelerator) -> Shape:
    return Shape(spec.image, spec.instance_type, spec.vcpus, spec.memory_mib, accelerator)


def _exchange(disk: Path, cold: Path, template: Path, uid: int) -> None:
    """The template's disk in the place of the machine's own, which is kept at `cold` until the guest has answered."""
    made = disk.with_name(f".{disk.stem}.new")
    shutil.copyfile(template, made)
    made.chmod(0o600)
    os.chown(made, uid, uid)
    os.link(disk, cold)
    made.rename(disk)
