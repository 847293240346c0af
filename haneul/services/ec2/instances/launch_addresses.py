"""Addresses for new interfaces: private ones of a subnet, public ones of the pool."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from haneul.errors import CloudError
from haneul.model.network import free_address, host_addresses
from haneul.services.context import Context
from haneul.store import tables

PROBES = 8


@cache
def _taken(column: Any, equal: tuple[str, ...]) -> Any:
    where = [column.table.c[name] == sa.bindparam(name) for name in equal]
    return sa.select(column).where(column.in_(sa.bindparam("probes", expanding=True)), *where)


def free(ctx: Context, column: Any, cidr: str, seeds: Sequence[str], **equal: Any) -> list[str | None]:
    """A free address of `cidr` for each seed, None where there is none left.

    For one address a few are looked up by the index; for many, all that are taken are read once.
    """
    where = [column.table.c[name] == value for name, value in equal.items()]
    if len(seeds) == 1:
        probes = list(itertools.islice(host_addresses(cidr, seeds[0]), PROBES))
        taken = set(ctx.tx.execute(_taken(column, tuple(equal)), equal | {"probes": probes}).scalars())
        free = next((one for one in probes if one not in taken), None)
        if free is not None:
            return [free]
    used = set(ctx.tx.execute(sa.select(column).where(column.is_not(None), *where)).scalars())
    found: list[str | None] = []
    for seed in seeds:
        found.append(free_address(cidr, used, seed))
        used.add(found[-1])
        if found[-1] is None:
            break
    return found + [None] * (len(seeds) - len(found))


def no_address(subnet: str) -> CloudError:
    return CloudError("InsufficientFreeAddressesInSubnet", f"There are not enough free addresses in subnet '{subnet}'.")


def no_public(ctx: Context) -> CloudError:
    return CloudError("InsufficientAddressCapacity", f"The pool {ctx.settings.public_pool} has no free address.")


def take_public(ctx: Context, interface: str) -> str:
    """A free address of the public pool. Its first four belong to haneul's own ends."""
    (address,) = free(ctx, tables.interfaces.c.public_address, ctx.settings.public_pool, [interface])
    if address is None:
        raise no_public(ctx)
    return address
