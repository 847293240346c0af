"""What descriptions of a VPC's parts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from haneul.model.region import public_dns_name
from haneul.services.context import Context
from haneul.services.ec2 import tags
from haneul.store import tables
from haneul.store.database import Row

View = Callable[[Context, Row], dict[str, Any]]


def with_tags(view: View) -> Callable[[Context, list[Row]], list[dict[str, Any]]]:
    """Views of rows, each with its tags."""

    def views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
        labels = tags.of(ctx, [row["id"] for row in rows])
        return [view(ctx, row) | {"Tags": labels[row["id"]]} for row in rows]

    return views


def association(ctx: Context, row: Row) -> dict[str, Any] | None:
    """The public address of an interface, as `Association`."""
    if not row["public_address"]:
        return None
    return {
        "IpOwnerId": "amazon",
        "PublicIp": row["public_address"],
        "PublicDnsName": public_dns_name(row["public_address"], ctx.region),
    }


def group_names(ctx: Context, interfaces: Iterable[Row]) -> dict[str, str]:
    """Id -> name of all the groups of some interfaces. Names of groups never change."""
    ids = list({group for row in interfaces for group in row["groups"]})
    return {row["id"]: row["name"] for row in ctx.tx.among(tables.security_groups, "id", ids)}


def group_views(names: dict[str, str], ids: list[str]) -> list[dict[str, str]]:
    return [{"GroupId": one, "GroupName": names.get(one, "")} for one in ids]
