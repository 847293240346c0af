"""What was measured, as one JSON file that is whole at every moment; what of a plan is missing in it.

A subject is what is measured: `metal` is the server itself, the others are the generations that instance types ask for. How
one was really run is its `way`: an HVM type on a server without KVM is `emulated-fast`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from haneul.errors import SettingsError
from haneul.lab.workloads import BOOT
from haneul.model.generation import Generation, Way

FORMAT = 1
FILE = "results.json"
Subject = Literal["metal", "emulated", "paravirtual", "hvm"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)


@dataclass(frozen=True)
class Phase:
    """A part of a boot, in seconds after RunInstances was sent."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Measurement:
    """One run of one workload. `error` says why there are no samples. `before` and `after` are the fixed loop on the server.

    `phases` are those of a boot.
    """

    subject: Subject
    way: Way
    workload: str
    run: int
    at: str
    samples: tuple[float, ...] = ()
    error: str = ""
    before: float = 0.0
    after: float = 0.0
    command: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ()
    raw: Any = None

    @property
    def key(self) -> tuple[Subject, str, int]:
        return self.subject, self.workload, self.run


@dataclass(frozen=True)
class Found:
    """What is known of a subject: the type that was launched, how it was run, what the guest says of itself.

    `reason` says why it was not measured: it is not to be had here, or it failed. `note` is what the server says of how it runs it.
    """

    subject: Subject
    instance_type: str = ""
    way: Way | None = None
    reason: str = ""
    note: str = ""
    guest: dict[str, str] = field(default_factory=dict)

    @property
    def why_emulated(self) -> str:
        """Why an HVM type does not run under KVM: what stands behind the colon of what the server says."""
        return self.note.partition(": ")[2] or self.note


@dataclass(frozen=True)
class Results:
    """`about` is what all of it was measured on and with; figures of another image or server are not added to it."""

    about: dict[str, Any]
    found: dict[str, Found] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()

    def with_measurement(self, one: Measurement) -> Results:
        """A later try replaces an earlier one."""
        others = tuple(other for other in self.measurements if other.key != one.key)
        return replace(self, measurements=(*others, one))

    def with_found(self, one: Found) -> Results:
        return replace(self, found={**self.found, one.subject: one})

    def missing(self, subject: Subject, run: int, workloads: Iterable[str]) -> list[str]:
        """What of a run has still to be measured; what failed is tried again. The server itself is not booted."""
        done = {one.workload for one in self.measurements if (one.subject, one.run) == (subject, run) and one.samples}
        return [name for name in workloads if name not in done and not (subject == "metal" and name == BOOT)]

    def of(self, way: Way, workload: str) -> list[Measurement]:
        return [one for one in self.measurements if (one.way, one.workload) == (way, workload)]


def subjects(generations: Sequence[Generation]) -> tuple[Subject, ...]:
    """The server itself first: it is what the others are compared with."""
    return tuple(one for one in SUBJECTS if one == "metal" or one in generations)


def to_json(results: Results) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "about": results.about,
        "subjects": [asdict(one) for one in results.found.values()],
        "measurements": [asdict(one) for one in results.measurements],
    }


def from_json(found: dict[str, Any]) -> Results:
    """Raises SettingsError for what no haneul of this version wrote."""
    try:
        if found["format"] != FORMAT:
            raise SettingsError(f"the results have the format {found['format']}, not {FORMAT}; --again begins anew")
        return Results(
            found["about"],
            {one["subject"]: Found(**one) for one in found["subjects"]},
            tuple(_measurement(one) for one in found["measurements"]),
        )
    except (KeyError, TypeError) as error:
        raise SettingsError(f"these are no results of `haneul compare`: {error}; --again begins anew") from None


def _measurement(one: dict[str, Any]) -> Measurement:
    lists = {name: tuple(one[name]) for name in ("samples", "command")}
    return Measurement(**{**one, **lists, "phases": tuple(Phase(**phase) for phase in one["phases"])})


#: What has to be the same for figures to stand beside each other.
SAME = ("image", "image_id", "bench", "machine")


def check_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises SettingsError if figures of `new` cannot be added to those of `old`."""
    for name in SAME:
        if old.get(name) != new.get(name):
            raise SettingsError(
                f"the results that are there are of another {name} ({old.get(name)}, not {new.get(name)}): "
                "give another --output, or --again to begin anew"
            )


class File:
    """The results on disk. Each change is a new file in the place of the old one."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE

    def read(self) -> Results | None:
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        try:
            return from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise SettingsError(f"{self.path} is no JSON ({error}); --again begins anew") from None

    def write(self, results: Results, more: dict[str, Any] | None = None) -> None:
        """`more` is what follows from the results: it is written for readers, and not read again."""
        write_whole(self.path, json.dumps(to_json(results) | (more or {}), indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """The new file, or the old one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    data = content.encode() if isinstance(content, str) else content
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
