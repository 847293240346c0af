"""The pytest plugin with guests that boot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.test_plugin import run_example


@pytest.mark.skipif(os.geteuid() != 0 or "HANEUL_TEST_IMAGES" not in os.environ, reason="real guests: run `make test`")
def test_the_example_project_with_real_guests(tmp_path: Path) -> None:
    text = run_example(tmp_path / "project", "--haneul-real", HANEUL_IMAGES=os.environ["HANEUL_TEST_IMAGES"])
    assert "3 passed" in text
