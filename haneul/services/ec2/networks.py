"""The default VPC, readable: VPCs, subnets, interfaces, route tables, gateways, ACLs, DHCP options."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from haneul.errors import CloudError, invalid
from haneul.model.region import private_dns_name, public_dns_name, zone_id
from haneul.services.context import Context, Input, Output, ec2, moment
from haneul.services.describe import Computed, Listing, describe, require
from haneul.services.ec2 import tags
from haneul.services.ec2.security_groups import find_vpc
from haneul.store import tables
from haneul.store.database import Row

View = Callable[[Context, Row], dict[str, Any]]


def _with_tags(view: View) -> Callable[[Context, list[Row]], list[dict[str, Any]]]:
    """Views of rows, each with its tags."""

    def views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
        labels = tags.of(ctx, [row["id"] for row in rows])
        return [view(ctx, row) | {"Tags": labels[row["id"]]} for row in rows]

    return views


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
    tables.vpcs, "Vpc", "VpcIds", "vpc", "InvalidVpcID", "vpc ID", _with_tags(_vpc), _VPCS_PATHS,
    columns={"vpc-id": "id", "cidr": "cidr", "dhcp-options-id": "dhcp_options_id", "is-default": "is_default"},
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


def association(ctx: Context, row: Row) -> dict[str, Any] | None:
    """The public address of an interface, as `Association`."""
    if not row["public_address"]:
        return None
    return {
        "IpOwnerId": "amazon",
        "PublicIp": row["public_address"],
        "PublicDnsName": public_dns_name(row["public_address"], ctx.region),
    }


def group_names(ctx: Context, interfaces: Iterable[Row]) -> dict[str, str]:
    """Id -> name of all the groups of some interfaces. Names of groups never change."""
    ids = list({group for row in interfaces for group in row["groups"]})
    return {row["id"]: row["name"] for row in ctx.tx.among(tables.security_groups, "id", ids)}


def group_views(names: dict[str, str], ids: list[str]) -> list[dict[str, str]]:
    return [{"GroupId": one, "GroupName": names.get(one, "")} for one in ids]


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
)  # fmt: skip


@ec2
def describe_network_interfaces(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _NETWORK_INTERFACES, "NetworkInterfaces")


def _route_table(ctx: Context, row: Row) -> dict[str, Any]:
    associations = [
        one | {"RouteTableId": row["id"], "AssociationState": {"State": "associated"}} for one in row["associations"]
    ]
    return {
        "RouteTableId": row["id"],
        "VpcId": row["vpc_id"],
        "OwnerId": ctx.account,
        "Associations": associations,
        "Routes": row["routes"],
        "PropagatingVgws": [],
    }


_ROUTE_TABLES_PATHS = {
    "association.main": "Associations.Main",
    "association.route-table-association-id": "Associations.RouteTableAssociationId",
    "association.route-table-id": "Associations.RouteTableId",
    "association.subnet-id": "Associations.SubnetId",
    "owner-id": "OwnerId",
    "route.destination-cidr-block": "Routes.DestinationCidrBlock",
    "route.gateway-id": "Routes.GatewayId",
    "route.origin": "Routes.Origin",
    "route.state": "Routes.State",
    "route-table-id": "RouteTableId",
    "vpc-id": "VpcId",
}
_ROUTE_TABLES = Listing(
    tables.route_tables, "RouteTable", "RouteTableIds", "rtb", "InvalidRouteTableID", "routeTable ID", _with_tags(_route_table), _ROUTE_TABLES_PATHS,
    columns={"route-table-id": "id", "vpc-id": "vpc_id"},
)  # fmt: skip


@ec2
def describe_route_tables(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _ROUTE_TABLES, "RouteTables")


def _gateway(ctx: Context, row: Row) -> dict[str, Any]:
    attachments = [{"State": "available", "VpcId": row["vpc_id"]}] if row["vpc_id"] else []
    return {"InternetGatewayId": row["id"], "OwnerId": ctx.account, "Attachments": attachments}


_INTERNET_GATEWAYS_PATHS = {
    "attachment.state": "Attachments.State",
    "attachment.vpc-id": "Attachments.VpcId",
    "internet-gateway-id": "InternetGatewayId",
    "owner-id": "OwnerId",
}
_INTERNET_GATEWAYS = Listing(
    tables.internet_gateways, "InternetGateway", "InternetGatewayIds", "igw", "InvalidInternetGatewayID", "internetGateway ID", _with_tags(_gateway), _INTERNET_GATEWAYS_PATHS,
    columns={"internet-gateway-id": "id", "attachment.vpc-id": "vpc_id"},
)  # fmt: skip


@ec2
def describe_internet_gateways(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _INTERNET_GATEWAYS, "InternetGateways")


def _acl(ctx: Context, row: Row) -> dict[str, Any]:
    return {
        "NetworkAclId": row["id"],
        "VpcId": row["vpc_id"],
        "OwnerId": ctx.account,
        "IsDefault": row["is_default"],
        "Entries": row["entries"],
        "Associations": [one | {"NetworkAclId": row["id"]} for one in row["associations"]],
    }


_NETWORK_ACLS_PATHS = {
    "association.association-id": "Associations.NetworkAclAssociationId",
    "association.network-acl-id": "Associations.NetworkAclId",
    "association.subnet-id": "Associations.SubnetId",
    "default": "IsDefault",
    "entry.cidr": "Entries.CidrBlock",
    "entry.egress": "Entries.Egress",
    "entry.protocol": "Entries.Protocol",
    "entry.rule-action": "Entries.RuleAction",
    "entry.rule-number": "Entries.RuleNumber",
    "network-acl-id": "NetworkAclId",
    "owner-id": "OwnerId",
    "vpc-id": "VpcId",
}
_NETWORK_ACLS = Listing(
    tables.network_acls, "NetworkAcl", "NetworkAclIds", "acl", "InvalidNetworkAclID", "networkAcl ID", _with_tags(_acl), _NETWORK_ACLS_PATHS,
    columns={"network-acl-id": "id", "vpc-id": "vpc_id", "default": "is_default"},
)  # fmt: skip


@ec2
def describe_network_acls(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _NETWORK_ACLS, "NetworkAcls")


def _dhcp(ctx: Context, row: Row) -> dict[str, Any]:
    configurations = [
        {"Key": key, "Values": [{"Value": value} for value in values]} for key, values in sorted(row["options"].items())
    ]
    return {"DhcpOptionsId": row["id"], "OwnerId": ctx.account, "DhcpConfigurations": configurations}


_DHCP_OPTIONS_PATHS = {
    "dhcp-options-id": "DhcpOptionsId",
    "key": "DhcpConfigurations.Key",
    "owner-id": "OwnerId",
    "value": "DhcpConfigurations.Values.Value",
}
_DHCP_OPTIONS = Listing(
    tables.dhcp_options, "DhcpOptions", "DhcpOptionsIds", "dopt", "InvalidDhcpOptionID", "dhcpOption ID", _with_tags(_dhcp), _DHCP_OPTIONS_PATHS,
    columns={"dhcp-options-id": "id"},
)  # fmt: skip


@ec2
def describe_dhcp_options(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _DHCP_OPTIONS, "DhcpOptions")


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
