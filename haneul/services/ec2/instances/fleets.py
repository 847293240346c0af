"""EC2 Fleet of the type instant: several launches in one synchronous request (EC2 User Guide, "EC2 Fleet")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from haneul.errors import CloudError, invalid, missing
from haneul.model.instance_types import instance_types
from haneul.model.times import moment
from haneul.services import kept_answers
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe, matching
from haneul.services.ec2 import tags
from haneul.services.ec2.instances import launch, launch_templates, power
from haneul.store import tables
from haneul.store.database import Row

#: Members of an override -> parameters of RunInstances.
_OVERRIDES = ("InstanceType", "SubnetId", "Placement", "ImageId", "BlockDeviceMappings", "KeyName", "MetadataOptions")
MAX_CAPACITY = 1000
MAX_WEIGHT = 999


class _TooFew(Exception):
    """Undoes the launches of a fleet that did not reach its minimum."""


@dataclass(frozen=True)
class _Choice:
    """One launch template with one of its overrides."""

    specification: dict[str, Any]
    override: dict[str, Any]

    @property
    def weight(self) -> float:
        return float(self.override.get("WeightedCapacity") or 1)

    @property
    def shown(self) -> dict[str, Any]:
        override = {name: value for name, value in self.override.items() if name != "InstanceRequirements"}
        return {"LaunchTemplateSpecification": self.specification, "Overrides": override}

    def parameters(self, count: int, labels: list[dict[str, Any]]) -> Input:
        override = {name: self.override[name] for name in _OVERRIDES if self.override.get(name)}
        for member in ("AvailabilityZone", "AvailabilityZoneId"):
            if self.override.get(member):
                override["Placement"] = override.get("Placement", {}) | {member: self.override[member]}
        template = {"LaunchTemplate": self.specification, "TagSpecifications": labels}
        return template | override | {"MinCount": 1, "MaxCount": count}


def _choices(configs: list[dict[str, Any]]) -> Iterator[_Choice]:
    for config in configs:
        specification = config.get("LaunchTemplateSpecification")
        if not specification:
            raise missing("LaunchTemplateConfigs.LaunchTemplateSpecification")
        for override in config.get("Overrides") or [{}]:
            if override.get("InstanceRequirements"):
                raise CloudError("UnsupportedOperation", "haneul does not choose instance types by requirements yet.")
            weight = override.get("WeightedCapacity")
            if weight is not None and not 1 <= weight <= MAX_WEIGHT:
                raise invalid(weight, "WeightedCapacity", f"It is between 1 and {MAX_WEIGHT}.")
            yield _Choice(specification, override)


def _size(choice: _Choice) -> tuple[int, int]:
    """What stands for a price: nothing here has one."""
    kind = instance_types().get(choice.override.get("InstanceType", ""))
    return (kind.memory_mib, kind.vcpus) if kind else (0, 0)


def _ordered(params: Input) -> list[_Choice]:
    choices = list(_choices(params["LaunchTemplateConfigs"]))
    if params.get("OnDemandOptions", {}).get("AllocationStrategy") == "prioritized":
        return sorted(choices, key=lambda one: one.override.get("Priority", float("inf")))
    return sorted(choices, key=_size)


def _check(params: Input) -> int:
    """The capacity to launch, in units."""
    if params.get("Type", "maintain") != "instant":
        raise CloudError("UnsupportedOperation", "haneul has fleets of the type instant only (parameter Type).")
    if not params["LaunchTemplateConfigs"]:
        raise missing("LaunchTemplateConfigs")
    for name in ("SingleInstanceType", "SingleAvailabilityZone", "MaxTotalPrice", "CapacityReservationOptions"):
        if params.get("OnDemandOptions", {}).get(name):
            raise CloudError("UnsupportedOperation", f"haneul does not have OnDemandOptions.{name}.")
    capacity = params["TargetCapacitySpecification"]
    if capacity.get("TargetCapacityUnitType", "units") != "units":
        raise CloudError("UnsupportedOperation", "haneul counts a fleet's capacity in units only.")
    total = capacity["TotalTargetCapacity"]
    if not 1 <= total <= MAX_CAPACITY:
        raise invalid(total, "TotalTargetCapacity", f"It is between 1 and {MAX_CAPACITY}.")
    spot = capacity.get("SpotTargetCapacity", 0)
    if spot or capacity.get("DefaultTargetCapacityType", "on-demand") != "on-demand":
        raise CloudError("UnsupportedOperation", "haneul does not have Spot capacity: ask for on-demand.")
    wanted = capacity.get("OnDemandTargetCapacity", total)
    if not 0 <= wanted <= total:
        raise invalid(wanted, "OnDemandTargetCapacity", f"It is between 0 and the total of {total}.")
    return int(wanted)


def _fulfil(ctx: Context, params: Input, target: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(instances, errors): choice after choice, until the capacity is there."""
    labels = [one for one in params.get("TagSpecifications", ()) if one.get("ResourceType") != "fleet"]
    launched: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    missing_units = float(target)
    for choice in _ordered(params):
        if missing_units <= 0:
            break
        count = int(-(-missing_units // choice.weight))
        try:
            with ctx.tx.savepoint():
                made = launch.run(ctx, launch_templates.merged(ctx, choice.parameters(count, labels)))
        except CloudError as error:
            failure = {"ErrorCode": error.code, "ErrorMessage": error.message, "Lifecycle": "on-demand"}
            errors.append(failure | {"LaunchTemplateAndOverrides": choice.shown})
            continue
        rows = made[tables.instances]
        ids = [row["id"] for row in rows]
        item = {"InstanceIds": ids, "InstanceType": rows[0]["instance_type"], "Lifecycle": "on-demand"}
        launched.append(item | {"LaunchTemplateAndOverrides": choice.shown})
        missing_units -= len(ids) * choice.weight
    least = params.get("OnDemandOptions", {}).get("MinTargetCapacity", 0)
    if target - missing_units < least:
        raise _TooFew(errors)
    return launched, errors


@ec2
def create_fleet(ctx: Context, params: Input) -> Output:
    target = _check(params)
    labels = [one for one in params.get("TagSpecifications", ()) if one.get("ResourceType") == "fleet"]
    wanted = tags.specified({"TagSpecifications": labels}, "fleet").get("fleet", {})
    try:
        with ctx.tx.savepoint():
            launched, errors = _fulfil(ctx, params, target)
    except _TooFew as few:
        launched, errors = [], few.args[0]
    answer = {"Instances": launched, "Errors": errors}
    request = {name: value for name, value in params.items() if name not in ("DryRun", "TagSpecifications")}
    fleet = ctx.add(
        tables.fleets, "fleet", kind="instant", request=kept_answers.dumps(request), answer=kept_answers.dumps(answer)
    )
    tags.put(ctx, fleet, wanted)
    return {"FleetId": fleet} | answer


def _weight(launched: dict[str, Any]) -> float:
    return float(launched["LaunchTemplateAndOverrides"]["Overrides"].get("WeightedCapacity") or 1)


def _view(row: Row, labels: list[dict[str, str]]) -> dict[str, Any]:
    request, answer = kept_answers.loads(row["request"]), kept_answers.loads(row["answer"])
    fulfilled = sum(len(one["InstanceIds"]) * _weight(one) for one in answer["Instances"])
    return {
        "FleetId": row["id"],
        "Type": row["kind"],
        "FleetState": "active",
        "ActivityStatus": "fulfilled" if fulfilled >= _check(request) else "error",
        "CreateTime": moment(row["created"]),
        "ClientToken": request.get("ClientToken"),
        "FulfilledCapacity": fulfilled,
        "FulfilledOnDemandCapacity": fulfilled,
        "LaunchTemplateConfigs": request["LaunchTemplateConfigs"],
        "TargetCapacitySpecification": request["TargetCapacitySpecification"],
        "OnDemandOptions": request.get("OnDemandOptions"),
        "Errors": answer["Errors"],
        "Instances": answer["Instances"],
        "Tags": labels,
    }


def _views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    labels = tags.of(ctx, [row["id"] for row in rows])
    return [_view(row, labels[row["id"]]) for row in rows]


_FLEETS = Listing(
    tables.fleets, "FleetData", "FleetIds", "fleet", "InvalidFleetId", "fleet ID", _views,
    {"activity-status": "ActivityStatus", "fleet-state": "FleetState", "type": "Type"},
)  # fmt: skip


@ec2
def describe_fleets(ctx: Context, params: Input) -> Output:
    """Fleets of the type instant are shown only when they are named, as on EC2."""
    if not params.get("FleetIds"):
        return {"Fleets": matching(ctx, params, [], _FLEETS.paths)}
    return describe(ctx, params, _FLEETS, "Fleets")


@ec2
def delete_fleets(ctx: Context, params: Input) -> Output:
    """An instant fleet ends together with its instances (EC2 User Guide, "Delete an EC2 Fleet")."""
    if not params["TerminateInstances"]:
        raise CloudError(
            "OperationNotPermitted", "An instant fleet cannot be deleted without terminating its instances."
        )
    gone, kept = [], []
    for one in dict.fromkeys(params["FleetIds"]):
        rows = ctx.own(tables.fleets, id=one)
        if not rows:
            error = {"Code": "fleetIdDoesNotExist", "Message": f"The fleet ID '{one[:40]}' does not exist."}
            kept.append({"FleetId": one, "Error": error})
            continue
        try:
            with ctx.tx.savepoint():
                _delete(ctx, rows[0])
        except CloudError as error:
            kept.append({"FleetId": one, "Error": {"Code": "unexpectedError", "Message": error.message}})
            continue
        states = {"CurrentFleetState": "deleted_terminating", "PreviousFleetState": "active"}
        gone.append({"FleetId": one} | states)
    return {"SuccessfulFleetDeletions": gone, "UnsuccessfulFleetDeletions": kept}


def _delete(ctx: Context, fleet: Row) -> None:
    known = [one for item in kept_answers.loads(fleet["answer"])["Instances"] for one in item["InstanceIds"]]
    alive = [row["id"] for row in ctx.tx.among(tables.instances, "id", known, account=ctx.account)]
    if alive:
        power.terminate_instances(ctx, {"InstanceIds": alive})
    tags.remove_all(ctx, fleet["id"])
    ctx.tx.delete(tables.fleets, id=fleet["id"])
