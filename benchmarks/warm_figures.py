"""What `benchmarks/warm.py` makes of what it has read: logs, journals, counters of the kernel, facts of guests. Pure."""

from __future__ import annotations

import datetime as dt
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haneul.lab.statistics import summary

_GOES_ON = re.compile(r"\b(i-[0-9a-f]+) goes on from a template\b(.*)")
_PART = re.compile(r"(\w[\w ]*?) (\d+(?:\.\d+)?) s\b")
_READY = re.compile(r"\ba template of .* is ready\b")
#: What ssh(1) says with -v when a step is over.
_SSH_STEPS = (
    ("connected", "Connection established."),
    ("banner", "Remote protocol version"),
    ("keys", "SSH2_MSG_NEWKEYS received"),
    ("authenticated", "Authenticated to "),
)


# --- samples -----------------------------------------------------------------------------------------


def median(samples: Sequence[float], digits: int = 4) -> float | None:
    return round(statistics.median(samples), digits) if samples else None


def spread(samples: Sequence[float], digits: int = 4) -> dict[str, Any] | None:
    """The median, quartiles (with fewer than four samples the ends), the least and the most. None of nothing."""
    if not samples:
        return None
    found = summary(samples)
    named = {"median": found.median, "low": found.low, "high": found.high, "min": min(samples), "max": max(samples)}
    return {name: round(value, digits) for name, value in named.items()} | {"samples": len(samples)}


def ratio(slow: float | None, fast: float | None) -> float | None:
    return round(slow / fast, 1) if slow and fast else None


# --- haneul's own words ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """haneul has read and compared what the guest says of itself. `at` in seconds since the epoch, `parts` as logged."""

    instance: str
    at: float
    parts: dict[str, float]


def log_record(line: str) -> tuple[float, str] | None:
    """(seconds since the epoch, message) of a line of haneul.log, in either form. None for what is none."""
    if line.startswith("{"):
        try:
            found = json.loads(line)
            return moment(found["time"]), str(found["message"])
        except (ValueError, KeyError, TypeError):
            return None
    match = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) \w+ \S+ \[[^]]*\]: (.*)", line)
    if not match:
        return None
    whole = dt.datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").astimezone().timestamp()
    return whole + int(match[2]) / 1000, match[3]


def moment(text: str) -> float:
    """RFC 3339, as haneul's journals have it, in seconds since the epoch."""
    return dt.datetime.fromisoformat(text).timestamp()


def answer(line: str) -> Answer | None:
    record = log_record(line)
    match = _GOES_ON.search(record[1]) if record else None
    if record is None or match is None:
        return None
    parts = {name.strip(): float(seconds) for name, seconds in _PART.findall(match[2])}
    return Answer(match[1], record[0], parts)


def says_ready(line: str) -> bool:
    """Whether a template has become usable."""
    record = log_record(line)
    return record is not None and _READY.search(record[1]) is not None


def goes_on_at(events: str) -> float | None:
    """When QEMU let the guest's processors run for the first time (the RESUME event of its log)."""
    for line in events.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "RESUME":
            stamp = event["timestamp"]
            return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
    return None


# --- the kernel's words ------------------------------------------------------------------------------


def memory(smaps_rollup: str) -> dict[str, float]:
    """A process's memory by /proc/PID/smaps_rollup, in MiB: its own, what it shares, and its share of all (PSS)."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB", smaps_rollup, re.MULTILINE)}
    named = {
        "private": kib["Private_Clean"] + kib["Private_Dirty"], "private_dirty": kib["Private_Dirty"],
        "shared": kib["Shared_Clean"] + kib["Shared_Dirty"], "pss": kib["Pss"], "rss": kib["Rss"],
    }  # fmt: skip
    return {name: round(value / 1024, 1) for name, value in named.items()}


def started_at(stat: str, ticks: int, now: float, since_boot: float) -> float:
    """When a process began (a line of /proc/PID/stat), in seconds since the epoch; the kernel tells it in `ticks` per second."""
    after_name = stat.rpartition(")")[2].split()
    return now - (since_boot - int(after_name[19]) / ticks)


def cpu_seconds(stat: str, ticks: int) -> float:
    """What a process (a line of /proc/PID/stat) has had of processors, for itself and in the kernel."""
    after_name = stat.rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / ticks


def busy_share(before: str, after: str) -> float:
    """Of all processors' time between two readings of /proc/stat (proc(5)), what was neither idle nor waited for a disk."""
    (busy, all_), (busy_then, all_then) = _processors(after), _processors(before)
    return (busy - busy_then) / max(all_ - all_then, 1)


def _processors(stat: str) -> tuple[int, int]:
    user, nice, system, idle, waiting, *rest = map(int, stat.split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + waiting


def available_mib(meminfo: str) -> float:
    return _meminfo(meminfo, "MemAvailable")


def total_mib(meminfo: str) -> float:
    return _meminfo(meminfo, "MemTotal")


def _meminfo(text: str, name: str) -> float:
    found = re.search(rf"^{name}: +(\d+) kB", text, re.MULTILINE)
    assert found, f"no {name} in /proc/meminfo"
    return int(found[1]) / 1024


def with_total(meminfo: str, mib: int) -> str:
    """The same server with another MemTotal."""
    return re.sub(r"^MemTotal: +\d+ kB", f"MemTotal:       {mib * 1024} kB", meminfo, flags=re.MULTILINE)


def template_identity(saved: Iterable[bytes]) -> dict[str, list[str]]:
    """Machine ids, boot ids and host names that a journal of the template's guest has left in its memory, the most frequent first."""
    found: dict[str, Counter[str]] = {"machine_id": Counter(), "boot_id": Counter(), "hostname": Counter()}
    for some in saved:
        for name, value in re.findall(rb"_(MACHINE_ID|BOOT_ID|HOSTNAME)=([0-9a-zA-Z.-]{1,64})", some):
            if name == b"HOSTNAME" or re.fullmatch(rb"[0-9a-f]{32}", value):
                found[name.decode().lower()][value.decode()] += 1
    return {name: [value for value, _ in counts.most_common(8)] for name, counts in found.items()}


# --- the waterfall -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """`began` and `ended` in seconds after the request was sent."""

    name: str
    began: float
    ended: float


def steps(moments: Mapping[str, float | None], sent: float) -> list[Step]:
    """The steps of a launch between the moments that are known, each from the latest known one before it.

    A moment that an earlier one has overtaken (clocks that tick in hundredths) begins and ends there.
    """
    found, last = [], sent
    for name in ORDER:
        at = moments.get(name)
        if at is None:
            continue
        at = max(at, last)
        found.append(Step(name, last - sent, at - sent))
        last = at
    return found


#: What ends each step, in order, and who spends the time.
ORDER = {
    "request": "the client signs and sends RunInstances",
    "api": "validated, placed, written, answered",
    "agent": "until the server's agent takes it up",
    "volume": "the root volume's file",
    "network": "namespace, bridge, rules, DHCP, tap",
    "prepare": "folders, uid, the template's disk copied, the program started",
    "qmp": "QEMU has read its arguments and answers on its monitor",
    "state": "the state of the devices is in",
    "cont": "the guest is told who it is, and goes on",
    "answer": "the guest makes it so and says it; compared",
    "ping": "an observer on the VPC's bridge has got an echo",
    "open": "somebody listens on port 22",
    "connected": "TCP to port 22, by ssh",
    "banner": "the SSH server says its version",
    "keys": "key exchange",
    "authenticated": "the key is accepted",
    "ssh": "`true` has run, the client has ended",
}


def middle(launches: Sequence[Sequence[Step]]) -> list[Step]:
    """A waterfall whose steps last as long as the median of theirs, one after another."""
    lasted: dict[str, list[float]] = {}
    for one in launches:
        for step in one:
            lasted.setdefault(step.name, []).append(step.ended - step.began)
    found, at = [], 0.0
    for name in ORDER:
        if name in lasted:
            seconds = statistics.median(lasted[name])
            found.append(Step(name, at, at + seconds))
            at += seconds
    return found


def drawn(waterfall: Sequence[Step], width: int = 100) -> Iterator[str]:
    whole = max((step.ended for step in waterfall), default=0.0) or 1e-6
    room = max(width - 32, 10)
    for step in waterfall:
        start = min(round(step.began / whole * room), room - 1)
        length = max(round((step.ended - step.began) / whole * room), 1)
        bar = " " * start + "█" * min(length, room - start)
        yield f"{step.name:<14}{(step.ended - step.began) * 1000:>9.1f} ms  {bar}"


def ssh_steps(said: Iterable[tuple[float, str]]) -> dict[str, float]:
    """When which step of `ssh -v` was over, by its (moment, line)s."""
    found: dict[str, float] = {}
    for at, line in said:
        for name, words in _SSH_STEPS:
            if words in line:
                found.setdefault(name, at)
    return found


# --- whether clones differ ---------------------------------------------------------------------------


def facts(lines: Iterable[str]) -> dict[str, str]:
    """`name value` lines up to "end"; what a guest has not got is left out."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.strip().partition(" ")
        if name == "end":
            break
        if name and value.strip():
            found[name] = value.strip()
    return found


def tally(guests: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """For each fact: how many guests have it, how many different values there are, how many guests have another's."""
    found: dict[str, dict[str, int]] = {}
    for name in sorted({name for guest in guests for name in guest}):
        values = Counter(guest[name] for guest in guests if name in guest)
        repeated = sum(count for count in values.values() if count > 1)
        found[name] = {"guests": values.total(), "values": len(values), "repeated": repeated}
    return found


def differing(facts: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Facts that a guest has and that are not as they should be. Of names the first part counts."""

    def plain(name: str, value: str) -> str:
        return value.partition(".")[0] if name.startswith("hostname") else value

    return [
        f"{name} is {facts[name]}, not {value}"
        for name, value in wanted.items()
        if name in facts and plain(name, facts[name]) != plain(name, value)
    ]


def offset(rounds: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(how much the guest's clock is ahead, at most so wrong) by (sent, guest's time, received): the quickest round tells."""
    sent, there, received = min(rounds, key=lambda one: one[2] - one[0])
    return there - (sent + received) / 2, (received - sent) / 2


def unequal(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What there is more of than before (less, if negative)."""
    names = sorted(before.keys() | after.keys())
    differences = {name: round(after.get(name, 0) - before.get(name, 0), 2) for name in names}
    return {name: value for name, value in differences.items() if value}


def of_any(place: str, own: Mapping[str, str]) -> str:
    """A place in a guest as it is called in every guest: what is its own in it is named."""
    for name, value in own.items():
        if len(value) >= 12:
            place = place.replace(value, name.upper())
    return place


def says_ready_to_log_in(image: str) -> bytes:
    """The line on the serial console that ends a cold boot; for tiny one of before its SSH server, which is the sooner."""
    return b"haneul-tiny: no instance metadata" if image.startswith("tiny") else b" login:"
