"""Numbers as people read them: as many digits as they are worth. Pure."""

from __future__ import annotations

import math


def digits(value: float, count: int = 3) -> str:
    """`count` significant digits, with commas and without exponents: 1,230; 12.3; 0.0123."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    places = count - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    if abs(rounded) >= 10.0 ** (count - places):  # 9.96 has become 10.0, which is a digit more
        places -= 1
    return f"{rounded:,.{max(places, 0)}f}"


def times(factor: float) -> str:
    """A ratio: 0.95, 1.04, 5.4, 58, 1,230."""
    if factor < 2:
        return f"{factor:.2f}"
    return f"{factor:.1f}" if factor < 9.95 else digits(factor, 2 if factor < 100 else 3)


#: unit -> (what it is in the base, the base's names by size)
_SCALES: dict[str, tuple[float, tuple[tuple[float, str], ...]]] = {
    "ns": (1e-9, ()),
    "us": (1e-6, ()),
    "s": (1.0, ()),
    "MB/s": (1e6, ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"))),
    "MiB/s": (2.0**20, ((2.0**30, "GiB/s"), (2.0**20, "MiB/s"), (2.0**10, "KiB/s"))),
    "Mbit/s": (1e6, ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))),
}
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def amount(value: float, unit: str) -> str:
    """A figure with the unit that suits its size: 22.6 µs, 1.48 GB/s."""
    if unit not in _SCALES:
        return f"{digits(value)} {unit}"
    base, sizes = _SCALES[unit]
    whole = value * base
    # What rounds to 1,000 is 1 of the next unit.
    for size, name in sizes or _TIMES:
        if abs(whole) >= size * 0.9995:
            return f"{digits(whole / size)} {name}"
    size, name = (sizes or _TIMES)[-1]
    return f"{digits(whole / size)} {name}"
