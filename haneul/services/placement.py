"""Which server runs an instance. Deciding is pure; reserving is one conditional update.

Servers are told apart by what they lack: a refusal lists each server and the rule that refused it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from haneul.config import Settings
from haneul.errors import CloudError
from haneul.model.generation import Generation
from haneul.model.instance_types import InstanceType
from haneul.store import tables
from haneul.store.database import Row, Transaction


@dataclass(frozen=True)
class Need:
    """`memory_mib` includes what the machine costs beyond its own memory."""

    zone: str
    vcpus: int
    memory_mib: int
    generation: Generation = "hvm"


def need(settings: Settings, instance_type: InstanceType, zone: str) -> Need:
    memory = instance_type.memory_mib + settings.memory_overhead_mib
    return Need(zone, instance_type.vcpus, memory, instance_type.generation)


#: Of a server whose agent is of an older version and does not say: QEMU's own emulation needs nothing.
_UNSAID: dict[Generation, str] = {"paravirtual": "has not said whether it runs paravirtual guests"}


def _why_not_run(facts: Mapping[str, Any], generation: Generation, settings: Settings) -> str:
    said: Mapping[str, str] = facts.get("generations", {})
    if generation not in said:
        why = _UNSAID.get(generation, "")
    else:
        why = said[generation] and f"cannot run {generation} guests: {said[generation]}"
    no_kvm = facts.get("accelerators", {}).get("kvm", "no KVM")
    if not why and generation == "hvm" and no_kvm and settings.generation_fallback == "refuse":
        return f"cannot run HVM: {no_kvm}, and generation_fallback is refuse"
    return why


def why_not(server: Row, wanted: Need, settings: Settings) -> str:
    """The rule by which `server` cannot take `wanted`; empty where it can."""
    zones = server["zones"]
    if zones and wanted.zone not in zones:
        return f"is not in {wanted.zone}"
    if why := _why_not_run(server["observed_facts"], wanted.generation, settings):
        return why
    free_memory = server["memory_mib"] - server["reserved_memory_mib"]
    if wanted.memory_mib > free_memory:
        return f"has {max(free_memory, 0)} MiB of memory free, {wanted.memory_mib} MiB are needed"
    free_vcpus = server["vcpus"] - server["reserved_vcpus"]
    if wanted.vcpus > free_vcpus:
        return f"has {max(free_vcpus, 0)} vCPUs left to promise, {wanted.vcpus} are needed"
    return ""


def choose(servers: Iterable[Row], wanted: Need, settings: Settings, refused: Mapping[str, str] | None = None) -> Row:
    """The fitting server with most free memory. Raises InsufficientInstanceCapacity.

    `refused` are servers that something else rules out, and why.
    """
    refusals: list[str] = []
    fitting: list[Any] = []
    for server in servers:
        refusal = (refused or {}).get(server["id"]) or why_not(server, wanted, settings)
        if refusal:
            refusals.append(f"{server['id']} {refusal}")
        else:
            fitting.append(server)
    if not fitting:
        because = "; ".join(refusals) or "no server has reported yet"
        raise CloudError(
            "InsufficientInstanceCapacity",
            f"We currently do not have sufficient capacity in the Availability Zone you requested ({wanted.zone}): {because}.",
        )
    return max(fitting, key=lambda server: (server["memory_mib"] - server["reserved_memory_mib"], server["id"]))


@cache
def _take_room() -> Any:
    """One conditional update: it changes a row only while that has the room."""
    table = tables.servers
    memory, vcpus = sa.bindparam("memory", type_=sa.Integer), sa.bindparam("cpus", type_=sa.Integer)
    room = (
        (table.c.id == sa.bindparam("server"))
        & (table.c.reserved_memory_mib + memory <= table.c.memory_mib)
        & (table.c.reserved_vcpus + vcpus <= table.c.vcpus)
    )
    return (
        sa.update(table)
        .where(room)
        .values(reserved_memory_mib=table.c.reserved_memory_mib + memory, reserved_vcpus=table.c.reserved_vcpus + vcpus)
    )


def reserve(
    tx: Transaction, wanted: Need, settings: Settings, only: str = "", refused: Mapping[str, str] | None = None
) -> str:
    """Choose a server and take the room on it; gives its id. Raises InsufficientInstanceCapacity.

    `only` names the server that has the instance's volumes: a stopped instance starts there again.
    """
    while True:
        servers = tx.select(tables.servers, id=only) if only else tx.select(tables.servers)
        server = choose(servers, wanted, settings, refused)
        taken = tx.execute(
            _take_room(), {"server": server["id"], "memory": wanted.memory_mib, "cpus": wanted.vcpus}
        ).rowcount
        if taken:
            return str(server["id"])


MAX_SPREAD = 7


@dataclass(frozen=True)
class Member:
    """An instance of a placement group that holds, or may hold, room on a server."""

    server_id: str
    zone: str
    partition: int


def group_refuses(strategy: str, members: Iterable[Member], servers: Iterable[str], partition: int) -> dict[str, str]:
    """Server id -> why the group's strategy keeps a further instance off it.

    EC2 User Guide, "Placement strategies": instances of a spread group are on distinct hardware, partitions of a
    group do not share any, a cluster group is close together. Hardware is a server here.
    """
    found: dict[str, str] = {}
    inside = {member.server_id for member in members}
    for server in servers:
        others = {member.partition for member in members if member.server_id == server} - {partition}
        if strategy == "spread" and server in inside:
            found[server] = "has an instance of the spread placement group already"
        elif strategy == "partition" and others:
            found[server] = f"holds partition {min(others)} of the placement group"
        elif strategy == "cluster" and inside and server not in inside:
            found[server] = "does not hold the cluster placement group's instances"
    return found


def least_used_partition(partitions: int, members: Iterable[Member]) -> list[int]:
    """The partitions, those with the fewest instances first."""
    counts = Counter(member.partition for member in members)
    return sorted(range(1, partitions + 1), key=lambda number: (counts[number], number))
