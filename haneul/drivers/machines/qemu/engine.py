"""The engine of emulated and hardware virtual machines: QEMU."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from haneul.drivers.machines.engine import Boot, Launch, Resume
from haneul.drivers.machines.folder import cold, confined, take_back_cold
from haneul.drivers.machines.qemu import command as qemu_command
from haneul.drivers.machines.qemu.command import Accelerator, Kernel, Warm
from haneul.drivers.machines.qemu.templates import Shape, Template, Templates
from haneul.linux import kvm
from haneul.model.assignment import MachineSpec

log = logging.getLogger(__name__)

#: An empty volume's file has at most 448 KiB (of 16 TiB); what is larger than this (bytes) has been written to.
MOST_COPIED = 1 << 20


class QemuEngine:
    """`images` is the image store, `accelerator` says what hardware virtual machines use now.

    A first boot goes on from a template, if there is one among `templates`.
    """

    program = "QEMU"

    def __init__(
        self,
        images: Path,
        accelerator: Callable[[], Accelerator],
        templates: Templates | None = None,
        tb_mib: int = qemu_command.TB_SIZE,
    ) -> None:
        self._images = images
        self._templates = templates
        self._accelerator = accelerator
        self._tb_mib = tb_mib

    def accelerator(self, spec: MachineSpec) -> Accelerator:
        """An emulated machine is emulated on every server."""
        return "tcg" if spec.generation == "emulated" else self._accelerator()

    def launch(self, boot: Boot) -> Launch:
        accelerator = self.accelerator(boot.spec)
        own = self._command(boot, accelerator)
        # Where no group opens KVM's device, QEMU says so.
        groups = (kvm.kvm_groups() or []) if accelerator == "kvm" else []

        def launched(
            given: list[str] | None, descriptors: tuple[int, ...] = (), resume: Resume | None = None
        ) -> Launch:
            words = confined(boot.uid, groups, qemu_command.lives(own, given, boot.places, boot.feed, descriptors))
            return Launch(words, descriptors, resume)

        kernel = self._kernel(boot.spec) if boot.first else None
        template = self._template(boot, accelerator) if kernel is not None and boot.warm else None
        if template is not None:
            try:
                return self._from_template(boot, template, accelerator, launched)
            except OSError as error:
                log.warning("%s boots cold, its disks could not be exchanged: %s", boot.spec.instance_id, error)
                for disk in boot.files.values():
                    take_back_cold(disk)
        if kernel is None:
            return launched(None)
        return launched(self._command(boot, accelerator, kernel))

    def _command(
        self, boot: Boot, accelerator: Accelerator, kernel: Kernel | None = None, warm: Warm | None = None
    ) -> list[str]:
        return qemu_command.command(
            boot.spec, boot.places, boot.files, boot.taps, accelerator, kernel, warm, self._tb_mib
        )

    def _template(self, boot: Boot, accelerator: Accelerator) -> Template | None:
        """For a machine that can be made from a template's: a guest that can be told who it is, and not too much to plug in."""
        spec = boot.spec
        if self._templates is None or spec.identity is None or not spec.nics:
            return None
        template = self._templates.find(shape(spec, accelerator))
        if template is None:
            return None
        too_much = qemu_command.too_many(spec) or _too_large(boot)
        if too_much:
            log.info("%s boots cold, though there is a template: %s", spec.instance_id, too_much)
            return None
        return template

    def cold_booted(self, spec: MachineSpec) -> None:
        """A machine has begun its first boot without a template: the next one of its kind shall find one."""
        if self._templates is not None and spec.generation == "hvm" and self._kernel(spec) is not None:
            self._templates.want(shape(spec, self.accelerator(spec)))

    def _from_template(
        self, boot: Boot, template: Template, accelerator: Accelerator, launched: Callable[..., Launch]
    ) -> Launch:
        root, *others = (boot.files[disk.volume_id] for disk in boot.spec.disks)
        _exchange(root, template.disk, boot.uid)
        for disk in others:
            # A guest that did not become itself may have written there: then the machine boots cold with the volume as it was.
            _exchange(disk, disk, boot.uid)
        with contextlib.ExitStack() as undo:
            state = os.open(template.state, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, state)
            memory = os.dup(template.memory)
            undo.callback(os.close, memory)
            (port, guest), (monitor, qemu) = _pair(undo), _pair(undo)
            warm = Warm(f"/proc/self/fd/{memory}", guest.fileno(), shared=False, monitor=qemu.fileno())
            words = self._command(boot, accelerator, warm=warm)
            plugged = qemu_command.plugged(boot.spec)
            assert self._templates is not None
            went_on = partial(self._templates.went_on, template, time.monotonic())
            resume = Resume(state, port, monitor, root, boot.spec.disks[0].size_gib << 30, plugged, went_on)
            undo.pop_all()
            return launched(words, (memory, state, guest.detach(), qemu.detach()), resume)

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


def _pair(undo: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    here, there = socket.socketpair()
    return undo.enter_context(here), undo.enter_context(there)


def _too_large(boot: Boot) -> str:
    """A volume that is not as it was made: a template must not take the place of what was written; empty if there is none."""
    for disk in boot.spec.disks:
        if boot.files[disk.volume_id].stat().st_size > MOST_COPIED:
            return f"{disk.volume_id} is not empty"
    return ""


def _exchange(disk: Path, source: Path, uid: int) -> None:
    """A copy of `source` in the place of the machine's own disk, which is kept (`places.cold`) until the guest has answered."""
    made = disk.with_name(f".{disk.stem}.new")
    shutil.copyfile(source, made)
    made.chmod(0o600)
    os.chown(made, uid, uid)
    os.link(disk, cold(disk))
    made.rename(disk)
