"""Seeds of the simulation: `make test` runs the first ones, `make test-slow` a thousand. A seed repeats its run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import prepare, simulate

AT_ONCE = 20


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("simulation"))


@pytest.mark.parametrize("first", range(0, 200, AT_ONCE))
def test_all_is_well_after_faults_at_every_await(empty: Path, first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        simulate(seed, empty)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, AT_ONCE))
def test_all_is_well_in_many_more_runs(empty: Path, first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        simulate(seed, empty)


_ANOTHER = """
import logging, sys
from pathlib import Path
from tests.simulation import simulate
logging.disable()
print("\\n".join(simulate(int(sys.argv[1]), Path(sys.argv[2])).history))
"""


def test_a_seed_repeats_its_run_step_by_step(empty: Path) -> None:
    """In another process too, whose sets and dictionaries are in another order."""
    run = simulate(7, empty)
    assert run.kills and len(run.history) > 100, "this seed has something to repeat"
    environment = os.environ | {"PYTHONHASHSEED": "17", "PYTHONPATH": os.pathsep.join(sys.path)}
    again = subprocess.run(
        [sys.executable, "-c", _ANOTHER, "7", empty], env=environment, capture_output=True, text=True, check=True
    )
    assert again.stdout.splitlines() == run.history
