"""The default VPC that every account finds in every region (Amazon VPC User Guide, "Default VPCs")."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table

from haneul.model.ids import NewId
from haneul.model.region import dns_domain, zones
from haneul.store import tables
from haneul.store.database import Transaction

VPC_CIDR = "172.31.0.0/16"
_SUBNET_CIDRS = ("172.31.0.0/20", "172.31.16.0/20", "172.31.32.0/20")
_ANYWHERE = "0.0.0.0/0"


def _acl_entries() -> list[dict[str, Any]]:
    every = {"CidrBlock": _ANYWHERE, "Protocol": "-1"}
    return [
        every | {"Egress": egress, "RuleAction": action, "RuleNumber": number}
        for egress in (True, False)
        for action, number in (("allow", 100), ("deny", 32767))
    ]


def ensure(tx: Transaction, account: str, region: str, now: float, new_id: NewId) -> None:
    """Make the default VPC with all that belongs to it, once."""
    if tx.select(tables.vpcs, account=account, region=region, is_default=True):
        return

    def add(table: Table, prefix: str, **values: Any) -> str:
        identifier = new_id(prefix)
        tx.insert(table, id=identifier, account=account, region=region, created=now, **values)
        return identifier

    options = {"domain-name": [dns_domain(region)], "domain-name-servers": ["AmazonProvidedDNS"]}
    dhcp = add(tables.dhcp_options, "dopt", options=options)
    vpc = add(tables.vpcs, "vpc", cidr=VPC_CIDR, dhcp_options_id=dhcp, is_default=True)
    subnets = [
        add(tables.subnets, "subnet", vpc_id=vpc, zone=zone, cidr=cidr, is_default=True, map_public=True)
        for zone, cidr in zip(zones(region), _SUBNET_CIDRS, strict=True)
    ]
    gateway = add(tables.internet_gateways, "igw", vpc_id=vpc)
    routes = [
        {"DestinationCidrBlock": VPC_CIDR, "GatewayId": "local", "Origin": "CreateRouteTable", "State": "active"},
        {"DestinationCidrBlock": _ANYWHERE, "GatewayId": gateway, "Origin": "CreateRoute", "State": "active"},
    ]
    main = {"Main": True, "RouteTableAssociationId": new_id("rtbassoc")}
    add(tables.route_tables, "rtb", vpc_id=vpc, main=True, routes=routes, associations=[main])
    associations = [{"NetworkAclAssociationId": new_id("aclassoc"), "SubnetId": subnet} for subnet in subnets]
    add(tables.network_acls, "acl", vpc_id=vpc, is_default=True, entries=_acl_entries(), associations=associations)
    group = add(tables.security_groups, "sg", vpc_id=vpc, name="default", description="default VPC security group")
    every = {"group_id": group, "protocol": "-1", "from_port": -1, "to_port": -1}
    add(tables.security_group_rules, "sgr", **every, direction="ingress", peer_group=group)
    add(tables.security_group_rules, "sgr", **every, direction="egress", cidr=_ANYWHERE)
