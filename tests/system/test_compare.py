"""`haneul compare` with a real guest, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from haneul.lab.measure import places
from tests.system.conftest import HANEUL, Haneul, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WORKLOADS = "boot,getppid,net-latency"


@pytest.fixture(scope="module")
def lab(make_haneul: Callable[..., Haneul], tmp_path_factory: pytest.TempPathFactory) -> Haneul:
    """A haneul whose images have the lab's programs: those of the lab's image, or our own one alone."""
    found = make_haneul()
    given = Path(found.environment["HANEUL_IMAGES"])
    if not places.tools_folder(given).exists():
        if shutil.which("gcc") is None:
            pytest.skip("neither the image debian-12-lab nor gcc is here")
        images = Path(found.data) / "lab-images"
        images.mkdir()
        for path in given.iterdir():
            (images / path.name).symlink_to(path)
        folder = places.tools_folder(images) / "bin"
        folder.mkdir(parents=True)
        source = Path(places.__file__).with_name("bench.c")
        subprocess.run(["gcc", "-O2", "-static", "-o", folder / "haneul-bench", source], check=True)
        found.environment["HANEUL_IMAGES"] = str(images)
    found.up()
    return found


def _arguments(output: Path) -> list[str]:
    return [
        "compare",
        "--image",
        "tiny",
        "--generations",
        "hvm",
        "--workloads",
        WORKLOADS,
        "--runs",
        "1",
        "--output",
        str(output),
    ]


def test_killed_and_called_again_it_measures_what_is_missing_and_leaves_nothing(lab: Haneul, tmp_path: Path) -> None:
    command = [str(HANEUL), *_arguments(tmp_path)]
    first = subprocess.Popen(command, env=lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = tmp_path / "results.json"

    def instances() -> dict[str, str]:
        answer = lab.client().describe_instances(Filters=[{"Name": "tag:Name", "Values": ["haneul-compare"]}])
        found = [one for reservation in answer["Reservations"] for one in reservation["Instances"]]
        return {one["InstanceId"]: one["State"]["Name"] for one in found}

    # Killed while its guest boots: nothing of it can tidy up.
    eventually("it launches", lambda: "running" in instances().values(), 300)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (left,) = instances()
    metal = json.loads(results.read_text())["measurements"]
    assert [one["workload"] for one in metal] == ["getppid", "net-latency"]

    done = lab.run(*_arguments(tmp_path), "--json", timeout=900)
    told = json.loads(done.stdout)
    assert instances()[left] == "terminated"
    assert set(instances().values()) == {"terminated"}
    groups = lab.client().describe_security_groups(Filters=[{"Name": "group-name", "Values": ["haneul-compare"]}])
    assert not groups["SecurityGroups"]
    assert not (lab.data / "compare").exists()

    # The tests emulate: an HVM type says so.
    ways = told["ways"]
    assert set(ways) == {"metal", "emulated-fast"}
    for name in ("getppid", "net-latency"):
        assert ways["emulated-fast"]["workloads"][name]["factor"]["value"] > 1
    measured = json.loads(results.read_text())["measurements"]
    assert measured[:2] == metal, "what was measured is kept"
    (boot,) = (one for one in measured if one["workload"] == "boot")
    names = [phase["name"] for phase in boot["phases"]]
    assert names[:2] == ["api", "server"]
    assert names[-1] == "login"
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.png", "results.json"]

    again = lab.run(*_arguments(tmp_path), timeout=120)
    assert "getppid" in again.stdout
    assert len(instances()) == 2, "there was nothing left to measure, and nothing was launched"
