"""The documents that are made from the code are up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_operations_is_true_and_every_operation_is_shown() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "operations"))["page"]()
    assert (ROOT / "docs" / "operations.md").read_text() == made, "run `make docs`"
    unshown = [line for line in made.splitlines() if line.endswith("|  |")]
    assert not unshown, unshown
