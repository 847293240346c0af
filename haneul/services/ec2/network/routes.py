"""Route tables."""

from __future__ import annotations

from typing import Any

from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe
from haneul.services.ec2.network.views import with_tags
from haneul.store import tables
from haneul.store.database import Row


def _route_table(ctx: Context, row: Row) -> dict[str, Any]:
    associations = [
        one | {"RouteTableId": row["id"], "AssociationState": {"State": "associated"}} for one in row["associations"]
    ]
    return {
        "RouteTableId": row["id"],
        "VpcId": row["vpc_id"],
        "OwnerId": ctx.account,
        "Associations": associations,
        "Routes": row["routes"],
        "PropagatingVgws": [],
    }


_ROUTE_TABLES_PATHS = {
    "association.main": "Associations.Main",
    "association.route-table-association-id": "Associations.RouteTableAssociationId",
    "association.route-table-id": "Associations.RouteTableId",
    "association.subnet-id": "Associations.SubnetId",
    "owner-id": "OwnerId",
    "route.destination-cidr-block": "Routes.DestinationCidrBlock",
    "route.gateway-id": "Routes.GatewayId",
    "route.origin": "Routes.Origin",
    "route.state": "Routes.State",
    "route-table-id": "RouteTableId",
    "vpc-id": "VpcId",
}


_ROUTE_TABLES = Listing(
    tables.route_tables, "RouteTable", "RouteTableIds", "rtb", "InvalidRouteTableID", "routeTable ID", with_tags(_route_table), _ROUTE_TABLES_PATHS,
    columns={"route-table-id": "id", "vpc-id": "vpc_id"},
    malformed="InvalidRouteTableId",
)  # fmt: skip


@ec2
def describe_route_tables(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _ROUTE_TABLES, "RouteTables")
