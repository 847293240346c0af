"""The default VPC, readable: VPCs, subnets, interfaces, route tables, gateways, ACLs, DHCP options."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from sqlalchemy import Table

from haneul.errors import CloudError, invalid
from haneul.model.region import private_dns_name, public_dns_name, zone_id
from haneul.services.context import Context, Input, Output, ec2, moment
from haneul.services.describe import Filters, matching, page, require
from haneul.services.ec2 import tags
from haneul.services.ec2.security_groups import find_vpc
from haneul.store import tables
from haneul.store.database import Row

View = Callable[[Context, Row], dict[str, Any]]


def _describe(
    ctx: Context,
    params: Input,
    table: Table,
    view: View,
    known: Filters,
    *,
    answer: str,
    ids: str,
    prefix: str,
    code: str,
    what: str,
    key: str,
) -> Output:
    """A Describe over one table: ids, tags, filters, pages."""
    rows = ctx.own(table)
    wanted = params.get(ids, [])
    require(prefix, code, what, wanted, [row["id"] for row in rows])
    rows = [row for row in rows if not wanted or row["id"] in wanted]
    labels = tags.of(ctx, [row["id"] for row in rows])
    label_field = "TagSet" if table is tables.interfaces else "Tags"
    items = [view(ctx, row) | {"Tags": labels[row["id"]], label_field: labels[row["id"]]} for row in rows]
    shown, token = page(ctx, params, matching(ctx, params, items, known), lambda item: item[key], ids=ids)
    return {answer: shown, "NextToken": token}


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


@ec2
def describe_vpcs(ctx: Context, params: Input) -> Output:
    known = {
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
    return _describe(
        ctx, params, tables.vpcs, _vpc, known,
        answer="Vpcs", ids="VpcIds", prefix="vpc", code="InvalidVpcID", what="vpc ID", key="VpcId",
    )  # fmt: skip


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


def _subnet(ctx: Context, row: Row) -> dict[str, Any]:
    used = len(ctx.own(tables.interfaces, subnet_id=row["id"]))
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


@ec2
def describe_subnets(ctx: Context, params: Input) -> Output:
    known = {
        "availability-zone": "AvailabilityZone",
        "availabilityZone": "AvailabilityZone",
        "availability-zone-id": "AvailabilityZoneId",
        "available-ip-address-count": "AvailableIpAddressCount",
        "cidr": "CidrBlock",
        "cidr-block": "CidrBlock",
        "cidrBlock": "CidrBlock",
        "default-for-az": "DefaultForAz",
        "defaultForAz": "DefaultForAz",
        "map-public-ip-on-launch": "MapPublicIpOnLaunch",
        "owner-id": "OwnerId",
        "state": "State",
        "subnet-arn": "SubnetArn",
        "subnet-id": "SubnetId",
        "vpc-id": "VpcId",
    }
    return _describe(
        ctx, params, tables.subnets, _subnet, known,
        answer="Subnets", ids="SubnetIds", prefix="subnet", code="InvalidSubnetID", what="subnet ID", key="SubnetId",
    )  # fmt: skip


def association(ctx: Context, row: Row) -> dict[str, Any] | None:
    """The public address of an interface, as `Association`."""
    if not row["public_address"]:
        return None
    return {
        "IpOwnerId": "amazon",
        "PublicIp": row["public_address"],
        "PublicDnsName": public_dns_name(row["public_address"], ctx.region),
    }


def group_views(ctx: Context, ids: list[str]) -> list[dict[str, str]]:
    names = {row["id"]: row["name"] for row in ctx.tx.among(tables.security_groups, "id", ids)}
    return [{"GroupId": one, "GroupName": names.get(one, "")} for one in ids]


def interface_core(ctx: Context, row: Row) -> dict[str, Any]:
    """What DescribeNetworkInterfaces and DescribeInstances show alike."""
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
        "Groups": group_views(ctx, row["groups"]),
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


def _interface(ctx: Context, row: Row) -> dict[str, Any]:
    view = interface_core(ctx, row) | {
        "AvailabilityZone": row["zone"],
        "RequesterManaged": False,
    }
    if row["instance_id"]:
        view["Attachment"] = attachment_core(row) | {"InstanceId": row["instance_id"], "InstanceOwnerId": ctx.account}
    return view


@ec2
def describe_network_interfaces(ctx: Context, params: Input) -> Output:
    known = {
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
    return _describe(
        ctx, params, tables.interfaces, _interface, known,
        answer="NetworkInterfaces", ids="NetworkInterfaceIds", prefix="eni", code="InvalidNetworkInterfaceID",
        what="networkInterface ID", key="NetworkInterfaceId",
    )  # fmt: skip


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


@ec2
def describe_route_tables(ctx: Context, params: Input) -> Output:
    known = {
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
    return _describe(
        ctx, params, tables.route_tables, _route_table, known,
        answer="RouteTables", ids="RouteTableIds", prefix="rtb", code="InvalidRouteTableID",
        what="routeTable ID", key="RouteTableId",
    )  # fmt: skip


def _gateway(ctx: Context, row: Row) -> dict[str, Any]:
    attachments = [{"State": "available", "VpcId": row["vpc_id"]}] if row["vpc_id"] else []
    return {"InternetGatewayId": row["id"], "OwnerId": ctx.account, "Attachments": attachments}


@ec2
def describe_internet_gateways(ctx: Context, params: Input) -> Output:
    known = {
        "attachment.state": "Attachments.State",
        "attachment.vpc-id": "Attachments.VpcId",
        "internet-gateway-id": "InternetGatewayId",
        "owner-id": "OwnerId",
    }
    return _describe(
        ctx, params, tables.internet_gateways, _gateway, known,
        answer="InternetGateways", ids="InternetGatewayIds", prefix="igw", code="InvalidInternetGatewayID",
        what="internetGateway ID", key="InternetGatewayId",
    )  # fmt: skip


def _acl(ctx: Context, row: Row) -> dict[str, Any]:
    return {
        "NetworkAclId": row["id"],
        "VpcId": row["vpc_id"],
        "OwnerId": ctx.account,
        "IsDefault": row["is_default"],
        "Entries": row["entries"],
        "Associations": [one | {"NetworkAclId": row["id"]} for one in row["associations"]],
    }


@ec2
def describe_network_acls(ctx: Context, params: Input) -> Output:
    known = {
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
    return _describe(
        ctx, params, tables.network_acls, _acl, known,
        answer="NetworkAcls", ids="NetworkAclIds", prefix="acl", code="InvalidNetworkAclID",
        what="networkAcl ID", key="NetworkAclId",
    )  # fmt: skip


def _dhcp(ctx: Context, row: Row) -> dict[str, Any]:
    configurations = [
        {"Key": key, "Values": [{"Value": value} for value in values]} for key, values in sorted(row["options"].items())
    ]
    return {"DhcpOptionsId": row["id"], "OwnerId": ctx.account, "DhcpConfigurations": configurations}


@ec2
def describe_dhcp_options(ctx: Context, params: Input) -> Output:
    known = {
        "dhcp-options-id": "DhcpOptionsId",
        "key": "DhcpConfigurations.Key",
        "owner-id": "OwnerId",
        "value": "DhcpConfigurations.Values.Value",
    }
    return _describe(
        ctx, params, tables.dhcp_options, _dhcp, known,
        answer="DhcpOptions", ids="DhcpOptionsIds", prefix="dopt", code="InvalidDhcpOptionID",
        what="dhcpOption ID", key="DhcpOptionsId",
    )  # fmt: skip


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
