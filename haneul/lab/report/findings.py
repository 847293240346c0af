"""What the figures say, in sentences: why a generation costs what it costs here, and whether the literature agrees. Pure.

A sentence is made of figures that were measured; where they are missing it is not said, and where they say something else another
one is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from haneul.lab.report.costs import Costs
from haneul.lab.report.numbers import amount, times
from haneul.lab.report.texts import CLAIM, FINDING, PHASE, WHY, WORKLOAD, Text, joined, same, way_name
from haneul.lab.statistics import geometric_mean
from haneul.lab.workloads import WORKLOADS, Column
from haneul.model.generation import Way

#: A factor from which code is dearer than other code, beyond what measuring it twice would show.
CLEARLY = 1.5
#: Within this a factor is as good as 1.
SAME_SPEED = 1.1


@dataclass(frozen=True)
class _Told:
    """The figures of one way, for its sentences."""

    costs: Costs
    way: Way

    def factor(self, workload: str) -> float | None:
        return self.costs.factor(self.way, workload)

    def say(self, key: str, **workloads: str) -> list[Text]:
        """The sentence `key` with factors in its places; nothing where one of them is not known."""
        values = {name: self._value(workload) for name, workload in workloads.items()}
        known = {name: times(value) for name, value in values.items() if value is not None}
        return [WHY[key].of(**known)] if len(known) == len(values) else []

    def _value(self, workload: str) -> float | None:
        if workload != "stream":
            return self.factor(workload)
        return geometric_mean(found for name in ("net-in", "net-out") if (found := self.factor(name)) is not None)

    def timer(self, why: str) -> list[Text]:
        metal, late = self.costs.median("metal", "timer"), self.costs.median(self.way, "timer")
        if metal is None or late is None or late < metal * CLEARLY:
            return []
        unit = WORKLOADS["timer"].unit
        return [WHY["timer"].of(late=amount(late, unit), metal=amount(metal, unit), why=WHY[why])]

    def boots(self) -> list[Text]:
        booted = self.costs.boots.get(self.way)
        if booted is None:
            return []
        longest = max(booted.median.phases, key=lambda one: one.ended - one.began)
        total, part = booted.median.samples[0], longest.ended - longest.began
        return [WHY["boots"].of(seconds=f"{total:.1f}", phase=PHASE[longest.name], part=f"{part:.1f}")]

    def excess(self) -> list[Text]:
        """Where a way computes on the processor itself, and was slower than that explains."""
        found = _factors(self.costs, (self.way,), ("integer", "floating", "sha256"))
        much = [one for one in found if one.value > CLEARLY]
        if not much:
            return []
        return [WHY["unexplained-disturbed" if any(one.disturbed for one in much) else "unexplained"]]

    def waits(self) -> list[Text]:
        sync = self.factor("disk-sync")
        return self.say("sync-waits", sync="disk-sync") if sync is not None and sync < CLEARLY else []


def why(costs: Costs, virtualized: str) -> dict[Way, list[Text]]:
    """Sentences for each way that has figures. `virtualized` is under what the server itself runs, or empty."""
    found: dict[Way, list[Text]] = {}
    for way in costs.ways:
        sentences = _WHY[way](_Told(costs, way), virtualized)
        found[way] = sentences or [WHY["nothing"]]
    return found


def _metal(told: _Told, virtualized: str) -> list[Text]:
    return [WHY["metal"], *([WHY["metal-guest"].of(what=virtualized)] if virtualized else [])]


def _translated(told: _Told) -> list[Text]:
    """What is so for every guest of QEMU's TCG."""
    integer, floating, call = told.factor("integer"), told.factor("floating"), told.factor("getppid")
    found = told.say("tcg-computing", integer="integer", sha256="sha256")
    registers = told.factor("registers")
    if registers and registers < CLEARLY:
        found += told.say("tcg-registers", registers="registers")
    if integer and floating and floating > integer * CLEARLY:
        found += told.say("tcg-floating", floating="floating")
    found += told.say("tcg-memory", memory="memory")
    if integer and call:
        key = "tcg-call-more" if call > integer * 2 else "tcg-call-same"
        found += told.say(key, getppid="getppid", **({"integer": "integer"} if key == "tcg-call-more" else {}))
    found += told.say("tcg-fault", fault="page-fault")
    return found + told.say("tcg-process", fork="fork", exec="exec")


def _emulated(told: _Told, virtualized: str) -> list[Text]:
    found = _translated(told) + told.timer("timer-tcg")
    found += told.say("emulated-disk", write="disk-write", read="disk-read") + told.waits()
    found += told.say("emulated-network", latency="net-latency", stream="stream")
    return found + told.say("compile", compile="compile") + told.boots()


def _emulated_fast(told: _Told, virtualized: str) -> list[Text]:
    # What was said of the other emulated way is not said again.
    found = _as_emulated(told) or _translated(told)
    found += told.timer("timer-tcg")
    found += told.say("fast-disk", write="disk-write", read="disk-read") + told.waits()
    found += told.say("fast-network", latency="net-latency", stream="stream")
    for name in ("disk-write", "net-latency"):
        fast, emulated = told.factor(name), told.costs.factor("emulated", name)
        if fast and emulated:
            what = WORKLOAD[name]
            found.append(WHY["fast-beside"].of(what=what, emulated=times(emulated), fast=times(fast)))
    return found + told.say("compile", compile="compile") + told.boots()


def _as_emulated(told: _Told) -> list[Text]:
    if "emulated" not in told.costs.ways:
        return []
    columns: tuple[Column, ...] = ("cpu", "kernel", "memory")
    means = {column: told.costs.column(told.way, column) for column in columns}
    known = {column: times(mean) for column, mean in means.items() if mean is not None}
    return [WHY["fast-same"].of(name=way_name("emulated"), **known)] if len(known) == len(columns) else []


def _paravirtual(told: _Told, virtualized: str) -> list[Text]:
    found = told.say("uml-computing", integer="integer", floating="floating", sha256="sha256") + told.excess()
    memory = told.factor("memory")
    if memory:
        found += told.say("uml-memory-same" if memory < SAME_SPEED else "uml-memory", memory="memory")
    found += _ptrace(told)
    found += told.say("uml-fault", fault="page-fault") + told.say("uml-process", fork="fork", exec="exec")
    found += told.timer("timer-uml")
    found += told.say("uml-disk", write="disk-write", read="disk-read") + told.waits()
    found += told.say("uml-network", latency="net-latency", stream="stream")
    return found + told.say("compile", compile="compile") + told.boots()


def _ptrace(told: _Told) -> list[Text]:
    """What a system call costs, in context switches of the server."""
    costs, unit = told.costs, WORKLOADS["getppid"].unit
    metal, guest, factor = costs.median("metal", "getppid"), costs.median(told.way, "getppid"), told.factor("getppid")
    if metal is None or guest is None or factor is None:
        return []
    found = [WHY["uml-call"].of(guest=amount(guest, unit), metal=amount(metal, unit), factor=times(factor))]
    switch = costs.median("metal", "switch")
    if switch:
        found.append(
            WHY["uml-call-switches"].of(switches=times(guest / switch), switch=amount(switch, WORKLOADS["switch"].unit))
        )
    return found


def _hvm(told: _Told, virtualized: str) -> list[Text]:
    found = told.say("hvm-computing", integer="integer", floating="floating", sha256="sha256") + told.excess()
    found += told.say("hvm-call", getppid="getppid") + told.say("hvm-fault", fault="page-fault")
    found += told.timer("timer-hvm")
    found += told.say("hvm-devices", write="disk-write", read="disk-read", latency="net-latency") + told.waits()
    if virtualized:
        found.append(WHY["hvm-nested"])
    return found + told.say("compile", compile="compile") + told.boots()


_WHY: dict[Way, Callable[[_Told, str], list[Text]]] = {
    "metal": _metal,
    "emulated": _emulated,
    "emulated-fast": _emulated_fast,
    "paravirtual": _paravirtual,
    "hvm": _hvm,
}

# --- agreement -----------------------------------------------------------------------------------------

Verdict = Literal["agrees", "partly", "differs", "unmeasured"]
GREGG = "B. Gregg 2017"
XEN = "Barham et al., SOSP 2003"
MECHANISM = Text("from how they work", "동작 원리에서")

COMPUTING = ("registers", "integer", "floating", "sha256", "primes")
CALLS = ("getppid", "read", "fork", "exec")


@dataclass(frozen=True)
class Agreement:
    """One claim, and what was measured: `here` in figures, `because` where it is otherwise."""

    claim: Text
    source: Text
    verdict: Verdict
    here: Text = Text("–", "–")
    because: tuple[Text, ...] = ()


def agreement(costs: Costs, virtualized: str) -> list[Agreement]:
    return [
        _emulated_slow(costs, virtualized),
        _para_computing(costs),
        _para_calls(costs),
        _hvm_computing(costs, virtualized),
        _order(costs, "order-computing", COMPUTING, ("emulated", "paravirtual", "hvm"), same(f"{GREGG}; {XEN}")),
        _order(costs, "order-calls", ("getppid", "read"), ("paravirtual", "emulated", "hvm"), MECHANISM),
        _devices(costs),
        _build(costs),
    ]


@dataclass(frozen=True)
class _Measured:
    """A factor that a claim is about: of what, in which way, how much, how far its samples reach, and whether it was disturbed."""

    name: str
    value: float
    low: float
    way: Way
    disturbed: bool

    @property
    def text(self) -> Text:
        return FINDING["named"].of(what=WORKLOAD[self.name], factor=times(self.value))


def _factors(costs: Costs, ways: Sequence[Way], names: Sequence[str]) -> list[_Measured]:
    found = []
    for way in ways:
        for name in names:
            cost = costs.costs.get((way, name))
            if cost and cost.factor:
                disturbed = any(
                    costs.costs[one, name].disturbed for one in ("metal", way) if (one, name) in costs.costs
                )
                found.append(_Measured(name, cost.factor.value, cost.factor.low, way, disturbed))
    return found


def _within(
    claim: str, source: Text, found: Sequence[_Measured], least: float, most: float, reason: Callable[[_Measured], Text]
) -> Agreement:
    """Whether all factors are between two numbers, for a claim that says so."""
    if not found:
        return Agreement(CLAIM[claim], source, "unmeasured")
    outside = [one for one in found if not least <= one.value <= most]
    names = list(dict.fromkeys(one.name for one in found))
    here = FINDING["range" if len(found) > 1 else "one"].of(
        low=times(min(one.value for one in found)),
        high=times(max(one.value for one in found)),
        what=joined([WORKLOAD[name] for name in names]) if len(names) < 6 else FINDING["many"].of(count=len(names)),
    )
    verdict: Verdict = "agrees" if not outside else "partly" if len(outside) < len(found) else "differs"
    return Agreement(CLAIM[claim], source, verdict, here, _reasons(outside, most, reason))


def _reasons(outside: Sequence[_Measured], most: float, reason: Callable[[_Measured], Text]) -> tuple[Text, ...]:
    """What is outside, below and above, each group with its reasons."""
    found: list[Text] = []
    for key, those in (
        ("below", [one for one in outside if one.value <= most]),
        ("above", [one for one in outside if one.value > most]),
    ):
        if not those:
            continue
        several = len({one.way for one in outside}) > 1
        names = [
            Text(f"{one.text.en}{_of(one.way, several).en}", f"{one.text.ko}{_of(one.way, several).ko}")
            for one in those
        ]
        found.append(FINDING[key].of(what=joined(names)))
        found += [FINDING["because"].of(why=text) for text in dict.fromkeys(_because(one, reason) for one in those)]
    # "No reason is established" is said once, and not as a reason.
    unknown = FINDING["because"].of(why=FINDING["unknown"])
    return tuple(FINDING["unknown"] if one == unknown else one for one in dict.fromkeys(found))


def _because(one: _Measured, reason: Callable[[_Measured], Text]) -> Text:
    """What is known of this machine goes before what is only likely."""
    known = reason(one)
    return FINDING["disturbed"] if known == FINDING["unknown"] and one.disturbed else known


def _of(way: Way, wanted: bool) -> Text:
    return Text(f" ({way_name(way).en})", f"({way_name(way).ko})") if wanted else same("")


def _emulated_slow(costs: Costs, virtualized: str) -> Agreement:
    names = [name for name, one in WORKLOADS.items() if one.column in ("cpu", "kernel", "memory")]

    def reason(one: _Measured) -> Text:
        if virtualized and one.name in ("page-fault", "fork", "exec", "switch", "pipe", "getppid", "read"):
            return FINDING["slow-baseline"]
        return FINDING["simple-loop"] if one.name == "registers" else FINDING["unknown"]

    found = _factors(costs, ("emulated", "emulated-fast"), names)
    return _within("emulated-slow", same(GREGG), found, 2.0, float("inf"), reason)


def _para_computing(costs: Costs) -> Agreement:
    found = _factors(costs, ("paravirtual",), COMPUTING)
    return _within("para-computing", same(f"{GREGG}; {XEN}"), found, 0.0, 1.5, lambda one: FINDING["unknown"])


def _para_calls(costs: Costs) -> Agreement:
    switch = costs.median("metal", "switch")

    def reason(one: _Measured) -> Text:
        if one.name not in ("getppid", "read") or not switch:
            return FINDING["unknown"]
        return FINDING["slow-switch" if one.value > 70 else "fast-switch"].of(switch=amount(switch, "us"))

    found = _factors(costs, ("paravirtual",), CALLS)
    source = Text(f"{XEN} (recalled); haneul’s first measurements", f"{XEN}(기억에 의한 값); haneul의 초기 측정")
    return _within("para-calls", source, found, 10.0, 70.0, reason)


def _hvm_computing(costs: Costs, virtualized: str) -> Agreement:
    def reason(one: _Measured) -> Text:
        # The quartiles reach down to what is said.
        if one.low <= 1.015:
            return FINDING["within-noise"]
        return FINDING["nested"] if virtualized else FINDING["unknown"]

    found = _factors(costs, ("hvm",), COMPUTING)
    return _within("hvm-computing", same(GREGG), found, 0.0, 1.015, reason)


def _order(costs: Costs, claim: str, names: Sequence[str], ways: Sequence[Way], source: Text) -> Agreement:
    """Whether `ways` are in the order of their costs, the dearest first. An emulated CPU is one whatever its devices are."""
    means: dict[Way, float] = {}
    for way in ways:
        those: tuple[Way, ...] = ("emulated", "emulated-fast") if way == "emulated" else (way,)
        mean = next((found for one in those if (found := _mean(costs, one, names)) is not None), None)
        if mean is not None:
            means[way] = mean
    if len(means) < 2:
        return Agreement(CLAIM[claim], source, "unmeasured")
    measured = sorted(means, key=lambda way: -means[way])
    here = FINDING["order"].of(
        order=joined([FINDING["named"].of(what=way_name(way), factor=times(means[way])) for way in measured], " > ")
    )
    # What is nearly the same has no order.
    pairs = [(one, other) for at, one in enumerate(means) for other in list(means)[at + 1 :]]
    wrong = [pair for pair in pairs if means[pair[0]] * SAME_SPEED < means[pair[1]]]
    verdict: Verdict = "agrees" if not wrong else "partly" if len(wrong) < len(pairs) else "differs"
    return Agreement(CLAIM[claim], source, verdict, here, (FINDING["unknown"],) if wrong else ())


def _mean(costs: Costs, way: Way, names: Sequence[str]) -> float | None:
    return geometric_mean(one.value for one in _factors(costs, (way,), names))


def _devices(costs: Costs) -> Agreement:
    names = [name for name, one in WORKLOADS.items() if one.column in ("disk", "network")]
    pairs = [
        (name, emulated, fast)
        for name in names
        if (emulated := costs.factor("emulated", name)) and (fast := costs.factor("emulated-fast", name))
    ]
    if not pairs:
        return Agreement(CLAIM["devices"], MECHANISM, "unmeasured")
    here = joined(
        [FINDING["beside"].of(what=WORKLOAD[name], one=times(one), other=times(other)) for name, one, other in pairs],
        "; ",
    )
    wrong = [name for name, one, other in pairs if one < other / SAME_SPEED]
    verdict: Verdict = "agrees" if not wrong else "partly" if len(wrong) < len(pairs) else "differs"
    reasons = dict.fromkeys(
        FINDING["because"].of(why=FINDING["translated-network"]) if name.startswith("net") else FINDING["unknown"]
        for name in wrong
    )
    return Agreement(CLAIM["devices"], MECHANISM, verdict, here, tuple(reasons))


def _build(costs: Costs) -> Agreement:
    source = Text(f"{XEN} (recalled: 2.0 times)", f"{XEN}(기억에 의한 값: 2.0배)")
    found = _factors(costs, ("paravirtual",), ("compile",))
    fault = costs.factor("paravirtual", "page-fault")

    def reason(one: _Measured) -> Text:
        return FINDING["faults"].of(fault=times(fault)) if fault and fault > one.value > 2 else FINDING["unknown"]

    whole = _within("build", source, found, 0.9, 2.2, reason)
    if found and found[0].value < 1.5:
        return Agreement(whole.claim, source, whole.verdict, whole.here, (*whole.because, FINDING["one-file"]))
    return whole
