"""The instance types: a curated table of today's families. Sizes: AWS, "Amazon EC2 instance types".

A family chooses the generation of virtualization (docs/ARCHITECTURE.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from haneul.model.generation import ABILITIES, WAYS, Generation, VirtualizationType

#: size -> vCPUs of a type of the given size in the families that scale by powers of two.
_LARGE = {
    "large": 2,
    "xlarge": 4,
    "2xlarge": 8,
    "4xlarge": 16,
    "8xlarge": 32,
    "12xlarge": 48,
    "16xlarge": 64,
    "24xlarge": 96,
}
#: c5 has other sizes than the families that scale by powers of two.
_C5 = {
    "large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "9xlarge": 36, "12xlarge": 48, "18xlarge": 72, "24xlarge": 96,
}  # fmt: skip
_BURST_VCPUS = {"nano": 2, "micro": 2, "small": 2, "medium": 2, "large": 2, "xlarge": 4, "2xlarge": 8}
_BURST_MIB = {
    "nano": 512,
    "micro": 1024,
    "small": 2048,
    "medium": 4096,
    "large": 8192,
    "xlarge": 16384,
    "2xlarge": 32768,
}
_E1_VCPUS = {"nano": 1, "micro": 1, "small": 1, "medium": 2, "large": 2}
_M1_MIB = {"small": 1740, "medium": 3788}
_T2_VCPUS = _BURST_VCPUS | {"nano": 1, "micro": 1, "small": 1}

#: size -> (network interfaces, IPv4 addresses of each) (AWS, "IP addresses per network interface").
_INTERFACES = {
    "nano": (2, 2),
    "micro": (2, 2),
    "small": (3, 4),
    "medium": (3, 6),
    "large": (3, 10),
    "xlarge": (4, 15),
    "2xlarge": (4, 15),
    "4xlarge": (8, 30),
    "8xlarge": (8, 30),
    "9xlarge": (8, 30),
    "12xlarge": (8, 30),
    "18xlarge": (15, 50),
    "16xlarge": (15, 50),
    "24xlarge": (15, 50),
}
_T2 = {
    "nano": (2, 2),
    "micro": (2, 2),
    "small": (3, 4),
    "medium": (3, 6),
    "large": (3, 12),
    "xlarge": (3, 15),
    "2xlarge": (3, 15),
}
#: What AWS documents of the first types: (network interfaces, IPv4 addresses of each, network performance).
_FIRST = {
    **{
        f"t2.{size}": (*limits, "Moderate" if size in ("xlarge", "2xlarge") else "Low to Moderate")
        for size, limits in _T2.items()
    },
    "t1.micro": (2, 2, "Very Low"),
    "m1.small": (2, 4, "Low"),
    "m1.medium": (2, 6, "Moderate"),
}
_NETWORK = {"e1": "Low", "t2": "Low to Moderate", "t3": "Up to 5 Gigabit", "t3a": "Up to 5 Gigabit"}
_GIGABIT_5 = {
    "8xlarge": "10 Gigabit", "9xlarge": "12 Gigabit", "12xlarge": "12 Gigabit", "16xlarge": "20 Gigabit",
    "18xlarge": "25 Gigabit", "24xlarge": "25 Gigabit",
}  # fmt: skip
_GIGABIT_6 = {
    "8xlarge": "12.5 Gigabit",
    "12xlarge": "18.75 Gigabit",
    "16xlarge": "25 Gigabit",
    "24xlarge": "37.5 Gigabit",
}
#: Sizes of c5 on a later processor than the rest of the family (GHz).
_CLOCKS = {"c5.12xlarge": 3.6, "c5.24xlarge": 3.6}


@dataclass(frozen=True)
class Family:
    """`mib_per_vcpu` is None where `memory` lists the sizes one by one, `clock_ghz` 0 where AWS names none."""

    name: str
    vcpus: dict[str, int]
    mib_per_vcpu: int | None
    memory: dict[str, int]
    clock_ghz: float
    hypervisor: Literal["xen", "nitro"]
    burstable: bool = False
    threads_per_core: int = 2
    generation: Generation = "hvm"


_FAMILIES = (
    # haneul's own: what the first virtual machines were. The other old families are as AWS had them, where one vCPU does.
    Family("e1", _E1_VCPUS, None, _BURST_MIB, 0, "xen", threads_per_core=1, generation="emulated"),
    Family("t1", {"micro": 1}, None, {"micro": 627}, 0, "xen", threads_per_core=1, generation="paravirtual"),
    Family("m1", {"small": 1, "medium": 1}, None, _M1_MIB, 0, "xen", threads_per_core=1, generation="paravirtual"),
    Family("t2", _T2_VCPUS, None, _BURST_MIB, 2.3, "xen", burstable=True, threads_per_core=1),
    Family("t3", _BURST_VCPUS, None, _BURST_MIB, 2.5, "nitro", burstable=True),
    Family("t3a", _BURST_VCPUS, None, _BURST_MIB, 2.2, "nitro", burstable=True),
    Family("m5", _LARGE, 4096, {}, 3.1, "nitro"),
    Family("m6i", _LARGE, 4096, {}, 3.5, "nitro"),
    Family("m7i", _LARGE, 4096, {}, 3.2, "nitro"),
    Family("c5", _C5, 2048, {}, 3.4, "nitro"),
    Family("c6i", _LARGE, 2048, {}, 3.5, "nitro"),
    Family("c7i", _LARGE, 2048, {}, 3.2, "nitro"),
    Family("r5", _LARGE, 8192, {}, 3.1, "nitro"),
    Family("r6i", _LARGE, 8192, {}, 3.5, "nitro"),
    Family("r7i", _LARGE, 8192, {}, 3.2, "nitro"),
)

#: t2 and t3 in the free tier, as AWS marks them.
_FREE_TIER = frozenset({"t2.micro", "t3.micro"})
#: Of EC2's previous generation, which is said of the hardware and not of its virtualization (t2 is current).
_PREVIOUS = frozenset({"e1", "t1", "m1"})


@dataclass(frozen=True)
class InstanceType:
    """Memory in MiB, clock in GHz (0: not told). `current`: of EC2's current generation."""

    name: str
    vcpus: int
    memory_mib: int
    clock_ghz: float
    hypervisor: Literal["xen", "nitro"]
    burstable: bool
    free_tier: bool
    threads_per_core: int
    interfaces: int
    addresses_per_interface: int
    network: str
    current: bool
    architecture: str = "x86_64"
    generation: Generation = "hvm"

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]

    @property
    def virtualization_type(self) -> VirtualizationType:
        return WAYS[self.generation].virtualization_type

    @property
    def most_volumes(self) -> int | None:
        """None where the generation sets no bound."""
        return ABILITIES[self.generation].volumes

    @property
    def strategies(self) -> tuple[str, ...]:
        """Of placement groups: burstable and previous types are in no cluster (EC2 User Guide, "Placement strategies")."""
        clusters = not self.burstable and self.family not in ("e1", "t1", "m1")
        return ("cluster", "partition", "spread") if clusters else ("partition", "spread")

    @property
    def cores(self) -> int:
        return max(1, self.vcpus // self.threads_per_core)


def _network(family: str, size: str) -> str:
    """AWS, "Amazon EC2 instance types": what it calls the network performance of a size."""
    if family in _NETWORK:
        return _NETWORK[family]
    table = _GIGABIT_5 if family in ("m5", "c5", "r5") else _GIGABIT_6
    return table.get(size, f"Up to {'10' if table is _GIGABIT_5 else '12.5'} Gigabit")


def _make(family: Family, size: str, vcpus: int) -> InstanceType:
    memory = family.memory[size] if family.mib_per_vcpu is None else family.mib_per_vcpu * vcpus
    name = f"{family.name}.{size}"
    network = _network(family.name, size)
    interfaces, addresses, network = _FIRST.get(name, (*_INTERFACES[size], network))
    threads = min(family.threads_per_core, vcpus)
    return InstanceType(
        name,
        vcpus,
        memory,
        _CLOCKS.get(name, family.clock_ghz),
        family.hypervisor,
        family.burstable,
        name in _FREE_TIER,
        threads,
        interfaces,
        addresses,
        network,
        family.name not in _PREVIOUS,
        generation=family.generation,
    )


@cache
def instance_types() -> dict[str, InstanceType]:
    """Name -> type, in the order of the table."""
    made = (_make(family, size, n) for family in _FAMILIES for size, n in family.vcpus.items())
    return {made_type.name: made_type for made_type in made}


def families(generation: Generation) -> list[str]:
    """The families of a generation, in the order of the table."""
    return [family.name for family in _FAMILIES if family.generation == generation]
