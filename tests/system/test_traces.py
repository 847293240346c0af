"""The host stays as it was: before and after `up … down --purge` everything compares equal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from haneul.linux import netns
from tests.system.conftest import Haneul


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _processes() -> str:
    """Every process but kernel threads and those of this moment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "haneul" in command and "pytest" not in command and "scripts/test" not in command:
            found.append(command)
    return "\n".join(sorted(found))


def _sysctl() -> str:
    """Settings of the network; what counts or times itself is left out."""
    lines = _run("sysctl", "-a", "--pattern", r"^net\.(ipv4|ipv6|bridge|netfilter)").splitlines()
    return "\n".join(line for line in lines if "count" not in line and "route.flush" not in line)


def snapshot(data: Path) -> dict[str, str]:
    places = [data, Path("/run"), Path("/var/tmp"), Path("/var/lib")]
    return {
        "links": _run("ip", "-o", "link").replace("UNKNOWN", ""),
        "addresses": _run("ip", "-o", "addr"),
        "routes": _run("ip", "route", "show", "table", "all"),
        "nft": _run("nft", "list", "ruleset"),
        "sysctl": _sysctl(),
        "processes": _processes(),
        "mounts": "\n".join(
            sorted(
                line.split(" ", 1)[1].split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()
            )
        ),
        "files": "\n".join(
            sorted(str(path) for place in places if place.is_dir() for path in place.iterdir() if path != data)
        ),
        "modules": "\n".join(sorted(line.split()[0] for line in Path("/proc/modules").read_text().splitlines()))
        if Path("/proc/modules").exists()
        else "",
    }


def test_purge_leaves_nothing(make_haneul: Callable[..., Haneul]) -> None:
    found = make_haneul()
    before = snapshot(found.data)
    found.up()
    first, second = found.launch(count=2)
    found.until_ssh(first)
    found.client().terminate_instances(InstanceIds=[second])
    during = snapshot(found.data)
    assert during["links"] != before["links"] and during["routes"] != before["routes"]
    added = set(during["routes"].splitlines()) - set(before["routes"].splitlines())
    assert len([line for line in added if "table local" not in line]) == 1, f"one route on the host: {added}"
    found.run("down", "--purge")
    after = snapshot(found.data)
    assert not found.data.exists()
    for what, value in before.items():
        assert after[what] == value, what


def test_uplink_nat_is_taken_back_too(make_haneul: Callable[..., Haneul]) -> None:
    found = make_haneul(HANEUL_UPLINK="nat")
    before = snapshot(found.data)
    found.up()
    (one,) = found.launch()
    found.until_ssh(one)
    assert "masquerade" in _run("nft", "list", "ruleset")
    found.run("down", "--instances")
    after = snapshot(found.data)
    for what in ("links", "addresses", "routes", "nft", "sysctl", "mounts", "processes"):
        assert after[what] == before[what], what
    found.up()
    assert found.until(one, "stopped")["StateReason"]["Code"] == "Server.ScheduledStop"
    found.client().start_instances(InstanceIds=[one])
    found.until_ssh(one)
    found.run("down", "--purge")


@pytest.mark.skipif(os.environ.get("HANEUL_TEST_MOUNTS") != "own", reason="mounts a file system: run `make test`")
def test_a_namespace_that_another_mount_hides_is_not_there(tmp_path: Path) -> None:
    """A container's own /run over the server's, where a haneul with the same slot has its namespaces."""
    place = tmp_path / "run"
    edge = place / "edge"
    netns.create(edge)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    try:
        assert not netns.exists(edge)
        netns.create(edge)
        assert netns.exists(edge)
        netns.remove(edge)
        assert not netns.exists(edge) and not edge.exists()
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert netns.exists(edge), "the hidden one is another's"
    netns.remove(edge)
    assert not edge.exists()
