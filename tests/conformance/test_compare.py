"""`haneul compare` against the real API of a fake cloud: what it launches and makes, and that none of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haneul.errors import SettingsError
from haneul.lab.measure import guests as cloud
from haneul.lab.measure.guests import NAME, TAG, Cloud, NotHere, Session
from tests.conformance.conftest import FakeCloud

HANEUL = Path(sys.executable).with_name("haneul")


@pytest.fixture
def ec2(start_cloud: Callable[..., FakeCloud]) -> Any:
    """A cloud of its own: a comparison ends what is tagged as a comparison's."""
    fake = start_cloud()
    fake.put_image("ami-0123456789abcdef0", name=f"lab-{uuid.uuid4().hex}", more={"generations": ["hvm"]})
    return fake.client()


def _comparison(ec2: Any) -> Cloud:
    return Cloud(
        Session(ec2, lambda instance: ["ssh", "nowhere"], lambda instance: None), "ami-0123456789abcdef0", None
    )


def _states(ec2: Any) -> dict[str, str]:
    answer = ec2.describe_instances(Filters=[{"Name": "tag-key", "Values": [TAG]}])
    found = [one for reservation in answer["Reservations"] for one in reservation["Instances"]]
    return {one["InstanceId"]: one["State"]["Name"] for one in found}


def _groups(ec2: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [NAME]}])[
        "SecurityGroups"
    ]
    return found


def _leave() -> None:
    raise KeyboardInterrupt


def test_whoever_interrupts_a_launch_ends_the_instance(ec2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "greets", lambda address: _leave())
    with pytest.raises(KeyboardInterrupt), _comparison(ec2).launch("hvm", lambda text: None):
        raise AssertionError
    assert list(_states(ec2).values()) == ["terminated"]
    ports = {one["FromPort"] for one in _groups(ec2)[0]["IpPermissions"]}
    assert ports == {22, cloud.BENCH_PORT, cloud.IPERF_PORT}
    _comparison(ec2).clean(lambda text: None)
    assert not _groups(ec2)
    _comparison(ec2).clean(lambda text: None)


def test_what_a_killed_comparison_left_is_ended_by_the_next(ec2: Any) -> None:
    left = _comparison(ec2)
    instance = left._run("t2.small", left._group())
    assert _states(ec2)[instance] in ("pending", "running")
    other = ec2.run_instances(ImageId="ami-0123456789abcdef0", InstanceType="t2.small", MinCount=1, MaxCount=1)[
        "Instances"
    ][0]
    said: list[str] = []
    _comparison(ec2).clean(said.append)
    assert said == [f"terminating {instance}"]
    assert _states(ec2) == {instance: "terminated"}
    assert not _groups(ec2)
    assert _comparison(ec2).others() == 1, "what others launched goes on, and is counted"
    ec2.terminate_instances(InstanceIds=[other["InstanceId"]])


def test_a_refusal_says_why(ec2: Any) -> None:
    with (
        pytest.raises(NotHere, match=r"InvalidParameterCombination: .*paravirtual"),
        _comparison(ec2).launch("paravirtual", lambda text: None),
    ):
        raise AssertionError
    assert not _states(ec2)


def test_a_guest_that_ends_while_it_boots_says_why(ec2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(address: str) -> bool:
        ec2.terminate_instances(InstanceIds=list(_states(ec2)))
        return False

    monkeypatch.setattr(cloud, "greets", end)
    with pytest.raises(NotHere, match="User initiated"), _comparison(ec2).launch("hvm", lambda text: None):
        raise AssertionError


def test_an_image_that_is_not_there_has_a_command_that_makes_it(ec2: Any) -> None:
    with pytest.raises(SettingsError, match="haneul image build debian-12-lab"):
        cloud.image_id(ec2, "debian-12-lab")


def _compare(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HANEUL_"))}
    environment |= {"HANEUL_DATA": str(tmp_path), "HANEUL_DRIVERS": "fake", "HANEUL_PORT": "0"}
    return subprocess.run(
        [str(HANEUL), "compare", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_with_fake_drivers_there_is_nothing_to_compare(tmp_path: Path) -> None:
    refused = _compare(tmp_path)
    assert refused.returncode == 3
    assert "fake drivers run no guest" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--generations", "hvm,xen"), "'xen' is no generation; there are: emulated, paravirtual, hvm"),
        (("--workloads", "getpid"), "'getpid' is no workload; there are: boot, registers"),
    ],
)
def test_names_that_are_not_known_are_refused(tmp_path: Path, arguments: tuple[str, str], said: str) -> None:
    refused = _compare(tmp_path, *arguments)
    assert refused.returncode == 2
    assert said in " ".join(refused.stderr.replace("│", " ").split())
