"""The life of an instance: what is desired, what was observed, and the EC2 state that follows from both.

The state is never stored. `state` is the one place that knows it (docs/states.md draws it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DesiredPower = Literal["running", "stopped", "terminated"]
ObservedPower = Literal["absent", "starting", "running", "stopping", "off"]
State = Literal["pending", "running", "shutting-down", "terminated", "stopping", "stopped"]

STATE_CODES: dict[State, int] = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}


@dataclass(frozen=True)
class Desired:
    """What the EC2 operations ask for.

    `boot_count` counts the boots that were ordered (launch, every start, every API reboot);
    `started_at_boot` is its value at the last launch or start. `force` makes the stop that is ordered immediate.
    """

    power: DesiredPower
    boot_count: int = 1
    started_at_boot: int = 1
    force: bool = False


@dataclass(frozen=True)
class Observed:
    """What an agent last reported. `boot_count` is the ordered boot that the machine has carried out."""

    power: ObservedPower
    boot_count: int = 0
    cause: str = ""
    detail: str = ""


def state(desired: Desired, observed: Observed | None) -> State:
    """The EC2 state. Total: every pair of values has an answer."""
    if desired.power == "terminated":
        return "terminated" if observed is not None and observed.power == "absent" else "shutting-down"
    if desired.power == "stopped":
        return "stopped" if observed is not None and observed.power in ("absent", "off") else "stopping"
    if observed is None or observed.boot_count < desired.started_at_boot:
        return "pending"
    if observed.power in ("running", "stopping"):
        return "running"
    if observed.power == "off" and observed.boot_count == desired.boot_count:
        return "stopped"
    return "pending"


def ended_by_itself(desired: Desired, observed: Observed) -> bool:
    """The machine that should run has ended without an order: its guest powered off, it crashed, or it never began."""
    return desired.power == "running" and observed.power == "off" and observed.boot_count == desired.boot_count


@dataclass(frozen=True)
class Reason:
    """`StateReason` (code and message) together with `StateTransitionReason`'s text."""

    code: str
    message: str
    transition: str


def user_initiated(verb: str, at: str) -> Reason:
    """`verb` is `shutdown` or `hibernate`; `at` is the time as EC2 prints it."""
    return Reason(
        f"Client.UserInitiated{verb.capitalize()}",
        f"Client.UserInitiated{verb.capitalize()}: User initiated {verb}",
        f"User initiated ({at})",
    )


def why_ended(observed: Observed, at: str) -> Reason:
    """The reason that EC2 shows for a machine that ended by itself."""
    if observed.cause == "guest-shutdown":
        code, text = "Client.InstanceInitiatedShutdown", "Instance initiated shutdown"
        return Reason(code, f"{code}: {text}", f"{text} ({at})")
    if observed.cause == "launch-failed":
        code, text = "Server.InternalError", "Internal error on launch"
        return Reason(code, f"{code}: {text}: {observed.detail}", f"{code}: {text} ({at})")
    if observed.cause == "server-reboot":
        code, text = "Server.ScheduledStop", "The server was restarted"
        return Reason(code, f"{code}: {text}", f"{code} ({at})")
    if observed.cause == "ordered":
        code, text = "Server.ScheduledStop", "Stopped by the owner of the server"
        return Reason(code, f"{code}: {text}", f"{code} ({at})")
    code = "Server.InternalError"
    text = f"The virtual machine ended unexpectedly: {observed.detail or observed.cause}"
    return Reason(code, f"{code}: {text}", f"{code} ({at})")
