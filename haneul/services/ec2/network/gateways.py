"""Internet gateways."""

from __future__ import annotations

from typing import Any

from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe
from haneul.services.ec2.network.views import with_tags
from haneul.store import tables
from haneul.store.database import Row


def _gateway(ctx: Context, row: Row) -> dict[str, Any]:
    attachments = [{"State": "available", "VpcId": row["vpc_id"]}] if row["vpc_id"] else []
    return {"InternetGatewayId": row["id"], "OwnerId": ctx.account, "Attachments": attachments}


_INTERNET_GATEWAYS_PATHS = {
    "attachment.state": "Attachments.State",
    "attachment.vpc-id": "Attachments.VpcId",
    "internet-gateway-id": "InternetGatewayId",
    "owner-id": "OwnerId",
}


_INTERNET_GATEWAYS = Listing(
    tables.internet_gateways, "InternetGateway", "InternetGatewayIds", "igw", "InvalidInternetGatewayID", "internetGateway ID", with_tags(_gateway), _INTERNET_GATEWAYS_PATHS,
    columns={"internet-gateway-id": "id", "attachment.vpc-id": "vpc_id"},
)  # fmt: skip


@ec2
def describe_internet_gateways(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _INTERNET_GATEWAYS, "InternetGateways")
