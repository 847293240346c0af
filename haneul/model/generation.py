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
#: What a machine's report names as its accelerator, if it is a real one.
ENGINES = ("tcg", "kvm", "uml")


@dataclass(frozen=True)
class Abilities:
    """What machines of a generation can do beyond what all of them can.

    `vcpus`, `volumes`: at most so many, None where the generation sets no bound. docs/generations.md is made of this
    (`make docs`), and the contract suite of machines asks every driver to keep it.
    """

    screenshot: bool = False
    own_boot_loader: bool = False
    given_kernel: bool = False
    dmi: bool = False
    pauses_on_full_disk: bool = False
    vcpus: int | None = None
    volumes: int | None = None


ABILITIES: dict[Generation, Abilities] = {
    # Two IDE channels of two disks.
    "emulated": Abilities(screenshot=True, own_boot_loader=True, dmi=True, pauses_on_full_disk=True, volumes=4),
    # Debian's kernel has NR_CPUS=1, and ubd0 to ubd7.
    "paravirtual": Abilities(given_kernel=True, vcpus=1, volumes=8),
    "hvm": Abilities(screenshot=True, own_boot_loader=True, given_kernel=True, dmi=True, pauses_on_full_disk=True),
}


def way(generation: Generation, accelerator: str) -> Way:
    """How an instance that asks for `generation` is run on a server whose QEMU uses `accelerator` (`kvm`, `tcg`)."""
    if generation == "hvm" and accelerator != "kvm":
        return "emulated-fast"
    return generation


def run_way(generation: Generation, accelerator: str) -> Way | None:
    """`way`, of what a machine reported; None while that says nothing of this generation.

    The type of an instance may change while it is off: what was last reported is then another generation's. Fake
    machines report `fake`.
    """
    if accelerator not in ENGINES or (accelerator == "uml") != (generation == "paravirtual"):
        return None
    return way(generation, accelerator)


def as_run(generation: Generation, accelerator: str) -> str:
    """How an instance is really run, for people."""
    found = run_way(generation, accelerator)
    return WAYS[found].title if found else accelerator


def noted(generation: Generation, accelerator: str, why_not_kvm: str) -> str | None:
    """What an instance's tag says of how it is run: empty if no more than its type does, None while nothing is known."""
    found = run_way(generation, accelerator)
    if found is None or found == "hvm":
        return None if found is None else ""
    if found == "emulated-fast":
        return f"emulated (TCG) with virtio devices: {why_not_kvm}"
    program = f" ({WAYS[found].engine.partition(';')[0]})" if found == "paravirtual" else ""
    return WAYS[found].title + program


def parse(names: Iterable[str]) -> tuple[Generation, ...]:
    """Those of `names` that are generations, in the order of their history. What is unknown is passed over."""
    wanted = set(names)
    return tuple(one for one in GENERATIONS if one in wanted)
