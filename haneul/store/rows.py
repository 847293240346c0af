"""What rows mean: their columns as values of the model."""

from __future__ import annotations

from haneul.model.instance import Desired, Observed, State, state
from haneul.model.network import Rule
from haneul.store.database import Row


def desired(row: Row) -> Desired:
    return Desired(row["power"], row["boot_count"], row["started_at_boot"], row["force"])


def observed(row: Row) -> Observed | None:
    if row["observed_power"] is None:
        return None
    return Observed(row["observed_power"], row["observed_boot_count"], row["observed_cause"], row["observed_detail"])


def state_of(row: Row) -> State:
    return state(desired(row), observed(row))


def rule_of(row: Row) -> Rule:
    return Rule(
        row["direction"],
        row["protocol"],
        row["from_port"],
        row["to_port"],
        row["cidr"],
        row["cidr6"],
        row["peer_group"],
    )
