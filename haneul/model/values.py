"""Frozen dataclasses to JSON and back, by their annotations.

Used for every value that crosses from the control plane to an agent: such a value is plain data
(str, int, float, bool, None, tuples, dicts with string keys, other dataclasses), nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from functools import cache
from typing import Any, TypeVar, Union

T = TypeVar("T")


def to_json(value: Any) -> str:
    return json.dumps(dataclasses.asdict(value), separators=(",", ":"), sort_keys=True)


def from_json(kind: type[T], text: str | bytes) -> T:
    return typing.cast(T, _build(kind, json.loads(text)))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        return kind(**{name: _build(hints[name], item) for name, item in value.items() if name in hints})
    if origin is tuple:
        return tuple(_build(typing.get_args(kind)[0], item) for item in value)
    if origin is dict:
        return {name: _build(typing.get_args(kind)[1], item) for name, item in value.items()}
    if origin in (Union, types.UnionType):
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        return None if value is None else _build(inner[0], value)
    return value
