"""Instances as they are described: their filters, and their status checks."""

from __future__ import annotations

from typing import Any

from haneul.errors import missing
from haneul.model.instance import STATE_CODES
from haneul.model.region import zone_id
from haneul.model.times import moment
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Computed, Listing, Related, check_ids, describe, listed, require
from haneul.services.ec2.instances.views import reservations, state_view, views
from haneul.store import tables
from haneul.store.database import Row
from haneul.store.rows import state_of


def find(ctx: Context, ids: list[str]) -> list[Row]:
    """The caller's instances by id, in the order asked for, each once."""
    if not ids:
        raise missing("InstanceId")
    check_ids("i", "InvalidInstanceID", ids)
    rows = {row["id"]: row for row in ctx.tx.among(tables.instances, "id", ids, account=ctx.account, region=ctx.region)}
    require("i", "InvalidInstanceID", "instance ID", ids, rows)
    return [rows[one] for one in dict.fromkeys(ids)]


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
