"""What one account may have in one region (Service Quotas, "Amazon EC2"); settings named `quota_…`.

Counting is cheap where there is plenty: an upper bound that holds is enough, only near a quota are rows counted.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Table

from haneul.errors import CloudError
from haneul.model.instance_types import InstanceType
from haneul.services.context import Context
from haneul.store import tables

#: The quota that the vCPUs of all families here count for, by AWS's name.
_BUCKET = "Standard (A, C, D, H, I, M, R, T, Z)"


@cache
def _counting(table: Table) -> Any:
    scope = (table.c[name] == sa.bindparam(name) for name in ("account", "region"))
    return sa.select(sa.func.count()).select_from(table).where(*scope)


@cache
def _promised() -> Any:
    return sa.select(sa.func.sum(tables.servers.c.reserved_vcpus))


def _count(ctx: Context, table: Table, *where: Any) -> int:
    statement = _counting(table).where(*where) if where else _counting(table)
    return int(ctx.tx.execute(statement, {"account": ctx.account, "region": ctx.region}).scalar() or 0)


def room_for_instances(ctx: Context, kind: InstanceType, least: int, most: int) -> int:
    """How many of `least`…`most` further instances the quotas let in.

    Raises InstanceLimitExceeded or VcpuLimitExceeded if that is fewer than `least`.
    """
    room = ctx.settings.quota_instances - _instances_at_most(ctx, most)
    if room < least:
        raise CloudError(
            "InstanceLimitExceeded",
            f"You have requested more instances ({least}) than your current instance limit of "
            f"{ctx.settings.quota_instances} allows for the specified instance type (setting quota_instances).",
        )
    return min(most, room, room_for_vcpus(ctx, kind, least, most))


def _instances_at_most(ctx: Context, further: int) -> int:
    """An upper bound of the living instances; exact where `further` ones would not fit under it.

    The bound only grows, with every launch, until it has to be exact: then it is counted anew.
    """
    usage, scope = tables.usage, {"account": ctx.account, "region": ctx.region}
    rows = ctx.tx.select(usage, **scope)
    bound = rows[0]["instances"] if rows else 0
    if not rows or bound + further > ctx.settings.quota_instances:
        bound = _count(ctx, tables.instances, tables.instances.c.power != "terminated")
    if not rows:
        ctx.tx.insert(usage, **scope, instances=bound + further)
    else:
        ctx.tx.execute(_set_usage(), {"wanted": bound + further, "one": ctx.account, "place": ctx.region})
    return int(bound)


@cache
def _set_usage() -> Any:
    usage = tables.usage
    mine = (usage.c.account == sa.bindparam("one")) & (usage.c.region == sa.bindparam("place"))
    return sa.update(usage).where(mine).values(instances=sa.bindparam("wanted"))


def room_for_vcpus(ctx: Context, kind: InstanceType, least: int = 1, most: int = 1) -> int:
    """How many of `least`…`most` instances of the type may run. Raises VcpuLimitExceeded."""
    vcpus = ctx.settings.quota_vcpus - _vcpus_promised(ctx)
    if vcpus < most * kind.vcpus:
        vcpus = ctx.settings.quota_vcpus - _vcpus_used(ctx)
    if vcpus < least * kind.vcpus:
        raise CloudError(
            "VcpuLimitExceeded",
            f"You have requested more vCPU capacity than your current vCPU limit of {ctx.settings.quota_vcpus} allows "
            f"for the instance bucket {_BUCKET} that the specified instance type belongs to "
            "(setting quota_vcpus).",
        )
    return min(most, vcpus // kind.vcpus)


def _vcpus_promised(ctx: Context) -> int:
    """By all servers to everybody: no account can have more."""
    return int(ctx.tx.execute(_promised()).scalar() or 0)


@cache
def _used() -> Any:
    table = tables.instances
    scope = (table.c[name] == sa.bindparam(name) for name in ("account", "region"))
    return sa.select(sa.func.sum(table.c.reserved_vcpus)).where(*scope)


def _vcpus_used(ctx: Context) -> int:
    return int(ctx.tx.execute(_used(), {"account": ctx.account, "region": ctx.region}).scalar() or 0)


def check_room(ctx: Context, table: Table, quota: int, code: str, what: str, setting: str) -> None:
    """Raises `code` if the account has as many rows of `table` as it may."""
    if _count(ctx, table) >= quota:
        raise CloudError(code, f"You have reached the limit of {quota} {what} (setting {setting}).")
