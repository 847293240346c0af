"""DHCP options."""

from __future__ import annotations

from typing import Any

from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe
from haneul.services.ec2.network.views import with_tags
from haneul.store import tables
from haneul.store.database import Row


def _dhcp(ctx: Context, row: Row) -> dict[str, Any]:
    configurations = [
        {"Key": key, "Values": [{"Value": value} for value in values]} for key, values in sorted(row["options"].items())
    ]
    return {"DhcpOptionsId": row["id"], "OwnerId": ctx.account, "DhcpConfigurations": configurations}


_DHCP_OPTIONS_PATHS = {
    "dhcp-options-id": "DhcpOptionsId",
    "key": "DhcpConfigurations.Key",
    "owner-id": "OwnerId",
    "value": "DhcpConfigurations.Values.Value",
}


_DHCP_OPTIONS = Listing(
    tables.dhcp_options, "DhcpOptions", "DhcpOptionsIds", "dopt", "InvalidDhcpOptionID", "dhcpOption ID", with_tags(_dhcp), _DHCP_OPTIONS_PATHS,
    columns={"dhcp-options-id": "id"},
    malformed="InvalidDhcpOptionsId",
)  # fmt: skip


@ec2
def describe_dhcp_options(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _DHCP_OPTIONS, "DhcpOptions")
