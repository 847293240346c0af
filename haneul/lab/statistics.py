"""What many samples come to, how much slower that is than bare metal, and whether the machine was quiet meanwhile. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher"]

#: A fixed loop on the server may take so much longer than usual before a measurement counts as disturbed.
QUIET = 0.10


@dataclass(frozen=True)
class Summary:
    """The median of all samples and their quartiles; with fewer than four samples the least and the most."""

    median: float
    low: float
    high: float
    samples: int

    @property
    def spread(self) -> float:
        """How far the middle half of the samples reaches, as a part of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Factor:
    """How many times slower than bare metal; between `low` and `high`, by the quartiles of both."""

    value: float
    low: float
    high: float


def summary(samples: Sequence[float]) -> Summary:
    """Raises ValueError if there is nothing to sum up."""
    if not samples:
        raise ValueError("no samples")
    if len(samples) < 4:
        return Summary(statistics.median(samples), min(samples), max(samples), len(samples))
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(middle, low, high, len(samples))


def slowdown(metal: Summary, guest: Summary, better: Better) -> Factor | None:
    """None where a figure is not above zero: there is no ratio of it."""
    if min(metal.low, guest.low) <= 0:
        return None
    if better == "lower":
        return Factor(guest.median / metal.median, guest.low / metal.high, guest.high / metal.low)
    return Factor(metal.median / guest.median, metal.low / guest.high, metal.high / guest.low)


def geometric_mean(values: Iterable[float]) -> float | None:
    """The mean of ratios. None of nothing."""
    logarithms = [math.log(one) for one in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def disturbance(before: float, after: float, usual: float) -> float:
    """By what part the fixed loop took longer than usual, or changed from before to after; the greater of the two."""
    if min(before, after, usual) <= 0:
        return 0.0
    return max(max(before, after) / usual - 1, abs(after - before) / min(before, after))
