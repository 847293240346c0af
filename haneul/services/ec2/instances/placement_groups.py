"""Placement groups: spread, cluster and partition, as far as there are servers to honour them with.

EC2 User Guide, "Placement groups for your Amazon EC2 instances". Distinct hardware is a distinct server here, so on one
server a spread group holds one instance; fake drivers have no hardware, and there only EC2's own numbers bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haneul.errors import CloudError, combination, invalid, missing
from haneul.model.instance_types import InstanceType
from haneul.services import placement, quotas
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe, with_named
from haneul.services.ec2 import tags
from haneul.store import tables
from haneul.store.database import Row

MAX_PARTITIONS = 7
STRATEGIES = ("cluster", "spread", "partition")


def _unknown(names: Sequence[str]) -> CloudError:
    return CloudError("InvalidPlacementGroup.Unknown", f"The Placement Group '{names[0][:255]}' is unknown.")


def named(ctx: Context, given: dict[str, Any]) -> Row | None:
    """The group that a `Placement` names by `GroupName` or `GroupId`, None where it names none."""
    if given.get("GroupName") and given.get("GroupId"):
        raise combination("The parameters GroupName and GroupId cannot be used together.")
    if given.get("GroupId"):
        rows = ctx.own(tables.placement_groups, id=given["GroupId"])
    elif given.get("GroupName"):
        rows = ctx.own(tables.placement_groups, name=given["GroupName"])
    else:
        return None
    if not rows:
        raise _unknown([given.get("GroupName") or given["GroupId"]])
    return rows[0]


def check_type(group: Row | None, kind: InstanceType) -> None:
    """Raises InvalidParameterCombination for a type that the group's strategy does not take (as `SupportedStrategies` says)."""
    if group is not None and group["strategy"] not in kind.strategies:
        raise combination(
            f"{group['strategy'].title()} placement groups are not supported by the '{kind.name}' instance type. Specify a "
            "supported instance type or change the placement group strategy, and try again."
        )


def partition(group: Row | None, given: dict[str, Any]) -> int:
    """The partition that a `Placement` asks for; 0 leaves the choice to haneul."""
    number = given.get("PartitionNumber")
    if number is None:
        return 0
    if group is None or group["strategy"] != "partition":
        raise combination("The parameter PartitionNumber needs a placement group of the strategy partition.")
    if not 1 <= number <= group["partitions"]:
        raise invalid(number, "partitionNumber", f"The placement group has {group['partitions']} partitions.")
    return int(number)


def members(ctx: Context, name: str, *, without: str = "") -> list[placement.Member]:
    """The group's instances that hold room on a server: stopped ones do not."""
    table = tables.instances
    rows = ctx.own(table, table.c.reserved_vcpus > 0, table.c.server_id != "", placement_group=name)
    return [
        placement.Member(row["server_id"], row["zone"], row["partition_number"]) for row in rows if row["id"] != without
    ]


class Placer:
    """Reserves room for instances of one launch, each where the group's strategy lets it be."""

    def __init__(self, ctx: Context, group: Row | None, zone: str, partition: int, *, without: str = "") -> None:
        self._ctx = ctx
        self._group = group
        self._zone = zone
        self._partition = partition
        self._members = members(ctx, group["name"], without=without) if group else []

    def place(self, wanted: placement.Need, only: str = "") -> placement.Member:
        """Raises InsufficientInstanceCapacity or InstanceLimitExceeded."""
        if self._group is None:
            server = placement.reserve(self._ctx.tx, wanted, self._ctx.settings, only)
            return placement.Member(server, self._zone, 0)
        self._check_spread()
        refusal: CloudError | None = None
        for number in self._partitions():
            try:
                server = placement.reserve(self._ctx.tx, wanted, self._ctx.settings, only, self._refused(number))
            except CloudError as error:
                refusal = refusal or error
                continue
            self._members.append(placement.Member(server, self._zone, number))
            return self._members[-1]
        assert refusal is not None
        raise refusal

    def _partitions(self) -> list[int]:
        assert self._group is not None
        if self._group["strategy"] != "partition":
            return [0]
        if self._partition:
            return [self._partition]
        return placement.least_used_partition(self._group["partitions"], self._members)

    def _check_spread(self) -> None:
        assert self._group is not None
        here = sum(member.zone == self._zone for member in self._members)
        if self._group["strategy"] == "spread" and here >= placement.MAX_SPREAD:
            raise CloudError(
                "InstanceLimitExceeded",
                f"A spread placement group has at most {placement.MAX_SPREAD} running instances in a zone.",
            )

    def _refused(self, number: int) -> dict[str, str]:
        assert self._group is not None
        if self._ctx.settings.drivers == "fake":
            return {}
        servers = [row["id"] for row in self._ctx.tx.select(tables.servers)]
        return placement.group_refuses(self._group["strategy"], self._members, servers, number)


def _view(ctx: Context, row: Row, labels: list[dict[str, str]]) -> dict[str, Any]:
    view = {
        "GroupId": row["id"],
        "GroupName": row["name"],
        "GroupArn": f"arn:aws:ec2:{ctx.region}:{ctx.account}:placement-group/{row['name']}",
        "State": "available",
        "Strategy": row["strategy"],
        "Tags": labels,
    }
    if row["strategy"] == "partition":
        view["PartitionCount"] = row["partitions"]
    return view | ({"SpreadLevel": row["spread_level"]} if row["strategy"] == "spread" else {})


def _views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    labels = tags.of(ctx, [row["id"] for row in rows])
    return [_view(ctx, row, labels[row["id"]]) for row in rows]


@ec2
def create_placement_group(ctx: Context, params: Input) -> Output:
    name, strategy = params.get("GroupName", ""), params.get("Strategy", "cluster")
    if not name:
        raise missing("GroupName")
    if len(name) > 255 or not name.isascii() or not name.isprintable():
        raise invalid(name[:260], "groupName", "It has at most 255 printable ASCII characters.")
    if strategy not in STRATEGIES:
        raise CloudError("UnsupportedOperation", f"haneul does not have placement groups of the strategy {strategy}.")
    partitions = params.get("PartitionCount")
    if partitions is not None and strategy != "partition":
        raise combination("The parameter PartitionCount is for the strategy partition only.")
    if partitions is not None and not 1 <= partitions <= MAX_PARTITIONS:
        raise invalid(partitions, "partitionCount", f"It is between 1 and {MAX_PARTITIONS}.")
    if params.get("SpreadLevel") == "host":
        raise CloudError("UnsupportedOperation", "Host level spread placement groups are for Outposts only.")
    if params.get("SpreadLevel") and strategy != "spread":
        raise combination("The parameter SpreadLevel is for the strategy spread only.")
    if ctx.own(tables.placement_groups, name=name):
        raise CloudError("InvalidPlacementGroup.Duplicate", f"The Placement Group '{name}' already exists.")
    wanted = tags.specified(params, "placement-group").get("placement-group", {})
    quotas.check_room(
        ctx, tables.placement_groups, ctx.settings.quota_placement_groups, "PlacementGroupLimitExceeded",
        "placement groups", "quota_placement_groups",
    )  # fmt: skip
    count = (partitions or MAX_PARTITIONS) if strategy == "partition" else 0
    spread = "rack" if strategy == "spread" else ""
    group = ctx.add(tables.placement_groups, "pg", name=name, strategy=strategy, spread_level=spread, partitions=count)
    tags.put(ctx, group, wanted)
    return {"PlacementGroup": _views(ctx, ctx.own(tables.placement_groups, id=group))[0]}


@ec2
def delete_placement_group(ctx: Context, params: Input) -> Output:
    row = named(ctx, {"GroupName": params["GroupName"]})
    if row is None:
        raise missing("GroupName")
    table = tables.instances
    if ctx.own(table, table.c.power != "terminated", placement_group=row["name"]):
        text = f"The placement group '{row['name']}' is in use and may not be deleted."
        raise CloudError("InvalidPlacementGroup.InUse", text)
    tags.remove_all(ctx, row["id"])
    ctx.tx.delete(tables.placement_groups, id=row["id"])
    return {}


_GROUPS = Listing(
    tables.placement_groups, "PlacementGroup", "GroupIds", "pg", "InvalidPlacementGroupId", "placement group", _views,
    {"group-name": "GroupName", "group-arn": "GroupArn", "spread-level": "SpreadLevel", "state": "State",
     "strategy": "Strategy"},
    columns={"group-name": "name", "strategy": "strategy"}, unknown=_unknown,
)  # fmt: skip


@ec2
def describe_placement_groups(ctx: Context, params: Input) -> Output:
    named = with_named(ctx, params, _GROUPS, "GroupNames", _unknown)
    return {"PlacementGroups": describe(ctx, named, _GROUPS, "PlacementGroups")["PlacementGroups"]}
