"""Medians, spreads and ratios of samples, and numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haneul.lab.report.numbers import amount, digits, times
from haneul.lab.statistics import Summary, disturbance, geometric_mean, slowdown, summary

FIGURES = st.floats(min_value=1e-6, max_value=1e9)


def test_many_samples_have_quartiles_and_few_have_ends() -> None:
    assert summary([5, 1, 4, 2, 3]) == Summary(3, 2, 4, 5)
    assert summary([3, 1, 2]) == Summary(2, 1, 3, 3)
    assert summary([7]) == Summary(7, 7, 7, 1)
    assert summary([5, 1, 4, 2, 3]).spread == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no samples"):
        summary([])


@given(st.lists(FIGURES, min_size=1, max_size=40))
def test_the_median_lies_between_the_ends(samples: list[float]) -> None:
    found = summary(samples)
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)


def test_what_takes_longer_and_what_does_less_are_both_slower() -> None:
    metal, guest = Summary(10, 9, 11, 5), Summary(20, 18, 22, 5)
    slower = slowdown(metal, guest, "lower")
    assert slower is not None
    assert (slower.value, slower.low, slower.high) == (2, pytest.approx(18 / 11), pytest.approx(22 / 9))
    faster = slowdown(metal, guest, "higher")
    assert faster is not None
    assert (faster.value, faster.low, faster.high) == (0.5, pytest.approx(9 / 22), pytest.approx(11 / 18))


@given(*[st.lists(FIGURES, min_size=1, max_size=9)] * 2, st.sampled_from(["lower", "higher"]))
def test_a_factor_lies_between_its_ends(metal: list[float], guest: list[float], better: str) -> None:
    found = slowdown(summary(metal), summary(guest), better)  # type: ignore[arg-type]
    assert found is not None
    assert found.low <= found.value * (1 + 1e-9)
    assert found.value <= found.high * (1 + 1e-9)


def test_there_is_no_ratio_of_nothing() -> None:
    assert slowdown(Summary(0, 0, 0, 1), Summary(1, 1, 1, 1), "lower") is None
    assert slowdown(Summary(1, 1, 1, 1), Summary(0, -1, 1, 3), "higher") is None


def test_the_mean_of_ratios_is_geometric() -> None:
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert geometric_mean([]) is None


def test_a_loop_that_took_longer_than_usual_or_changed_tells_of_a_disturbance() -> None:
    assert disturbance(1.0, 1.0, 1.0) == 0
    assert disturbance(1.2, 1.2, 1.0) == pytest.approx(0.2)
    assert disturbance(1.0, 0.8, 1.0) == pytest.approx(0.25)
    assert disturbance(0.0, 1.0, 1.0) == 0, "it was not measured"


@pytest.mark.parametrize(
    ("factor", "text"),
    [(0.951, "0.95"), (1.0, "1.00"), (1.96, "1.96"), (5.44, "5.4"), (9.96, "10"), (58.4, "58"), (99.6, "100"), (1234, "1,230")],
)  # fmt: skip
def test_ratios(factor: float, text: str) -> None:
    assert times(factor) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.39, "us", "390 ns"), (22.6, "us", "22.6 µs"), (1234, "us", "1.23 ms"), (2.1e6, "us", "2.10 s"), (0.21, "s", "210 ms"),
        (1480, "MB/s", "1.48 GB/s"), (12.3, "MB/s", "12.3 MB/s"), (0.5, "MB/s", "500 kB/s"), (2048, "MiB/s", "2.00 GiB/s"),
        (31000, "Mbit/s", "31.0 Gbit/s"), (2507.78, "events/s", "2,510 events/s"), (0.0, "us", "0 ns"), (999.9, "ns", "1.00 µs"),
    ],
)  # fmt: skip
def test_figures_have_the_unit_that_suits_them(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_digits() -> None:
    assert [digits(one) for one in (0.012345, 1.5, 12345, 0)] == ["0.0123", "1.50", "12,300", "0"]
