"""The journeys of `test_debian.py`, unchanged, with instances that go on from templates."""

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
