"""The life of instances: describe, start, stop, reboot, terminate, their attributes, console and screenshot.

Every order writes what is desired and returns; the instance's server makes it so (docs/ARCHITECTURE.md).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from haneul.errors import CloudError, combination, invalid, missing, unsupported
from haneul.model.instance import STATE_CODES, Reason, State, user_initiated
from haneul.model.region import zone_id
from haneul.services import placement, quotas
from haneul.services.context import Context, Input, Later, Output, ec2, gmt, moment
from haneul.services.describe import Computed, Listing, Related, check_ids, describe, listed, require
from haneul.services.ec2 import generations, instance_types, launch, placement_groups
from haneul.services.ec2.instance_views import reservations, state_of, state_view, views
from haneul.store import tables
from haneul.store.database import Row

#: The largest display of which there is a screenshot (8K).
MOST_PIXELS = 7680 * 4320
ASK_SECONDS = 10.0


def find(ctx: Context, ids: list[str]) -> list[Row]:
    """The caller's instances by id, in the order asked for, each once."""
    if not ids:
        raise missing("InstanceId")
    check_ids("i", "InvalidInstanceID", ids)
    rows = {row["id"]: row for row in ctx.tx.among(tables.instances, "id", ids, account=ctx.account, region=ctx.region)}
    require("i", "InvalidInstanceID", "instance ID", ids, rows)
    return [rows[one] for one in dict.fromkeys(ids)]


# --- describe ---------------------------------------------------------------------------------------

_FILTERS = {
    "affinity": "Placement.Affinity",
    "architecture": "Architecture",
    "availability-zone": "Placement.AvailabilityZone",
    "availability-zone-id": "Placement.AvailabilityZoneId",
    "capacity-reservation-specification.capacity-reservation-preference": "CapacityReservationSpecification.CapacityReservationPreference",
    "network-interface.addresses.association.public-dns-name": "NetworkInterfaces.PrivateIpAddresses.Association.PublicDnsName",
    "network-interface.addresses.private-dns-name": "NetworkInterfaces.PrivateIpAddresses.PrivateDnsName",
    "network-interface.attachment.network-card-index": "NetworkInterfaces.Attachment.NetworkCardIndex",
    "network-interface.public-dns-name": "NetworkInterfaces.Association.PublicDnsName",
    "maintenance-options.auto-recovery": "MaintenanceOptions.AutoRecovery",
    "metadata-options.state": "MetadataOptions.State",
    "metadata-options.http-protocol-ipv6": "MetadataOptions.HttpProtocolIpv6",
    "network-interface.association.public-dns-name": "NetworkInterfaces.Association.PublicDnsName",
    "network-interface.association.ip-owner-id": "NetworkInterfaces.Association.IpOwnerId",
    "network-interface.addresses.association.ip-owner-id": "NetworkInterfaces.PrivateIpAddresses.Association.IpOwnerId",
    "network-interface.attachment.attach-time": "NetworkInterfaces.Attachment.AttachTime",
    "network-interface.attachment.instance-id": "InstanceId",
    "network-interface.attachment.instance-owner-id": "NetworkInterfaces.OwnerId",
    "network-interface.availability-zone": "Placement.AvailabilityZone",
    "network-interface.private-ip-address": "NetworkInterfaces.PrivateIpAddress",
    "placement-partition-number": "Placement.PartitionNumber",
    "private-dns-name-options.enable-resource-name-dns-a-record": "PrivateDnsNameOptions.EnableResourceNameDnsARecord",
    "private-dns-name-options.enable-resource-name-dns-aaaa-record": "PrivateDnsNameOptions.EnableResourceNameDnsAAAARecord",
    "private-dns-name-options.hostname-type": "PrivateDnsNameOptions.HostnameType",
    "block-device-mapping.attach-time": "BlockDeviceMappings.Ebs.AttachTime",
    "block-device-mapping.delete-on-termination": "BlockDeviceMappings.Ebs.DeleteOnTermination",
    "block-device-mapping.device-name": "BlockDeviceMappings.DeviceName",
    "block-device-mapping.status": "BlockDeviceMappings.Ebs.Status",
    "block-device-mapping.volume-id": "BlockDeviceMappings.Ebs.VolumeId",
    "boot-mode": "BootMode",
    "client-token": "ClientToken",
    "current-instance-boot-mode": "CurrentInstanceBootMode",
    "dns-name": "PublicDnsName",
    "ebs-optimized": "EbsOptimized",
    "ena-support": "EnaSupport",
    "enclave-options.enabled": "EnclaveOptions.Enabled",
    "hibernation-options.configured": "HibernationOptions.Configured",
    "host-id": "Placement.HostId",
    "hypervisor": "Hypervisor",
    "iam-instance-profile.arn": "IamInstanceProfile.Arn",
    "iam-instance-profile.id": "IamInstanceProfile.Id",
    "image-id": "ImageId",
    "instance-id": "InstanceId",
    "instance-lifecycle": "InstanceLifecycle",
    "instance-state-code": "State.Code",
    "instance-state-name": "State.Name",
    "instance-type": "InstanceType",
    "instance.group-id": "SecurityGroups.GroupId",
    "instance.group-name": "SecurityGroups.GroupName",
    "group-id": "SecurityGroups.GroupId",
    "group-name": "SecurityGroups.GroupName",
    "ip-address": "PublicIpAddress",
    "kernel-id": "KernelId",
    "key-name": "KeyName",
    "launch-index": "AmiLaunchIndex",
    "launch-time": "LaunchTime",
    "metadata-options.http-endpoint": "MetadataOptions.HttpEndpoint",
    "metadata-options.http-put-response-hop-limit": "MetadataOptions.HttpPutResponseHopLimit",
    "metadata-options.http-tokens": "MetadataOptions.HttpTokens",
    "metadata-options.instance-metadata-tags": "MetadataOptions.InstanceMetadataTags",
    "monitoring-state": "Monitoring.State",
    "network-interface.addresses.association.public-ip": "NetworkInterfaces.PrivateIpAddresses.Association.PublicIp",
    "network-interface.addresses.primary": "NetworkInterfaces.PrivateIpAddresses.Primary",
    "network-interface.addresses.private-ip-address": "NetworkInterfaces.PrivateIpAddresses.PrivateIpAddress",
    "network-interface.association.public-ip": "NetworkInterfaces.Association.PublicIp",
    "network-interface.attachment.attachment-id": "NetworkInterfaces.Attachment.AttachmentId",
    "network-interface.attachment.delete-on-termination": "NetworkInterfaces.Attachment.DeleteOnTermination",
    "network-interface.attachment.device-index": "NetworkInterfaces.Attachment.DeviceIndex",
    "network-interface.attachment.status": "NetworkInterfaces.Attachment.Status",
    "network-interface.description": "NetworkInterfaces.Description",
    "network-interface.group-id": "NetworkInterfaces.Groups.GroupId",
    "network-interface.group-name": "NetworkInterfaces.Groups.GroupName",
    "network-interface.mac-address": "NetworkInterfaces.MacAddress",
    "network-interface.network-interface-id": "NetworkInterfaces.NetworkInterfaceId",
    "network-interface.owner-id": "NetworkInterfaces.OwnerId",
    "network-interface.private-dns-name": "NetworkInterfaces.PrivateDnsName",
    "network-interface.source-dest-check": "NetworkInterfaces.SourceDestCheck",
    "network-interface.status": "NetworkInterfaces.Status",
    "network-interface.subnet-id": "NetworkInterfaces.SubnetId",
    "network-interface.vpc-id": "NetworkInterfaces.VpcId",
    "owner-id": "NetworkInterfaces.OwnerId",
    "placement-group-name": "Placement.GroupName",
    "platform": "Platform",
    "platform-details": "PlatformDetails",
    "private-dns-name": "PrivateDnsName",
    "private-ip-address": "PrivateIpAddress",
    "product-code": "ProductCodes.ProductCodeId",
    "ramdisk-id": "RamdiskId",
    "reason": "StateTransitionReason",
    "requester-id": "RequesterId",
    "reservation-id": "ReservationId",
    "root-device-name": "RootDeviceName",
    "root-device-type": "RootDeviceType",
    "source-dest-check": "SourceDestCheck",
    "spot-instance-request-id": "SpotInstanceRequestId",
    "state-reason-code": "StateReason.Code",
    "state-reason-message": "StateReason.Message",
    "subnet-id": "SubnetId",
    "tenancy": "Placement.Tenancy",
    "usage-operation": "UsageOperation",
    "usage-operation-update-time": "UsageOperationUpdateTime",
    "virtualization-type": "VirtualizationType",
    "vpc-id": "VpcId",
}


_STATE_COLUMNS = ("power", "boot_count", "started_at_boot", "force", "observed_power", "observed_boot_count",
                  "observed_cause", "observed_detail")  # fmt: skip
_STATE: dict[str, str | Computed] = {
    "instance-state-name": Computed(_STATE_COLUMNS, lambda row: (state_of(row),)),
    "instance-state-code": Computed(_STATE_COLUMNS, lambda row: (str(STATE_CODES[state_of(row)]),)),
}
_ZONE: dict[str, str | Computed] = {"availability-zone": "zone"}
_nic, _disk = tables.interfaces.c, tables.volumes.c

INSTANCES = Listing(
    tables.instances, "Instance", "InstanceIds", "i", "InvalidInstanceID", "instance ID", views, _FILTERS,
    columns=_STATE | _ZONE | {
        "instance-id": "id", "image-id": "image_id", "instance-type": "instance_type", "key-name": "key_name",
        "reservation-id": "reservation_id", "client-token": "client_token", "launch-index": "launch_index",
        "root-device-name": "root_device", "placement-group-name": "placement_group",
    },
    related={
        "subnet-id": Related(_nic.instance_id, _nic.subnet_id),
        "vpc-id": Related(_nic.instance_id, _nic.vpc_id),
        "private-ip-address": Related(_nic.instance_id, _nic.address),
        "ip-address": Related(_nic.instance_id, _nic.public_address),
        "network-interface.network-interface-id": Related(_nic.instance_id, _nic.id),
        "network-interface.subnet-id": Related(_nic.instance_id, _nic.subnet_id),
        "network-interface.vpc-id": Related(_nic.instance_id, _nic.vpc_id),
        "network-interface.mac-address": Related(_nic.instance_id, _nic.mac),
        "block-device-mapping.volume-id": Related(_disk.instance_id, _disk.id),
    } | {
        name: Related(_nic.instance_id, _nic.groups, lambda groups: groups)
        for name in ("group-id", "instance.group-id", "network-interface.group-id")
    },
    light=("reservation_id",),
)  # fmt: skip


@ec2
def describe_instances(ctx: Context, params: Input) -> Output:
    shown, token = listed(ctx, params, INSTANCES)
    return {"Reservations": reservations(ctx, shown), "NextToken": token}


_STATUS_FILTERS = {
    "availability-zone": "AvailabilityZone",
    "availability-zone-id": "AvailabilityZoneId",
    "attached-ebs-status.status": "AttachedEbsStatus.Status",
    "event.code": "Events.Code",
    "instance-state-code": "InstanceState.Code",
    "instance-state-name": "InstanceState.Name",
    "instance-status.reachability": "InstanceStatus.Details.Status",
    "instance-status.status": "InstanceStatus.Status",
    "system-status.reachability": "SystemStatus.Details.Status",
    "system-status.status": "SystemStatus.Status",
}


def _check(status: str, since: float | None) -> dict[str, Any]:
    passed = {"ok": "passed", "initializing": "initializing", "impaired": "failed"}.get(status, status)
    detail: dict[str, Any] = {"Name": "reachability", "Status": passed}
    if status == "impaired" and since:
        detail["ImpairedSince"] = moment(since)
    return {"Status": status, "Details": [detail] if status != "not-applicable" else []}


def _status(row: Row) -> dict[str, Any]:
    now = state_of(row)
    if now != "running":
        instance, system = "not-applicable", "not-applicable"
    else:
        reachable = row["observed_reachable"]
        instance = "initializing" if reachable is None else ("ok" if reachable else "impaired")
        system = "ok"
    return {
        "InstanceId": row["id"],
        "AvailabilityZone": row["zone"],
        "AvailabilityZoneId": zone_id(row["zone"]),
        "InstanceState": state_view(now),
        "InstanceStatus": _check(instance, row["observed_reachable_since"]),
        "SystemStatus": _check(system, None),
        "AttachedEbsStatus": _check("ok" if now == "running" else "not-applicable", None),
        "Events": [],
    }


_STATUSES = Listing(
    tables.instances, "InstanceStatus", "InstanceIds", "i", "InvalidInstanceID", "instance ID",
    lambda ctx, rows: [_status(row) for row in rows], _STATUS_FILTERS, columns=_STATE | _ZONE,
)  # fmt: skip


@ec2
def describe_instance_status(ctx: Context, params: Input) -> Output:
    """Running instances only, unless IncludeAllInstances is given."""
    wanted = params
    if not params.get("IncludeAllInstances"):
        running = {"Name": "instance-state-name", "Values": ["running"]}
        wanted = params | {"Filters": [*params.get("Filters", ()), running]}
    return describe(ctx, wanted, _STATUSES, "InstanceStatuses")


# --- power ------------------------------------------------------------------------------------------


def _incorrect(row: Row, verb: str) -> CloudError:
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
        raise _incorrect(row, "started")
    placement.release(ctx.tx, row)
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
        ctx.tx.update(tables.interfaces, interface["id"], public_address=launch.take_public(ctx, interface["id"]))


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
            raise _incorrect(row, "stopped")
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
        raise _incorrect(row, "rebooted")
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


# --- console and display ----------------------------------------------------------------------------


@ec2
def get_console_output(ctx: Context, params: Input) -> Later:
    """The last 64 KiB of the serial console. `Latest` is always true here: nothing is cached."""
    (row,) = find(ctx, [params["InstanceId"]])
    gone = state_of(row) == "terminated"

    def ask() -> Output:
        output = b"" if gone else ctx.ask.console_output(row["server_id"], row["id"], ASK_SECONDS)
        return {"InstanceId": row["id"], "Timestamp": ctx.time, "Output": base64.b64encode(output).decode()}

    return Later(ask)


@ec2
def get_console_screenshot(ctx: Context, params: Input) -> Later:
    (row,) = find(ctx, [params["InstanceId"]])
    kind = instance_types.find(row["instance_type"])
    if kind.generation == "paravirtual":
        raise unsupported(
            f"The instance '{row['id']}' is paravirtual ({kind.name}) and has no display to take a screenshot of; "
            "GetConsoleOutput has its console."
        )
    if state_of(row) != "running":
        raise _incorrect(row, "captured")

    def ask() -> Output:
        png = ctx.ask.screenshot(row["server_id"], row["id"], ASK_SECONDS)
        return {"InstanceId": row["id"], "ImageData": base64.b64encode(_jpeg(png)).decode()}

    return Later(ask)


def _jpeg(png: bytes) -> bytes:
    """A machine that was taken over makes the PNG: its size is looked at before its pixels, and it may be anything."""
    from PIL import Image, UnidentifiedImageError

    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise CloudError("Unavailable", "The instance's display is too large for a screenshot.")
            image.convert("RGB").save(out, "JPEG", quality=80)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise CloudError("Unavailable", "The instance's display could not be read.") from error
    return out.getvalue()


# --- attributes -------------------------------------------------------------------------------------


def _interface_of(ctx: Context, row: Row) -> Row | None:
    rows = ctx.tx.select(tables.interfaces, instance_id=row["id"])
    return rows[0] if rows else None


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
        raise _incorrect(row, "modified")
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
        return {"user_data": launch.read_user_data(text) or None}
    if name == "ebsOptimized":
        _need_stopped(row, "EBS optimization")
        return {"ebs_optimized": _truth(name, value)}
    raise CloudError("UnsupportedOperation", f"haneul does not change the attribute {name}.")


def _modify_groups(ctx: Context, row: Row, wanted: Any) -> None:
    interface = _interface_of(ctx, row)
    if not wanted or interface is None:
        raise missing("GroupId")
    groups = launch.check_groups(ctx, list(dict.fromkeys(wanted)), row["vpc_id"])
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
            raise _incorrect(row, "monitored")
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
        raise _incorrect(row, "modified")
    options = launch.metadata_options(params, row["metadata_options"])
    if why := generations.refuses_tokens(instance_types.find(row["instance_type"]), options["HttpTokens"]):
        raise unsupported(why)
    ctx.tx.update(tables.instances, row["id"], metadata_options=options)
    return {"InstanceId": row["id"], "InstanceMetadataOptions": {"State": "pending", **options}}
