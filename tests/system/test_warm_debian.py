"""The journeys of `test_debian.py`, unchanged, with instances that go on from templates; and what only such instances could get wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.conftest import Haneul
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

pytestmark = pytest.mark.timeout(1800)

#: A unit that says what systemd itself takes for the machine and its boot; the files beside it; what is left of the template.
ASK = """
printf '[Service]\\nType=oneshot\\nExecStart=/bin/echo ids %%m %%b %%H\\n' | sudo tee /run/systemd/system/ask.service >/dev/null
sudo systemctl daemon-reload && sudo systemctl start ask
sudo journalctl -u ask -o cat --no-pager | grep ^ids
echo "ids $(cat /etc/machine-id) $(tr -d - </proc/sys/kernel/random/boot_id) $(hostname)"
ip -d link show eth0 | grep -c permaddr
sudo sh -c 'ls /var/log/journal | wc -l; ls /etc/sudoers.d | grep -c haneul; ls /var/lib/systemd/linger | wc -l'
journalctl --list-boots --no-pager -q | wc -l
"""


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


def test_nothing_of_the_template_is_left(haneul: Haneul, guests: Guests) -> None:
    """The journeys have terminated theirs: this one has no user data."""
    (one,) = haneul.launch("debian-12", InstanceType="t3.micro")
    haneul.until_ssh(one, 300, user="admin")
    haneul.ssh(one, "cloud-init status --wait", user="admin", timeout=600)
    by_systemd, by_files, *counts = haneul.ssh(one, ASK, user="admin", timeout=120).splitlines()
    assert by_systemd == by_files
    assert counts == ["0", "1", "0", "0", "1"]
    assert "SSH HOST KEY" in haneul.client().get_console_output(InstanceId=one)["Output"]
    haneul.terminate(one)
