"""The report: one page that needs nothing else, in English and Korean, from the results alone. Pure.

Everything that is shown was said by somebody: guests, servers, errors. All of it is escaped here, in one place (`_text`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from html import escape

from haneul.lab.report import charts, costs, findings
from haneul.lab.report.costs import Cost, Costs
from haneul.lab.report.draw import Drawing, svg
from haneul.lab.report.literature import PUBLISHED, Published
from haneul.lab.report.numbers import amount, times
from haneul.lab.report.style import SCRIPT, STYLE
from haneul.lab.report.texts import (
    BOOT,
    COLUMN,
    GROUP,
    GUEST,
    MACHINE,
    METHOD,
    PAGE,
    TECHNIQUE,
    VERDICT,
    WARNING,
    WAY_HOW,
    WORKLOAD,
    WORKLOAD_WHAT,
    Text,
    same,
    way_name,
)
from haneul.lab.results import Found, Results
from haneul.lab.statistics import QUIET
from haneul.lab.workloads import GROUPS, WORKLOADS, Column
from haneul.model.generation import WAYS, Way

PERCENT = f"{QUIET:.0%}".rstrip("%")


def _text(text: Text | str) -> str:
    """Escaped; in both languages, of which the page shows one."""
    if isinstance(text, str):
        return escape(text)
    if text.en == text.ko:
        return escape(text.en)
    return f'<span class="en" lang="en">{escape(text.en)}</span><span class="ko" lang="ko">{escape(text.ko)}</span>'


def _tag(name: str, *inside: str, **attributes: str) -> str:
    """An element around HTML. `class_` is its class."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{given}>{''.join(inside)}</{name}>"


def _table(head: Sequence[str], rows: Iterable[str], **attributes: str) -> str:
    top = _tag("thead", _tag("tr", *(_tag("th", one, scope="col") for one in head)))
    return _tag("div", _tag("table", top, _tag("tbody", *rows), **attributes), class_="scroll")


def _row(*cells: str) -> str:
    """The first cell is the row's head."""
    return _tag("tr", _tag("th", cells[0], scope="row"), *(_tag("td", one) for one in cells[1:]))


def _section(name: str, title: Text, *inside: str, how: Text | None = None, public: bool = False) -> str:
    lead = [_tag("p", _text(how), class_="how")] if how else []
    return _tag("section", _tag("h2", _text(title)), *lead, *inside, id=name, class_="public" if public else "measured")


def page(results: Results) -> str:
    """The whole page."""
    found = costs.of(results)
    virtualized = str(results.about.get("virtualized", ""))
    sections = [
        _cards(found, results),
        _chart("slowdown", PAGE["chart"], PAGE["chart-how"], [charts.legend(found), charts.slowdown(found)]),
        _chart("boots", PAGE["boots"], PAGE["boots-how"], [charts.boots(found)]),
        _axes(found, results),
        _why(found, virtualized),
        _agreement(found, virtualized),
        _published(),
        _figures(found, results),
        _method(found, results),
    ]
    body = _tag("main", _head(results), _warnings(found, results, virtualized), *sections)
    title = _tag("title", f"haneul compare: {escape(PAGE['title'].en)}")
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{meta}{title}<style>{STYLE}</style></head><body>{_LANGUAGES}{body}{SCRIPT}</body></html>\n'


#: Two radio buttons, in front of everything that they show and hide: so it works without a script.
_LANGUAGES = (
    '<input type="radio" name="language" id="in-en" checked><input type="radio" name="language" id="in-ko">'
    '<nav aria-label="Language / 언어"><label for="in-en" lang="en">English</label><label for="in-ko" lang="ko">한국어</label></nav>'
)


# --- head ----------------------------------------------------------------------------------------------


def _head(results: Results) -> str:
    about = results.about
    facts = [
        str(about.get("started", ""))[:16].replace("T", " "),
        f"{about.get('processors', '?')} × {about.get('processor', '?')}",
        f"haneul {about.get('haneul', '?')}",
    ]
    return _tag(
        "header",
        _tag("p", "haneul 하늘 · compare", class_="brand"),
        _tag("h1", _text(PAGE["title"])),
        _tag("p", _text(PAGE["subtitle"].of(image=about.get("image", "?"))), class_="lead"),
        _tag("p", *(_tag("span", escape(one)) for one in facts if one), class_="facts"),
    )


def _warnings(found: Costs, results: Results, virtualized: str) -> str:
    told = warnings(found, results, virtualized)
    return _tag("div", *(_tag("p", _text(one)) for one in told), class_="warnings", role="note") if told else ""


def warnings(found: Costs, results: Results, virtualized: str) -> list[Text]:
    """What a reader has to know before any figure."""
    told = []
    if virtualized:
        told.append(WARNING["guest"].of(what=virtualized))
    fallen = [one for one in results.found.values() if one.way == "emulated-fast"]
    if fallen:
        told.append(WARNING["fallback"])
    if "metal" not in found.ways:
        told.append(WARNING["no-metal"])
    if found.disturbed:
        told.append(WARNING["disturbed"].of(disturbed=found.disturbed, total=found.runs, percent=PERCENT))
    if results.about.get("others"):
        told.append(WARNING["others"].of(count=results.about["others"]))
    return told


# --- cards ---------------------------------------------------------------------------------------------

_CARD_COLUMNS: tuple[Column, ...] = ("cpu", "kernel", "memory", "disk", "network")


def _cards(found: Costs, results: Results) -> str:
    cards = [_card(way, found, results) for way in found.ways]
    cards += [_absent(one) for one in results.found.values() if one.reason and one.way not in found.ways]
    fallen = results.found.get("hvm")
    if fallen and fallen.way == "emulated-fast":
        cards.append(_absent(Found("hvm", fallen.instance_type, "hvm", fallen.why_emulated)))
    return _tag("section", *cards, class_="cards", id="cards")


def _card(way: Way, found: Costs, results: Results) -> str:
    look = charts.LOOKS[way]
    lines = [_metal_card(results)] if way == "metal" else [_costs_of(way, found)]
    those = [one for one in results.found.values() if one.way == way]
    kind = those[0].instance_type if those else ""
    reasons = [
        _tag("p", _text(PAGE["incomplete"].of(reason=one.reason)), class_="reason") for one in those if one.reason
    ]
    return _tag(
        "article",
        _tag("h3", _text(way_name(way)), _tag("small", escape(kind)) if kind else ""),
        _tag("p", _text(WAY_HOW[way]), class_="engine"),
        *lines,
        *reasons,
        class_="card",
        style=f"--way: {look.colour}",
    )


def _metal_card(results: Results) -> str:
    about = results.about
    lines = [
        ("processor", about.get("processor")), ("kernel", about.get("kernel")), ("memory_mib", about.get("memory_mib")),
        ("virtualized", about.get("virtualized")),
    ]  # fmt: skip
    terms = "".join(f"<dt>{_text(MACHINE[name])}</dt><dd>{escape(str(value))}</dd>" for name, value in lines if value)
    return _tag("p", _text(PAGE["baseline"]), class_="baseline") + _tag("dl", terms)


def _costs_of(way: Way, found: Costs) -> str:
    lines = []
    for column in _CARD_COLUMNS:
        mean = found.column(way, column)
        value = f"×{times(mean)}" if mean is not None else "–"
        lines.append(f"<dt>{_text(COLUMN[column])}</dt><dd {_coloured(mean)}>{value}</dd>")
    booted = found.boots.get(way)
    if booted:
        seconds = f"{booted.totals.median:.1f} s"
        lines.append(f"<dt>{_text(PAGE['boot'])} <small>{_text(PAGE['to-ssh'])}</small></dt><dd>{seconds}</dd>")
    return _tag("dl", *lines, class_="costs")


def _absent(one: Found) -> str:
    way: Way = one.way or ("hvm" if one.subject == "hvm" else one.subject)
    return _tag(
        "article",
        _tag("h3", _text(way_name(way))),
        _tag("p", _text(WAY_HOW[way]), class_="engine"),
        _tag("p", _tag("strong", _text(PAGE["absent"])), class_="baseline"),
        _tag("p", escape(one.reason), class_="reason"),
        class_="card absent",
    )


# --- pictures ------------------------------------------------------------------------------------------


def _chart(name: str, title: Text, how: Text, drawings: Sequence[Drawing | None]) -> str:
    if any(one is None for one in drawings):
        return ""
    figures = [_tag("div", svg(one, f"{name}-{number}"), class_="scroll") for number, one in enumerate(drawings) if one]
    return _section(name, title, _tag("figure", *figures), how=how)


#: (factor, colour): from as good as nothing to a thousand times.
_COLOURS = (
    (1.0, (226, 240, 232)), (2.0, (250, 242, 205)), (5.0, (250, 216, 150)), (15.0, (243, 172, 110)),
    (50.0, (222, 113, 84)), (200.0, (178, 58, 72)), (1000.0, (116, 32, 68)),
)  # fmt: skip


def colour(factor: float) -> tuple[str, str]:
    """The colour of a cost and that of words on it, by the logarithm of the factor."""
    place = max(_COLOURS[0][0], min(factor, _COLOURS[-1][0]))
    for (low, one), (high, other) in itertools.pairwise(_COLOURS):
        if place <= high:
            part = math.log(place / low) / math.log(high / low)
            red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
            light = _luminance(red, green, blue)
            # Ink or paper, whichever is further from it.
            dark = (light + 0.05) / (_luminance(0x10, 0x16, 0x1C) + 0.05) > 1.05 / (light + 0.05)
            return f"#{red:02x}{green:02x}{blue:02x}", "#10161c" if dark else "#ffffff"
    raise AssertionError(factor)


def _luminance(*colours: int) -> float:
    """How light a colour is (WCAG 2.1, "relative luminance")."""
    parts = (one / 255 for one in colours)
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _coloured(factor: float | None) -> str:
    if factor is None:
        return 'class="unknown"'
    back, ink = colour(factor)
    return f'style="background:{back};color:{ink}"'


# --- axes ----------------------------------------------------------------------------------------------

_AXES: tuple[Column, ...] = ("cpu", "kernel", "memory", "interrupts", "disk", "network")


def _axes(found: Costs, results: Results) -> str:
    top = (
        f'<tr><td rowspan="2"></td><th colspan="2" scope="colgroup">{_text(PAGE["cpu"])}</th>'
        + "".join(f'<th rowspan="2" scope="col">{_text(COLUMN[one])}</th>' for one in _AXES[2:])
        + f'<th rowspan="2" scope="col">{_text(PAGE["boot"])}</th></tr>'
        + "<tr>"
        + "".join(f'<th scope="col">{_text(COLUMN[one])}</th>' for one in _AXES[:2])
        + "</tr>"
    )
    rows = [_axes_row(way, found) for way in costs.ORDER if way in WAYS]
    table = f'<div class="scroll"><table class="axes"><thead>{top}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _section("axes", PAGE["axes"], table, _scale(), how=PAGE["axes-how"])


def _axes_row(way: Way, found: Costs) -> str:
    axes = WAYS[way].axes
    techniques = {
        "cpu": axes.cpu, "kernel": axes.cpu, "memory": axes.memory, "interrupts": axes.interrupts, "disk": axes.disk,
        "network": axes.network,
    }  # fmt: skip
    cells = []
    for column in _AXES:
        mean = (1.0 if way in found.ways else None) if way == "metal" else found.column(way, column)
        value = f"×{times(mean)}" if mean is not None else "–"
        if way == "metal" and mean is not None:
            value = "1"
        cells.append(f"<td {_coloured(mean)}><b>{value}</b>{_tag('span', _text(TECHNIQUE[techniques[column]]))}</td>")
    booted = found.boots.get(way)
    seconds = f"{booted.totals.median:.1f} s" if booted else "–"
    words = _text(BOOT.get(axes.boot, same(axes.boot)))
    cells.append(f'<td class="{"plain" if booted else "unknown"}"><b>{seconds}</b><span>{words}</span></td>')
    return f'<tr><th scope="row" style="--way: {charts.LOOKS[way].colour}">{_text(way_name(way))}</th>{"".join(cells)}</tr>'


def _scale() -> str:
    steps = "".join(f"<li {_coloured(factor)}>×{factor:,.0f}</li>" for factor, _ in _COLOURS)
    return _tag("ul", steps, class_="scale", aria_hidden="true")


# --- words ---------------------------------------------------------------------------------------------


def _why(found: Costs, virtualized: str) -> str:
    told = findings.why(found, virtualized)
    parts = [
        _tag(
            "article",
            _tag("h3", _text(way_name(way))),
            _tag("ul", *(_tag("li", _text(one)) for one in sentences)),
            style=f"--way: {charts.LOOKS[way].colour}",
            class_=f"why {way}",
        )
        for way, sentences in told.items()
    ]
    return _section("why", PAGE["why"], _tag("div", *parts, class_="whys"))


_SIGNS = {"agrees": "✓", "partly": "◐", "differs": "✗", "unmeasured": "–"}


def _agreement(found: Costs, virtualized: str) -> str:
    rows = []
    for one in findings.agreement(found, virtualized):
        because = "".join(_tag("p", _text(text), class_="because") for text in one.because)
        verdict = _tag("span", f"{_SIGNS[one.verdict]} ", _text(VERDICT[one.verdict]), class_=f"verdict {one.verdict}")
        rows.append(
            _row(_text(one.claim), _tag("span", _text(one.source), class_="source"), verdict, _text(one.here) + because)
        )
    head = [_text(PAGE[name]) for name in ("claim", "source", "verdict", "here")]
    return _section("agreement", PAGE["agreement"], _table(head, rows, class_="agreement"))


def _published() -> str:
    def row(one: Published) -> str:
        checked = _text(PAGE["verified"]) if one.verified else _tag("em", _text(PAGE["recalled"]))
        return _row(
            _text(one.about), _text(one.figure), _tag("span", escape(one.source), class_="source") + " · " + checked
        )

    head = ["", _tag("span", _text(PAGE["public"]), class_="badge"), _text(PAGE["source"])]
    return _section(
        "published",
        PAGE["published"],
        _table(head, map(row, PUBLISHED), class_="published"),
        how=PAGE["published-how"],
        public=True,
    )


# --- figures -------------------------------------------------------------------------------------------


def _figures(found: Costs, results: Results) -> str:
    wanted = [name for name in WORKLOADS if name in found.workloads or any(name == one for _, one in found.absent)]
    head = [_text(PAGE["workload"]), *(_text(way_name(way)) for way in found.ways)]
    rows: list[str] = []
    for group in GROUPS:
        names = [name for name in wanted if WORKLOADS[name].group == group]
        if names:
            title = _tag("th", _text(GROUP[group]), colspan=str(len(head)), scope="rowgroup")
            rows.append(_tag("tr", title, class_="group"))
        rows += [_figures_row(name, found) for name in names]
    how = PAGE["figures-how"].of(percent=PERCENT)
    return _section("figures", PAGE["figures"], _table(head, rows, class_="figures"), how=how)


def _figures_row(name: str, found: Costs) -> str:
    title = _text(WORKLOAD[name]) + _tag("small", _text(WORKLOAD_WHAT[name]))
    if WORKLOADS[name].is_network:
        title += _tag("small", _text(PAGE["loopback"]))
    return _row(title, *(_figure(way, name, found) for way in found.ways))


def _figure(way: Way, name: str, found: Costs) -> str:
    cost = found.costs.get((way, name))
    if cost is None:
        reason = found.absent.get((way, name), "")
        return _tag(
            "span", _text(PAGE["not-run"]), *([_tag("small", escape(reason))] if reason else []), class_="absent"
        )
    factor = _tag("span", f"×{times(cost.factor.value)}", class_="factor") if cost.factor and way != "metal" else ""
    return f"{'≈ ' if cost.disturbed else ''}<b>{amount(cost.summary.median, WORKLOADS[name].unit)}</b> {factor}{_reach(cost, name)}"


def _reach(cost: Cost, name: str) -> str:
    if cost.summary.samples == 1:
        return _tag("small", "n = 1")
    unit = WORKLOADS[name].unit
    low, _, same_unit = amount(cost.summary.low, unit).partition(" ")
    high = amount(cost.summary.high, unit)
    reach = f"{low}–{high}" if high.endswith(f" {same_unit}") else f"{low} {same_unit} – {high}"
    return _tag("small", f"{reach}, n = {cost.summary.samples}")


# --- method --------------------------------------------------------------------------------------------


def _method(found: Costs, results: Results) -> str:
    values = {"runs": _runs(results), "percent": PERCENT, "disturbed": found.disturbed, "total": found.runs}
    how = _tag("ul", *(_tag("li", _text(one.of(**values))) for one in METHOD))
    about = results.about | {"ended": max((one.at for one in results.measurements), default="")}
    machine = [_row(_text(title), escape(str(about[name]))) for name, title in MACHINE.items() if about.get(name)]
    return _section(
        "method",
        PAGE["method"],
        how,
        _tag("h3", _text(PAGE["machine"])),
        _tag("div", _tag("table", _tag("tbody", *machine), class_="plain"), class_="scroll"),
        _tag("h3", _text(PAGE["guests"])),
        _guests(results),
        *_commands(results),
    )


def _runs(results: Results) -> int:
    return max((one.run for one in results.measurements), default=0)


def _guests(results: Results) -> str:
    those = [one for one in results.found.values() if one.guest and one.way]
    head = ["", *(_text(way_name(one.way)) for one in those if one.way)]
    rows = [
        _row(
            _text(title),
            *(escape(one.instance_type if name == "instance_type" else one.guest.get(name, "–")) for one in those),
        )
        for name, title in GUEST.items()
    ]
    return _table(head, rows, class_="plain")


def _commands(results: Results) -> list[str]:
    """The command of each workload, as it was run on whatever was measured last."""
    last = {one.workload: " ".join(one.command) for one in results.measurements if one.command}
    rows = [_row(_text(WORKLOAD[name]), _tag("code", escape(last[name]))) for name in WORKLOADS if name in last]
    inside = _table([_text(PAGE["workload"]), _text(PAGE["again"])], rows, class_="plain commands")
    return [_tag("details", _tag("summary", _text(PAGE["again"])), inside)] if rows else []


# --- picture -------------------------------------------------------------------------------------------


def picture(results: Results) -> bytes:
    """Slowdowns and boots as a PNG, in English."""
    from haneul.lab.report.picture import png

    found, about = costs.of(results), results.about
    parts = [
        (PAGE["chart"], charts.legend(found)),
        (same(""), charts.slowdown(found)),
        (PAGE["boots"], charts.boots(found)),
    ]
    under = f"{about.get('image', '?')} on {about.get('processors', '?')} x {about.get('processor', '?')}"
    if about.get("virtualized"):
        under += f", itself a guest of {about['virtualized']}"
    under += f"; haneul {about.get('haneul', '?')}, {str(about.get('started', ''))[:10]}, {_runs(results)} run{'s' * (_runs(results) != 1)}"
    drawn = [(head, drawing) for head, drawing in parts if drawing is not None]
    return png(charts.together(drawn, PAGE["title"], same(under)))
