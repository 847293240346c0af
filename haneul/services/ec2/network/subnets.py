"""Subnets."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any

import sqlalchemy as sa

from haneul.errors import CloudError, invalid
from haneul.model.region import zone_id
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe, require
from haneul.services.ec2 import tags
from haneul.store import tables
from haneul.store.database import Row


def _subnets(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    subnet = tables.interfaces.c.subnet_id
    counted = sa.select(subnet, sa.func.count()).where(subnet.in_([row["id"] for row in rows])).group_by(subnet)
    used = Counter(dict(ctx.tx.execute(counted).all()))
    labels = tags.of(ctx, [row["id"] for row in rows])
    return [_subnet(ctx, row, used[row["id"]]) | {"Tags": labels[row["id"]]} for row in rows]


def _subnet(ctx: Context, row: Row, used: int) -> dict[str, Any]:
    return {
        "SubnetId": row["id"],
        "SubnetArn": f"arn:aws:ec2:{ctx.region}:{ctx.account}:subnet/{row['id']}",
        "VpcId": row["vpc_id"],
        "OwnerId": ctx.account,
        "State": "available",
        "CidrBlock": row["cidr"],
        "AvailabilityZone": row["zone"],
        "AvailabilityZoneId": zone_id(row["zone"]),
        "AvailableIpAddressCount": ipaddress.ip_network(row["cidr"]).num_addresses - 5 - used,
        "DefaultForAz": row["is_default"],
        "MapPublicIpOnLaunch": row["map_public"],
        "AssignIpv6AddressOnCreation": False,
        "Ipv6CidrBlockAssociationSet": [],
        "Ipv6Native": False,
        "EnableDns64": False,
        "MapCustomerOwnedIpOnLaunch": False,
        "PrivateDnsNameOptionsOnLaunch": {
            "HostnameType": "ip-name",
            "EnableResourceNameDnsARecord": False,
            "EnableResourceNameDnsAAAARecord": False,
        },
    }


_SUBNETS_PATHS = {
    "availability-zone": "AvailabilityZone",
    "availabilityZone": "AvailabilityZone",
    "availability-zone-id": "AvailabilityZoneId",
    "available-ip-address-count": "AvailableIpAddressCount",
    "cidr": "CidrBlock",
    "cidr-block": "CidrBlock",
    "cidrBlock": "CidrBlock",
    "default-for-az": "DefaultForAz",
    "enable-dns64": "EnableDns64",
    "ipv6-native": "Ipv6Native",
    "map-customer-owned-ip-on-launch": "MapCustomerOwnedIpOnLaunch",
    "private-dns-name-options-on-launch.hostname-type": "PrivateDnsNameOptionsOnLaunch.HostnameType",
    "private-dns-name-options-on-launch.enable-resource-name-dns-a-record": "PrivateDnsNameOptionsOnLaunch.EnableResourceNameDnsARecord",
    "private-dns-name-options-on-launch.enable-resource-name-dns-aaaa-record": "PrivateDnsNameOptionsOnLaunch.EnableResourceNameDnsAAAARecord",
    "defaultForAz": "DefaultForAz",
    "map-public-ip-on-launch": "MapPublicIpOnLaunch",
    "owner-id": "OwnerId",
    "state": "State",
    "subnet-arn": "SubnetArn",
    "subnet-id": "SubnetId",
    "vpc-id": "VpcId",
}


_SUBNETS = Listing(
    tables.subnets, "Subnet", "SubnetIds", "subnet", "InvalidSubnetID", "subnet ID", _subnets, _SUBNETS_PATHS,
    columns={"subnet-id": "id", "vpc-id": "vpc_id", "availability-zone": "zone", "default-for-az": "is_default"},
    kept=False,  # AvailableIpAddressCount changes with every launch
)  # fmt: skip


@ec2
def describe_subnets(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _SUBNETS, "Subnets")


def find_subnet(ctx: Context, subnet_id: str) -> Row:
    rows = ctx.own(tables.subnets)
    require("subnet", "InvalidSubnetID", "subnet ID", [subnet_id], [row["id"] for row in rows])
    return next(row for row in rows if row["id"] == subnet_id)


def default_subnet(ctx: Context, zone: str | None) -> Row:
    """The default subnet of a zone (the first one's where none is named)."""
    rows = sorted(ctx.own(tables.subnets, is_default=True), key=lambda row: row["zone"])
    if zone:
        rows = [row for row in rows if row["zone"] == zone]
        if not rows:
            raise invalid(
                zone, "availabilityZone", f"Subnets can currently only be created in the zones of {ctx.region}."
            )
    if not rows:
        raise CloudError("MissingInput", "No subnets found for the default VPC. Please specify a subnet.")
    return rows[0]
