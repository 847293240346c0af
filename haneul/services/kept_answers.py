"""Values of operations as JSON, for what is stored of a request or an answer: times and bytes come back as such."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any


def _encode(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return {"$time": value.isoformat()}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    raise TypeError(f"not JSON: {type(value)}")


def _decode(value: dict[str, Any]) -> Any:
    if "$time" in value:
        return dt.datetime.fromisoformat(value["$time"])
    return bytes.fromhex(value["$bytes"]) if "$bytes" in value else value


def dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_encode)


def loads(text: str) -> Any:
    return json.loads(text, object_hook=_decode)
