"""VPCs."""

from __future__ import annotations

from typing import Any

from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe
from haneul.services.ec2.network.security_groups import find_vpc
from haneul.services.ec2.network.views import with_tags
from haneul.store import tables
from haneul.store.database import Row


def _vpc(ctx: Context, row: Row) -> dict[str, Any]:
    association = f"vpc-cidr-assoc-{row['id'].removeprefix('vpc-')}"
    block = {"AssociationId": association, "CidrBlock": row["cidr"], "CidrBlockState": {"State": "associated"}}
    return {
        "VpcId": row["id"],
        "OwnerId": ctx.account,
        "State": "available",
        "CidrBlock": row["cidr"],
        "CidrBlockAssociationSet": [block],
        "Ipv6CidrBlockAssociationSet": [],
        "DhcpOptionsId": row["dhcp_options_id"],
        "InstanceTenancy": "default",
        "IsDefault": row["is_default"],
    }


_VPCS_PATHS = {
    "cidr": "CidrBlock",
    "cidr-block": "CidrBlock",
    "cidrBlock": "CidrBlock",
    "cidr-block-association.cidr-block": "CidrBlockAssociationSet.CidrBlock",
    "cidr-block-association.association-id": "CidrBlockAssociationSet.AssociationId",
    "cidr-block-association.state": "CidrBlockAssociationSet.CidrBlockState.State",
    "dhcp-options-id": "DhcpOptionsId",
    "is-default": "IsDefault",
    "isDefault": "IsDefault",
    "owner-id": "OwnerId",
    "state": "State",
    "vpc-id": "VpcId",
}


_VPCS = Listing(
    tables.vpcs, "Vpc", "VpcIds", "vpc", "InvalidVpcID", "vpc ID", with_tags(_vpc), _VPCS_PATHS,
    columns={"vpc-id": "id", "cidr": "cidr", "cidr-block": "cidr", "cidrBlock": "cidr", "dhcp-options-id": "dhcp_options_id", "is-default": "is_default"},
)  # fmt: skip


@ec2
def describe_vpcs(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _VPCS, "Vpcs")


@ec2
def describe_vpc_attribute(ctx: Context, params: Input) -> Output:
    row = find_vpc(ctx, params["VpcId"])
    values = {
        "enableDnsSupport": ("EnableDnsSupport", row["dns_support"]),
        "enableDnsHostnames": ("EnableDnsHostnames", row["dns_hostnames"]),
        "enableNetworkAddressUsageMetrics": ("EnableNetworkAddressUsageMetrics", False),
    }
    name, value = values[params["Attribute"]]
    return {"VpcId": row["id"], name: {"Value": value}}
