"""What an account is told of itself (EC2 API Reference, DescribeAccountAttributes)."""

from __future__ import annotations

from haneul.errors import invalid
from haneul.services.context import Context, Input, Output, ec2
from haneul.store import tables


@ec2
def describe_account_attributes(ctx: Context, params: Input) -> Output:
    default = ctx.own(tables.vpcs, is_default=True)
    values = {
        "supported-platforms": ["VPC"],
        "default-vpc": [default[0]["id"] if default else "none"],
        "max-instances": [str(ctx.settings.quota_instances)],
        "vpc-max-security-groups-per-interface": [str(ctx.settings.quota_groups_per_interface)],
        "max-elastic-ips": ["0"],
        "vpc-max-elastic-ips": ["0"],
    }
    for name in params.get("AttributeNames", ()):
        if name not in values:
            raise invalid(name[:80], "attributeName", "It is not an attribute of an account.")
    wanted = params.get("AttributeNames") or list(values)
    return {
        "AccountAttributes": [
            {"AttributeName": name, "AttributeValues": [{"AttributeValue": value} for value in values.get(name, [])]}
            for name in dict.fromkeys(wanted)
        ]
    }
