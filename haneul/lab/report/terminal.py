"""What a comparison shows on a terminal: how far it is, and in the end a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from haneul.lab.report.costs import Costs
from haneul.lab.report.numbers import amount, times
from haneul.lab.report.texts import GROUP, WORKLOAD, way_name
from haneul.lab.results import Measurement, Results
from haneul.lab.workloads import GROUPS, WORKLOADS


@dataclass
class Watching:
    """`total` measurements are to come. In a pipe nothing is told."""

    console: Console
    total: int
    _bar: Progress | None = field(default=None, init=False)
    _task: TaskID | None = field(default=None, init=False)

    def __enter__(self) -> Watching:
        if self.console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def doing(self, run: int, subject: str, what: str) -> None:
        self._update(f"run {run}, {subject}: {what}", 0)

    def done(self, one: Measurement) -> None:
        self._update(None, 1)
        if one.error:
            self._tell(f"{one.subject}: {one.workload} was not measured: {one.error}")

    def passed_over(self, subject: str, count: int, reason: str) -> None:
        self._update(None, count)
        self._tell(f"{subject} is not available here: {reason}")

    def _update(self, text: str | None, count: int) -> None:
        if self._bar is not None and self._task is not None:
            if text is not None:
                self._bar.update(self._task, description=escape(text[:70]))
            self._bar.advance(self._task, count)

    def _tell(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(escape(text), highlight=False)


def table(found: Costs, results: Results) -> Table:
    """A row for each workload, a column for each way: its figure, and how many times slower it is than bare metal."""
    whole = Table("workload", *(way_name(way).en for way in found.ways))
    for group in GROUPS:
        names = [name for name in found.workloads if WORKLOADS[name].group == group]
        if not names:
            continue
        whole.add_row(f"[dim]{GROUP[group].en}[/]")
        for name in names:
            whole.add_row(f"  {WORKLOAD[name].en}", *(_cell(found, name, way) for way in found.ways))
    if found.boots:
        whole.add_row("[dim]Boot, to SSH[/]", *(_boot(found, way) for way in found.ways))
    return whole


def _cell(found: Costs, name: str, way: str) -> str:
    cost = next((one for (at, workload), one in found.costs.items() if (at, workload) == (way, name)), None)
    if cost is None:
        return "–"
    figure = amount(cost.summary.median, WORKLOADS[name].unit)
    rough = "≈ " if cost.disturbed else ""
    if cost.factor is None or way == "metal":
        return rough + figure
    factor = cost.factor.value
    colour = "green" if factor < 1.5 else "yellow" if factor < 10 else "red"
    return f"{rough}{figure} [{colour}]×{times(factor)}[/]"


def _boot(found: Costs, way: str) -> str:
    booted = next((one for at, one in found.boots.items() if at == way), None)
    return f"{booted.totals.median:.1f} s" if booted else "–"


def absent(found: Costs, results: Results) -> list[str]:
    """A line for what could not be had, and for each reason for which a workload has no figure anywhere or somewhere."""
    lines = [f"{one.subject} is not available here: {one.reason}" for one in results.found.values() if one.reason]
    whys: dict[tuple[str, str], list[str]] = {}
    for (way, name), why in found.absent.items():
        whys.setdefault((name, why), []).append(way_name(way).en)
    return lines + [f"{name} was not measured ({', '.join(ways)}): {why}" for (name, why), ways in whys.items()]
