"""Shared by all tests. Nothing here starts anything before a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import postgresql

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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    programs = postgresql.programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not there: `make test` gets them")
    with postgresql.server(programs) as found:
        yield found
