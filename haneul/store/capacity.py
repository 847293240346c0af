"""Room that instances hold on servers."""

from __future__ import annotations

from haneul.store import tables
from haneul.store.database import Row, Transaction


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
