"""One call, three generations: the same image asked from inside what it runs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from haneul.drivers.machines.uml import engine as uml
from tests.system.conftest import Haneul, eventually

Tally = Callable[[str], None]
IMAGES = Path(os.environ.get("HANEUL_TEST_IMAGES", "/var/lib/haneul/images"))
#: What tells the generations apart from inside (systemd-detect-virt(1), lspci(8); sysfs-firmware-dmi).
ASK = """
echo "virt $(systemd-detect-virt 2>/dev/null)"
echo "vendor $(cat /sys/class/dmi/id/sys_vendor 2>/dev/null)"
echo "product $(cat /sys/class/dmi/id/product_name 2>/dev/null)"
echo "cpu $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2)"
echo "cpus $(nproc)"
echo "disk $(ls /sys/block | grep -v loop | tr '\\n' ' ')"
echo "card $(basename "$(readlink -f /sys/class/net/eth0/device/driver)" 2>/dev/null)"
echo "hypervisor $(cat /sys/hypervisor/type 2>/dev/null)"
echo "kernel $(uname -r)"
echo "pci $(lspci 2>/dev/null | grep -c .)"
echo "ide $(lspci 2>/dev/null | grep -ci ide)"
echo "id $(curl -s http://169.254.169.254/latest/meta-data/instance-id 2>/dev/null || imds meta-data/instance-id)"
"""


def _need(image: str) -> None:
    if not (IMAGES / image).is_dir():
        pytest.skip(f"the image {image} is not built: haneul image build {image}")
    if uml.missing():
        pytest.skip(f"no paravirtual machines: {uml.missing()}")


def _answers(haneul: Haneul, instance: str, user: str) -> dict[str, str]:
    lines = haneul.ssh(instance, ASK, user=user, timeout=120).splitlines()
    return {word: rest.strip() for word, _, rest in (line.partition(" ") for line in lines)}


@pytest.fixture
def ended(haneul: Haneul) -> Iterator[list[str]]:
    made: list[str] = []
    yield made
    if made:
        haneul.terminate(*made)


def _launch(haneul: Haneul, image: str, kind: str, made: list[str]) -> str:
    """By the AWS CLI, as anybody would."""
    answer = haneul.aws(
        "ec2", "run-instances", "--image-id", haneul.image(image), "--instance-type", kind,
        "--security-group-ids", haneul.open_group(),
    )  # fmt: skip
    (one,) = answer["Instances"]
    made.append(one["InstanceId"])
    return str(one["InstanceId"])


def _hard_facts(kind: str, instance: str, found: dict[str, str]) -> None:
    assert found["id"] == instance
    if kind.startswith("t1"):
        assert found["cpu"] == "UML" and found["cpus"] == "1" and not found["vendor"]
        assert "ubda" in found["disk"]
        return
    assert (found["vendor"], found["product"]) == ("Amazon EC2", kind)
    if kind.startswith("e1"):
        assert found["card"] == "e1000" and "sda" in found["disk"]
    else:
        assert found["card"] == "virtio_net" and "vda" in found["disk"]


@pytest.mark.timeout(900)
def test_the_smallest_image_under_every_generation(haneul: Haneul, ended: list[str], record_tally: Tally) -> None:
    _need("tiny-generic")
    kinds = ("e1.nano", "t1.micro", "t3.nano")
    launched = {kind: _launch(haneul, "tiny-generic", kind, ended) for kind in kinds}
    for kind, instance in launched.items():
        haneul.until_ssh(instance, 600)
        found = _answers(haneul, instance, "root")
        _hard_facts(kind, instance, found)
        shown = haneul.instance(instance)
        assert shown["VirtualizationType"] == ("paravirtual" if kind == "t1.micro" else "hvm")
        record_tally(f"{kind} of tiny-generic: {found}")
    _journey_of_a_volume(haneul, launched["t1.micro"])


def _journey_of_a_volume(haneul: Haneul, instance: str) -> None:
    """A stopped instance may change its generation: the volume is the same one."""
    haneul.ssh(instance, "echo written-under-t1 > /root/kept; sync")
    ec2 = haneul.client()
    for kind, card in (("t3.nano", "virtio_net"), ("t1.micro", "")):
        ec2.stop_instances(InstanceIds=[instance])
        haneul.until(instance, "stopped")
        ec2.modify_instance_attribute(InstanceId=instance, InstanceType={"Value": kind})
        ec2.start_instances(InstanceIds=[instance])
        haneul.until_ssh(instance, 300)
        assert haneul.ssh(instance, "cat /root/kept") == "written-under-t1"
        if card:
            assert _answers(haneul, instance, "root")["card"] == card


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_debian_under_every_generation(haneul: Haneul, ended: list[str], record_tally: Tally) -> None:
    """e1.small, t1.micro and t3.micro: to SSH, cloud-init to its end, and asked what they are."""
    image = "debian-12-lab" if (IMAGES / "debian-12-lab").is_dir() else "debian-12-generic"
    _need(image)
    expected: dict[str, dict[str, Any]] = {
        "e1.small": {"virt": "amazon"},
        "t1.micro": {"virt": "uml", "hypervisor": ""},
        "t3.micro": {"virt": "amazon"},
    }
    for kind, facts in expected.items():
        instance = _launch(haneul, image, kind, ended)
        haneul.until_ssh(instance, 1200, user="admin")
        found = _answers(haneul, instance, "admin")
        _hard_facts(kind, instance, found)
        assert {name: found[name] for name in facts} == facts
        status = eventually(
            "cloud-init is done",
            lambda: haneul.ssh(instance, "cloud-init status --wait || true", user="admin", timeout=900),  # noqa: B023
            1200,
        )
        assert "done" in status
        failed = haneul.ssh(instance, "systemctl --failed --no-legend | wc -l", user="admin", timeout=120)
        assert failed == "0"
        record_tally(f"{kind} of {image}: {found}")
        haneul.terminate(instance)
        ended.remove(instance)
