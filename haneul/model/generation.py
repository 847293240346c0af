"""The generations of virtualization: what of a server is virtual, and how (docs/ARCHITECTURE.md, "Generations").

A generation is not one switch. Each part of a server (its processor, memory, interrupts, disk, network, the way it
boots) is emulated in software, paravirtual (the guest knows, and asks), done by hardware, or bare. The axes follow
B. Gregg, "AWS EC2 Virtualization 2017".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

#: What an instance type asks for, by its family.
Generation = Literal["emulated", "paravirtual", "hvm"]
#: How a machine is really run: `emulated-fast` is what becomes of `hvm` on a server without KVM, `metal` is no virtualization.
Way = Literal["metal", "emulated", "emulated-fast", "paravirtual", "hvm"]
Technique = Literal["software", "paravirtual", "hardware", "bare"]
#: EC2's `VirtualizationType`.
VirtualizationType = Literal["hvm", "paravirtual"]


@dataclass(frozen=True)
class Axes:
    """How each part of a server is virtualized. `boot` is how its kernel comes to run, in words."""

    cpu: Technique
    memory: Technique
    interrupts: Technique
    disk: Technique
    network: Technique
    boot: str


@dataclass(frozen=True)
class Described:
    """`title` is for people, `engine` names the program and the devices that do it."""

    way: Way
    title: str
    engine: str
    axes: Axes
    virtualization_type: VirtualizationType


WAYS: dict[Way, Described] = {
    one.way: one
    for one in (
        Described(
            "metal", "bare metal", "the server itself",
            Axes("bare", "bare", "bare", "bare", "bare", "firmware"), "hvm",
        ),
        Described(
            "emulated", "emulated (every device emulated)", "QEMU TCG; i440fx, IDE, e1000, VGA",
            Axes("software", "software", "software", "software", "software", "BIOS, the disk's boot record"), "hvm",
        ),
        Described(
            "emulated-fast", "emulated, fast devices", "QEMU TCG; q35, virtio",
            Axes("software", "software", "software", "paravirtual", "paravirtual", "BIOS, or a kernel given"), "hvm",
        ),
        Described(
            "paravirtual", "paravirtual", "User-mode Linux; ubd, vector network",
            Axes("paravirtual", "paravirtual", "paravirtual", "paravirtual", "paravirtual", "a kernel given"),
            "paravirtual",
        ),
        Described(
            "hvm", "HVM with paravirtual devices", "KVM; q35, virtio",
            Axes("hardware", "hardware", "hardware", "paravirtual", "paravirtual", "BIOS, or a kernel given"), "hvm",
        ),
    )
}  # fmt: skip

GENERATIONS: tuple[Generation, ...] = ("emulated", "paravirtual", "hvm")
#: What an image can boot under if nothing else is known of it: it has a boot record and drivers of virtual devices.
COMMON: tuple[Generation, ...] = ("hvm",)


def way(generation: Generation, accelerator: str) -> Way:
    """How an instance that asks for `generation` is run on a server whose QEMU uses `accelerator` (`kvm`, `tcg`)."""
    if generation == "hvm" and accelerator != "kvm":
        return "emulated-fast"
    return generation


def parse(names: Iterable[str]) -> tuple[Generation, ...]:
    """Those of `names` that are generations, in the order of their history. What is unknown is passed over."""
    wanted = set(names)
    return tuple(one for one in GENERATIONS if one in wanted)
