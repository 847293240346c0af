"""Tags of any resource, `TagSpecifications` on create, and the tag operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from haneul.errors import CloudError, invalid, missing, not_found
from haneul.model.ids import resource_type
from haneul.model.metadata import is_tag_key
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import exact_conditions, matching, page
from haneul.store import tables

MAX_RESOURCES = 1000
#: Resource type -> (code, what it is called) of the refusal of an unknown id.
_UNKNOWN = {
    "instance": ("InvalidInstanceID.NotFound", "instance ID"),
    "image": ("InvalidAMIID.NotFound", "image ID"),
    "snapshot": ("InvalidSnapshot.NotFound", "snapshot"),
    "volume": ("InvalidVolume.NotFound", "volume ID"),
    "network-interface": ("InvalidNetworkInterfaceID.NotFound", "networkInterface ID"),
    "vpc": ("InvalidVpcID.NotFound", "vpc ID"),
    "subnet": ("InvalidSubnetID.NotFound", "subnet ID"),
    "security-group": ("InvalidGroup.NotFound", "security group ID"),
    "security-group-rule": ("InvalidSecurityGroupRuleId.NotFound", "security group rule ID"),
    "route-table": ("InvalidRouteTableID.NotFound", "routeTable ID"),
    "internet-gateway": ("InvalidInternetGatewayID.NotFound", "internetGateway ID"),
    "network-acl": ("InvalidNetworkAclID.NotFound", "networkAcl ID"),
    "dhcp-options": ("InvalidDhcpOptionID.NotFound", "dhcpOption ID"),
    "key-pair": ("InvalidKeyPair.NotFound", "key pair ID"),
    "launch-template": ("InvalidLaunchTemplateId.NotFound", "launch template ID"),
    "placement-group": ("InvalidPlacementGroup.Unknown", "placement group ID"),
    "fleet": ("InvalidFleetId.NotFound", "fleet ID"),
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


def check_for_metadata(keys: Iterable[str]) -> None:
    """Keys of an instance whose tags are shown in its metadata: each is a part of a path there (EC2 User Guide, "Work with instance tags in instance metadata")."""
    for key in keys:
        if not is_tag_key(key):
            raise CloudError(
                "InvalidParameterValue",
                f"'{key[:128]}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}}), "
                "and must not be a reserved name ('.', '..', '_index')",
            )


def _check_shown_in_metadata(ctx: Context, ids: Sequence[str], wanted: Iterable[str]) -> None:
    instances = [one for one in ids if resource_type(one) == "instance"]
    for row in ctx.tx.among(tables.instances, "id", instances):
        if row["metadata_options"].get("InstanceMetadataTags") == "enabled":
            check_for_metadata(wanted)


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
    present = {row["key"]: row["value"] for row in ctx.tx.select(tables.tags, resource_id=resource)}
    _check_count(ctx, [key for key in present | wanted if not key.startswith("aws:")])
    changed = {key: value for key, value in wanted.items() if present.get(key) != value}
    if present.keys() & changed.keys():
        ctx.tx.delete(tables.tags, tables.tags.c.key.in_(list(changed)), resource_id=resource)
    ctx.tx.insert_many(tables.tags, rows(ctx, resource, changed))


def rows(ctx: Context, resource: str, wanted: dict[str, str]) -> list[dict[str, Any]]:
    """Tags as rows of the table."""
    scope = {"account": ctx.account, "region": ctx.region, "resource_type": resource_type(resource) or ""}
    return [{"resource_id": resource, "key": key, "value": value} | scope for key, value in wanted.items()]


def remove_all(ctx: Context, resource: str) -> None:
    ctx.tx.delete(tables.tags, resource_id=resource)


def _check_count(ctx: Context, keys: Sequence[Any]) -> None:
    most = ctx.settings.quota_tags
    if len(keys) > most:
        raise CloudError("TagLimitExceeded", f"The maximum number of tags for a resource is {most}.")


def _check_resources(ctx: Context, ids: Sequence[str]) -> None:
    if len(ids) > MAX_RESOURCES:
        raise CloudError("InvalidParameterValue", f"At most {MAX_RESOURCES} resources can be tagged in one call.")
    by_table: dict[Any, list[str]] = {}
    for one in ids:
        kind = resource_type(one)
        if kind not in _UNKNOWN:
            raise CloudError("InvalidID", f"The ID '{one[:80]}' is not valid")
        by_table.setdefault(tables.BY_PREFIX.get(one.rpartition("-")[0]), []).append(one)
    for table, wanted in by_table.items():
        known = (
            {row["id"] for row in ctx.tx.among(table, "id", wanted, account=ctx.account, region=ctx.region)}
            if table is not None
            else set()
        )
        for one in wanted:
            if one not in known:
                code, what = _UNKNOWN[resource_type(one) or ""]
                raise not_found(code, what, [one])


@ec2
def create_tags(ctx: Context, params: Input) -> Output:
    wanted = check(params["Tags"])
    if not wanted:
        raise missing("Tag")
    _check_count(ctx, params["Tags"])
    _check_resources(ctx, params["Resources"])
    _check_shown_in_metadata(ctx, params["Resources"], wanted)
    for resource in dict.fromkeys(params["Resources"]):
        put(ctx, resource, wanted)
    return {}


@ec2
def delete_tags(ctx: Context, params: Input) -> Output:
    """A tag without a value goes whatever its value; with one, only if it has that value; none: all go."""
    given = params.get("Tags", [])
    _check_resources(ctx, params["Resources"])
    check({"Key": tag.get("Key", "")} for tag in given)
    _check_count(ctx, given)
    for resource in dict.fromkeys(params["Resources"]):
        for tag in given:
            same = {"resource_id": resource, "key": tag["Key"]}
            ctx.tx.delete(tables.tags, **(same | ({"value": tag["Value"]} if "Value" in tag else {})))
        if not params.get("Tags"):
            ctx.tx.delete(tables.tags, ~tables.tags.c.key.startswith("aws:"), resource_id=resource)
    return {}


_TAG_COLUMNS = {"key": "key", "value": "value", "resource-id": "resource_id", "resource-type": "resource_type"}


@ec2
def describe_tags(ctx: Context, params: Input) -> Output:
    items = [
        {
            "ResourceId": row["resource_id"],
            "ResourceType": row["resource_type"],
            "Key": row["key"],
            "Value": row["value"],
        }
        for row in ctx.own(tables.tags, *exact_conditions(params, tables.tags, _TAG_COLUMNS))
    ]
    known = {"key": "Key", "value": "Value", "resource-id": "ResourceId", "resource-type": "ResourceType"}
    with_tag = [item | {"Tags": [{"Key": item["Key"], "Value": item["Value"]}]} for item in items]
    wanted = matching(ctx, params, with_tag, known)
    shown, token = page(ctx, params, wanted, lambda item: f"{item['ResourceId']}\0{item['Key']}")
    return {"Tags": shown, "NextToken": token}
