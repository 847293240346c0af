"""Machines that go on from a template: as themselves, and as others would be that were booted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haneul.linux import locks
from tests.system.conftest import Haneul, eventually

Tally = Callable[[str], None]
#: What two instances must not have in common.
ASK = """echo "name $(hostname)"
echo "machine $(cat /etc/machine-id 2>/dev/null)"
echo "boot $(cat /proc/sys/kernel/random/boot_id)"
echo "mac $(cat /sys/class/net/eth0/address)"
echo "instance $(imds meta-data/instance-id)"
echo "random $(head -c 16 /dev/urandom | md5sum)"
echo "key $(dropbearkey -y -f /etc/dropbear/dropbear_ed25519_host_key | grep -i ^fingerprint)"
"""


@pytest.fixture(scope="module")
def warm(make_haneul: Callable[..., Haneul]) -> Iterator[Haneul]:
    found = make_haneul(HANEUL_WARM="auto")
    about = Path(found.environment["HANEUL_IMAGES"]) / "tiny" / "image.json"
    if not json.loads(about.read_text()).get("resume"):
        pytest.skip("this tiny was built before there were resume units: haneul image build --again tiny")
    found.up()
    yield found


@pytest.fixture(scope="module")
def templated(warm: Haneul) -> str:
    """The first launch is cold, and has a template made."""
    (first,) = warm.launch()
    warm.until_ssh(first)
    eventually("a template is made", lambda: "a template of Shape" in (warm.data / "haneul.log").read_text(), 300)
    return first


def _phase(haneul: Haneul, instance: str) -> str:
    return next(str(one["phase"]) for one in haneul.status()["instances"] if one["instance"] == instance)


def _facts(haneul: Haneul, instance: str) -> dict[str, str]:
    return {word: rest for word, _, rest in (line.partition(" ") for line in haneul.ssh(instance, ASK).splitlines())}


def test_clones_are_themselves_and_no_other(warm: Haneul, templated: str, record_tally: Tally) -> None:
    clones = warm.launch(count=4)
    for one in clones:
        warm.until_ssh(one)
        assert _phase(warm, one) == "on, from a template"
    facts = {one: _facts(warm, one) for one in (templated, *clones)}
    for one, found in facts.items():
        assert found["instance"] == one
        assert found["name"] == warm.instance(one)["PrivateDnsName"].partition(".")[0]
    for name in facts[templated]:
        values = [found[name] for found in facts.values()]
        assert len(set(values)) == len(values), values
    clock = abs(float(warm.ssh(clones[0], "date +%s")) - time.time())
    assert clock < 30, "SSH is slow, the clock is right"
    assert warm.ssh(clones[0], "df -m / | tail -1 | awk '{print $2}'") > "900", "the disk is as large as asked for"
    record_tally(
        f"warm launch: {len(clones)} clones beside the booted one, 0 of {len(facts[templated])} facts repeated"
    )
    _reboot_stop_start(warm, clones[0])
    warm.terminate(*clones)


def _reboot_stop_start(warm: Haneul, one: str) -> None:
    """From the second boot on it is a machine like any other, with what it wrote."""
    warm.ssh(one, "echo kept > /root/kept; sync")
    boot = _facts(warm, one)["boot"]
    warm.client().reboot_instances(InstanceIds=[one])
    eventually("it has rebooted", lambda: _facts(warm, one)["boot"] != boot, 120)
    warm.client().stop_instances(InstanceIds=[one])
    warm.until(one, "stopped")
    warm.client().start_instances(InstanceIds=[one])
    warm.until_ssh(one)
    assert warm.ssh(one, "cat /root/kept") == "kept"
    assert _phase(warm, one) == "on"


#: Name, GiB and serial number of every disk.
DISKS = 'for one in /sys/block/vd*; do echo "${one##*/} $(($(cat $one/size) >> 21)) $(cat $one/serial)"; done'


def test_more_volumes_are_there_as_after_a_boot(warm: Haneul, templated: str) -> None:
    mappings = [{"DeviceName": f"/dev/xvd{name}", "Ebs": {"VolumeSize": size}} for name, size in (("c", 3), ("b", 2))]
    (one,) = warm.launch(BlockDeviceMappings=mappings)
    warm.until_ssh(one)
    assert _phase(warm, one) == "on, from a template"
    volumes = {found["DeviceName"]: found["Ebs"]["VolumeId"] for found in warm.instance(one)["BlockDeviceMappings"]}
    sizes = {"a": 1, "b": 2, "c": 3}
    expected = [f"vd{name} {sizes[name]} {volumes[f'/dev/xvd{name}'].replace('-', '')}" for name in sizes]
    assert warm.ssh(one, DISKS).splitlines() == expected
    warm.ssh(one, "echo kept > /dev/vdc; sync")
    boot = _facts(warm, one)["boot"]
    warm.client().reboot_instances(InstanceIds=[one])
    eventually("it has rebooted", lambda: _facts(warm, one)["boot"] != boot, 120)
    assert warm.ssh(one, DISKS).splitlines() == expected
    assert warm.ssh(one, "head -n 1 /dev/vdc") == "kept"
    warm.terminate(one)


def test_a_template_that_is_damaged_costs_a_cold_boot(warm: Haneul, templated: str) -> None:
    (directory,) = [one for one in (warm.data / "templates").iterdir() if not one.name.startswith(".")]
    warm.kill()
    with (directory / "state").open("r+b") as file:
        file.write(b"\0" * 64)
    warm.up()
    (one,) = warm.launch()
    warm.until_ssh(one)
    assert _phase(warm, one) == "on"
    warm.terminate(one)


def test_a_kill_in_the_middle_of_a_resume_costs_a_new_try(warm: Haneul, templated: str) -> None:
    """At several moments of the half second: the instance comes up as itself, whichever way."""
    eventually("a template is there", lambda: list((warm.data / "templates").glob("*/template.json")), 300)
    for pause in (0.05, 0.2, 0.4):
        (one,) = warm.launch()
        time.sleep(pause)
        warm.kill()
        warm.up()
        warm.until_ssh(one)
        assert _facts(warm, one)["instance"] == one
        warm.terminate(one)
    left = [path.name for path in (warm.data / "volumes").iterdir() if path.name.startswith(".")]
    assert left == []


def test_a_template_in_the_making_ends_with_haneul(warm: Haneul, templated: str) -> None:
    making = warm.data / "templates"
    (one,) = warm.launch(InstanceType="t3.micro")  # a shape that has none
    warm.until(one, "running", 60)

    def makers() -> list[int]:
        return [pid for path in making.glob(".making-*/lock") for pid in locks.holders(path)]

    eventually("one is being made", makers, 60, 0.05)
    warm.kill()
    eventually("its machine has ended too", lambda: not makers(), 10, 0.05)
    warm.up()
    warm.terminate(one)
