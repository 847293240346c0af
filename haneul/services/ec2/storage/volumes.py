"""Volumes, as far as instances bring them: the root volume and blank ones of the block device mapping."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from haneul.errors import CloudError, combination, invalid
from haneul.model.region import zone_id
from haneul.model.times import moment
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe
from haneul.services.ec2 import options, tags
from haneul.store import tables
from haneul.store.database import Row

_KINDS = ("standard", "gp2", "gp3", "io1", "io2", "st1", "sc1")
MAX_GIB = 16384
MAX_MAPPINGS = 27
_DEVICE = re.compile(r"(?:/dev/)?(?:(?:sd|hd|vd)[a-z][0-9]{0,2}|xvd[a-z]{1,2}[0-9]{0,2})\Z")


def attachment_state(row: Row, instance: Row | None) -> str:
    """`attaching` until the machine has it."""
    if instance is not None and instance["observed_boot_count"] == 0:
        return "attaching"
    return "attached"


def _view(row: Row, instance: Row | None, labels: list[dict[str, str]]) -> dict[str, Any]:
    attachments = []
    if row["instance_id"]:
        attachments.append(
            {
                "VolumeId": row["id"],
                "InstanceId": row["instance_id"],
                "Device": row["device"],
                "State": attachment_state(row, instance),
                "AttachTime": moment(row["attached"] or row["created"]),
                "DeleteOnTermination": row["delete_on_termination"],
            }
        )
    view = {
        "VolumeId": row["id"],
        "Size": row["size_gib"],
        "SnapshotId": row["snapshot_id"],
        "AvailabilityZone": row["zone"],
        "State": "in-use" if attachments else "available",
        "CreateTime": moment(row["created"]),
        "Attachments": attachments,
        "VolumeType": row["kind"],
        "Iops": row["iops"],
        "Encrypted": False,
        "MultiAttachEnabled": False,
        **({"Tags": labels} if labels else {}),
    }
    return view | ({"Throughput": row["throughput"]} if row["kind"] == "gp3" else {})


_FILTERS = {
    "attachment.attach-time": "Attachments.AttachTime",
    "attachment.delete-on-termination": "Attachments.DeleteOnTermination",
    "attachment.device": "Attachments.Device",
    "attachment.instance-id": "Attachments.InstanceId",
    "attachment.status": "Attachments.State",
    "availability-zone": "AvailabilityZone",
    "create-time": "CreateTime",
    "encrypted": "Encrypted",
    "multi-attach-enabled": "MultiAttachEnabled",
    "size": "Size",
    "snapshot-id": "SnapshotId",
    "status": "State",
    "volume-id": "VolumeId",
    "volume-type": "VolumeType",
}


def _views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    labels = tags.of(ctx, [row["id"] for row in rows])
    holders = ctx.tx.among(tables.instances, "id", [row["instance_id"] for row in rows if row["instance_id"]])
    instances = {row["id"]: row for row in holders}
    return [_view(row, instances.get(row["instance_id"]), labels[row["id"]]) for row in rows]


def _unknown(ids: Sequence[str]) -> CloudError:
    return CloudError("InvalidVolume.NotFound", f"The volume '{ids[0]}' does not exist.")


VOLUMES = Listing(
    tables.volumes, "Volume", "VolumeIds", "vol", "InvalidVolumeID", "volume ID", _views, _FILTERS,
    columns={
        "volume-id": "id", "attachment.instance-id": "instance_id", "attachment.device": "device",
        "availability-zone": "zone", "snapshot-id": "snapshot_id", "volume-type": "kind", "size": "size_gib",
    },
    unknown=_unknown,
)  # fmt: skip


@ec2
def describe_volumes(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, VOLUMES, "Volumes")


def _statuses(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "VolumeId": row["id"],
            "AvailabilityZone": row["zone"],
            "AvailabilityZoneId": zone_id(row["zone"]),
            "VolumeStatus": {
                "Status": "ok",
                "Details": [
                    {"Name": "io-enabled", "Status": "passed"},
                    {"Name": "io-performance", "Status": "not-applicable"},
                ],
            },
            "Actions": [],
            "Events": [],
            "AttachmentStatuses": [{"InstanceId": row["instance_id"]}] if row["instance_id"] else [],
        }
        for row in rows
    ]


_STATUSES = Listing(
    tables.volumes, "VolumeStatusItem", "VolumeIds", "vol", "InvalidVolumeID", "volume ID", _statuses,
    {
        "action.code": "Actions.Code", "action.description": "Actions.Description", "action.event-id": "Actions.EventId",
        "availability-zone": "AvailabilityZone", "event.description": "Events.Description",
        "event.event-id": "Events.EventId", "event.event-type": "Events.EventType",
        "volume-status.details-name": "VolumeStatus.Details.Name",
        "volume-status.details-status": "VolumeStatus.Details.Status", "volume-status.status": "VolumeStatus.Status",
        "attachment-status.instance-id": "AttachmentStatuses.InstanceId",
    },
    columns={"availability-zone": "zone", "attachment-status.instance-id": "instance_id"},
    unknown=_unknown,
)  # fmt: skip


@ec2
def describe_volume_status(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _STATUSES, "VolumeStatuses")


def check_device(name: str) -> None:
    if not _DEVICE.match(name):
        raise CloudError("InvalidBlockDeviceMapping", f"Invalid device name {name[:40]!r}")


def check_devices(mappings: list[dict[str, Any]]) -> None:
    """Every mapping names a device of its own, and there are not too many."""
    if len(mappings) > MAX_MAPPINGS:
        raise CloudError("AttachmentLimitExceeded", f"An instance has at most {MAX_MAPPINGS} volumes.")
    names = [one.get("DeviceName", "") for one in mappings]
    for name in names:
        check_device(name)
    if len(set(names)) != len(names):
        raise CloudError("InvalidBlockDeviceMapping", "The device names of a block device mapping must differ.")


def _check_speed(kind: str, ebs: dict[str, Any]) -> None:
    iops, throughput = ebs.get("Iops"), ebs.get("Throughput")
    if kind in ("io1", "io2") and iops is None:
        raise CloudError("MissingParameter", f"The parameter iops must be specified for {kind} volumes.")
    if iops is not None and kind not in ("gp3", "io1", "io2"):
        raise combination(f"The parameter iops is not supported for {kind} volumes.")
    if throughput is not None and kind != "gp3":
        raise combination(f"The parameter throughput is not supported for {kind} volumes.")
    if iops is not None and not 100 <= iops <= 256000:
        raise invalid(iops, "iops", "It is between 100 and 256000.")
    if throughput is not None and not 125 <= throughput <= 2000:
        raise invalid(throughput, "throughput", "It is between 125 and 2000.")


#: Volume type -> sizes (GiB), most operations a second for each GiB, and in all (EBS User Guide, "Amazon EBS volume types").
_BOUNDS: dict[str, tuple[int, int, int, int]] = {
    "standard": (1, 1024, 0, 0),
    "gp2": (1, 16384, 0, 0),
    "gp3": (1, 65536, 500, 80000),
    "io1": (4, 16384, 50, 64000),
    "io2": (4, 65536, 1000, 256000),
    "st1": (125, 16384, 0, 0),
    "sc1": (125, 16384, 0, 0),
}
#: What every gp3 volume has, whatever its size.
_GP3_IOPS, _GP3_THROUGHPUT = 3000, 125


def _check_bounds(kind: str, size: int, iops: int | None, throughput: int | None) -> None:
    least, most, each, in_all = _BOUNDS[kind]
    for wrong, word, bound in (
        (size < least, "small", f"minimum is {least}"),
        (size > most, "large", f"maximum is {most}"),
    ):
        if wrong:
            raise CloudError(
                "InvalidParameterValue", f"Volume of {size}GiB is too {word} for volume type {kind}; {bound}GiB"
            )
    if iops is None:
        return
    if iops > in_all or (kind == "gp3" and iops < _GP3_IOPS):
        low = _GP3_IOPS if kind == "gp3" else 100
        raise invalid(iops, "iops", f"It is between {low} and {in_all} for {kind}.")
    if iops > max(each * size, _GP3_IOPS if kind == "gp3" else 0):
        raise CloudError(
            "InvalidParameterValue",
            f"Iops to volume size ratio of {iops / size:.6f} is too high; maximum is {each:.6f}",
        )
    if throughput is not None and throughput > max(iops / 4, _GP3_THROUGHPUT):
        raise CloudError(
            "InvalidParameterValue",
            f"Throughput to iops ratio of {throughput / iops:.6f} is too high; maximum is 0.250000",
        )


def check_mapping(ebs: dict[str, Any], least_gib: int, default_gib: int) -> dict[str, Any]:
    """The volume that a block device mapping asks for. Raises `CloudError` for what cannot be."""
    kind = ebs.get("VolumeType", "gp3")
    if kind not in _KINDS:
        raise invalid(kind, "VolumeType")
    if ebs.get("Encrypted") or ebs.get("KmsKeyId"):
        raise CloudError("UnsupportedOperation", "haneul does not encrypt volumes yet.")
    _check_speed(kind, ebs)
    size = ebs.get("VolumeSize", default_gib)
    if not size:
        raise CloudError("MissingParameter", "The request must contain the parameter size or snapshotId")
    if size < least_gib:
        raise CloudError(
            "InvalidBlockDeviceMapping",
            f"Volume of size {size}GB is smaller than snapshot, expect size >= {least_gib}GB",
        )
    options.only_known(ebs, options.EBS, "Ebs")
    _check_bounds(kind, size, ebs.get("Iops"), ebs.get("Throughput"))
    if size > MAX_GIB:
        raise CloudError("InvalidParameterValue", f"haneul has volumes of at most {MAX_GIB} GiB.")
    return {
        "size_gib": size,
        "kind": kind,
        "iops": ebs.get("Iops", 3000 if kind == "gp3" else 100),
        "throughput": ebs.get("Throughput", 125 if kind == "gp3" else 0),
        "delete_on_termination": ebs.get("DeleteOnTermination", True),
    }
