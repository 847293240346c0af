"""Tags of any resource, `TagSpecifications` on create, and the tag operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from haneul.errors import CloudError, invalid, missing, not_found
from haneul.model.ids import resource_type
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import matching, page
from haneul.store import tables

MAX_TAGS = 50
MAX_RESOURCES = 1000
_TABLES = {
    "instance": (tables.instances, "InvalidInstanceID.NotFound", "instance ID"),
    "image": (tables.images, "InvalidAMIID.NotFound", "image ID"),
    "volume": (tables.volumes, "InvalidVolume.NotFound", "volume ID"),
    "network-interface": (tables.interfaces, "InvalidNetworkInterfaceID.NotFound", "networkInterface ID"),
    "vpc": (tables.vpcs, "InvalidVpcID.NotFound", "vpc ID"),
    "subnet": (tables.subnets, "InvalidSubnetID.NotFound", "subnet ID"),
    "security-group": (tables.security_groups, "InvalidGroup.NotFound", "security group ID"),
    "security-group-rule": (
        tables.security_group_rules,
        "InvalidSecurityGroupRuleId.NotFound",
        "security group rule ID",
    ),
    "route-table": (tables.route_tables, "InvalidRouteTableID.NotFound", "routeTable ID"),
    "internet-gateway": (tables.internet_gateways, "InvalidInternetGatewayID.NotFound", "internetGateway ID"),
    "network-acl": (tables.network_acls, "InvalidNetworkAclID.NotFound", "networkAcl ID"),
    "dhcp-options": (tables.dhcp_options, "InvalidDhcpOptionID.NotFound", "dhcpOption ID"),
    "key-pair": (tables.key_pairs, "InvalidKeyPair.NotFound", "key pair ID"),
}

Tags = list[dict[str, str]]


def of(ctx: Context, ids: Sequence[str]) -> dict[str, Tags]:
    """Resource id -> its tags in EC2's shape, sorted by key."""
    found: dict[str, Tags] = {one: [] for one in ids}
    rows = ctx.tx.among(tables.tags, "resource_id", ids, account=ctx.account)
    for row in sorted(rows, key=lambda row: row["key"]):
        if row["resource_id"] in found:
            found[row["resource_id"]].append({"Key": row["key"], "Value": row["value"]})
    return found


def check(tags: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Key -> value. Raises InvalidParameterValue for keys and values that EC2 refuses."""
    wanted: dict[str, str] = {}
    for tag in tags:
        key, value = tag.get("Key", ""), tag.get("Value", "")
        if not key or len(key) > 128 or not key.isprintable():
            raise CloudError("InvalidParameterValue", "Tag keys have 1 to 128 printable characters.")
        if key.lower().startswith("aws:"):
            raise CloudError(
                "InvalidParameterValue", f"Tag keys starting with 'aws:' are reserved for internal use: {key}"
            )
        if len(value) > 256 or not (value.isprintable() or value == ""):
            raise CloudError("InvalidParameterValue", f"Tag values have at most 256 printable characters: {key}")
        if key in wanted:
            raise CloudError("InvalidParameterValue", f"Duplicate tag key '{key}' specified.")
        wanted[key] = value
    return wanted


def specified(params: Input, *allowed: str) -> dict[str, dict[str, str]]:
    """Resource type -> tags, from `TagSpecifications`; other resource types than `allowed` are refused."""
    found: dict[str, dict[str, str]] = {}
    for specification in params.get("TagSpecifications", ()):
        kind = specification.get("ResourceType")
        if not kind:
            raise missing("TagSpecification.ResourceType")
        if kind not in allowed:
            raise invalid(kind, "TagSpecification.ResourceType", f"Allowed here: {', '.join(allowed)}.")
        if kind in found:
            raise CloudError("InvalidParameterValue", f"The resource type '{kind}' is specified twice.")
        found[kind] = check(specification.get("Tags", ()))
    return found


def put(ctx: Context, resource: str, wanted: dict[str, str]) -> None:
    """Set tags on one resource of the caller's; existing keys get the new value."""
    if not wanted:
        return
    kind = resource_type(resource)
    present = {row["key"] for row in ctx.tx.select(tables.tags, resource_id=resource)}
    user_keys = {key for key in present | set(wanted) if not key.startswith("aws:")}
    if len(user_keys) > MAX_TAGS:
        raise CloudError("TagLimitExceeded", f"The maximum number of tags for a resource is {MAX_TAGS}.")
    ctx.tx.delete(tables.tags, tables.tags.c.key.in_(list(wanted)), resource_id=resource)
    for key, value in wanted.items():
        ctx.tx.insert(
            tables.tags,
            resource_id=resource,
            key=key,
            value=value,
            account=ctx.account,
            region=ctx.region,
            resource_type=kind or "",
        )


def remove_all(ctx: Context, resource: str) -> None:
    ctx.tx.delete(tables.tags, resource_id=resource)


def _check_count(given: Sequence[Any]) -> None:
    if len(given) > MAX_TAGS:
        raise CloudError("TagLimitExceeded", f"The maximum number of tags for a resource is {MAX_TAGS}.")


def _check_resources(ctx: Context, ids: Sequence[str]) -> None:
    if len(ids) > MAX_RESOURCES:
        raise CloudError("InvalidParameterValue", f"At most {MAX_RESOURCES} resources can be tagged in one call.")
    for one in ids:
        kind = resource_type(one)
        if kind == "snapshot":
            raise not_found("InvalidSnapshot.NotFound", "snapshot", [one])
        if kind not in _TABLES:
            raise CloudError("InvalidID", f"The ID '{one}' is not valid")
        table, code, what = _TABLES[kind]
        row = ctx.tx.get(table, one)
        if row is None or (row["account"], row["region"]) != (ctx.account, ctx.region):
            raise not_found(code, what, [one])


@ec2
def create_tags(ctx: Context, params: Input) -> Output:
    wanted = check(params["Tags"])
    if not wanted:
        raise missing("Tag")
    _check_count(params["Tags"])
    _check_resources(ctx, params["Resources"])
    for resource in dict.fromkeys(params["Resources"]):
        put(ctx, resource, wanted)
        _touch(ctx, resource)
    return {}


@ec2
def delete_tags(ctx: Context, params: Input) -> Output:
    """A tag without a value goes whatever its value; with one, only if it has that value; none: all go."""
    given = params.get("Tags", [])
    _check_resources(ctx, params["Resources"])
    check({"Key": tag.get("Key", "")} for tag in given)
    _check_count(given)
    for resource in dict.fromkeys(params["Resources"]):
        for tag in given:
            same = {"resource_id": resource, "key": tag["Key"]}
            ctx.tx.delete(tables.tags, **(same | ({"value": tag["Value"]} if "Value" in tag else {})))
        if not params.get("Tags"):
            ctx.tx.delete(tables.tags, ~tables.tags.c.key.startswith("aws:"), resource_id=resource)
        _touch(ctx, resource)
    return {}


def _touch(ctx: Context, resource: str) -> None:
    """A row's version is the key of its cached form, which shows its tags."""
    ctx.tx.update(_TABLES[resource_type(resource) or ""][0], resource)


@ec2
def describe_tags(ctx: Context, params: Input) -> Output:
    items = [
        {
            "ResourceId": row["resource_id"],
            "ResourceType": row["resource_type"],
            "Key": row["key"],
            "Value": row["value"],
        }
        for row in ctx.own(tables.tags)
    ]
    known = {"key": "Key", "value": "Value", "resource-id": "ResourceId", "resource-type": "ResourceType"}
    with_tag = [item | {"Tags": [{"Key": item["Key"], "Value": item["Value"]}]} for item in items]
    wanted = matching(ctx, params, with_tag, known)
    shown, token = page(ctx, params, wanted, lambda item: f"{item['ResourceId']}\0{item['Key']}")
    return {"Tags": shown, "NextToken": token}
