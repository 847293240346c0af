"""Network interfaces."""

from __future__ import annotations

from typing import Any

from haneul.model.region import private_dns_name
from haneul.model.times import moment
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Computed, Listing, describe
from haneul.services.ec2 import tags
from haneul.services.ec2.network.views import association, group_names, group_views
from haneul.store import tables
from haneul.store.database import Row


def interface_core(ctx: Context, row: Row, names: dict[str, str]) -> dict[str, Any]:
    """What DescribeNetworkInterfaces and DescribeInstances show alike; `names` are those of its groups."""
    name = private_dns_name(row["address"], ctx.region)
    public = association(ctx, row)
    address = {"Primary": True, "PrivateIpAddress": row["address"], "PrivateDnsName": name, "Association": public}
    return {
        "NetworkInterfaceId": row["id"],
        "VpcId": row["vpc_id"],
        "SubnetId": row["subnet_id"],
        "OwnerId": ctx.account,
        "Description": row["description"],
        "MacAddress": row["mac"],
        "PrivateIpAddress": row["address"],
        "PrivateDnsName": name,
        "PrivateIpAddresses": [address],
        "Ipv6Addresses": [],
        "Groups": group_views(names, row["groups"]),
        "SourceDestCheck": row["source_dest_check"],
        "Status": "in-use" if row["instance_id"] else "available",
        "InterfaceType": "interface",
        "Association": public,
    }


def attachment_core(row: Row) -> dict[str, Any]:
    return {
        "AttachmentId": row["attachment_id"],
        "AttachTime": moment(row["attached"] or row["created"]),
        "DeleteOnTermination": row["delete_on_termination"],
        "DeviceIndex": row["device_index"],
        "NetworkCardIndex": 0,
        "Status": "attached",
    }


def _interfaces(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    """`TagSet` is what the answer has, `Tags` where filters look."""
    labels = tags.of(ctx, [row["id"] for row in rows])
    names = group_names(ctx, rows)
    return [_interface(ctx, row, names) | {"TagSet": labels[row["id"]], "Tags": labels[row["id"]]} for row in rows]


def _interface(ctx: Context, row: Row, names: dict[str, str]) -> dict[str, Any]:
    view = interface_core(ctx, row, names) | {
        "AvailabilityZone": row["zone"],
        "RequesterManaged": False,
    }
    if row["instance_id"]:
        view["Attachment"] = attachment_core(row) | {"InstanceId": row["instance_id"], "InstanceOwnerId": ctx.account}
    return view


_NETWORK_INTERFACES_PATHS = {
    "addresses.association.public-ip": "PrivateIpAddresses.Association.PublicIp",
    "addresses.primary": "PrivateIpAddresses.Primary",
    "addresses.private-ip-address": "PrivateIpAddresses.PrivateIpAddress",
    "association.public-ip": "Association.PublicIp",
    "association.public-dns-name": "Association.PublicDnsName",
    "association.ip-owner-id": "Association.IpOwnerId",
    "attachment.attach-time": "Attachment.AttachTime",
    "attachment.attachment-id": "Attachment.AttachmentId",
    "attachment.delete-on-termination": "Attachment.DeleteOnTermination",
    "attachment.device-index": "Attachment.DeviceIndex",
    "attachment.instance-id": "Attachment.InstanceId",
    "attachment.instance-owner-id": "Attachment.InstanceOwnerId",
    "attachment.status": "Attachment.Status",
    "availability-zone": "AvailabilityZone",
    "description": "Description",
    "group-id": "Groups.GroupId",
    "group-name": "Groups.GroupName",
    "interface-type": "InterfaceType",
    "mac-address": "MacAddress",
    "network-interface-id": "NetworkInterfaceId",
    "owner-id": "OwnerId",
    "private-dns-name": "PrivateDnsName",
    "private-ip-address": "PrivateIpAddress",
    "requester-managed": "RequesterManaged",
    "source-dest-check": "SourceDestCheck",
    "status": "Status",
    "subnet-id": "SubnetId",
    "vpc-id": "VpcId",
}


_NETWORK_INTERFACES = Listing(
    tables.interfaces, "NetworkInterface", "NetworkInterfaceIds", "eni", "InvalidNetworkInterfaceID", "networkInterface ID", _interfaces, _NETWORK_INTERFACES_PATHS,
    columns={
        "network-interface-id": "id", "vpc-id": "vpc_id", "subnet-id": "subnet_id", "availability-zone": "zone",
        "attachment.instance-id": "instance_id", "attachment.attachment-id": "attachment_id", "mac-address": "mac",
        "private-ip-address": "address", "addresses.private-ip-address": "address", "association.public-ip": "public_address",
        "addresses.association.public-ip": "public_address", "description": "description",
        "group-id": Computed(("groups",), lambda row: row["groups"]),
    },
    malformed="InvalidNetworkInterfaceId",
)  # fmt: skip


@ec2
def describe_network_interfaces(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _NETWORK_INTERFACES, "NetworkInterfaces")
