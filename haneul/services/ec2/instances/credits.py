"""CPU credits of burstable instances: what was asked for is kept and told; haneul does not slow a guest down.

EC2 User Guide, "Unlimited mode for burstable performance instances": t2 begins as standard, later families as unlimited.
"""

from __future__ import annotations

from typing import Any

from haneul.errors import CloudError
from haneul.model.instance_types import instance_types
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import matching, page
from haneul.services.ec2.instances import describe
from haneul.store import tables
from haneul.store.database import Row
from haneul.store.rows import state_of


def _default(instance_type: str) -> str:
    return "standard" if instance_type.startswith("t2.") else "unlimited"


def _credit(row: Row) -> str:
    return str(row["more"].get("credit") or _default(row["instance_type"]))


@ec2
def describe_instance_credit_specifications(ctx: Context, params: Input) -> Output:
    """By id: these instances; else those of the account that are unlimited, as EC2 shows them."""
    wanted = params.get("InstanceIds", [])
    rows = describe.find(ctx, wanted) if wanted else ctx.own(tables.instances)
    for row in rows:
        if wanted and not instance_types()[row["instance_type"]].burstable:
            raise CloudError(
                "InvalidParameterCombination",
                f"The instance {row['id']} is of the type {row['instance_type']}, which does not support CPU credits.",
            )
    burstable = [row for row in rows if instance_types()[row["instance_type"]].burstable]
    shown = burstable if wanted else [row for row in burstable if _credit(row) == "unlimited"]
    items = [{"InstanceId": row["id"], "CpuCredits": _credit(row)} for row in shown]
    found = matching(ctx, params, items, {"instance-id": "InstanceId"}, taggable=False)
    listed, token = page(ctx, params, found, lambda item: str(item["InstanceId"]), ids="InstanceIds")
    return {"InstanceCreditSpecifications": listed, "NextToken": token}


@ec2
def modify_instance_credit_specification(ctx: Context, params: Input) -> Output:
    """Each instance for itself: what could not be done is told beside what was."""
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for one in params["InstanceCreditSpecifications"]:
        try:
            _modify(ctx, one["InstanceId"], one.get("CpuCredits", ""))
            done.append({"InstanceId": one["InstanceId"]})
        except CloudError as error:
            failed.append({"InstanceId": one["InstanceId"], "Error": {"Code": error.code, "Message": error.message}})
    return {"SuccessfulInstanceCreditSpecifications": done, "UnsuccessfulInstanceCreditSpecifications": failed}


def _modify(ctx: Context, instance: str, credit: str) -> None:
    (row,) = describe.find(ctx, [instance])
    if state_of(row) in ("terminated", "shutting-down"):
        raise CloudError("IncorrectInstanceState", f"The instance '{instance}' is {state_of(row)}.")
    if credit not in ("standard", "unlimited") or not instance_types()[row["instance_type"]].burstable:
        raise CloudError(
            "InstanceCreditSpecification.NotSupported",
            f"The instance {instance} of the type {row['instance_type']} cannot have the CPU credits '{credit[:20]}'.",
        )
    ctx.tx.update(tables.instances, row["id"], more=row["more"] | {"credit": credit})
