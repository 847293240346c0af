"""Shared by all tests. Nothing here starts anything before a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import postgresql


@pytest.fixture
def record_tally(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """What a test of many tries has counted, for the end of the run's report."""
    return lambda text: record_property("tally", text)


#: What takes longest comes first, so that the workers end together.
LONGEST = "tests/system/test_debian.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, [])]
    tallies = [text for one in reports if one.when == "call" for name, text in one.user_properties if name == "tally"]
    if tallies:
        terminalreporter.section("tallies")
        for text in tallies:
            terminalreporter.line(text)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    programs = postgresql.programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not there: `make test` gets them")
    with postgresql.server(programs) as found:
        yield found
