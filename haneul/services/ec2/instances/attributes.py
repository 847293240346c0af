"""Attributes of instances: reading and changing them one by one."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from haneul.errors import CloudError, combination, invalid, missing, unsupported
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.ec2 import tags
from haneul.services.ec2.instances import generations, launch_rules, placement_groups
from haneul.services.ec2.instances import types as instance_types
from haneul.services.ec2.instances.describe import find
from haneul.services.ec2.instances.power import incorrect
from haneul.services.ec2.instances.views import views
from haneul.store import tables
from haneul.store.database import Row
from haneul.store.rows import state_of


def _interface_of(ctx: Context, row: Row) -> Row | None:
    """Its primary one."""
    rows = ctx.tx.select(tables.interfaces, instance_id=row["id"])
    return min(rows, key=lambda one: one["device_index"]) if rows else None


def _attribute(ctx: Context, row: Row, name: str) -> dict[str, Any]:
    interface = _interface_of(ctx, row)
    values: dict[str, Callable[[], dict[str, Any]]] = {
        "instanceType": lambda: {"InstanceType": {"Value": row["instance_type"]}},
        "kernel": lambda: {"KernelId": {}},
        "ramdisk": lambda: {"RamdiskId": {}},
        "userData": lambda: {"UserData": {"Value": row["user_data"]} if row["user_data"] else {}},
        "disableApiTermination": lambda: {"DisableApiTermination": {"Value": row["disable_api_termination"]}},
        "disableApiStop": lambda: {"DisableApiStop": {"Value": row["disable_api_stop"]}},
        "instanceInitiatedShutdownBehavior": lambda: {
            "InstanceInitiatedShutdownBehavior": {"Value": row["shutdown_behavior"]}
        },
        "rootDeviceName": lambda: {"RootDeviceName": {"Value": row["root_device"]}},
        "blockDeviceMapping": lambda: {"BlockDeviceMappings": views(ctx, [row])[0]["BlockDeviceMappings"]},
        "productCodes": lambda: {"ProductCodes": []},
        "sourceDestCheck": lambda: {
            "SourceDestCheck": {"Value": interface["source_dest_check"] if interface else True}
        },
        "groupSet": lambda: {"Groups": [{"GroupId": one} for one in (interface["groups"] if interface else ())]},
        "ebsOptimized": lambda: {"EbsOptimized": {"Value": row["ebs_optimized"]}},
        "sriovNetSupport": lambda: {"SriovNetSupport": {}},
        "enaSupport": lambda: {"EnaSupport": {"Value": False}},
        "enclaveOptions": lambda: {"EnclaveOptions": {"Enabled": False}},
    }
    return values[name]()


@ec2
def describe_instance_attribute(ctx: Context, params: Input) -> Output:
    (row,) = find(ctx, [params["InstanceId"]])
    return {"InstanceId": row["id"]} | _attribute(ctx, row, params["Attribute"])


#: Attributes by the name that `Attribute` takes -> the member of the other form, and how its value reads.
_MODIFIABLE = {
    "instanceType": "InstanceType",
    "userData": "UserData",
    "disableApiTermination": "DisableApiTermination",
    "disableApiStop": "DisableApiStop",
    "instanceInitiatedShutdownBehavior": "InstanceInitiatedShutdownBehavior",
    "sourceDestCheck": "SourceDestCheck",
    "groupSet": "Groups",
    "ebsOptimized": "EbsOptimized",
    "enaSupport": "EnaSupport",
    "sriovNetSupport": "SriovNetSupport",
    "kernel": "Kernel",
    "ramdisk": "Ramdisk",
    "blockDeviceMapping": "BlockDeviceMappings",
}


def _one_change(params: Input) -> tuple[str, Any]:
    """(attribute, value) of either form. Exactly one attribute a call."""
    given: list[tuple[str, Any]] = []
    if params.get("Attribute"):
        if params["Attribute"] not in _MODIFIABLE:
            raise invalid(params["Attribute"], "attribute", "It cannot be modified.")
        if "Value" not in params and "BlockDeviceMappings" not in params:
            raise missing("Value")
        given.append((params["Attribute"], params.get("Value")))
    for name, member in _MODIFIABLE.items():
        if member in params and not (params.get("Attribute") and member == "BlockDeviceMappings"):
            value = params[member]
            given.append((name, value.get("Value") if isinstance(value, dict) else value))
    if not given:
        raise combination("No attributes specified.")
    if len(given) > 1:
        names = ", ".join(name for name, _ in given)
        raise combination(f"Fields for multiple attribute types specified: {names}")
    return given[0]


def _truth(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise invalid(value, name, "It must be true or false.")
    return text == "true"


def _need_stopped(row: Row, what: str) -> None:
    if state_of(row) != "stopped":
        raise CloudError(
            "IncorrectInstanceState",
            f"The instance '{row['id']}' is not in the 'stopped' state; {what} can be changed only there.",
        )


@ec2
def modify_instance_attribute(ctx: Context, params: Input) -> Output:
    (row,) = find(ctx, [params["InstanceId"]])
    name, value = _one_change(params)
    if state_of(row) in ("terminated", "shutting-down"):
        raise incorrect(row, "modified")
    if name == "blockDeviceMapping":
        _modify_mappings(ctx, row, params.get("BlockDeviceMappings", []))
        return {}
    if name == "groupSet":
        _modify_groups(ctx, row, value)
        return {}
    if name == "sourceDestCheck":
        for interface in ctx.tx.select(tables.interfaces, instance_id=row["id"]):
            ctx.tx.update(tables.interfaces, interface["id"], source_dest_check=_truth(name, value))
    else:
        ctx.tx.update(tables.instances, row["id"], **_column(ctx, row, name, value))
    return {}


def _column(ctx: Context, row: Row, name: str, value: Any) -> dict[str, Any]:
    """The column that an attribute's change writes."""
    if name == "disableApiTermination":
        return {"disable_api_termination": _truth(name, value)}
    if name == "disableApiStop":
        return {"disable_api_stop": _truth(name, value)}
    if name == "instanceInitiatedShutdownBehavior":
        if value not in ("stop", "terminate"):
            raise invalid(value, name)
        return {"shutdown_behavior": value}
    if name == "instanceType":
        kind = instance_types.find(value)
        _need_stopped(row, "the type")
        generations.check(ctx, kind, generations.of_instance(ctx, row))
        return {"instance_type": value}
    if name == "userData":
        _need_stopped(row, "user data")
        text = base64.b64encode(value).decode() if isinstance(value, bytes) else (value or "")
        return {"user_data": launch_rules.read_user_data(text) or None}
    if name == "ebsOptimized":
        _need_stopped(row, "EBS optimization")
        return {"ebs_optimized": _truth(name, value)}
    raise CloudError("UnsupportedOperation", f"haneul does not change the attribute {name}.")


def _modify_groups(ctx: Context, row: Row, wanted: Any) -> None:
    interface = _interface_of(ctx, row)
    if not wanted or interface is None:
        raise missing("GroupId")
    groups = launch_rules.check_groups(ctx, list(dict.fromkeys(wanted)), row["vpc_id"])
    ctx.tx.update(tables.interfaces, interface["id"], groups=groups)


def _modify_mappings(ctx: Context, row: Row, mappings: list[dict[str, Any]]) -> None:
    disks = {disk["device"]: disk for disk in ctx.tx.select(tables.volumes, instance_id=row["id"])}
    for mapping in mappings:
        device = mapping.get("DeviceName", "")
        if device not in disks:
            raise CloudError("InvalidInstanceAttributeValue", f"No device is currently mapped at {device}")
        keep = mapping.get("Ebs", {}).get("DeleteOnTermination")
        if keep is not None:
            ctx.tx.update(tables.volumes, disks[device]["id"], delete_on_termination=keep)


@ec2
def modify_instance_placement(ctx: Context, params: Input) -> Output:
    """The placement group of a stopped instance; an empty name takes it out of its group."""
    (row,) = find(ctx, [params["InstanceId"]])
    if params.get("Tenancy", "default") != "default" or params.get("HostId") or params.get("HostResourceGroupArn"):
        raise CloudError("UnsupportedOperation", "haneul does not have dedicated tenancy.")
    if params.get("Affinity", "default") != "default":
        raise CloudError("UnsupportedOperation", "haneul does not have dedicated hosts to be affine to.")
    if not any(name in params for name in ("GroupName", "GroupId", "PartitionNumber")):
        raise missing("GroupName")
    _need_stopped(row, "the placement")
    given: Input = {name: params[name] for name in ("GroupName", "GroupId", "PartitionNumber") if name in params}
    if "GroupName" not in given and "GroupId" not in given:
        given["GroupName"] = row["placement_group"]
    group = placement_groups.named(ctx, given)
    number = placement_groups.partition(group, given)
    name = group["name"] if group else ""
    ctx.tx.update(tables.instances, row["id"], placement_group=name, partition_number=number)
    return {"Return": True}


def _monitor(ctx: Context, params: Input, wanted: bool) -> Output:
    if params.get("MetricCategoryIds"):
        raise CloudError(
            "UnsupportedOperation", "haneul does not have metric categories (parameter MetricCategoryIds)."
        )
    rows = find(ctx, params["InstanceIds"])
    for row in rows:
        if state_of(row) in ("terminated", "shutting-down"):
            raise incorrect(row, "monitored")
        ctx.tx.update(tables.instances, row["id"], monitoring=wanted)
    state = {"State": "pending" if wanted else "disabling"}
    return {"InstanceMonitorings": [{"InstanceId": row["id"], "Monitoring": state} for row in rows]}


@ec2
def monitor_instances(ctx: Context, params: Input) -> Output:
    """What was asked for is kept and told; haneul has no metrics service to send more of."""
    return _monitor(ctx, params, True)


@ec2
def unmonitor_instances(ctx: Context, params: Input) -> Output:
    return _monitor(ctx, params, False)


@ec2
def modify_instance_metadata_options(ctx: Context, params: Input) -> Output:
    (row,) = find(ctx, [params["InstanceId"]])
    if state_of(row) in ("terminated", "shutting-down"):
        raise incorrect(row, "modified")
    options = launch_rules.metadata_options(params, row["metadata_options"])
    if why := generations.refuses_tokens(instance_types.find(row["instance_type"]), options["HttpTokens"]):
        raise unsupported(why)
    if options["InstanceMetadataTags"] == "enabled":
        tags.check_for_metadata(tag["Key"] for tag in tags.of(ctx, [row["id"]])[row["id"]])
    ctx.tx.update(tables.instances, row["id"], metadata_options=options)
    return {"InstanceId": row["id"], "InstanceMetadataOptions": {"State": "pending", **options}}
