"""What clients ask about and haneul does not have: the truth is that there is none.

Each of these lists what only an operation that haneul does not have could make. A request that names one by id is refused
as for any unknown id, and filters are checked as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from haneul.errors import CloudError, malformed, not_found
from haneul.model.ids import is_id
from haneul.services.context import OPERATIONS, Context, Input, Output
from haneul.services.describe import matching


@dataclass(frozen=True)
class _Nothing:
    """`ids` is the parameter that names resources by id, with the codes of its refusals; empty where there is none.

    An empty `prefix` means ids of a form of their own; `begins` is what they begin with, if that is known.
    """

    operation: str
    answer: str
    ids: str = ""
    prefix: str = ""
    code: str = ""
    what: str = ""
    begins: str = ""


_LIST = (
    _Nothing(
        "describe_reserved_instances", "ReservedInstances", "ReservedInstancesIds", "",
        "InvalidReservedInstancesId", "reserved instances ID",
    ),
    _Nothing("describe_reserved_instances_offerings", "ReservedInstancesOfferings"),
    _Nothing("describe_reserved_instances_listings", "ReservedInstancesListings"),
    _Nothing("describe_reserved_instances_modifications", "ReservedInstancesModifications"),
    _Nothing(
        "describe_spot_instance_requests", "SpotInstanceRequests", "SpotInstanceRequestIds", "sir",
        "InvalidSpotInstanceRequestID", "spot instance request ID",
    ),
    _Nothing(
        "describe_spot_fleet_requests", "SpotFleetRequestConfigs", "SpotFleetRequestIds", "",
        "InvalidSpotFleetRequestId", "spot fleet request ID", "sfr",
    ),
    _Nothing("describe_spot_price_history", "SpotPriceHistory"),
    _Nothing("describe_hosts", "Hosts", "HostIds", "h", "InvalidHostID", "host ID"),
    _Nothing("describe_host_reservations", "HostReservationSet"),
    _Nothing("describe_host_reservation_offerings", "OfferingSet"),
    _Nothing("describe_scheduled_instances", "ScheduledInstanceSet"),
    _Nothing(
        "describe_capacity_reservations", "CapacityReservations", "CapacityReservationIds", "cr",
        "InvalidCapacityReservationId", "capacity reservation ID",
    ),
    _Nothing(
        "describe_addresses", "Addresses", "AllocationIds", "eipalloc", "InvalidAllocationID", "allocation ID"
    ),
    _Nothing(
        "describe_iam_instance_profile_associations", "IamInstanceProfileAssociations", "AssociationIds", "iip-assoc",
        "InvalidAssociationID", "association ID",
    ),
    _Nothing("describe_nat_gateways", "NatGateways", "NatGatewayIds", "nat", "NatGateway", "NatGateway"),
    _Nothing(
        "describe_vpc_peering_connections", "VpcPeeringConnections", "VpcPeeringConnectionIds", "pcx",
        "InvalidVpcPeeringConnectionId", "vpcPeeringConnection ID",
    ),
    _Nothing("describe_vpn_gateways", "VpnGateways", "VpnGatewayIds", "vgw", "InvalidVpnGatewayID", "vpnGateway ID"),
    _Nothing("describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointIds", "vpce", "InvalidVpcEndpointId", "VPC endpoint"),
    _Nothing("describe_elastic_gpus", "ElasticGpuSet"),
    _Nothing(
        "describe_volumes_modifications", "VolumesModifications", "VolumeIds", "vol", "InvalidVolumeModification", "volume",
    ),
)  # fmt: skip


def _function(one: _Nothing):  # type: ignore[no-untyped-def]
    def describe(ctx: Context, params: Input) -> Output:
        matching(ctx, {"Filters": params.get("Filters", params.get("Filter", ()))}, [], {})
        for name in params.get(one.ids, ()) if one.ids else ():
            # The one family whose codes have no dot.
            dot = "" if one.code == "NatGateway" else "."
            if (one.prefix and not is_id(one.prefix, name)) or (one.begins and not name.startswith(f"{one.begins}-")):
                raise malformed(f"{one.code}{dot}Malformed", name[:80])
            raise not_found(f"{one.code}{dot}NotFound", one.what, [name[:80]])
        if one.operation == "describe_addresses" and params.get("PublicIps"):
            raise CloudError("InvalidAddress.NotFound", f"Address '{params['PublicIps'][0][:40]}' not found.")
        return {one.answer: []}

    describe.__name__ = one.operation
    return describe


for _one in _LIST:
    OPERATIONS.of("ec2")(_function(_one))
