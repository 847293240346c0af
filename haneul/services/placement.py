"""Which server runs an instance. Deciding is pure; reserving is one conditional update.

Servers are told apart by what they lack: a refusal lists each server and the rule that refused it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from haneul.config import Settings
from haneul.errors import CloudError
from haneul.model.instance_types import InstanceType
from haneul.store import tables
from haneul.store.database import Row, Transaction


@dataclass(frozen=True)
class Need:
    """`memory_mib` includes what the machine costs beyond its own memory."""

    zone: str
    vcpus: int
    memory_mib: int


def need(settings: Settings, instance_type: InstanceType, zone: str) -> Need:
    return Need(zone, instance_type.vcpus, instance_type.memory_mib + settings.memory_overhead_mib)


def why_not(server: Row, wanted: Need, settings: Settings) -> str:
    """The rule by which `server` cannot take `wanted`; empty where it can."""
    zones = server["zones"]
    if zones and wanted.zone not in zones:
        return f"is not in {wanted.zone}"
    free_memory = server["memory_mib"] - server["reserved_memory_mib"]
    if wanted.memory_mib > free_memory:
        return f"has {max(free_memory, 0)} MiB of memory free, {wanted.memory_mib} MiB are needed"
    free_vcpus = server["vcpus"] - server["reserved_vcpus"]
    if wanted.vcpus > free_vcpus:
        return f"has {max(free_vcpus, 0)} vCPUs left to promise, {wanted.vcpus} are needed"
    accelerators = server["observed_facts"].get("accelerators", {})
    if settings.generation_fallback == "refuse" and accelerators.get("kvm", "absent"):
        return f"cannot run HVM: {accelerators.get('kvm', 'no KVM')}, and generation_fallback is refuse"
    return ""


def choose(servers: Iterable[Row], wanted: Need, settings: Settings) -> Row:
    """The fitting server with most free memory. Raises InsufficientInstanceCapacity."""
    refusals: list[str] = []
    fitting: list[Any] = []
    for server in servers:
        refusal = why_not(server, wanted, settings)
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


def reserve(tx: Transaction, wanted: Need, settings: Settings, only: str = "") -> str:
    """Choose a server and take the room on it; gives its id. Raises InsufficientInstanceCapacity.

    `only` names the server that has the instance's volumes: a stopped instance starts there again.
    """
    table = tables.servers
    while True:
        servers = tx.select(table, id=only) if only else tx.select(table)
        server = choose(servers, wanted, settings)
        room = (
            (table.c.id == server["id"])
            & (table.c.reserved_memory_mib + wanted.memory_mib <= table.c.memory_mib)
            & (table.c.reserved_vcpus + wanted.vcpus <= table.c.vcpus)
        )
        taken = tx.update_where(
            table,
            room,
            reserved_memory_mib=table.c.reserved_memory_mib + wanted.memory_mib,
            reserved_vcpus=table.c.reserved_vcpus + wanted.vcpus,
        )
        if taken:
            return str(server["id"])


def release(tx: Transaction, instance: Row) -> None:
    """Give back what an instance holds; holding nothing is fine."""
    if not instance["reserved_memory_mib"] and not instance["reserved_vcpus"]:
        return
    table = tables.servers
    tx.update_where(
        table,
        table.c.id == instance["server_id"],
        reserved_memory_mib=table.c.reserved_memory_mib - instance["reserved_memory_mib"],
        reserved_vcpus=table.c.reserved_vcpus - instance["reserved_vcpus"],
    )
    tx.update(tables.instances, instance["id"], reserved_memory_mib=0, reserved_vcpus=0)
