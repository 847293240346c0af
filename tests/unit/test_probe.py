"""What the probe of KVM decides without a guest."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from haneul.drivers.host import probe
from haneul.linux import kvm


@pytest.mark.parametrize(
    ("mode", "group", "groups"),
    [
        (0o660, 104, [104]),
        (0o666, 104, []),
        (0o666, 0, []),
        (0o600, 0, None),
        (0o600, 104, None),
        (0o640, 104, None),
        (0o000, 104, None),
        (0o660, 0, None),
    ],
)
def test_machines_open_the_device_by_a_group_that_is_not_roots(mode: int, group: int, groups: list[int] | None) -> None:
    assert kvm.opening_groups(0o020000 | mode, group) == groups


def test_a_process_that_cannot_be_killed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that hangs in a broken KVM keeps its process."""
    killed = []
    stuck = SimpleNamespace(returncode=None, kill=lambda: killed.append(1), wait=lambda: asyncio.sleep(3600))
    monkeypatch.setattr(probe, "KILL_SECONDS", 0.05)
    asyncio.run(asyncio.wait_for(probe._end(cast(Any, stuck)), 10))
    assert killed
