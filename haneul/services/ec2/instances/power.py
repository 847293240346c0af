"""Start, stop, reboot, terminate: orders that change what is desired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from haneul.errors import CloudError
from haneul.model.instance import Reason, State, user_initiated
from haneul.model.times import gmt
from haneul.services import placement, quotas
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.ec2.instances import generations, placement_groups
from haneul.services.ec2.instances import types as instance_types
from haneul.services.ec2.instances.describe import find
from haneul.services.ec2.instances.launch_addresses import take_public
from haneul.services.ec2.instances.views import state_view
from haneul.store import capacity, tables
from haneul.store.database import Row
from haneul.store.rows import state_of


def incorrect(row: Row, verb: str) -> CloudError:
    return CloudError(
        "IncorrectInstanceState", f"The instance '{row['id']}' is not in a state from which it can be {verb}."
    )


def _protected(row: Row, verb: str, attribute: str) -> CloudError:
    return CloudError(
        "OperationNotPermitted",
        f"The instance '{row['id']}' may not be {verb}. Modify its '{attribute}' instance attribute and try again.",
    )


def _changed(ctx: Context, rows: list[Row], before: dict[str, State]) -> list[dict[str, Any]]:
    after = {row["id"]: row for row in ctx.tx.among(tables.instances, "id", [row["id"] for row in rows])}
    return [
        {
            "InstanceId": row["id"],
            "CurrentState": state_view(state_of(after[row["id"]])),
            "PreviousState": state_view(before[row["id"]]),
        }
        for row in rows
    ]


def _reason(reason: Reason | None) -> dict[str, str]:
    if reason is None:
        return {"reason_code": "", "reason_message": "", "transition_reason": ""}
    return {"reason_code": reason.code, "reason_message": reason.message, "transition_reason": reason.transition}


Order = Callable[[Context, Row, State], None]


def _order(ctx: Context, ids: list[str], order: Order) -> list[dict[str, Any]]:
    """Give one order to several instances: all of them, or none."""
    rows = find(ctx, ids)
    before = {row["id"]: state_of(row) for row in rows}
    for row in rows:
        order(ctx, row, before[row["id"]])
    return _changed(ctx, rows, before)


def _start(ctx: Context, row: Row, now: State) -> None:
    if now in ("pending", "running"):
        return
    if now != "stopped":
        raise incorrect(row, "started")
    capacity.release(ctx.tx, row)
    kind = instance_types.find(row["instance_type"])
    generations.check(ctx, kind, generations.of_instance(ctx, row))
    quotas.room_for_vcpus(ctx, kind)
    wanted = placement.need(ctx.settings, kind, row["zone"])
    group = placement_groups.named(ctx, {"GroupName": row["placement_group"]})
    placer = placement_groups.Placer(ctx, group, row["zone"], row["partition_number"], without=row["id"])
    place = placer.place(wanted, only=row["server_id"])
    boot = max(row["boot_count"], row["observed_boot_count"]) + 1
    ctx.tx.update(
        tables.instances,
        row["id"],
        power="running",
        force=False,
        boot_count=boot,
        started_at_boot=boot,
        launched=ctx.now,
        server_id=place.server_id,
        partition_number=place.partition,
        reserved_vcpus=wanted.vcpus,
        reserved_memory_mib=wanted.memory_mib,
        **_reason(None),
    )
    for interface in ctx.tx.select(tables.interfaces, instance_id=row["id"], wants_public=True, public_address=None):
        ctx.tx.update(tables.interfaces, interface["id"], public_address=take_public(ctx, interface["id"]))


@ec2
def start_instances(ctx: Context, params: Input) -> Output:
    return {"StartingInstances": _order(ctx, params["InstanceIds"], _start)}


def _stop(force: bool) -> Order:
    def order(ctx: Context, row: Row, now: State) -> None:
        if row["disable_api_stop"]:
            raise _protected(row, "stopped", "disableApiStop")
        if now == "stopped":
            return
        if now not in ("running", "stopping"):
            raise incorrect(row, "stopped")
        reason = user_initiated("shutdown", gmt(ctx.now))
        values = _reason(reason) if now == "running" else {}
        ctx.tx.update(tables.instances, row["id"], power="stopped", force=force or row["force"], **values)

    return order


@ec2
def stop_instances(ctx: Context, params: Input) -> Output:
    if params.get("Hibernate"):
        raise CloudError("UnsupportedHibernationConfiguration", "haneul does not hibernate instances.")
    return {"StoppingInstances": _order(ctx, params["InstanceIds"], _stop(bool(params.get("Force"))))}


def _reboot(ctx: Context, row: Row, now: State) -> None:
    if now not in ("running", "pending"):
        raise incorrect(row, "rebooted")
    if now == "running":
        ctx.tx.update(tables.instances, row["id"], boot_count=row["boot_count"] + 1)


@ec2
def reboot_instances(ctx: Context, params: Input) -> Output:
    _order(ctx, params["InstanceIds"], _reboot)
    return {}


def _terminate(ctx: Context, row: Row, now: State) -> None:
    if now in ("shutting-down", "terminated"):
        return
    if row["disable_api_termination"]:
        raise _protected(row, "terminated", "disableApiTermination")
    reason = user_initiated("shutdown", gmt(ctx.now))
    ctx.tx.update(tables.instances, row["id"], power="terminated", ended=ctx.now, **_reason(reason))


@ec2
def terminate_instances(ctx: Context, params: Input) -> Output:
    return {"TerminatingInstances": _order(ctx, params["InstanceIds"], _terminate)}
