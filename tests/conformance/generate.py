"""Values for any shape of a service model, from a seeded random generator."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from typing import Any

_TEXTS = ("a <&> 'text' \" é\n", "x", "", "한늘 ☁ 🛰", "a.b-c_d", " spaces ", "%2B+&=?", "\\*?", "0", "true")


def value(
    shape: Any, rng: random.Random, *, every: bool, depth: int = 0, needed: bool = False, texts: Sequence[str] = _TEXTS
) -> Any:
    """A value of a shape; `every` member of it and two entries for lists, or (else) some. Strings are of `texts`.

    What is `needed` is not empty: the wire has no empty lists and structures.
    """
    kind = shape.type_name
    if kind == "structure":
        return _structure(shape, rng, every, depth, needed, texts)
    if kind == "list":
        count = 2 if every else rng.choice((1, 2, 3, 12) if needed else (0, 1, 2, 3, 12))
        if depth > 7 and not needed:
            return []
        return [
            value(shape.member, rng, every=every, depth=depth + 1, needed=needed, texts=texts) for _ in range(count)
        ]
    if kind == "map":
        count = 2 if every else rng.choice((1, 2))
        keys = [value(shape.key, rng, every=every, depth=depth + 1, texts=("k", "a b", "<&>")) for _ in range(count)]
        return {key: value(shape.value, rng, every=every, depth=depth + 1, needed=needed, texts=texts) for key in keys}
    return _scalar(shape, rng, texts)


def _structure(shape: Any, rng: random.Random, every: bool, depth: int, needed: bool, texts: Sequence[str]) -> Any:
    names = list(shape.members) if depth <= 7 else list(shape.required_members)
    if not every and not (needed and not shape.required_members):
        names = [name for name in names if name in shape.required_members or rng.random() < 0.3]
    return {
        name: value(
            shape.members[name], rng, every=every, depth=depth + 1,
            needed=name in shape.required_members or needed, texts=texts,
        )
        for name in names
    }  # fmt: skip


def _scalar(shape: Any, rng: random.Random, texts: Sequence[str]) -> Any:
    kind = shape.type_name
    if kind == "string":
        return rng.choice(getattr(shape, "enum", None) or texts)
    if kind in ("integer", "long"):
        low = shape.metadata.get("min", -(2**31) if kind == "integer" else -(2**62))
        high = shape.metadata.get("max", 2**31 - 1 if kind == "integer" else 2**62)
        return rng.choice((low, high, max(low, min(high, 7))))
    if kind == "boolean":
        return rng.random() < 0.5
    if kind in ("float", "double"):
        low, high = shape.metadata.get("min", -1e10), shape.metadata.get("max", 1e10)
        return float(max(low, min(high, rng.choice((0.0, 1.5, -2.25, 1e10)))))
    if kind == "timestamp":
        return dt.datetime.fromtimestamp(rng.randrange(0, 4 * 10**9), dt.UTC)
    return rng.randbytes(rng.choice((0, 1, 50)))
