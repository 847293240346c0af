"""Network ACLs."""

from __future__ import annotations

from typing import Any

from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe
from haneul.services.ec2.network.views import with_tags
from haneul.store import tables
from haneul.store.database import Row


def _acl(ctx: Context, row: Row) -> dict[str, Any]:
    return {
        "NetworkAclId": row["id"],
        "VpcId": row["vpc_id"],
        "OwnerId": ctx.account,
        "IsDefault": row["is_default"],
        "Entries": row["entries"],
        "Associations": [one | {"NetworkAclId": row["id"]} for one in row["associations"]],
    }


_NETWORK_ACLS_PATHS = {
    "association.association-id": "Associations.NetworkAclAssociationId",
    "association.network-acl-id": "Associations.NetworkAclId",
    "association.subnet-id": "Associations.SubnetId",
    "default": "IsDefault",
    "entry.cidr": "Entries.CidrBlock",
    "entry.egress": "Entries.Egress",
    "entry.protocol": "Entries.Protocol",
    "entry.rule-action": "Entries.RuleAction",
    "entry.rule-number": "Entries.RuleNumber",
    "network-acl-id": "NetworkAclId",
    "owner-id": "OwnerId",
    "vpc-id": "VpcId",
}


_NETWORK_ACLS = Listing(
    tables.network_acls, "NetworkAcl", "NetworkAclIds", "acl", "InvalidNetworkAclID", "networkAcl ID", with_tags(_acl), _NETWORK_ACLS_PATHS,
    columns={"network-acl-id": "id", "vpc-id": "vpc_id", "default": "is_default"},
)  # fmt: skip


@ec2
def describe_network_acls(ctx: Context, params: Input) -> Output:
    return describe(ctx, params, _NETWORK_ACLS, "NetworkAcls")
