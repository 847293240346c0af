"""Instances as DescribeInstances shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from haneul.model.instance import STATE_CODES, State
from haneul.model.instance_types import instance_types
from haneul.model.region import private_dns_name, public_dns_name, zone_id
from haneul.model.times import moment
from haneul.services.context import Context, Output
from haneul.services.ec2 import options, tags
from haneul.services.ec2.network import interfaces as enis
from haneul.services.ec2.network import views as network_views
from haneul.services.ec2.storage import volumes
from haneul.store import tables
from haneul.store.database import Row
from haneul.store.rows import state_of


def state_view(one: State) -> dict[str, Any]:
    return {"Code": STATE_CODES[one], "Name": one}


def _grouped(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found


def views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    """The rows in EC2's shape, in the same order. `ReservationId` is for filters."""
    ids = [row["id"] for row in rows]
    interfaces = _grouped(ctx.tx.among(tables.interfaces, "instance_id", ids), "instance_id")
    disks = _grouped(ctx.tx.among(tables.volumes, "instance_id", ids), "instance_id")
    labels = tags.of(ctx, ids)
    groups = network_views.group_names(ctx, (one for rows_of_one in interfaces.values() for one in rows_of_one))
    return [
        _view(
            ctx, row, _primary_first(interfaces.get(row["id"], [])), disks.get(row["id"], []), labels[row["id"]], groups
        )
        for row in rows
    ]


def _primary_first(interfaces: list[Row]) -> list[Row]:
    return sorted(interfaces, key=lambda one: one["device_index"])


def _view(
    ctx: Context,
    row: Row,
    interfaces: list[Row],
    disks: list[Row],
    labels: list[dict[str, str]],
    groups: dict[str, str],
) -> dict[str, Any]:
    kind = instance_types()[row["instance_type"]]
    now = state_of(row)
    view: dict[str, Any] = {
        "InstanceId": row["id"],
        "ReservationId": row["reservation_id"],
        "AmiLaunchIndex": row["launch_index"],
        "ImageId": row["image_id"],
        "InstanceType": row["instance_type"],
        "LaunchTime": moment(row["launched"]),
        "State": state_view(now),
        "StateTransitionReason": row["transition_reason"],
        "Architecture": kind.architecture,
        "VirtualizationType": kind.virtualization_type,
        # EC2 says so of Nitro too.
        "Hypervisor": "xen",
        "RootDeviceName": row["root_device"],
        "RootDeviceType": "ebs",
        "BlockDeviceMappings": [_mapping(disk, row) for disk in _root_first(disks, row["root_device"])],
        "NetworkInterfaces": [_interface(ctx, one, groups) for one in interfaces],
        "SecurityGroups": network_views.group_views(groups, interfaces[0]["groups"]) if interfaces else [],
        "Placement": {
            "AvailabilityZone": row["zone"],
            "AvailabilityZoneId": zone_id(row["zone"]),
            "GroupName": row["placement_group"],
            "Tenancy": "default",
        }
        | ({"PartitionNumber": row["partition_number"]} if row["partition_number"] else {}),
        "Monitoring": {"State": "enabled" if row["monitoring"] else "disabled"},
        "CpuOptions": {"CoreCount": kind.cores, "ThreadsPerCore": kind.threads_per_core},
        "MetadataOptions": {"State": "applied", **row["metadata_options"]},
        "EbsOptimized": row["ebs_optimized"],
        "EnaSupport": False,
        "ClientToken": row["client_token"],
        "ProductCodes": [],
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "UsageOperationUpdateTime": moment(row["created"]),
        "EnclaveOptions": {"Enabled": False},
        "HibernationOptions": {"Configured": False},
        **options.shown(row["more"].get("options", {})),
        "CurrentInstanceBootMode": "legacy-bios" if kind.virtualization_type == "hvm" else None,
        "PrivateDnsNameOptions": {
            "HostnameType": "ip-name",
            "EnableResourceNameDnsARecord": False,
            "EnableResourceNameDnsAAAARecord": False,
        },
        # Of one without tags EC2 has no such member.
        **({"Tags": labels} if labels else {}),
    }
    if row["key_name"]:
        view["KeyName"] = row["key_name"]
    if row["reason_code"] and now not in ("pending", "running"):
        view["StateReason"] = {"Code": row["reason_code"], "Message": row["reason_message"]}
    return view | _addresses(ctx, interfaces, row)


def _addresses(ctx: Context, interfaces: list[Row], row: Row) -> dict[str, Any]:
    if not interfaces:
        return {"PrivateDnsName": "", "PublicDnsName": ""}
    primary = interfaces[0]
    view: dict[str, Any] = {
        "VpcId": row["vpc_id"],
        "SubnetId": row["subnet_id"],
        "PrivateIpAddress": primary["address"],
        "PrivateDnsName": private_dns_name(primary["address"], ctx.region),
        "SourceDestCheck": primary["source_dest_check"],
        "PublicDnsName": "",
    }
    if primary["public_address"]:
        view["PublicIpAddress"] = primary["public_address"]
        view["PublicDnsName"] = public_dns_name(primary["public_address"], ctx.region)
    return view


def _root_first(disks: list[Row], root: str) -> list[Row]:
    return sorted(disks, key=lambda disk: (disk["device"] != root, disk["device"]))


def _mapping(disk: Row, row: Row) -> dict[str, Any]:
    ebs = {
        "VolumeId": disk["id"],
        "Status": volumes.attachment_state(disk, row),
        "AttachTime": moment(disk["attached"] or disk["created"]),
        "DeleteOnTermination": disk["delete_on_termination"],
    }
    return {"DeviceName": disk["device"], "Ebs": ebs}


def _interface(ctx: Context, row: Row, groups: dict[str, str]) -> dict[str, Any]:
    return enis.interface_core(ctx, row, groups) | {"Attachment": enis.attachment_core(row)}


def reservations(ctx: Context, items: Iterable[tuple[Row, Any]]) -> list[dict[str, Any]]:
    """(row, item) gathered by the row's reservation, in the order in which they come."""
    found: dict[str, list[Any]] = {}
    for row, item in items:
        found.setdefault(row["reservation_id"], []).append(item)
    return [
        {"ReservationId": one, "OwnerId": ctx.account, "Groups": [], "Instances": members}
        for one, members in found.items()
    ]


def reservation(
    ctx: Context, instances: Sequence[Row], interfaces: Sequence[Row], disks: Sequence[Row], labels: Sequence[Row]
) -> Output:
    """The answer of a launch, from the rows that it wrote."""
    nics, volumes_of, tags_of = (
        _grouped(interfaces, "instance_id"),
        _grouped(disks, "instance_id"),
        _grouped(labels, "resource_id"),
    )
    groups = network_views.group_names(ctx, interfaces)
    items = [
        _view(
            ctx,
            row,
            _primary_first(nics.get(row["id"], [])),
            volumes_of.get(row["id"], []),
            _labels(tags_of.get(row["id"], [])),
            groups,
        )
        for row in instances
    ]
    return reservations(ctx, zip(instances, items, strict=True))[0]


def _labels(rows: list[Row]) -> list[dict[str, str]]:
    return [{"Key": row["key"], "Value": row["value"]} for row in sorted(rows, key=lambda row: str(row["key"]))]
