"""The order of a comparison, what it goes on with, and how it ends: with guests that only pretend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from haneul.errors import SettingsError
from haneul.lab.measure.compare import Comparison, Plan
from haneul.lab.measure.guests import Launched, NotHere, way_of
from haneul.lab.measure.measure import Meter
from haneul.lab.measure.places import Guest, PlaceError, Server, Tools
from haneul.lab.results import Found, Measurement, Phase, Results, Subject
from haneul.model.generation import Generation

ALL = ("boot", "getppid", "read")
TOOLS: Tools = {"bench": ["haneul-bench"]}
ANSWER = '{"samples": [1.0, 2.0, 3.0]}'


class FakeServer(Server):
    """Whose fixed loop takes what the test says."""

    def __init__(self, loops: Sequence[float] = (), fail: str = "") -> None:
        super().__init__(TOOLS, Path("/nowhere"))
        self.loops, self.ran, self._fail = list(loops), [], fail

    def run(self, words: Sequence[str], seconds: float) -> str:
        if words[1] == "registers":
            return f'{{"samples": [{self.loops.pop(0) if self.loops else 1.0}]}}'
        self.ran.append(words[1])
        if words[1] == self._fail:
            raise PlaceError("ended with 1")
        return ANSWER


class FakeGuest(Guest):
    def __init__(self, ran: list[str], stop_at: str = "") -> None:
        super().__init__(["ssh", "guest"], "198.18.0.2", Path("/nowhere"))
        self.tools, self._ran, self._stop_at = TOOLS, ran, stop_at

    def run(self, words: Sequence[str], seconds: float) -> str:
        self._ran.append(words[1])
        if words[1] == self._stop_at:
            raise KeyboardInterrupt
        return ANSWER


@dataclass
class FakeLauncher:
    """`absent` are generations that there are none of here; `stop_at` the workload during which somebody presses Ctrl-C."""

    absent: Sequence[Generation] = ()
    note: str = ""
    stop_at: str = ""
    log: list[str] = field(default_factory=list)
    running: int = 0

    @contextlib.contextmanager
    def launch(self, generation: Generation, say: Callable[[str], None]) -> Iterator[Launched]:
        if generation in self.absent:
            raise NotHere(f"UnsupportedOperation: no {generation} here")
        self.log.append(f"launch {generation}")
        self.running += 1
        try:
            found = Found(
                generation, "x1.small", way_of(generation, self.note, "AMD EPYC"), "", self.note, {"kernel": "6.1"}
            )
            yield Launched(FakeGuest(self.log, self.stop_at), found, (Phase("api", 0.0, 1.0), Phase("login", 1.0, 9.0)))
        finally:
            self.running -= 1


@dataclass
class Told:
    lines: list[str] = field(default_factory=list)

    def doing(self, run: int, subject: str, what: str) -> None:
        pass

    def done(self, one: Measurement) -> None:
        self.lines.append(f"{one.run} {one.subject} {one.workload}")

    def passed_over(self, subject: str, count: int, reason: str) -> None:
        self.lines.append(f"{subject} passed over {count}: {reason}")


def _comparison(
    launcher: FakeLauncher,
    old: Results | None = None,
    subjects: tuple[Subject, ...] = ("metal", "hvm"),
    runs: int = 2,
    **parts: Any,
) -> Comparison:
    saved: list[Results] = []
    meter = Meter(parts.get("server") or FakeServer(), lambda: datetime(2026, 7, 4, tzinfo=UTC))
    plan = Plan(subjects, parts.get("workloads", ALL), runs)
    return Comparison(plan, old or Results({}), meter, launcher, saved.append, Told())


def test_a_run_goes_over_all_subjects_before_the_next() -> None:
    comparison = _comparison(FakeLauncher())
    assert comparison.plan.missing(comparison.results) == 10
    found = comparison.run()
    assert [(one.run, one.subject, one.workload) for one in found.measurements] == [
        (1, "metal", "getppid"), (1, "metal", "read"), (1, "hvm", "boot"), (1, "hvm", "getppid"), (1, "hvm", "read"),
        (2, "metal", "getppid"), (2, "metal", "read"), (2, "hvm", "boot"), (2, "hvm", "getppid"), (2, "hvm", "read"),
    ]  # fmt: skip
    assert comparison.plan.missing(found) == 0
    boot = next(one for one in found.measurements if one.workload == "boot")
    assert boot.samples == (9.0,)
    assert found.found["hvm"].guest == {"kernel": "6.1"}


def test_what_is_complete_launches_nothing() -> None:
    whole = _comparison(FakeLauncher()).run()
    again = FakeLauncher()
    assert _comparison(again, whole).run() == whole
    assert not again.log


def test_interrupted_it_ends_the_guest_and_goes_on_with_what_is_missing() -> None:
    first = FakeLauncher(stop_at="read")
    comparison = _comparison(first)
    with pytest.raises(KeyboardInterrupt):
        comparison.run()
    assert first.running == 0
    kept = comparison.results
    assert [one.workload for one in kept.measurements if one.subject == "hvm"] == ["boot", "getppid"]
    second = FakeLauncher()
    found = _comparison(second, kept).run()
    assert second.log == ["launch hvm", "read", "launch hvm", "getppid", "read"]
    assert len(found.measurements) == 10
    assert all(one in found.measurements for one in kept.measurements)


def test_more_runs_are_added_to_those_that_are_there() -> None:
    one_run = _comparison(FakeLauncher(), runs=1).run()
    launcher = FakeLauncher()
    found = _comparison(launcher, one_run, runs=3).run()
    assert launcher.log.count("launch hvm") == 2
    assert len(found.measurements) == 15


def test_a_generation_that_is_not_to_be_had_is_asked_for_once_and_the_others_go_on() -> None:
    launcher = FakeLauncher(absent=("paravirtual",))
    comparison = _comparison(launcher, subjects=("metal", "paravirtual", "hvm"))
    found = comparison.run()
    assert found.found["paravirtual"].reason == "UnsupportedOperation: no paravirtual here"
    assert {one.subject for one in found.measurements} == {"metal", "hvm"}
    assert isinstance(comparison.progress, Told)
    assert [one for one in comparison.progress.lines if one.startswith("paravirtual")] == [
        "paravirtual passed over 3: UnsupportedOperation: no paravirtual here"
    ] * 2
    later = _comparison(FakeLauncher(), found, subjects=("metal", "paravirtual", "hvm")).run()
    assert later.found["paravirtual"].reason == "", "it is asked for again, and may be there then"


def test_an_hvm_type_that_is_emulated_is_measured_as_that() -> None:
    found = _comparison(FakeLauncher(note="emulated (TCG) with virtio devices: no KVM")).run()
    assert {one.way for one in found.measurements if one.subject == "hvm"} == {"emulated-fast"}
    with pytest.raises(SettingsError, match="run as hvm now"):
        _comparison(FakeLauncher(), found, runs=3).run()


def test_what_fails_is_written_down_and_tried_again_the_next_time() -> None:
    found = _comparison(FakeLauncher(), subjects=("metal",), runs=1, server=FakeServer(fail="read")).run()
    assert [(one.workload, one.error) for one in found.measurements] == [("getppid", ""), ("read", "ended with 1")]
    assert found.missing("metal", 1, ALL) == ["read"]


def test_a_program_that_is_not_there_is_named() -> None:
    found = _comparison(FakeLauncher(), workloads=("primes", "compile"), runs=1).run()
    assert {one.error for one in found.measurements} == {
        "no sysbench on the server", "no sysbench in the guest", "no haneul-cc1, source on the server",
        "no haneul-cc1, source in the guest",
    }  # fmt: skip


def test_what_was_disturbed_is_measured_once_more_and_the_quieter_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server = FakeServer([1.0, 1.0, 1.0, 2.0, 1.0, 1.01])
    meter = Meter(server)
    quiet = meter.measure("metal", "metal", "getppid", 1, server)
    assert (quiet.before, quiet.after, server.ran) == (1.0, 1.0, ["getppid"])
    meter.measure("metal", "metal", "read", 1, server)
    found = meter.measure("metal", "metal", "read", 2, server)
    assert server.ran == ["getppid", "read", "read", "read"]
    assert found.after < 1.1


def test_how_a_guest_is_run_is_told_by_its_tag_or_its_processor() -> None:
    assert way_of("hvm", "", "AMD EPYC") == "hvm"
    assert way_of("hvm", "emulated (TCG) with virtio devices: no KVM", "") == "emulated-fast"
    assert way_of("hvm", "", "QEMU TCG CPU version 2.5+") == "emulated-fast"
    assert way_of("emulated", "emulated (every device emulated)", "QEMU TCG CPU version 2.5+") == "emulated"
    assert way_of("paravirtual", "paravirtual (User-mode Linux)", "UML") == "paravirtual"
