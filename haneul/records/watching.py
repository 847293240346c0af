"""What the journals say, for people: lines of `haneul events`, the waterfall of `haneul trace`. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Record = dict[str, Any]
#: What the steps of a boot are, for those who look at one.
STEPS = {
    "api": "the call: validated, placed, written, answered",
    "agent": "until the server's agent took it up",
    "disks": "the volumes' files",
    "network": "namespace, bridge, rules, DHCP, tap",
    "machine": "the machine's process starts and answers",
    "guest": "firmware, kernel and init, until its network answers",
    "failed": "",
}


def time_of(record: Record) -> str:
    return str(record.get("time") or record.get("eventTime") or "")


def concerns(record: Record, instance: str) -> bool:
    """Whether a record is about an instance."""
    if "eventName" not in record:
        return record.get("instance") == instance
    return instance in (record.get("resources") or [])


def merged(
    events: Iterable[Record], audit: Iterable[Record], keep: Callable[[Record], bool], most: int
) -> Iterable[Record]:
    """The last `most` records of both, in order of time; each is in order already. Never all of them in memory."""
    both = heapq.merge(events, audit, key=time_of)
    return deque(filter(keep, both), maxlen=max(most, 0))


def line(record: Record) -> str:
    """One record as one line: when, what of, what happened, why."""
    when = time_of(record).replace("T", " ")[:23]
    # Accounts and machines choose parts of it: nothing of theirs drives the reader's terminal or begins a line.
    return "".join(one if one.isprintable() else "?" for one in f"{when}  {_text(record)}")


def _text(record: Record) -> str:
    if "eventName" in record:
        return _call(record)
    kind, instance = record.get("event"), record.get("instance", "")
    if kind == "state":
        why = f": {record['why']}" if record.get("why") else ""
        return f"{instance}  {record['was']} -> {record['now']}{why}"
    if kind == "boot":
        seconds = record["spans"][-1]["ended"] - record["ordered"]
        return f"{instance}  boot {record['boot']} {_ended(record)} after {seconds:.2f} s"
    if kind == "problems":
        return f"{record['server']}  " + ("; ".join(record["problems"]) or "all is well again")
    if kind == "start":
        return f"haneul {record['version']} serves on {record['endpoint']}"
    return f"haneul: {kind}"


def _ended(record: Record) -> str:
    return f"failed ({record['failed']})" if record["failed"] else "answers"


def _call(record: Record) -> str:
    who = record.get("userIdentity", {})
    by = f"{who.get('accessKeyId') or 'anybody'} ({who['accountId']})" if "accountId" in who else "the owner"
    ids = record.get("resources") or []
    # A launch names its volumes, interfaces and groups too: the instances tell most.
    instances = [one for one in ids if one.startswith("i-")] or ids
    what = " ".join(instances[:3]) + (" …" if len(instances) > 3 else "")
    refused = f": {record['errorCode']}" if record.get("errorCode") else ""
    return f"{what}  {record['eventName']} by {by}{refused}".strip()


@dataclass(frozen=True)
class Bar:
    """A step of a boot: `began` and `ended` in seconds after it was ordered."""

    name: str
    began: float
    ended: float


def call_of(boot: Record, calls: Iterable[Record]) -> Record | None:
    """The call that ordered a boot, if it is still in the audit."""
    orders = ("RunInstances", "StartInstances", "CreateFleet")
    found = None
    for call in calls:
        if call.get("eventName") in orders and concerns(call, boot["instance"]) and "errorCode" not in call:
            at = datetime.fromisoformat(call["eventTime"]).timestamp()
            if boot["ordered"] - 60 <= at <= boot["spans"][0]["began"]:
                found = call
    return found


def waterfall(boot: Record, call: Record | None) -> list[Bar]:
    """The steps of a boot, from the order on. `call` is the audit's record of it, where there is one."""
    ordered = boot["ordered"]
    spans = [Bar(one["name"], one["began"] - ordered, one["ended"] - ordered) for one in boot["spans"]]
    bars = []
    if call is not None:
        began = datetime.fromisoformat(call["eventTime"]).timestamp() - ordered
        bars.append(Bar("api", began, began + call["durationMs"] / 1000))
    first = min(one.began for one in spans)
    if first > 0:
        bars.append(Bar("agent", 0.0, first))
    return [*bars, *spans]


def drawn(bars: list[Bar], width: int) -> Iterator[str]:
    """The bars as lines of at most `width` columns, on a scale from the first moment to the last."""
    left = min(bar.began for bar in bars)
    whole = max(max(bar.ended for bar in bars) - left, 1e-6)
    room = max(width - 30, 10)
    for bar in bars:
        start = round((bar.began - left) / whole * room)
        length = max(round((bar.ended - bar.began) / whole * room), 1)
        start = min(start, room - length)
        seconds = bar.ended - bar.began
        yield f"{bar.name:<8} {seconds:>9.3f} s  {' ' * start}{'█' * length}"
