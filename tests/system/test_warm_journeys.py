"""The journeys of `test_debian.py`, unchanged, with instances that go on from templates."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.system.conftest import Haneul, eventually
from tests.system.test_debian import (
    Guests,
    guests,
    test_cloud_init_of_the_cli_journey,
    test_cloud_init_takes_gzipped_multipart_over_imds_v2_alone,
    test_the_journey_with_boto3_and_its_waiters,
    test_the_journey_with_the_aws_cli,
)

__all__ = [
    "guests",
    "test_cloud_init_of_the_cli_journey",
    "test_cloud_init_takes_gzipped_multipart_over_imds_v2_alone",
    "test_the_journey_with_boto3_and_its_waiters",
    "test_the_journey_with_the_aws_cli",
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def haneul(make_haneul: Callable[..., Haneul]) -> Haneul:
    found = make_haneul(HANEUL_WARM="auto")
    found.up()
    found.run("image", "warm", "debian-12", "--type", "t3.micro", "--type", "t3.small", timeout=1500)
    return found


@pytest.fixture(scope="module", autouse=True)
def from_templates(haneul: Haneul, guests: Guests) -> None:
    for one in (guests.cli, guests.boto):
        haneul.until(one, "running", 120)
    phases = {one["instance"]: one["phase"] for one in haneul.status()["instances"]}
    assert phases == {guests.cli: "on, from a template", guests.boto: "on, from a template"}


USER_DATA = """#cloud-config
users:
- name: anna
  sudo: ALL=(ALL) NOPASSWD:ALL
  ssh_authorized_keys: ["{key}"]
write_files:
- path: /etc/ssh/sshd_config.d/port.conf
  content: |
    Port 22
    Port 2222
"""


def test_user_data_that_says_who_logs_in(haneul: Haneul) -> None:
    """Nobody else does, not even for a moment, and the SSH server has the settings of then."""
    key = (haneul.data / "identity" / "ssh_key.pub").read_text().strip()
    (one,) = haneul.launch("debian-12", InstanceType="t3.micro", UserData=USER_DATA.format(key=key))
    haneul.until(one, "running", 120)
    phases = {known["instance"]: known["phase"] for known in haneul.status()["instances"]}
    assert phases[one] == "on, from a template"
    tried: list[str] = []

    def anna() -> bool:
        try:
            tried.append(haneul.ssh(one, "true", user="admin", timeout=60))
            return True
        except subprocess.SubprocessError:
            return haneul.ssh(one, "echo in", user="anna", timeout=60) == "in"

    eventually("somebody gets in", anna, 900)
    assert not tried, "the image's own user had got in"
    said = haneul.ssh(
        one, "getent passwd admin; sudo ss -tlnH sport = :2222 | wc -l; ls /etc/ssh", user="anna", timeout=120
    )
    ports, *files = said.splitlines()
    assert int(ports) >= 1 and "ssh_host_ed25519_key" in files and "ssh_host_rsa_key" not in files
    haneul.terminate(one)
