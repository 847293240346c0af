"""The comparison: run after run, in each run every subject, in each subject what is missing of the workloads.

A run goes over all subjects before the next begins: a machine that is slower in the afternoon is slower for all of them, and
what is interrupted has something of everything. Each run boots each generation anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol, cast

from haneul.errors import SettingsError
from haneul.lab.measure.guests import Launched, NotHere
from haneul.lab.measure.measure import Meter
from haneul.lab.measure.places import Place
from haneul.lab.results import Found, Measurement, Results, Subject
from haneul.lab.workloads import BOOT
from haneul.model.generation import Generation, Way


@dataclass(frozen=True)
class Plan:
    subjects: tuple[Subject, ...]
    workloads: tuple[str, ...]
    runs: int

    def missing(self, results: Results) -> int:
        """How many measurements are to be made."""
        return sum(
            len(results.missing(subject, run, self.workloads))
            for run in range(1, self.runs + 1)
            for subject in self.subjects
        )


class Launcher(Protocol):
    def launch(self, generation: Generation, say: Callable[[str], None]) -> contextlib.AbstractContextManager[Launched]:
        """A guest of a generation, for a while. Raises `NotHere`."""
        ...


class Progress(Protocol):
    """Told what is being done, and what was done."""

    def doing(self, run: int, subject: str, what: str) -> None: ...

    def done(self, one: Measurement) -> None: ...

    def passed_over(self, subject: str, count: int, reason: str) -> None: ...


@dataclass
class Comparison:
    """`save` is called after every measurement."""

    plan: Plan
    results: Results
    meter: Meter
    launcher: Launcher
    save: Callable[[Results], None]
    progress: Progress

    def run(self) -> Results:
        """Everything that is missing. Interrupted, what was measured is saved."""
        gone: set[Subject] = set()
        for run in range(1, self.plan.runs + 1):
            for subject in self.plan.subjects:
                wanted = self.results.missing(subject, run, self.plan.workloads)
                if subject in gone:
                    self.progress.passed_over(subject, len(wanted), self.results.found[subject].reason)
                elif wanted and not self._subject(subject, run, wanted):
                    gone.add(subject)
        return self.results

    def _subject(self, subject: Subject, run: int, wanted: Sequence[str]) -> bool:
        """Whether it was there."""
        self.meter.rested()
        if subject == "metal":
            self._know(Found("metal", way="metal"))
            self._workloads(subject, "metal", run, wanted, self.meter.server)
            return True
        try:
            self._in_guest(subject, run, wanted)
        except NotHere as error:
            old = self.results.found.get(subject, Found(subject))
            self._know(replace(old, reason=str(error)))
            self.progress.passed_over(subject, len(wanted), str(error))
            return False
        return True

    def _in_guest(self, subject: Subject, run: int, wanted: Sequence[str]) -> None:
        def say(text: str) -> None:
            self.progress.doing(run, subject, text)

        with self.launcher.launch(cast(Generation, subject), say) as launched:
            way = launched.found.way
            assert way is not None
            self._check_way(subject, way)
            self._know(launched.found)
            if BOOT in wanted:
                self._add(_booted(subject, way, run, launched))
            self._workloads(subject, way, run, [one for one in wanted if one != BOOT], launched.guest)

    def _check_way(self, subject: Subject, way: Way) -> None:
        old = {one.way for one in self.results.measurements if one.subject == subject} - {way}
        if old:
            raise SettingsError(
                f"{subject} is run as {way} now, and the results that are there were measured as {', '.join(old)}: "
                "give another --output, or --again to begin anew"
            )

    def _workloads(self, subject: Subject, way: Way, run: int, names: Sequence[str], place: Place) -> None:
        for name in names:
            self.progress.doing(run, subject, name)
            self._add(self.meter.measure(subject, way, name, run, place))

    def _add(self, one: Measurement) -> None:
        self.results = self.results.with_measurement(one)
        self.save(self.results)
        self.progress.done(one)

    def _know(self, found: Found) -> None:
        self.results = self.results.with_found(found)
        self.save(self.results)


def _booted(subject: Subject, way: Way, run: int, launched: Launched) -> Measurement:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    total = launched.phases[-1].ended
    return Measurement(subject, way, BOOT, run, at, (total,), phases=launched.phases, raw=launched.found.guest)
