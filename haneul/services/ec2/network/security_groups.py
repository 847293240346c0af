"""Security groups and their rules. Each CIDR or peer is a rule of its own, with an `sgr-` id.

A change of rules takes effect on running instances by the next pass of their server's agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from haneul.errors import CloudError, missing, not_found
from haneul.model.ids import is_id
from haneul.model.network import Direction, Rule, normal_cidr, normal_cidr6, normal_ports, normal_protocol
from haneul.services import quotas
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe, require, with_named
from haneul.services.ec2 import tags
from haneul.store import tables
from haneul.store.database import Row
from haneul.store.rows import rule_of

_NAME = re.compile(r"[\w .:/()#,@\[\]+=&;{}!$*-]{1,255}\Z", re.ASCII)
_LEGACY = ("IpProtocol", "FromPort", "ToPort", "CidrIp", "SourceSecurityGroupName")


def default_vpc(ctx: Context) -> Row:
    rows = ctx.own(tables.vpcs, is_default=True)
    if not rows:
        raise CloudError("VPCIdNotSpecified", "No default VPC for this user")
    return rows[0]


def find_vpc(ctx: Context, vpc_id: str) -> Row:
    rows = ctx.own(tables.vpcs)
    require("vpc", "InvalidVpcID", "vpc ID", [vpc_id], [row["id"] for row in rows])
    return next(row for row in rows if row["id"] == vpc_id)


def find(ctx: Context, group_id: str) -> Row:
    rows = ctx.own(tables.security_groups, id=group_id)
    if not rows:
        _check_form([group_id])
        raise CloudError("InvalidGroup.NotFound", f"The security group '{group_id}' does not exist")
    return rows[0]


def _check_form(ids: Iterable[str]) -> None:
    for one in ids:
        if not is_id("sg", one):
            raise CloudError("InvalidGroupId.Malformed", f'Invalid id: "{one}" (expecting "sg-...")')


def find_by_name(ctx: Context, name: str, vpc_id: str) -> Row:
    rows = ctx.own(tables.security_groups, name=name, vpc_id=vpc_id)
    if not rows:
        raise CloudError(
            "InvalidGroup.NotFound", f"The security group '{name}' does not exist in default VPC '{vpc_id}'"
        )
    return rows[0]


def _named(ctx: Context, params: Input) -> Row:
    """The group that a request names, by id or (in the default VPC) by name."""
    if params.get("GroupId"):
        return find(ctx, params["GroupId"])
    if params.get("GroupName"):
        return find_by_name(ctx, params["GroupName"], default_vpc(ctx)["id"])
    raise missing("groupName or groupId")


# --- rules in and out -------------------------------------------------------------------------------


def _permissions(params: Input) -> list[dict[str, Any]]:
    """`IpPermissions`, or the old form with one permission at the top level."""
    if params.get("IpPermissions"):
        return list(params["IpPermissions"])
    if not any(params.get(name) is not None for name in _LEGACY):
        raise missing("IpPermissions")
    legacy: dict[str, Any] = {name: params[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in params}
    if params.get("CidrIp"):
        legacy["IpRanges"] = [{"CidrIp": params["CidrIp"]}]
    if params.get("SourceSecurityGroupName"):
        legacy.setdefault("IpProtocol", "-1")
        legacy["UserIdGroupPairs"] = [{"GroupName": params["SourceSecurityGroupName"]}]
    return [legacy]


def _peer(ctx: Context, pair: dict[str, Any], vpc_id: str) -> str:
    if (pair.get("UserId") or ctx.account) != ctx.account:
        other = pair.get("GroupId") or pair.get("GroupName", "")
        raise CloudError("InvalidGroup.NotFound", f"The security group '{other}' does not exist")
    if pair.get("GroupId"):
        return str(find(ctx, pair["GroupId"])["id"])
    if pair.get("GroupName"):
        return str(find_by_name(ctx, pair["GroupName"], vpc_id)["id"])
    raise missing("groupId")


def _rules(ctx: Context, params: Input, group: Row, direction: Direction) -> Iterator[tuple[Rule, str]]:
    """Every (rule, description) that the request spells out. Raises `CloudError` for malformed ones."""
    for permission in _permissions(params):
        if not permission.get("IpProtocol"):
            raise missing("IpPermissions.IpProtocol")
        protocol = normal_protocol(permission["IpProtocol"])
        ports = normal_ports(protocol, permission.get("FromPort"), permission.get("ToPort"))
        base = Rule(direction, protocol, *ports)
        if permission.get("PrefixListIds"):
            raise CloudError("UnsupportedOperation", "haneul does not have managed prefix lists.")
        peers: list[tuple[Rule, str]] = []
        for one in permission.get("IpRanges", ()):
            peers.append((replace(base, cidr=normal_cidr(one.get("CidrIp", ""))), one.get("Description", "")))
        for one in permission.get("Ipv6Ranges", ()):
            peers.append((replace(base, cidr6=normal_cidr6(one.get("CidrIpv6", ""))), one.get("Description", "")))
        for one in permission.get("UserIdGroupPairs", ()):
            peers.append((replace(base, group=_peer(ctx, one, group["vpc_id"])), one.get("Description", "")))
        if not peers:
            raise CloudError("InvalidParameterValue", "A rule needs a CIDR range or a group as its peer.")
        yield from peers


def _spell(rule: Rule) -> str:
    peer = rule.cidr or rule.cidr6 or rule.group
    protocol = "ALL" if rule.protocol == "-1" else rule.protocol.upper()
    ports = "" if rule.from_port == -1 else f", from port: {rule.from_port}, to port: {rule.to_port}"
    return f"peer: {peer}, {protocol}{ports}, ALLOW"


def _rule_view(ctx: Context, row: Row, labels: list[dict[str, str]]) -> dict[str, Any]:
    view: dict[str, Any] = {
        "SecurityGroupRuleId": row["id"],
        "GroupId": row["group_id"],
        "GroupOwnerId": ctx.account,
        "IsEgress": row["direction"] == "egress",
        "IpProtocol": row["protocol"],
        "FromPort": row["from_port"],
        "ToPort": row["to_port"],
        "Tags": labels,
    }
    if row["description"]:
        view["Description"] = row["description"]
    if row["cidr"]:
        view["CidrIpv4"] = row["cidr"]
    if row["cidr6"]:
        view["CidrIpv6"] = row["cidr6"]
    if row["peer_group"]:
        view["ReferencedGroupInfo"] = {"GroupId": row["peer_group"], "UserId": ctx.account}
    return view


def _permission_views(ctx: Context, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rules regrouped by protocol and ports, as DescribeSecurityGroups shows them."""
    grouped: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in rows:
        key = (row["protocol"], row["from_port"], row["to_port"])
        view = grouped.setdefault(
            key,
            {
                "IpProtocol": row["protocol"],
                "IpRanges": [],
                "Ipv6Ranges": [],
                "PrefixListIds": [],
                "UserIdGroupPairs": [],
            },
        )
        if row["protocol"] in ("tcp", "udp", "icmp", "icmpv6"):
            view |= {"FromPort": row["from_port"], "ToPort": row["to_port"]}
        text = {"Description": row["description"]} if row["description"] else {}
        if row["cidr"]:
            view["IpRanges"].append({"CidrIp": row["cidr"]} | text)
        if row["cidr6"]:
            view["Ipv6Ranges"].append({"CidrIpv6": row["cidr6"]} | text)
        if row["peer_group"]:
            view["UserIdGroupPairs"].append({"GroupId": row["peer_group"], "UserId": ctx.account} | text)
    return list(grouped.values())


# --- operations -------------------------------------------------------------------------------------


@ec2
def create_security_group(ctx: Context, params: Input) -> Output:
    name, description = params["GroupName"], params["Description"]
    if not description:
        raise missing("GroupDescription")
    for value, parameter in ((name, "groupName"), (description, "GroupDescription")):
        if not _NAME.match(value):
            raise CloudError(
                "InvalidParameterValue",
                f"Value ({value[:260]}) for parameter {parameter} is invalid. Character sets beyond ASCII are not supported.",
            )
    if name.startswith("sg-"):
        raise CloudError(
            "InvalidParameterValue",
            f"Value ({name}) for parameter groupName is invalid. Group names may not be in the format sg-*.",
        )
    vpc = find_vpc(ctx, params["VpcId"]) if params.get("VpcId") else default_vpc(ctx)
    if name == "default":
        raise CloudError("InvalidParameterValue", "Cannot use reserved security group name: default")
    if ctx.own(tables.security_groups, name=name, vpc_id=vpc["id"]):
        raise CloudError("InvalidGroup.Duplicate", f"The security group '{name}' already exists for VPC '{vpc['id']}'")
    wanted = tags.specified(params, "security-group").get("security-group", {})
    quotas.check_room(
        ctx, tables.security_groups, ctx.settings.quota_security_groups, "SecurityGroupLimitExceeded",
        "security groups", "quota_security_groups",
    )  # fmt: skip
    group = ctx.add(tables.security_groups, "sg", vpc_id=vpc["id"], name=name, description=description)
    # A new group lets everything out; Terraform revokes this rule first and adds its own.
    ctx.add(
        tables.security_group_rules,
        "sgr",
        group_id=group,
        direction="egress",
        protocol="-1",
        from_port=-1,
        to_port=-1,
        cidr="0.0.0.0/0",
    )
    tags.put(ctx, group, wanted)
    shown = [{"Key": key, "Value": value} for key, value in wanted.items()]
    arn = f"arn:aws:ec2:{ctx.region}:{ctx.account}:security-group/{group}"
    return {"GroupId": group, "Tags": shown, "SecurityGroupArn": arn}


@ec2
def delete_security_group(ctx: Context, params: Input) -> Output:
    group = _named(ctx, params)
    if group["name"] == "default":
        raise CloudError(
            "CannotDelete", f'the specified group: "{group["id"]}" name: "default" cannot be deleted by a user'
        )
    used = any(group["id"] in row["groups"] for row in ctx.own(tables.interfaces, vpc_id=group["vpc_id"]))
    peers = ctx.own(
        tables.security_group_rules, tables.security_group_rules.c.group_id != group["id"], peer_group=group["id"]
    )
    if used or peers:
        raise CloudError("DependencyViolation", f"resource {group['id']} has a dependent object")
    for rule in ctx.own(tables.security_group_rules, group_id=group["id"]):
        tags.remove_all(ctx, rule["id"])
    ctx.tx.delete(tables.security_group_rules, group_id=group["id"])
    ctx.tx.delete(tables.security_groups, id=group["id"])
    tags.remove_all(ctx, group["id"])
    return {"Return": True, "GroupId": group["id"]}


def _authorize(ctx: Context, params: Input, direction: Direction) -> Output:
    group = _named(ctx, params)
    present = {rule_of(row) for row in ctx.own(tables.security_group_rules, group_id=group["id"])}
    wanted_tags = tags.specified(params, "security-group-rule").get("security-group-rule", {})
    created: list[str] = []
    asked = list(_rules(ctx, params, group, direction))
    if len({rule for rule, _ in asked}) != len(asked):
        raise CloudError("InvalidParameterValue", "The same permission must not appear multiple times")
    for rule, description in asked:
        if rule in present:
            raise CloudError("InvalidPermission.Duplicate", f'the specified rule "{_spell(rule)}" already exists')
        present.add(rule)
        most = ctx.settings.quota_rules
        if sum(one.direction == direction for one in present) > most:
            raise CloudError(
                "RulesPerSecurityGroupLimitExceeded", f"A security group has at most {most} rules a direction."
            )
        # Rules are shown in the order in which they were given.
        created.append(_insert_rule(ctx, group["id"], rule, description, ctx.now + len(created) * 1e-6))
        tags.put(ctx, created[-1], wanted_tags)
    rows = {row["id"]: row for row in ctx.own(tables.security_group_rules, group_id=group["id"])}
    labels = tags.of(ctx, created)
    return {"Return": True, "SecurityGroupRules": [_rule_view(ctx, rows[one], labels[one]) for one in created]}


def _insert_rule(ctx: Context, group_id: str, rule: Rule, description: str, created: float) -> str:
    return ctx.add(
        tables.security_group_rules,
        "sgr",
        created=created,
        group_id=group_id,
        direction=rule.direction,
        protocol=rule.protocol,
        from_port=rule.from_port,
        to_port=rule.to_port,
        cidr=rule.cidr,
        cidr6=rule.cidr6,
        peer_group=rule.group,
        description=description,
    )


def _revoke(ctx: Context, params: Input, direction: Direction) -> Output:
    group = _named(ctx, params)
    rows = ctx.own(tables.security_group_rules, group_id=group["id"], direction=direction)
    if params.get("SecurityGroupRuleIds"):
        by_id = {row["id"]: row for row in rows}
        unknown = [one for one in params["SecurityGroupRuleIds"] if one not in by_id]
        if unknown:
            raise not_found("InvalidSecurityGroupRuleId.NotFound", "security group rule ID", unknown)
        gone = [by_id[one] for one in params["SecurityGroupRuleIds"]]
    else:
        by_rule = {rule_of(row): row for row in rows}
        wanted = [rule for rule, _ in _rules(ctx, params, group, direction)]
        if any(rule not in by_rule for rule in wanted):
            raise CloudError("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
        gone = [by_rule[rule] for rule in wanted]
    for row in gone:
        ctx.tx.delete(tables.security_group_rules, id=row["id"])
        tags.remove_all(ctx, row["id"])
    return {"Return": True, "UnknownIpPermissions": []}


@ec2
def authorize_security_group_ingress(ctx: Context, params: Input) -> Output:
    return _authorize(ctx, params, "ingress")


@ec2
def authorize_security_group_egress(ctx: Context, params: Input) -> Output:
    return _authorize(ctx, params, "egress")


@ec2
def revoke_security_group_ingress(ctx: Context, params: Input) -> Output:
    return _revoke(ctx, params, "ingress")


@ec2
def revoke_security_group_egress(ctx: Context, params: Input) -> Output:
    return _revoke(ctx, params, "egress")


def _permission_filters() -> dict[str, str]:
    found: dict[str, str] = {}
    for prefix, field in (("ip-permission", "IpPermissions"), ("egress.ip-permission", "IpPermissionsEgress")):
        found |= {
            f"{prefix}.cidr": f"{field}.IpRanges.CidrIp",
            f"{prefix}.from-port": f"{field}.FromPort",
            f"{prefix}.group-id": f"{field}.UserIdGroupPairs.GroupId",
            f"{prefix}.group-name": f"{field}.UserIdGroupPairs.GroupName",
            f"{prefix}.ipv6-cidr": f"{field}.Ipv6Ranges.CidrIpv6",
            f"{prefix}.protocol": f"{field}.IpProtocol",
            f"{prefix}.to-port": f"{field}.ToPort",
            f"{prefix}.user-id": f"{field}.UserIdGroupPairs.UserId",
        }
    return found


_FILTERS = _permission_filters() | {
    "description": "Description",
    "group-id": "GroupId",
    "group-name": "GroupName",
    "owner-id": "OwnerId",
    "vpc-id": "VpcId",
}


def _views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    ids = [row["id"] for row in rows]
    labels = tags.of(ctx, ids)
    rules: dict[str, list[Row]] = {}
    found = ctx.tx.among(tables.security_group_rules, "group_id", ids)
    for rule in sorted(found, key=lambda row: (row["created"], row["id"])):
        rules.setdefault(rule["group_id"], []).append(rule)
    return [_view(ctx, row, rules.get(row["id"], []), labels[row["id"]]) for row in rows]


def _view(ctx: Context, row: Row, rules: list[Row], labels: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "GroupId": row["id"],
        "GroupName": row["name"],
        "Description": row["description"],
        "OwnerId": ctx.account,
        "VpcId": row["vpc_id"],
        "SecurityGroupArn": f"arn:aws:ec2:{ctx.region}:{ctx.account}:security-group/{row['id']}",
        "IpPermissions": _permission_views(ctx, [one for one in rules if one["direction"] == "ingress"]),
        "IpPermissionsEgress": _permission_views(ctx, [one for one in rules if one["direction"] == "egress"]),
        **({"Tags": labels} if labels else {}),
    }


def _unknown(ids: Sequence[str]) -> CloudError:
    return CloudError("InvalidGroup.NotFound", f"The security group '{ids[0]}' does not exist")


_GROUPS = Listing(
    tables.security_groups, "SecurityGroup", "GroupIds", "sg", "InvalidGroup", "security group", _views, _FILTERS,
    columns={"group-id": "id", "group-name": "name", "vpc-id": "vpc_id", "description": "description"},
    check=_check_form, unknown=_unknown,
)  # fmt: skip


@ec2
def describe_security_groups(ctx: Context, params: Input) -> Output:
    """Names mean groups of the default VPC."""
    equal = {"vpc_id": default_vpc(ctx)["id"]} if params.get("GroupNames") else {}
    named = with_named(ctx, params, _GROUPS, "GroupNames", _unknown, **equal)
    return describe(ctx, named, _GROUPS, "SecurityGroups")


def _rule_views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    labels = tags.of(ctx, [row["id"] for row in rows])
    return [_rule_view(ctx, row, labels[row["id"]]) for row in rows]


_RULES = Listing(
    tables.security_group_rules, "SecurityGroupRule", "SecurityGroupRuleIds", "sgr", "InvalidSecurityGroupRuleId",
    "security group rule ID",
    _rule_views,
    {"group-id": "GroupId", "security-group-rule-id": "SecurityGroupRuleId"},
    columns={"group-id": "group_id", "security-group-rule-id": "id"},
)  # fmt: skip


@ec2
def describe_security_group_rules(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _RULES, "SecurityGroupRules")
