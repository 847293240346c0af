"""Templates of warm launch as a server tells of them, and the rules of their life. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from haneul.model.instance_types import InstanceType, instance_types

#: `loaded`: in memory, the next launch goes on from it. `saved`: on disk alone, and taken into memory when it is wanted.
State = Literal["loaded", "saved", "being made", "waiting", "failed"]

#: After a failure no launch has the template tried again for so long, twice as long after each further one (seconds).
FIRST_PAUSE, LONGEST_PAUSE = 600.0, 86400.0
#: So many launches in a row that could not go on from a template, and it is taken for a bad one: each has waited for it.
MOST_MISSES = 3
#: What templates may take on disk, as a multiple of what they may take in memory.
DISK_FACTOR = 2


@dataclass(frozen=True)
class TemplateReport:
    """A template of a server, or what has become of the wish for one. Times in seconds since the epoch, 0: not known.

    `phase` is what is done for it right now, `reason` why it has failed, `retry` when a launch may have it tried again.
    `memory_bytes` is what it takes (or would) in memory, `seconds` how long it was made.
    """

    image: str
    instance_type: str
    vcpus: int
    memory_mib: int
    accelerator: str
    state: State
    phase: str = ""
    reason: str = ""
    retry: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    made: float = 0.0
    seconds: float = 0.0
    used: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Why there is no template. `key` is what it would have been made of: another image or QEMU is another chance."""

    reason: str
    key: str
    retry: float
    pause: float


def failed(before: Failure | None, reason: str, key: str, now: float) -> Failure:
    """A failure after `before` (None: the first)."""
    pause = FIRST_PAUSE
    if before is not None and before.key == key:
        pause = min(2 * before.pause, LONGEST_PAUSE)
    return Failure(reason, key, now + pause, pause)


def why_not_image(about: Mapping[str, Any], protocol: int) -> str:
    """Why no machine of an image may be a template, by its image.json; empty if one may.

    A template's machine is started as root's own, and what it has in memory every machine of the image gets: only what a recipe
    of haneul has built is fit for that, never what somebody brought along.
    """
    if about.get("imported"):
        return "it was imported: only images that are built here have templates"
    unit = about.get("resume") or 0
    if not unit:
        return "it has no resume unit: its instances boot"
    if unit != protocol:
        return f"its resume unit speaks protocol {unit} and this haneul {protocol}: build it again"
    return ""


def why_not_type(name: str) -> str:
    """Why instances of a type go on from no template; empty if they can."""
    found = instance_types().get(name)
    if found is None:
        return f"there is no instance type {name!r}"
    if found.generation != "hvm":
        return f"instances of {name} boot always: the generation {found.generation} has no templates"
    return ""


def why_not_here(wanted: InstanceType, vcpus: int, memory_mib: int) -> str:
    """Why a server that gives its instances so much has no room for one of a type; empty if it has."""
    if wanted.memory_mib > memory_mib:
        return (
            f"{wanted.name} has {wanted.memory_mib} MiB of memory, this server has {max(memory_mib, 0)} for instances"
        )
    if wanted.vcpus > vcpus:
        return f"{wanted.name} has {wanted.vcpus} vCPUs, this server promises {vcpus}"
    return ""


def surplus(sizes: Iterable[tuple[str, int, float]], most: int) -> list[str]:
    """Names of what has to go so that the rest is not larger than `most`: of (name, size, last use), the longest unused first."""
    order = sorted(sizes, key=lambda one: one[2])
    excess, gone = sum(size for _, size, _ in order) - most, []
    for name, size, _ in order:
        if excess <= 0:
            break
        excess -= size
        gone.append(name)
    return gone
