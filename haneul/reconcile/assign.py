"""The store, read as what one server should be. No decision is made here that the rows do not hold."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from haneul.config import Settings
from haneul.model import metadata
from haneul.model.assignment import (
    Assignment,
    DiskSpec,
    GroupSpec,
    GuestIdentity,
    Holding,
    InterfaceSpec,
    MachineSpec,
    MetadataSpec,
    NetworkSpec,
    NicSpec,
    SubnetSpec,
    WantedPower,
)
from haneul.model.instance_types import instance_types
from haneul.model.network import Rule, gateway, resolver
from haneul.model.region import dns_domain, private_dns_name, public_dns_name, zone_id
from haneul.model.user_data import decides_who_logs_in
from haneul.store import tables
from haneul.store.database import Row, Transaction
from haneul.store.rows import rule_of

_POWERS: dict[str, WantedPower] = {"running": "running", "stopped": "stopped", "terminated": "absent"}
_NAMESPACE = uuid.UUID("6f0f4f6e-0c1e-4c57-9a9f-0a7d2a3b6c11")


@dataclass(frozen=True)
class Signer:
    """`sign` gives the signed forms of an identity document by name; `ssh_key` is haneul's own public key.

    `sign` is None where there are no guests who could read documents: then none are made.
    """

    sign: Callable[[str], Mapping[str, str]] | None
    ssh_key: str


def system_uuid(instance_id: str) -> str:
    """The DMI uuid: begins with `ec2` as on EC2, which is how cloud-init knows where it is."""
    return "ec2" + str(uuid.uuid5(_NAMESPACE, instance_id))[3:]


@dataclass(frozen=True)
class _World:
    """The rows that some instances' specs are made of."""

    instances: list[Row]
    volumes: dict[str, list[Row]]
    interfaces: dict[str, Row]
    vpcs: dict[str, Row]
    subnets: dict[str, Row]
    groups: dict[str, str]
    tags: dict[str, dict[str, str]]


def _by(rows: list[Row], column: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found


def _read(tx: Transaction, ids: list[str]) -> _World:
    instances = tx.among(tables.instances, "id", ids)
    found = tx.among(tables.interfaces, "instance_id", ids)
    # The primary one comes last, and stays.
    interfaces = {row["instance_id"]: row for row in sorted(found, key=lambda one: -one["device_index"])}
    groups = list({group for row in interfaces.values() for group in row["groups"]})
    labels: dict[str, dict[str, str]] = {}
    for tag in tx.among(tables.tags, "resource_id", ids):
        labels.setdefault(tag["resource_id"], {})[tag["key"]] = tag["value"]
    return _World(
        instances,
        _by(tx.among(tables.volumes, "instance_id", ids), "instance_id"),
        interfaces,
        {row["id"]: row for row in tx.among(tables.vpcs, "id", [row["vpc_id"] for row in interfaces.values()])},
        {row["id"]: row for row in tx.among(tables.subnets, "id", [row["subnet_id"] for row in interfaces.values()])},
        {row["id"]: row["name"] for row in tx.among(tables.security_groups, "id", groups)},
        labels,
    )


@dataclass(frozen=True)
class _Instance:
    """What an assignment says of one instance, at one version of its row. `metadata` is None for one that ends."""

    version: int
    machine: MachineSpec
    metadata: MetadataSpec | None


@dataclass(frozen=True)
class _Interface:
    version: int
    spec: InterfaceSpec
    vpc_id: str
    instance_id: str


@dataclass(frozen=True)
class _Network:
    """What an assignment says of a VPC, and the versions of all that it is made of."""

    parts: Any
    spec: NetworkSpec
    interfaces: tuple[_Interface, ...]


class Assigner:
    """Builds one server's assignments. What rows say is kept by their versions: a change costs what changed.

    One assignment is built at a time.
    """

    def __init__(self, server_id: str, settings: Settings, signer: Signer) -> None:
        self._server_id = server_id
        self._settings = settings
        self._signer = signer
        self._instances: dict[str, _Instance] = {}
        self._interfaces: dict[str, _Interface] = {}
        self._volumes: dict[str, tuple[int, DiskSpec]] = {}
        self._subnets: dict[str, tuple[int, SubnetSpec]] = {}
        self._rules: dict[str, tuple[int, tuple[Rule, ...]]] = {}
        self._networks: dict[str, _Network] = {}

    def build(self, tx: Transaction) -> Assignment:
        self._instances = self._known_instances(tx)
        self._volumes = self._known_volumes(tx)
        here = self._instances
        needed = vpcs_of(tx, self._server_id)
        vpcs = sorted(tx.among(tables.vpcs, "id", sorted(needed)), key=lambda row: str(row["id"]))
        self._interfaces = self._known_interfaces(tx, [vpc["id"] for vpc in vpcs])
        return Assignment(
            revision=tx.revision(),
            server_id=self._server_id,
            machines=tuple(one.machine for one in here.values()),
            networks=self._known_networks(tx, vpcs),
            metadata=tuple(one.metadata for one in here.values() if one.metadata is not None),
            volumes=tuple(spec for _, spec in self._volumes.values()),
            tombstones=self._tombstones(tx, needed),
        )

    def _tombstones(self, tx: Transaction, vpcs: frozenset[str]) -> tuple[Holding, ...]:
        """What the server is to remove: never what it is to have."""
        here = {"machine": self._instances.keys(), "volume": self._volumes.keys(), "network": vpcs}
        rows = tx.select(tables.tombstones, server_id=self._server_id)
        return tuple(sorted(Holding(row["kind"], row["id"]) for row in rows if row["id"] not in here[row["kind"]]))

    def _known_instances(self, tx: Transaction) -> dict[str, _Instance]:
        versions = dict(_pairs(tx, tables.instances, "server_id", [self._server_id]))
        stale = [one for one, version in versions.items() if _version(self._instances.get(one)) != version]
        made: dict[str, _Instance] = {}
        for start in range(0, len(stale), CHUNK):
            world = _read(tx, stale[start : start + CHUNK])
            made |= {row["id"]: self._instance(world, row) for row in world.instances}
        return {one: made.get(one) or self._instances[one] for one in versions}

    def _instance(self, world: _World, row: Row) -> _Instance:
        alive = row["power"] != "terminated" and row["id"] in world.interfaces
        machine = _machine(world, row, self._settings, self._signer.ssh_key)
        return _Instance(row["version"], machine, _metadata(world, row, self._signer) if alive else None)

    def _known_volumes(self, tx: Transaction) -> dict[str, tuple[int, DiskSpec]]:
        versions = dict(_pairs(tx, tables.volumes, "server_id", [self._server_id]))
        stale = [one for one, version in versions.items() if self._volumes.get(one, (0,))[0] != version]
        rows = tx.among(tables.volumes, "id", stale)
        made = {row["id"]: (row["version"], _disk(row, boot=False)) for row in rows}
        return {one: made.get(one) or self._volumes[one] for one in versions}

    def _known_interfaces(self, tx: Transaction, vpcs: list[str]) -> dict[str, _Interface]:
        versions = dict(_pairs(tx, tables.interfaces, "vpc_id", vpcs))
        stale = [one for one, version in versions.items() if _version(self._interfaces.get(one)) != version]
        rows = tx.among(tables.interfaces, "id", stale)
        made = {
            row["id"]: _Interface(row["version"], _interface(row, row["region"]), row["vpc_id"], row["instance_id"])
            for row in rows
        }
        return {one: made.get(one) or self._interfaces[one] for one in versions}

    def _known_networks(self, tx: Transaction, vpcs: list[Row]) -> tuple[NetworkSpec, ...]:
        """Each VPC; one of which no part has changed is the very value of the last time."""
        ids = [vpc["id"] for vpc in vpcs]
        subnets = _by_vpc(tx, tables.subnets, ids)
        groups = _by_vpc(tx, tables.security_groups, ids)
        interfaces: dict[str, list[_Interface]] = {}
        for one in self._interfaces.values():
            interfaces.setdefault(one.vpc_id, []).append(one)
        self._read_subnets(tx, subnets)
        self._read_rules(tx, groups)
        made: dict[str, _Network] = {}
        for vpc in vpcs:
            here = interfaces.get(vpc["id"], [])
            local = frozenset(id(one) for one in here if one.instance_id in self._instances)
            parts = (vpc["version"], subnets.get(vpc["id"], ()), groups.get(vpc["id"], ()), tuple(map(id, here)), local)
            known = self._networks.get(vpc["id"])
            if known is None or known.parts != parts:
                spec = self._network(vpc, parts[1], parts[2], here, known.spec if known else None)
                # The interfaces are kept with it: another one never has the id of one that still lives.
                known = _Network(parts, spec, tuple(here))
            made[vpc["id"]] = known
        self._networks = made
        return tuple(one.spec for one in made.values())

    def _read_subnets(self, tx: Transaction, present: Mapping[str, tuple[tuple[str, int], ...]]) -> None:
        versions = {one: version for pairs in present.values() for one, version in pairs}
        stale = [one for one, version in versions.items() if self._subnets.get(one, (0,))[0] != version]
        rows = tx.among(tables.subnets, "id", stale)
        made = {row["id"]: (row["version"], SubnetSpec(row["id"], row["cidr"], gateway(row["cidr"]))) for row in rows}
        self._subnets = {one: made.get(one) or self._subnets[one] for one in versions}

    def _read_rules(self, tx: Transaction, present: Mapping[str, tuple[tuple[str, int], ...]]) -> None:
        """The rules of every group: a rule that comes, goes or changes raises its group's version."""
        versions = {one: version for pairs in present.values() for one, version in pairs}
        stale = [one for one, version in versions.items() if self._rules.get(one, (0,))[0] != version]
        rows = _by(tx.among(tables.security_group_rules, "group_id", stale), "group_id")
        made = {one: (versions[one], tuple(sorted(rule_of(row) for row in rows.get(one, [])))) for one in stale}
        self._rules = {one: made.get(one) or self._rules[one] for one in versions}

    def _network(
        self,
        vpc: Row,
        subnets: tuple[tuple[str, int], ...],
        groups: tuple[tuple[str, int], ...],
        everywhere: list[_Interface],
        before: NetworkSpec | None,
    ) -> NetworkSpec:
        here = [one.spec for one in everywhere if one.instance_id in self._instances]
        members: dict[str, list[str]] = {}
        for one in everywhere:
            for group in one.spec.groups:
                members.setdefault(group, []).append(one.spec.address)
        used = {group for spec in here for group in spec.groups}
        present = {one for one, _ in groups}
        # A rule may name a group that has no member here: its addresses still matter.
        peers = {rule.group for group in used & present for rule in self._rules[group][1] if rule.group}
        known = {one.group_id: one for one in before.groups} if before else {}
        # A group that is only named by others' rules matters for its members alone; its rules may name yet others.
        wanted = (
            GroupSpec(one, self._rules[one][1] if one in used else (), tuple(sorted(members.get(one, []))))
            for one in sorted((used | peers) & present)
        )
        return NetworkSpec(
            vpc_id=vpc["id"],
            cidr=vpc["cidr"],
            domain=dns_domain(vpc["region"]),
            resolver=resolver(vpc["cidr"]),
            subnets=tuple(self._subnets[one][1] for one, _ in subnets),
            interfaces=tuple(here),
            # What has not changed stays the same value: who compares it with the last one need not look inside.
            groups=tuple(_same_or(known.get(one.group_id), one) for one in wanted),
        )


def _same_or(known: GroupSpec | None, made: GroupSpec) -> GroupSpec:
    if known is not None and known.rules is made.rules and known.members == made.members:
        return known
    return made


CHUNK = 500


def _version(known: _Instance | _Interface | None) -> int:
    return known.version if known is not None else 0


@cache
def _by_vpc_statement(table: sa.Table) -> Any:
    among = table.c.vpc_id.in_(sa.bindparam("among", expanding=True))
    return sa.select(table.c.vpc_id, table.c.id, table.c.version).where(among).order_by(table.c.id)


def _by_vpc(tx: Transaction, table: sa.Table, vpcs: list[str]) -> dict[str, tuple[tuple[str, int], ...]]:
    """VPC -> (id, version) of its rows of a table, by id."""
    found: dict[str, list[tuple[str, int]]] = {}
    for start in range(0, len(vpcs), CHUNK):
        for vpc, one, version in tx.execute(_by_vpc_statement(table), {"among": vpcs[start : start + CHUNK]}).all():
            found.setdefault(vpc, []).append((one, version))
    return {vpc: tuple(pairs) for vpc, pairs in found.items()}


@cache
def _pairs_statement(table: sa.Table, column: str) -> Any:
    among = table.c[column].in_(sa.bindparam("among", expanding=True))
    return sa.select(table.c.id, table.c.version).where(among).order_by(table.c.id)


def _pairs(tx: Transaction, table: sa.Table, column: str, values: list[str]) -> list[tuple[str, int]]:
    """(id, version) of the rows whose `column` is one of `values`, by id."""
    return [(one, version) for one, version in tx.execute(_pairs_statement(table, column), {"among": values}).all()]


def versions_of(tx: Transaction, server_id: str) -> dict[str, int]:
    """Instance id -> version of its row, of all that a server has."""
    return dict(_pairs(tx, tables.instances, "server_id", [server_id]))


@cache
def _vpcs_of_server() -> Any:
    instance, interface = tables.instances, tables.interfaces
    joined = sa.select(interface.c.vpc_id).join(instance, instance.c.id == interface.c.instance_id)
    return joined.where(instance.c.server_id == sa.bindparam("server")).distinct()


def vpcs_of(tx: Transaction, server_id: str) -> frozenset[str]:
    """The VPCs that a server needs: those of its instances' interfaces."""
    return frozenset(tx.execute(_vpcs_of_server(), {"server": server_id}).scalars())


def build(tx: Transaction, server_id: str, settings: Settings, signer: Signer) -> Assignment:
    """One assignment from nothing."""
    return Assigner(server_id, settings, signer).build(tx)


def _disk(row: Row, boot: bool) -> DiskSpec:
    return DiskSpec(row["id"], row["image_name"], row["size_gib"], row["device"], boot, row["observed_made"])


def _disks(world: _World, row: Row) -> tuple[DiskSpec, ...]:
    root = row["root_device"]
    disks = sorted(world.volumes.get(row["id"], []), key=lambda disk: (disk["device"] != root, disk["device"]))
    return tuple(_disk(disk, boot=disk["device"] == root) for disk in disks)


def _nics(world: _World, row: Row) -> tuple[NicSpec, ...]:
    one = world.interfaces.get(row["id"])
    if one is None:
        return ()
    return (NicSpec(one["id"], one["vpc_id"], one["subnet_id"], one["mac"], one["address"]),)


def _identity(world: _World, row: Row, ssh_key: str) -> GuestIdentity | None:
    nic = world.interfaces.get(row["id"])
    if nic is None:
        return None
    subnet, vpc = world.subnets[nic["subnet_id"]]["cidr"], world.vpcs[nic["vpc_id"]]["cidr"]
    hostname, _, domain = private_dns_name(nic["address"], row["region"]).partition(".")
    keys = tuple(key.strip() for key in (row["public_key"], ssh_key) if key)
    return GuestIdentity(
        hostname,
        domain,
        int(subnet.partition("/")[2]),
        gateway(subnet),
        resolver(vpc),
        keys,
        decides_who_logs_in(row["user_data"]),
    )


def _machine(world: _World, row: Row, settings: Settings, ssh_key: str) -> MachineSpec:
    kind = instance_types()[row["instance_type"]]
    return MachineSpec(
        instance_id=row["id"],
        power=_POWERS[row["power"]],
        boot_count=row["boot_count"],
        force=row["force"],
        stop_seconds=settings.stop_seconds,
        vcpus=kind.vcpus,
        memory_mib=kind.memory_mib,
        image=row["image_name"],
        instance_type=kind.name,
        generation=kind.generation,
        uuid=system_uuid(row["id"]),
        disks=_disks(world, row),
        nics=_nics(world, row),
        identity=_identity(world, row, ssh_key),
    )


def _interface(row: Row, region: str) -> InterfaceSpec:
    public = row["public_address"] or ""
    return InterfaceSpec(
        interface_id=row["id"],
        subnet_id=row["subnet_id"],
        mac=row["mac"],
        address=row["address"],
        public=public,
        groups=tuple(row["groups"]),
        names=(private_dns_name(row["address"], region),),
        public_names=(public_dns_name(public, region),) if public else (),
        source_dest_check=row["source_dest_check"],
    )


def _facts(world: _World, row: Row) -> metadata.Facts:
    nic = world.interfaces[row["id"]]
    vpc = world.vpcs[nic["vpc_id"]]
    subnet = world.subnets[nic["subnet_id"]]
    public = nic["public_address"] or ""
    region = row["region"]
    others = [disk["device"] for disk in world.volumes.get(row["id"], []) if disk["device"] != row["root_device"]]
    interface = metadata.Interface(
        interface_id=nic["id"],
        mac=nic["mac"],
        device_index=nic["device_index"],
        address=nic["address"],
        public=public,
        private_name=private_dns_name(nic["address"], region),
        public_name=public_dns_name(public, region) if public else "",
        subnet_id=subnet["id"],
        subnet_cidr=subnet["cidr"],
        vpc_id=vpc["id"],
        vpc_cidr=vpc["cidr"],
        group_ids=tuple(nic["groups"]),
        group_names=tuple(world.groups[one] for one in nic["groups"] if one in world.groups),
        owner=row["account"],
    )
    return metadata.Facts(
        instance_id=row["id"],
        account=row["account"],
        region=region,
        zone=row["zone"],
        zone_id=zone_id(row["zone"]),
        image_id=row["image_id"],
        instance_type=row["instance_type"],
        architecture=instance_types()[row["instance_type"]].architecture,
        launch_index=row["launch_index"],
        reservation_id=row["reservation_id"],
        pending_time=datetime.fromtimestamp(row["launched"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        devices=_devices(row["root_device"], others),
        interface=interface,
        hypervisor=instance_types()[row["instance_type"]].hypervisor,
    )


def _devices(root: str, others: list[str]) -> dict[str, str]:
    found = {"ami": root.removeprefix("/dev/"), "root": root}
    return found | {f"ebs{number}": device for number, device in enumerate(sorted(others), 1)}


def _tree(facts: metadata.Facts, sign: Callable[[str], Mapping[str, str]]) -> dict[str, str]:
    """Everything below `/latest/` but keys, tags and user data."""
    document = metadata.identity_document(facts)
    tree = {sys.intern(f"meta-data/{path}"): text for path, text in metadata.tree(facts).items()}
    tree["dynamic/instance-identity/document"] = document
    return tree | {f"dynamic/instance-identity/{name}": text for name, text in sign(document).items()}


def _metadata(world: _World, row: Row, signer: Signer) -> MetadataSpec:
    options: dict[str, Any] = row["metadata_options"]
    tree = _tree(_facts(world, row), signer.sign) if signer.sign is not None else {}
    keys = ((row["key_name"], row["public_key"]),) if row["key_name"] else ()
    shown_tags = {}
    if options["InstanceMetadataTags"] == "enabled":
        # A key that is no part of a path was there before this was asked of keys: one that cannot be read empties all metadata.
        found = world.tags.get(row["id"], {})
        shown_tags = {key: value for key, value in found.items() if metadata.is_tag_key(key)}
    return MetadataSpec(
        instance_id=row["id"],
        vpc_id=row["vpc_id"],
        addresses=(world.interfaces[row["id"]]["address"],),
        http_tokens=options["HttpTokens"],
        http_endpoint=options["HttpEndpoint"],
        hop_limit=options["HttpPutResponseHopLimit"],
        tree=tree,
        public_keys=(*keys, ("haneul", signer.ssh_key)),
        tags=shown_tags,
        user_data=row["user_data"],
    )
