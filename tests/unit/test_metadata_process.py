"""What the metadata process is told, when there is more than one who tells it."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from haneul.drivers.metadata import MetadataProcess
from haneul.model.assignment import MetadataSpec


def _spec(instance: str) -> MetadataSpec:
    return MetadataSpec(
        instance_id=instance, vpc_id="vpc-1", addresses=("10.0.0.4",), http_tokens="optional", http_endpoint="enabled",
        hop_limit=1, tree={}, public_keys=(), tags={}, user_data=None,
    )  # fmt: skip


def test_what_was_asked_for_last_is_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the one before is slow: the second would overtake it here, and be overwritten."""
    overtaken, slow = threading.Event(), iter([True])

    def logs() -> list[str]:
        if next(slow, False):
            overtaken.wait(0.5)
        return []

    process = MetadataProcess(tmp_path / "metadata", lambda _: tmp_path, logs)
    monkeypatch.setattr(process, "_start", lambda: None)

    async def second() -> None:
        await process.apply((_spec("i-1"), _spec("i-2")))
        overtaken.set()

    async def both() -> None:
        await asyncio.gather(process.apply((_spec("i-1"),)), second())

    asyncio.run(both())
    told = json.loads((tmp_path / "metadata" / "snapshot.json").read_text())
    assert [one["instance_id"] for one in told["instances"]] == ["i-1", "i-2"]
