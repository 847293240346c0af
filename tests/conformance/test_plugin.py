"""The pytest plugin, as a project of its own uses it (examples/pytest)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pytest"


def run_example(place: Path, *options: str, **environment: str) -> str:
    """Run the example's tests as its user would; gives pytest's report. They have to pass."""
    shutil.copytree(EXAMPLE, place)
    # Settings of the project are not those of the tests' cloud.
    (place / "haneul.toml").write_text('database = "sqlite:////nonexistent/real.db"\n')
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HANEUL_", "AWS_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        command, cwd=place, env=known | environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_project(tmp_path: Path) -> None:
    assert "3 passed" in run_example(tmp_path / "project")
