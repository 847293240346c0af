"""Shared by all tests. Nothing here starts anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_tallies: list[str] = []


@pytest.fixture
def record_tally() -> Callable[[str], None]:
    """What a test of many tries has counted, for the end of the run's report."""
    return _tallies.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _tallies:
        terminalreporter.section("tallies")
        for one in _tallies:
            terminalreporter.line(one)
