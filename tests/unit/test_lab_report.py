"""The report: whole pages of whatever was measured, in two languages, with nothing from elsewhere and nothing unescaped."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from haneul.lab.report import charts, costs, findings
from haneul.lab.report import page as report
from haneul.lab.report.costs import Costs
from haneul.lab.report.findings import Agreement
from haneul.lab.report.texts import Text
from haneul.lab.results import Found, Measurement, Results
from haneul.model.generation import Way
from tests import lab_results

EVIL = '<script>alert("x")</script>&\'"'
VOID = {"meta", "input", "br", "hr", "line", "rect", "circle", "polygon"}


class _Elements(HTMLParser):
    """Complains of what is not closed in order, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.languages: dict[str, int] = {"en": 0, "ko": 0}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        language = dict(attrs).get("class")
        if language in self.languages:
            self.languages[language] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def _parsed(page: str) -> _Elements:
    found = _Elements()
    found.feed(page)
    assert not found.open
    return found


WAYS: list[tuple[Way, ...]] = [
    ("metal", "emulated", "emulated-fast", "paravirtual"), ("metal", "emulated", "paravirtual", "hvm"),
    ("metal", "hvm"), ("metal",), ("emulated-fast",), ("paravirtual", "hvm"),
]  # fmt: skip


@pytest.mark.parametrize("ways", WAYS, ids="+".join)
def test_whatever_was_measured_there_is_a_whole_page_and_a_picture(ways: tuple[Way, ...]) -> None:
    whole = lab_results.results(ways)
    page = report.page(whole)
    found = _parsed(page)
    assert found.languages["en"] == found.languages["ko"] > 50
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    Image.open(io.BytesIO(report.picture(whole))).verify()


def test_nothing_comes_from_elsewhere() -> None:
    page = report.page(lab_results.results()).replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://|@import|url\(|<link|<iframe|<img|src=", page)
    assert page.count("<script>") == 1


def test_one_run_of_one_workload_is_a_report_too() -> None:
    one = Measurement("metal", "metal", "getppid", 1, "", (0.2,), before=1.0, after=1.0)
    page = report.page(Results({}).with_measurement(one))
    _parsed(page)
    assert "200 ns" in page


def test_no_results_at_all() -> None:
    _parsed(report.page(Results({})))


def test_what_guests_servers_and_errors_say_is_escaped() -> None:
    about = {name: f"{EVIL}{name}" for name in lab_results.ABOUT}
    whole = Results(about)
    for subject, way in (("metal", "metal"), ("hvm", "emulated-fast"), ("paravirtual", None)):
        guest = dict.fromkeys(("kernel", "virtualized", "processor", "disk", "network", "system"), EVIL)
        whole = whole.with_found(Found(subject, EVIL, way, EVIL, f"{EVIL}: {EVIL}", guest))  # type: ignore[arg-type]
    for error, samples in (("", (1.0, 2.0)), (EVIL, ())):
        for subject, way in (("metal", "metal"), ("hvm", "emulated-fast")):
            name = "read" if error else "getppid"
            whole = whole.with_measurement(
                Measurement(subject, way, name, 1, EVIL, samples, error, 1.0, 1.0, (EVIL, EVIL))  # type: ignore[arg-type]
            )
    page = report.page(whole)
    _parsed(page)
    assert page.count("<script") == 1, "its own"
    assert "&lt;script&gt;" in page
    report.picture(whole)


def test_what_is_not_to_be_had_says_why() -> None:
    whole = lab_results.results(("metal", "hvm")).with_found(
        Found("paravirtual", reason="UnsupportedOperation: no User-mode Linux here")
    )
    page = report.page(whole)
    assert "no User-mode Linux here" in page
    assert "이 서버에서는 사용 불가" in page


def test_an_hvm_type_that_was_emulated_is_shown_as_that_and_hvm_as_not_to_be_had() -> None:
    page = report.page(lab_results.results())
    assert "emulated, fast devices" in page
    assert "the guest hangs: no marker within 12 s" in page
    told = [one.en for one in report.warnings(costs.of(lab_results.results()), lab_results.results(), "kvm")]
    assert any("itself a virtual machine (kvm)" in one for one in told)
    assert any("no usable KVM" in one for one in told)
    assert any("1 of 264" in one for one in told)


def test_public_figures_are_marked_and_stand_by_themselves() -> None:
    page = report.page(lab_results.results())
    start = page.index('<section id="published" class="public">')
    public, rest = page[start : page.index("</section>", start)], page[:start]
    assert "lmbench" in public
    assert "recalled, not looked up" in public
    assert "lmbench" not in rest.partition('id="agreement"')[0]


@pytest.mark.parametrize(
    ("factor", "back"), [(0.5, "#e2f0e8"), (1.0, "#e2f0e8"), (5.0, "#fad896"), (1000.0, "#742044"), (5000.0, "#742044")]
)
def test_costs_have_colours_with_words_that_can_be_read_on_them(factor: float, back: str) -> None:
    assert report.colour(factor)[0] == back
    for number in range(1, 1200, 7):
        ground, ink = report.colour(number)
        assert _contrast(ground, ink) > 4.0, number


def _contrast(one: str, other: str) -> float:
    """WCAG's ratio of luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_axis_reaches_over_everything() -> None:
    assert charts.ladder(0.5, 10) == [0.5, 1, 2, 5, 10]
    steps = charts.ladder(0.31, 244)
    assert steps[0] <= 0.31
    assert steps[-1] >= 244
    assert steps[0] == pytest.approx(0.2)


def test_marks_stand_where_their_factors_are() -> None:
    drawing = charts.slowdown(costs.of(lab_results.results(("metal", "paravirtual", "hvm"))))
    assert drawing is not None
    marks = [one for one in drawing.items if isinstance(one, charts.Mark) and one.title and "getppid" in one.title.en]
    hvm, paravirtual = sorted(marks, key=lambda one: one.x)
    assert "HVM" in (hvm.title or Text("", "")).en
    assert hvm.x < paravirtual.x < charts.WIDTH
    assert charts.slowdown(costs.of(lab_results.results(("metal",)))) is None


# --- sentences -----------------------------------------------------------------------------------------


def _english(found: Costs, way: Way, virtualized: str = "") -> str:
    return "\n".join(one.en for one in findings.why(found, virtualized)[way])


def test_sentences_are_of_the_figures() -> None:
    found = costs.of(lab_results.results(("metal", "emulated", "paravirtual", "hvm")))
    told = _english(found, "paravirtual")
    assert "getppid takes 11.2 µs instead of 192 ns, ×58" in told
    assert "3.8 context switches" in told
    assert "×14" in _english(found, "emulated")
    assert "not much dearer" in _english(found, "emulated")
    assert "itself a guest" in _english(found, "hvm", "kvm")
    assert "itself a guest" not in _english(found, "hvm")


def test_other_figures_make_other_sentences() -> None:
    whole = lab_results.results(("metal", "emulated"))
    slower = [
        Measurement("emulated", "emulated", "getppid", run, "", (9.0, 9.1, 9.2, 9.3), before=2.8, after=2.8)
        for run in (1, 2, 3)
    ]
    for one in slower:
        whole = whole.with_measurement(one)
    told = _english(costs.of(whole), "emulated")
    assert "dearer than other code (×4.4)" in told
    assert "not much dearer" not in told


def test_no_sentence_without_its_figures() -> None:
    one = Measurement("hvm", "hvm", "getppid", 1, "", (0.2,))
    assert findings.why(costs.of(Results({}).with_measurement(one)), "")["hvm"] == [findings.WHY["nothing"]]


def _agreements(whole: Results, virtualized: str = "") -> dict[str, Agreement]:
    claims = {text: key for key, text in findings.CLAIM.items()}
    return {claims[one.claim]: one for one in findings.agreement(costs.of(whole), virtualized)}


def test_figures_as_the_literature_has_them_agree() -> None:
    found = _agreements(lab_results.results(("metal", "emulated", "paravirtual", "hvm")))
    without_kvm = _agreements(lab_results.results(("metal", "emulated", "emulated-fast", "paravirtual")))
    found["devices"] = without_kvm["devices"]
    slow = found.pop("emulated-slow")
    assert {one.verdict for one in found.values()} == {"agrees"}
    assert slow.verdict == "partly", "what stays in registers is as fast as on bare metal"
    assert slow.because[0].en == "less than said: arithmetic in registers ×0.98"
    assert "paravirtual ×52 > emulated" in found["order-calls"].here.en


def test_without_a_generation_nothing_is_said_of_it() -> None:
    found = _agreements(lab_results.results(("metal", "emulated")))
    for key in ("para-computing", "para-calls", "hvm-computing", "order-computing", "devices", "build"):
        assert found[key].verdict == "unmeasured"


def test_what_differs_says_so_and_why_where_that_is_known() -> None:
    whole = lab_results.results(("metal", "emulated", "paravirtual", "hvm"))
    for name, value in (("getppid", 30.0), ("fork", 300.0)):
        for run in (1, 2, 3):
            whole = whole.with_measurement(
                Measurement("paravirtual", "paravirtual", name, run, "", (value,), before=2.8, after=2.8)
            )
    calls = _agreements(whole)["para-calls"]
    assert calls.verdict == "partly"
    told = "\n".join(one.en for one in calls.because)
    assert "less than said: new process: fork" in told
    assert "more than said: system call: getppid" in told
    assert "A context switch takes 2.92 µs on this server" in told
    assert "No reason is established." in told


def test_an_order_that_is_another_one_is_not_called_agreement() -> None:
    whole = lab_results.results(("metal", "emulated", "paravirtual"))
    for name in findings.COMPUTING:
        better = findings.WORKLOADS[name].better
        value = lab_results.METAL[name] * (40 if better == "lower" else 1 / 40)
        for run in (1, 2, 3):
            one = Measurement("paravirtual", "paravirtual", name, run, "", (value,), before=2.8, after=2.8)
            whole = whole.with_measurement(one)
    found = _agreements(whole)["order-computing"]
    assert found.verdict == "differs"
    assert found.here.en.startswith("paravirtual ×40 > emulated")


def test_what_was_measured_on_a_busy_server_is_not_called_unknown() -> None:
    whole = lab_results.results(("metal", "paravirtual"))
    for run in (1, 2, 3):
        busy = Measurement("paravirtual", "paravirtual", "sha256", run, "", (50.0,), before=2.8, after=5.6)
        whole = whole.with_measurement(busy)
        slow = Measurement("paravirtual", "paravirtual", "compile", run, "", (1.2,), before=2.8, after=2.8)
        whole = whole.with_measurement(slow)
    found = _agreements(whole)
    assert [one.en for one in found["para-computing"].because] == [
        "more than said: SHA-256 ×4.8",
        "→ Likely: the server was not quiet while some of it was measured (≈).",
    ]
    assert "page fault (×16 here)" in found["build"].because[1].en
    assert "likely the server was not quiet" in _english(costs.of(whole), "paravirtual")
