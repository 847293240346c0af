"""Results: what is missing in them, that they come back as they were written, and that unlike is not mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from haneul.errors import SettingsError
from haneul.lab import boot, results
from haneul.lab.boot import Moments
from haneul.lab.report import costs
from haneul.lab.results import File, Found, Measurement, Phase, Results
from haneul.lab.run import chosen, request, summary, write
from tests import lab_results


def _one(workload: str = "getppid", run: int = 1, samples: tuple[float, ...] = (1.0,), error: str = "") -> Measurement:
    return Measurement("hvm", "emulated-fast", workload, run, "", samples, error)


def test_what_was_measured_is_not_missing_and_what_failed_is() -> None:
    found = (
        Results({}).with_measurement(_one()).with_measurement(_one("read", samples=(), error="no read in the guest"))
    )
    assert found.missing("hvm", 1, ["boot", "getppid", "read"]) == ["boot", "read"]
    assert found.missing("hvm", 2, ["getppid"]) == ["getppid"]
    assert found.missing("metal", 1, ["boot", "getppid"]) == ["getppid"], "the server itself is not booted"


def test_a_later_try_replaces_an_earlier_one() -> None:
    found = Results({}).with_measurement(_one(samples=(), error="no")).with_measurement(_one(samples=(2.0,)))
    assert [one.samples for one in found.measurements] == [(2.0,)]


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    whole = lab_results.results()
    file = File(tmp_path / "new" / "folder")
    assert file.read() is None
    file.write(whole, {"summary": summary(whole)})
    assert file.read() == whole
    file.write(whole.with_found(Found("paravirtual", reason="한")))
    again = file.read()
    assert again is not None
    assert again.found["paravirtual"].reason == "한"
    assert [path.name for path in file.path.parent.iterdir()] == [results.FILE]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "about": {}, "subjects": [{}], "measurements": []}']
)
def test_other_files_are_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / results.FILE).write_text(text)
    with pytest.raises(SettingsError, match="again"):
        File(tmp_path).read()


def test_figures_of_another_machine_or_image_are_not_added() -> None:
    about = dict(lab_results.ABOUT)
    results.check_same(about, about | {"kernel": "9", "others": 3})
    for name in results.SAME:
        with pytest.raises(SettingsError, match=name):
            results.check_same(about, about | {name: "other"})


def test_the_three_files(tmp_path: Path) -> None:
    write(tmp_path, Results({}))
    assert not list(tmp_path.iterdir()), "nothing was measured: there is nothing to report"
    write(tmp_path, lab_results.results())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.png", "results.json"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "results.json").read_text())
    getppid = told["summary"]["ways"]["paravirtual"]["workloads"]["getppid"]
    assert getppid["factor"]["value"] == pytest.approx(58.4)
    assert getppid["unit"] == "us"


def test_names_in_lists() -> None:
    assert chosen("", ("a", "b"), "x") == ("a", "b")
    assert chosen(" b, a,", ("a", "b"), "x") == ("a", "b")
    with pytest.raises(SettingsError, match="'c' is no x; there are: a, b"):
        chosen("c", ("a", "b"), "x")
    asked = request("hvm,emulated", "boot,getppid", 1, Path("o"), "tiny", False)
    assert (asked.generations, asked.workloads) == (("emulated", "hvm"), ("boot", "getppid"))
    assert results.subjects(asked.generations) == ("metal", "emulated", "hvm")


# --- boots ---------------------------------------------------------------------------------------------


def test_a_boot_is_cut_at_its_moments() -> None:
    found = boot.phases(Moments(100.0, 100.1, 101.0, 102.0, 104.0, 110.0, 111.0))
    assert [(one.name, round(one.ended, 3)) for one in found] == [
        ("api", 0.1), ("server", 1.0), ("firmware", 2.0), ("kernel", 4.0), ("services", 10.0), ("login", 11.0),
    ]  # fmt: skip
    assert [one.began for one in found[1:]] == [one.ended for one in found[:-1]]


def test_parts_that_cannot_be_told_apart_are_one() -> None:
    found = boot.phases(Moments(0.0, 0.1, 1.0, None, None, 9.0, 10.0))
    assert [(one.name, one.ended) for one in found] == [("api", 0.1), ("server", 1.0), ("guest", 9.0), ("login", 10.0)]


def test_clocks_that_disagree_make_no_part_negative() -> None:
    found = boot.phases(Moments(0.0, 0.1, 1.0, 0.9, 3.0, 2.5, 4.0))
    assert found[2] == Phase("firmware", 1.0, 1.0)
    assert all(one.ended >= one.began for one in found)


def test_what_a_guest_says() -> None:
    said = boot.told(
        "kernel=6.1\nnonsense\nprocessor=\nuptime=8.02\nUserspaceTimestampMonotonic=4500000\n" + f"disk={'x' * 999}\n"
    )
    assert said["kernel"] == "6.1"
    assert "processor" not in said
    assert len(said["disk"]) == 120
    kernel = boot.kernel_began(said, 100.0)
    assert kernel == pytest.approx(91.98)
    assert boot.init_began(said, kernel) == pytest.approx(96.48)
    assert boot.kernel_began({"uptime": "soon"}, 100.0) is None
    assert boot.init_began({"UserspaceTimestampMonotonic": "0"}, 1.0) is None
    assert boot.init_began({}, 1.0) is None


# --- costs ---------------------------------------------------------------------------------------------


def test_costs_are_against_bare_metal_and_disturbed_runs_are_counted() -> None:
    found = costs.of(lab_results.results())
    assert found.ways == ("metal", "emulated", "emulated-fast", "paravirtual")
    assert found.factor("paravirtual", "getppid") == pytest.approx(58.4)
    assert found.factor("emulated", "memory") == pytest.approx(12.1), "a rate is turned round"
    assert found.factor("metal", "getppid") == 1
    assert found.costs["emulated", "pipe"].disturbed == 1
    assert found.disturbed == 1
    assert found.runs == 4 * len(lab_results.METAL) * 3
    assert found.column("paravirtual", "interrupts") == pytest.approx(6.1)
    assert found.boots["emulated"].median.run == 2


def test_without_bare_metal_there_are_figures_and_no_factors() -> None:
    found = costs.of(lab_results.results(("emulated",)))
    assert found.median("emulated", "getppid") is not None
    assert found.factor("emulated", "getppid") is None
    assert found.column("emulated", "cpu") is None


def test_what_has_no_figure_has_its_reason() -> None:
    whole = lab_results.results(("metal",)).with_measurement(_one(samples=(), error="no fio in the guest"))
    assert costs.of(whole).absent == {("emulated-fast", "getppid"): "no fio in the guest"}
