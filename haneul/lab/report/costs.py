"""What measurements come to: for each way and workload a summary, and how many times slower it is than bare metal. Pure."""

from __future__ import annotations

import statistics as plain
from dataclasses import dataclass, field

from haneul.lab.results import Measurement, Results
from haneul.lab.statistics import QUIET, Factor, Summary, disturbance, geometric_mean, slowdown, summary
from haneul.lab.workloads import BOOT, WORKLOADS, Column
from haneul.model.generation import Way

#: In the order of history, behind what they are compared with.
ORDER: tuple[Way, ...] = ("metal", "emulated", "emulated-fast", "paravirtual", "hvm")


@dataclass(frozen=True)
class Cost:
    """`factor` is against bare metal; None without one. `disturbed` of `runs` were not measured on a quiet server."""

    summary: Summary
    factor: Factor | None
    runs: int
    disturbed: int


@dataclass(frozen=True)
class Booted:
    """The boots of a way: `median` is the run in the middle, with its parts."""

    median: Measurement
    totals: Summary


@dataclass(frozen=True)
class Costs:
    """`absent` says for (way, workload) why there is no figure."""

    ways: tuple[Way, ...]
    costs: dict[tuple[Way, str], Cost] = field(default_factory=dict)
    absent: dict[tuple[Way, str], str] = field(default_factory=dict)
    boots: dict[Way, Booted] = field(default_factory=dict)

    def factor(self, way: Way, workload: str) -> float | None:
        cost = self.costs.get((way, workload))
        return cost.factor.value if cost and cost.factor else None

    def median(self, way: Way, workload: str) -> float | None:
        cost = self.costs.get((way, workload))
        return cost.summary.median if cost else None

    def column(self, way: Way, column: Column) -> float | None:
        """The geometric mean of the factors of a column's workloads."""
        names = [name for name, one in WORKLOADS.items() if one.column == column]
        return geometric_mean(found for name in names if (found := self.factor(way, name)) is not None)

    @property
    def guests(self) -> tuple[Way, ...]:
        return tuple(way for way in self.ways if way != "metal")

    @property
    def workloads(self) -> tuple[str, ...]:
        """Those that have a figure somewhere."""
        return tuple(name for name in WORKLOADS if any((way, name) in self.costs for way in self.ways))

    @property
    def disturbed(self) -> int:
        return sum(one.disturbed for one in self.costs.values())

    @property
    def runs(self) -> int:
        return sum(one.runs for one in self.costs.values())


def of(results: Results) -> Costs:
    usual = _usual(results)
    ways = tuple(way for way in ORDER if any(one.way == way and one.samples for one in results.measurements))
    summaries = {
        (way, name): summary([value for one in found for value in one.samples])
        for way in ways
        for name in WORKLOADS
        if (found := [one for one in results.of(way, name) if one.samples])
    }
    costs = {
        (way, name): Cost(
            whole,
            _factor(summaries.get(("metal", name)), whole, name),
            sum(1 for one in results.of(way, name) if one.samples),
            sum(1 for one in results.of(way, name) if one.samples and is_disturbed(one, usual)),
        )
        for (way, name), whole in summaries.items()
    }
    absent = {
        (one.way, one.workload): one.error
        for one in results.measurements
        if one.error and (one.way, one.workload) not in costs
    }
    return Costs(ways, costs, absent, {way: booted for way in ways if (booted := _boots(results, way))})


def _factor(metal: Summary | None, guest: Summary, name: str) -> Factor | None:
    return slowdown(metal, guest, WORKLOADS[name].better) if metal else None


def _usual(results: Results) -> float:
    """What the fixed loop on the server takes when nothing disturbs it: the median of all times that it ran."""
    loops = [value for one in results.measurements for value in (one.before, one.after) if value > 0]
    return plain.median(loops) if loops else 0.0


def is_disturbed(one: Measurement, usual: float) -> bool:
    return disturbance(one.before, one.after, usual) > QUIET


def _boots(results: Results, way: Way) -> Booted | None:
    found = sorted((one for one in results.of(way, BOOT) if one.samples), key=lambda one: one.samples[0])
    if not found:
        return None
    return Booted(found[(len(found) - 1) // 2], summary([one.samples[0] for one in found]))
