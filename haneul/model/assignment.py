"""What the control plane tells a server's agent, and what the agent tells back.

Whole values: an `Assignment` is everything that the server should be, a `Report` everything that it is.
Both carry a revision and survive JSON (`values.to_json`), so that an agent can be a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from haneul.model.instance import ObservedPower
from haneul.model.network import Rule

WantedPower = Literal["running", "stopped", "absent"]


@dataclass(frozen=True)
class DiskSpec:
    """A volume: an overlay on `image` (a name in the image store), `size_gib` GiB large.

    `made`: the server has had it already, so that a missing file is a loss and no reason to make an empty one.
    """

    volume_id: str
    image: str
    size_gib: int
    device: str
    boot: bool = True
    made: bool = False


@dataclass(frozen=True)
class NicSpec:
    interface_id: str
    vpc_id: str
    subnet_id: str
    mac: str
    address: str


@dataclass(frozen=True)
class GuestIdentity:
    """Who a machine is, as DHCP and the metadata service tell its guest: one that goes on from a template is told this first.

    `keys` are public SSH keys. With `user_data` nobody logs in before cloud-init has read the instance's user data.
    """

    hostname: str
    domain: str
    prefix: int
    gateway: str
    resolver: str
    keys: tuple[str, ...]
    user_data: bool = False


@dataclass(frozen=True)
class MachineSpec:
    """One virtual server as it should be. Memory in MiB, `stop_seconds` is the deadline of an orderly stop.

    `boot_count` is the number of boots that were ordered so far: a machine that has carried out fewer
    has to be booted (again). `force` makes a stop immediate.
    """

    instance_id: str
    power: WantedPower
    boot_count: int
    force: bool
    stop_seconds: int
    vcpus: int
    memory_mib: int
    image: str
    instance_type: str
    generation: str
    uuid: str
    disks: tuple[DiskSpec, ...]
    nics: tuple[NicSpec, ...]
    identity: GuestIdentity | None = None


@dataclass(frozen=True)
class SubnetSpec:
    subnet_id: str
    cidr: str
    gateway: str


@dataclass(frozen=True)
class InterfaceSpec:
    """An interface of a VPC that is in use on this server. `public` is empty where there is none."""

    interface_id: str
    subnet_id: str
    mac: str
    address: str
    public: str
    groups: tuple[str, ...]
    names: tuple[str, ...]
    public_names: tuple[str, ...]
    source_dest_check: bool = True


@dataclass(frozen=True)
class GroupSpec:
    """A security group with the addresses of all its members (in whatever server they run)."""

    group_id: str
    rules: tuple[Rule, ...]
    members: tuple[str, ...]


@dataclass(frozen=True)
class NetworkSpec:
    """One VPC as it should be on this server."""

    vpc_id: str
    cidr: str
    domain: str
    resolver: str
    subnets: tuple[SubnetSpec, ...]
    interfaces: tuple[InterfaceSpec, ...]
    groups: tuple[GroupSpec, ...]


@dataclass(frozen=True)
class MetadataSpec:
    """What 169.254.169.254 answers to one instance, by (VPC, source address).

    `tree` maps a path below `/latest/` (`meta-data/instance-id`, `dynamic/…`) to its text; directories
    follow from the paths. `public_keys` and `tags` are apart because their names may hold any character.
    `user_data` is base64, None where there is none.
    """

    instance_id: str
    vpc_id: str
    addresses: tuple[str, ...]
    http_tokens: Literal["optional", "required"]
    http_endpoint: Literal["enabled", "disabled"]
    hop_limit: int
    tree: dict[str, str]
    public_keys: tuple[tuple[str, str], ...]
    tags: dict[str, str]
    user_data: str | None


#: What a server holds for the cloud.
HoldingKind = Literal["machine", "volume", "network"]


@dataclass(frozen=True, order=True)
class Holding:
    """Something of the cloud's on a server, by its EC2 id.

    As a tombstone it is an order to remove it, and the only one: what an assignment does not name stays as it is.
    """

    kind: HoldingKind
    id: str


@dataclass(frozen=True)
class Assignment:
    """`volumes` are all that this server keeps, attached to a machine or not. `tombstones` are to be removed."""

    revision: int
    server_id: str
    machines: tuple[MachineSpec, ...] = ()
    networks: tuple[NetworkSpec, ...] = ()
    metadata: tuple[MetadataSpec, ...] = ()
    volumes: tuple[DiskSpec, ...] = ()
    tombstones: tuple[Holding, ...] = ()


@dataclass(frozen=True)
class MachineReport:
    """An observed machine. `phase` is for people: what the machine is doing right now.

    `reachable` answers EC2's instance status check: None while it is not known yet.
    """

    instance_id: str
    power: ObservedPower
    boot_count: int = 0
    cause: str = ""
    detail: str = ""
    phase: str = ""
    accelerator: str = ""
    reachable: bool | None = None


@dataclass(frozen=True)
class ServerFacts:
    """A physical machine: what it has and what it can do. Memory in MiB.

    `accelerators` maps `tcg` and `kvm` to why they are usable or not (empty text: usable). `generations` maps each
    generation that is asked of QEMU's own emulation or of another program to why it cannot be run (empty text: it can).
    """

    vcpus: int
    memory_mib: int
    hostname: str
    drivers: str
    accelerators: dict[str, str] = field(default_factory=dict)
    generations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """A step of a boot: from when to when (seconds since the epoch)."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Trace:
    """How a boot went, told once, when the guest answers or the boot has failed (`failed` says why)."""

    instance_id: str
    boot_count: int
    spans: tuple[Span, ...]
    failed: str = ""


@dataclass(frozen=True)
class Report:
    """`revision` is that of the assignment which the agent was carrying out when it looked.

    `removed` are tombstones of which nothing is left. `volumes` are the ids of all volumes that have a file, None if
    they are those of the report before. `epoch` is that of the server's lease, 0 if the agent was given none.
    """

    revision: int
    server_id: str
    facts: ServerFacts
    machines: tuple[MachineReport, ...] = ()
    problems: tuple[str, ...] = ()
    traces: tuple[Trace, ...] = ()
    removed: tuple[Holding, ...] = ()
    volumes: tuple[str, ...] | None = None
    epoch: int = 0
