"""The documents that are made from the code are up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

from haneul.model.generation import WAYS

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_operations_is_true_and_every_operation_is_shown() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "operations"))["page"]()
    assert (ROOT / "docs" / "operations.md").read_text() == made, "run `make docs`"
    unshown = [line for line in made.splitlines() if line.endswith("|  |")]
    assert not unshown, unshown


def test_the_page_of_generations_is_true() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "generations"))["page"]()
    assert (ROOT / "docs" / "generations.md").read_text() == made, "run `make docs`"


def test_the_table_of_generations_is_the_models() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for one in WAYS.values():
        axes = one.axes
        parts = (axes.cpu, axes.memory, axes.interrupts, axes.disk, axes.network)
        letters = " | ".join(part[0].upper() for part in parts)
        assert f"| {one.title} | {letters} | {axes.boot} |" in text
