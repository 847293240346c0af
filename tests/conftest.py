"""Shared by all tests. Nothing here starts anything before a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    programs = postgresql.programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not there: `make test` gets them")
    with postgresql.server(programs) as found:
        yield found
