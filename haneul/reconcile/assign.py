"""The store, read as what one server should be. No decision is made here that the rows do not hold."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from haneul.config import Settings
from haneul.model import metadata
from haneul.model.assignment import (
    Assignment,
    DiskSpec,
    GroupSpec,
    InterfaceSpec,
    MachineSpec,
    MetadataSpec,
    NetworkSpec,
    NicSpec,
    SubnetSpec,
    WantedPower,
)
from haneul.model.instance_types import instance_types
from haneul.model.network import gateway, resolver
from haneul.model.region import dns_domain, private_dns_name, public_dns_name, zone_id
from haneul.services.ec2.security_groups import rule_of
from haneul.store import tables
from haneul.store.database import Row, Transaction

_POWERS: dict[str, WantedPower] = {"running": "running", "stopped": "stopped", "terminated": "absent"}
_NAMESPACE = uuid.UUID("6f0f4f6e-0c1e-4c57-9a9f-0a7d2a3b6c11")


@dataclass(frozen=True)
class Signer:
    """`sign` gives the signed forms of an identity document by name; `ssh_key` is haneul's own public key."""

    sign: Callable[[str], Mapping[str, str]]
    ssh_key: str


def system_uuid(instance_id: str) -> str:
    """The DMI uuid: begins with `ec2` as on EC2, which is how cloud-init knows where it is."""
    return "ec2" + str(uuid.uuid5(_NAMESPACE, instance_id))[3:]


@dataclass(frozen=True)
class _World:
    """The rows that concern one server."""

    instances: list[Row]
    volumes: dict[str, list[Row]]
    interfaces: dict[str, Row]
    vpcs: dict[str, Row]
    subnets: dict[str, list[Row]]
    groups: dict[str, Row]
    rules: dict[str, list[Row]]
    members: dict[str, list[str]]
    tags: dict[str, dict[str, str]]
    kept: list[Row]


def _by(rows: list[Row], column: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found


def _read(tx: Transaction, server_id: str) -> _World:
    instances = sorted(tx.select(tables.instances, server_id=server_id), key=lambda row: row["id"])
    ids = [row["id"] for row in instances]
    kept = tx.select(tables.volumes, server_id=server_id)
    interfaces = {row["instance_id"]: row for row in tx.among(tables.interfaces, "instance_id", ids)}
    vpc_ids = [row["vpc_id"] for row in interfaces.values()]
    vpcs = {row["id"]: row for row in tx.among(tables.vpcs, "id", vpc_ids)}
    groups = {row["id"]: row for row in tx.among(tables.security_groups, "vpc_id", list(vpcs))}
    members: dict[str, list[str]] = {}
    for row in tx.among(tables.interfaces, "vpc_id", list(vpcs)):
        for group in row["groups"]:
            members.setdefault(group, []).append(row["address"])
    labels: dict[str, dict[str, str]] = {}
    for tag in tx.among(tables.tags, "resource_id", ids):
        labels.setdefault(tag["resource_id"], {})[tag["key"]] = tag["value"]
    return _World(
        instances,
        _by([row for row in kept if row["instance_id"]], "instance_id"),
        interfaces,
        vpcs,
        _by(tx.among(tables.subnets, "vpc_id", list(vpcs)), "vpc_id"),
        groups,
        _by(tx.among(tables.security_group_rules, "group_id", list(groups)), "group_id"),
        members,
        labels,
        kept,
    )


def build(tx: Transaction, server_id: str, settings: Settings, signer: Signer) -> Assignment:
    world = _read(tx, server_id)
    alive = [row for row in world.instances if row["power"] != "terminated" and row["id"] in world.interfaces]
    return Assignment(
        revision=tx.revision(),
        server_id=server_id,
        machines=tuple(_machine(world, row, settings) for row in world.instances),
        networks=tuple(_network(world, vpc) for vpc in sorted(world.vpcs.values(), key=lambda row: row["id"])),
        metadata=tuple(_metadata(world, row, signer) for row in alive),
        volumes=tuple(_disk(row, boot=False) for row in sorted(world.kept, key=lambda row: row["id"])),
    )


def _disk(row: Row, boot: bool) -> DiskSpec:
    return DiskSpec(row["id"], row["image_name"], row["size_gib"], row["device"], boot)


def _disks(world: _World, row: Row) -> tuple[DiskSpec, ...]:
    root = row["root_device"]
    disks = sorted(world.volumes.get(row["id"], []), key=lambda disk: (disk["device"] != root, disk["device"]))
    return tuple(_disk(disk, boot=disk["device"] == root) for disk in disks)


def _nics(world: _World, row: Row) -> tuple[NicSpec, ...]:
    one = world.interfaces.get(row["id"])
    if one is None:
        return ()
    return (NicSpec(one["id"], one["vpc_id"], one["subnet_id"], one["mac"], one["address"]),)


def _machine(world: _World, row: Row, settings: Settings) -> MachineSpec:
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
    )


def _network(world: _World, vpc: Row) -> NetworkSpec:
    region = vpc["region"]
    here = [row for row in world.interfaces.values() if row["vpc_id"] == vpc["id"]]
    used = {group for row in here for group in row["groups"]}
    # A rule may name a group that has no member here: its addresses still matter.
    peers = {rule["peer_group"] for group in used for rule in world.rules.get(group, []) if rule["peer_group"]}
    return NetworkSpec(
        vpc_id=vpc["id"],
        cidr=vpc["cidr"],
        domain=dns_domain(region),
        resolver=resolver(vpc["cidr"]),
        subnets=tuple(
            SubnetSpec(row["id"], row["cidr"], gateway(row["cidr"]))
            for row in sorted(world.subnets.get(vpc["id"], []), key=lambda row: row["id"])
        ),
        interfaces=tuple(_interface(row, region) for row in sorted(here, key=lambda row: row["id"])),
        groups=tuple(_group(world, one, one in used) for one in sorted(used | peers) if one in world.groups),
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


def _group(world: _World, group: str, used: bool) -> GroupSpec:
    """A group that is only named by others' rules matters for its members alone; its rules may name yet others."""
    rules = tuple(sorted(rule_of(row) for row in world.rules.get(group, []))) if used else ()
    return GroupSpec(group, rules, tuple(sorted(world.members.get(group, []))))


def _facts(world: _World, row: Row) -> metadata.Facts:
    nic = world.interfaces[row["id"]]
    vpc = world.vpcs[nic["vpc_id"]]
    subnet = next(one for one in world.subnets[vpc["id"]] if one["id"] == nic["subnet_id"])
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
        group_names=tuple(world.groups[one]["name"] for one in nic["groups"] if one in world.groups),
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
    )


def _devices(root: str, others: list[str]) -> dict[str, str]:
    found = {"ami": root.removeprefix("/dev/"), "root": root}
    return found | {f"ebs{number}": device for number, device in enumerate(sorted(others), 1)}


def _metadata(world: _World, row: Row, signer: Signer) -> MetadataSpec:
    facts = _facts(world, row)
    options: dict[str, Any] = row["metadata_options"]
    document = metadata.identity_document(facts)
    tree = {f"meta-data/{path}": text for path, text in metadata.tree(facts).items()}
    tree["dynamic/instance-identity/document"] = document
    tree |= {f"dynamic/instance-identity/{name}": text for name, text in signer.sign(document).items()}
    keys = ((row["key_name"], row["public_key"]),) if row["key_name"] else ()
    shown_tags = {}
    if options["InstanceMetadataTags"] == "enabled":
        shown_tags = {key: value for key, value in world.tags.get(row["id"], {}).items() if "/" not in key}
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
