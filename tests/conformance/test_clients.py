"""Journeys with real clients, unmodified, as their users run them. Their files are in tests/clients.

The AWS CLI and boto3 have theirs in test_instances.py and, on real guests, in tests/system.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.conftest import FakeCloud

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / ".clients"
FILES = ROOT / "tests" / "clients"

pytestmark = pytest.mark.skipif(not (INSTALLED / "installed").exists(), reason="no clients: run `make test`")

Run = Callable[..., str]


@pytest.fixture
def run(fake: FakeCloud, tmp_path: Path) -> Run:
    """Run a command in a copy of a client's folder; gives what it prints. It has to succeed."""

    def run(folder: str, *command: str) -> str:
        place = tmp_path / folder
        if not place.exists():
            shutil.copytree(FILES / folder, place)
        environment = fake.environment() | {
            "PATH": f"{INSTALLED / 'venv' / 'bin'}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "LC_ALL": "C.UTF-8",
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "ANSIBLE_COLLECTIONS_PATH": str(INSTALLED / "collections"),
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "NODE_PATH": str(INSTALLED / "node" / "node_modules"),
        }
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return run


def _recap(text: str) -> dict[str, int]:
    line = re.search(r"^localhost +: (.*)$", text, re.MULTILINE)
    assert line, text
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line.group(1))}


def test_ansible(run: Run) -> None:
    """ec2_key, ec2_security_group, ec2_instance, ec2_tag, ec2_ami_info: a second run changes nothing."""
    play = ("ansible-playbook", "-i", "localhost,")
    assert _recap(run("ansible", *play, "up.yml"))["changed"] == 4
    assert _recap(run("ansible", *play, "up.yml"))["changed"] == 0
    assert "ansible-journey" in run("ansible", "ansible-inventory", "-i", "inventory.aws_ec2.yml", "--list")
    run("ansible", *play, "turns.yml")
    assert _recap(run("ansible", *play, "down.yml"))["changed"] == 3


def test_libcloud(run: Run) -> None:
    assert "libcloud: ok" in run("libcloud", "python", "journey.py")


def test_the_aws_sdk_for_javascript(run: Run, tmp_path: Path) -> None:
    shutil.copytree(FILES / "node", tmp_path / "node")
    # ECMAScript modules are looked up beside the program, not by NODE_PATH.
    (tmp_path / "node" / "node_modules").symlink_to(INSTALLED / "node" / "node_modules")
    assert "js: ok" in run("node", "node", "journey.mjs")


def test_cloud_custodian(run: Run) -> None:
    assert "custodian: ok" in run("custodian", "sh", "journey.sh")


def test_awslocal(run: Run) -> None:
    assert "awslocal: ok" in run("awslocal", "sh", "journey.sh")
