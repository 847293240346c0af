"""The two pictures of the report: slowdowns on a logarithmic axis, boots as timelines. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from haneul.lab.report.costs import Booted, Cost, Costs
from haneul.lab.report.draw import BAND, FAINT, GRID, INK, Box, Drawing, Item, Line, Mark, Shape, Words, moved
from haneul.lab.report.numbers import amount, digits, times
from haneul.lab.report.texts import GROUP, PAGE, PHASE, WORKLOAD, Text, same, way_name
from haneul.lab.workloads import GROUPS, WORKLOADS
from haneul.model.generation import Way

WIDTH = 1080.0


@dataclass(frozen=True)
class Look:
    """`ink` is a darker tone of `colour` that can be read on white. Shapes tell ways apart without colours."""

    colour: str
    ink: str
    shape: Shape


LOOKS: dict[Way, Look] = {
    "metal": Look("#1f2933", "#1f2933", "circle"),
    "emulated": Look("#c0392b", "#a32c20", "square"),
    "emulated-fast": Look("#e08e0b", "#945c00", "diamond"),
    "paravirtual": Look("#0b8a6b", "#086b53", "triangle"),
    "hvm": Look("#2468b4", "#1d5698", "circle"),
}
PHASE_COLOURS: dict[str, str] = {
    "api": "#475569", "server": "#94a3b8", "firmware": "#b07aa1", "kernel": "#e0a030", "services": "#4e89c4", "guest": "#6f83b6", "login": "#5aa88f",
}  # fmt: skip

# --- slowdown ------------------------------------------------------------------------------------------

LEFT, COLUMN, GAP = 214.0, 66.0, 22.0
ROW, HEAD, AXIS = 27.0, 27.0, 44.0


def ladder(least: float, most: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, from below `least` to above `most`."""
    steps = [
        10.0**power * factor
        for power in range(math.floor(math.log10(least)) - 1, math.ceil(math.log10(most)) + 1)
        for factor in (1, 2, 5)
    ]
    low = max(step for step in steps if step <= least)
    high = min((step for step in steps if step >= most), default=steps[-1])
    return [step for step in steps if low <= step <= high]


@dataclass(frozen=True)
class _Scale:
    """From a factor to its place on the axis."""

    steps: Sequence[float]
    left: float
    right: float

    def at(self, factor: float) -> float:
        whole = math.log(self.steps[-1] / self.steps[0])
        part = math.log(min(max(factor, self.steps[0]), self.steps[-1]) / self.steps[0]) / whole
        return self.left + part * (self.right - self.left)

    @property
    def labelled(self) -> list[float]:
        """All steps where there is room for them, else powers of ten."""
        tens = [step for step in self.steps if abs(math.log10(step) - round(math.log10(step))) < 1e-9]
        return list(self.steps) if len(self.steps) <= 11 else tens


def slowdown(costs: Costs) -> Drawing | None:
    """None if there is nothing to compare."""
    shown = [name for name in costs.workloads if any(costs.factor(way, name) is not None for way in costs.guests)]
    if not shown:
        return None
    factors = [cost.factor for cost in costs.costs.values() if cost.factor]
    ends = min(0.5, *(one.low for one in factors)), max(10.0, *(one.high for one in factors))
    scale = _Scale(ladder(*ends), LEFT + 16, WIDTH - GAP - COLUMN * len(costs.guests))
    groups = [(group, [name for name in shown if WORKLOADS[name].group == group]) for group in GROUPS]
    groups = [(group, names) for group, names in groups if names]
    items: list[Item] = []
    top = y = AXIS
    for group, names in groups:
        items.append(Words(10, y + HEAD / 2 + 2, GROUP[group], 12.5, FAINT, bold=True))
        y += HEAD
        for number, name in enumerate(names):
            items += _row(costs, name, y, scale, striped=number % 2 == 0)
            y += ROW
    grid = _grid(scale, top, y)
    bands = [one for one in items if isinstance(one, Box) and one.colour == BAND]
    rest = [one for one in items if one not in bands]
    head = _columns(costs, scale)
    return Drawing(WIDTH, y + 12, (*bands, *grid, *head, *rest), PAGE["chart"])


def _grid(scale: _Scale, top: float, bottom: float) -> list[Item]:
    items: list[Item] = []
    for step in scale.steps:
        labelled = step in scale.labelled
        if step != 1:
            items.append(Line(scale.at(step), top, scale.at(step), bottom, GRID if labelled else "#eef1f5", 1.0))
        if labelled:
            items.append(Words(scale.at(step), top - 12, same(f"×{digits(step, 1)}"), 11.5, FAINT, "middle"))
    one = scale.at(1)
    items.append(Line(one, top - 2, one, bottom, INK, 1.6))
    items.append(Words(one, top - 28, way_name("metal"), 11.5, INK, "middle", bold=True))
    return items


def _columns(costs: Costs, scale: _Scale) -> list[Item]:
    """Above the numbers on the right, the marks of the ways that they belong to."""
    items: list[Item] = []
    for number, way in enumerate(costs.guests):
        look = LOOKS[way]
        items.append(Mark(_column(number, costs) - 10, AXIS - 13, look.shape, look.colour, 6, way_name(way)))
    return items


def _column(number: int, costs: Costs) -> float:
    """Where the numbers of a way end."""
    return WIDTH - 12 - COLUMN * (len(costs.guests) - 1 - number)


def _row(costs: Costs, name: str, y: float, scale: _Scale, *, striped: bool) -> list[Item]:
    middle = y + ROW / 2
    items: list[Item] = [Box(4, y, WIDTH - 8, ROW, BAND)] if striped else []
    items.append(Words(22, middle, WORKLOAD[name], 13))
    ways = [way for way in costs.guests if costs.factor(way, name) is not None]
    values = [1.0, *(factor for way in ways if (factor := costs.factor(way, name)) is not None)]
    items.append(Line(scale.at(min(values)), middle, scale.at(max(values)), middle, "#d3dae2", 1.5))
    for number, way in enumerate(ways):
        cost = costs.costs[way, name]
        assert cost.factor is not None
        # A little apart, so that what is equal can be seen.
        height = middle + (number - (len(ways) - 1) / 2) * min(6.0, 15.0 / max(len(ways) - 1, 1))
        look = LOOKS[way]
        items.append(Line(scale.at(cost.factor.low), height, scale.at(cost.factor.high), height, look.colour, 2.0))
        items.append(Mark(scale.at(cost.factor.value), height, look.shape, look.colour, 4.6, _title(way, name, cost)))
    for number, way in enumerate(costs.guests):
        items.append(_value(costs, way, name, _column(number, costs), middle))
    return items


def _title(way: Way, name: str, cost: Cost) -> Text:
    assert cost.factor is not None
    figures = f"×{times(cost.factor.value)} (×{times(cost.factor.low)}–{times(cost.factor.high)}), {amount(cost.summary.median, WORKLOADS[name].unit)}"
    return Text(
        f"{WORKLOAD[name].en}, {way_name(way).en}: {figures}", f"{WORKLOAD[name].ko}, {way_name(way).ko}: {figures}"
    )


def _value(costs: Costs, way: Way, name: str, x: float, y: float) -> Words:
    cost = costs.costs.get((way, name))
    if cost is None or cost.factor is None:
        return Words(x, y, same("–"), 12, FAINT, "end")
    rough = "≈" if cost.disturbed else ""
    return Words(
        x, y, same(f"{rough}×{times(cost.factor.value)}"), 12.5, LOOKS[way].ink, "end", bold=cost.factor.value >= 10
    )


# --- boots ---------------------------------------------------------------------------------------------

BAR, BAR_GAP = 30.0, 14.0


def boots(costs: Costs) -> Drawing | None:
    if not costs.boots:
        return None
    left, right, top = LEFT, WIDTH - 190.0, 56.0
    most = max(booted.median.samples[0] for booted in costs.boots.values())
    step = _step(most)
    last = math.ceil(most / step) * step
    bottom = top + (BAR + BAR_GAP) * len(costs.boots)

    def at(seconds: float) -> float:
        return left + (right - left) * seconds / last

    items: list[Item] = []
    for number in range(round(last / step) + 1):
        x = at(number * step)
        items.append(Line(x, top - 8, x, bottom - 4, GRID))
        items.append(Words(x, bottom + 8, same(f"{number * step:g} s"), 11.5, FAINT, "middle"))
    items += _legend(costs)
    for number, (way, booted) in enumerate(costs.boots.items()):
        items += _bar(way, booted, top + (BAR + BAR_GAP) * number, at)
    return Drawing(WIDTH, bottom + 24, tuple(items), PAGE["boots"])


def _step(most: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most eight of them."""
    power = 10.0 ** math.floor(math.log10(max(most, 0.1) / 8))
    return next(power * factor for factor in (1, 2, 5, 10) if most / (power * factor) <= 8)


def _legend(costs: Costs) -> list[Item]:
    """The parts that occur, in equal columns: the words of two languages have different widths."""
    used = {phase.name for booted in costs.boots.values() for phase in booted.median.phases}
    names = [name for name in PHASE if name in used]
    items: list[Item] = []
    for number, name in enumerate(names):
        x = 10 + number * (WIDTH - 20) / max(len(names), 1)
        items.append(Box(x, 9, 13, 13, PHASE_COLOURS[name]))
        items.append(Words(x + 19, 16, PHASE[name], 12, FAINT))
    return items


def _bar(way: Way, booted: Booted, y: float, at: Callable[[float], float]) -> list[Item]:
    look = LOOKS[way]
    middle = y + BAR / 2
    items: list[Item] = [Mark(16, middle, look.shape, look.colour, 6), Words(30, middle, way_name(way), 13, bold=True)]
    for phase in booted.median.phases:
        began, ended, seconds = at(phase.began), at(phase.ended), phase.ended - phase.began
        title = Text(f"{PHASE[phase.name].en}: {seconds:.2f} s", f"{PHASE[phase.name].ko}: {seconds:.2f}초")
        items.append(Box(began, y, max(ended - began, 0.75), BAR, PHASE_COLOURS[phase.name], title))
        if ended - began > 34:
            items.append(
                Words(
                    (began + ended) / 2,
                    middle,
                    same(digits(seconds, 2 if seconds < 10 else 3)),
                    12,
                    "#ffffff" if phase.name != "kernel" else INK,
                    "middle",
                )
            )
    end = at(booted.median.phases[-1].ended) + 10
    items.append(Words(end, middle, same(f"{booted.median.samples[0]:.1f} s"), 14, look.ink, bold=True))
    if booted.totals.samples > 1:
        reach = f"{booted.totals.low:.1f}–{booted.totals.high:.1f} s, n = {booted.totals.samples}"
        items.append(Words(end + 62, middle, same(reach), 11.5, FAINT))
    return items


# --- together ------------------------------------------------------------------------------------------


def legend(costs: Costs) -> Drawing:
    """The ways with their marks, as one line of equal columns."""
    items: list[Item] = []
    for number, way in enumerate(costs.guests):
        x = 10 + number * (WIDTH - 20) / max(len(costs.guests), 1)
        items += [Mark(x + 6, 14, LOOKS[way].shape, LOOKS[way].colour, 6), Words(x + 20, 14, way_name(way), 13, INK)]
    return Drawing(WIDTH, 28, tuple(items), PAGE["chart"])


def together(parts: Sequence[tuple[Text, Drawing]], title: Text, under: Text) -> Drawing:
    """Drawings below each other, each with its title: for a picture of its own."""
    margin = 24.0
    items: list[Item] = [Words(margin, 34, title, 22, bold=True), Words(margin, 62, under, 13, FAINT)]
    y = 92.0
    for head, drawing in parts:
        if head.en:
            items.append(Words(margin, y + 12, head, 16, bold=True))
            y += 34
        items += [moved(item, margin, y) for item in drawing.items]
        y += drawing.height + 14
    return Drawing(WIDTH + 2 * margin, y + 6, tuple(items), title)
