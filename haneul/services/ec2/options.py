"""Options of a launch: what is honoured and shown, and what is refused. Nothing that was given is left without effect.

Each table lists what haneul knows; whatever else a request has is refused by its name, also what EC2 gets next year.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from haneul.errors import CloudError, invalid, not_found
from haneul.services.context import Input

PLACEMENT = frozenset({"AvailabilityZone", "AvailabilityZoneId", "GroupId", "GroupName", "PartitionNumber", "Tenancy"})
INTERFACE = frozenset(
    {
        "AssociatePublicIpAddress", "DeleteOnTermination", "Description", "DeviceIndex", "Groups", "NetworkInterfaceId",
        "PrivateIpAddress", "PrivateIpAddresses", "SubnetId",
    }
)  # fmt: skip
EBS = frozenset(
    {"DeleteOnTermination", "Encrypted", "Iops", "KmsKeyId", "SnapshotId", "Throughput", "VolumeSize", "VolumeType"}
)
#: (parameter, member) -> values that are what haneul does anyway: they are taken.
_AS_IT_IS: dict[tuple[str, str], tuple[Any, ...]] = {
    ("PrivateDnsNameOptions", "HostnameType"): ("ip-name",),
    ("PrivateDnsNameOptions", "EnableResourceNameDnsARecord"): (False,),
    ("PrivateDnsNameOptions", "EnableResourceNameDnsAAAARecord"): (False,),
    ("NetworkPerformanceOptions", "BandwidthWeighting"): ("default",),
    ("Placement", "Affinity"): ("default",),
    ("NetworkInterface", "InterfaceType"): ("interface",),
    ("NetworkInterface", "NetworkCardIndex"): (0,),
    ("Ebs", "EbsCardIndex"): (0,),
}
#: Parameters of RunInstances that have such members, or whose choice is kept and shown (`shown`).
_OPTIONS = (
    "PrivateDnsNameOptions",
    "NetworkPerformanceOptions",
    "MaintenanceOptions",
    "CapacityReservationSpecification",
)
_KEPT = {
    ("MaintenanceOptions", "AutoRecovery"): ("default", "disabled"),
    ("CapacityReservationSpecification", "CapacityReservationPreference"): ("open", "none"),
}


def only_known(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises UnsupportedOperation for the first member that haneul does not know, if it asks for anything."""
    for name, value in given.items():
        if name in known or value in (None, False, 0, "", [], {}) or value in _AS_IT_IS.get((where, name), ()):
            continue
        raise CloudError("UnsupportedOperation", f"haneul does not have {where}.{name} ({str(value)[:80]}).")


def kept(params: Input) -> dict[str, str]:
    """The options that a launch keeps, for `shown`. Raises `CloudError` for those that haneul cannot honour."""
    found: dict[str, str] = {}
    target = params.get("CapacityReservationSpecification", {}).get("CapacityReservationTarget", {})
    if target.get("CapacityReservationId"):
        raise not_found(
            "InvalidCapacityReservationId.NotFound", "capacity reservation ID", [target["CapacityReservationId"][:80]]
        )
    for option in _OPTIONS:
        given = params.get(option, {})
        for (name, member), choices in _KEPT.items():
            if name == option and given.get(member) is not None:
                if given[member] not in choices:
                    raise invalid(given[member], member, f"haneul takes {' and '.join(choices)}.")
                found[member] = given[member]
        only_known(given, [member for name, member in _KEPT if name == option], option)
    return found


def shown(options: Mapping[str, str]) -> dict[str, Any]:
    """What DescribeInstances says of them."""
    return {
        "CapacityReservationSpecification": {
            "CapacityReservationPreference": options.get("CapacityReservationPreference", "open")
        },
        "MaintenanceOptions": {"AutoRecovery": options.get("AutoRecovery", "default")},
    }
