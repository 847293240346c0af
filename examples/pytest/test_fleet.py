"""The whole set-up is the argument `haneul`."""

import fleet
import pytest


def test_scaling_up_and_down(haneul):
    ids = fleet.scale("web", haneul.image, 2)
    assert len(ids) == 2
    assert fleet.scale("web", haneul.image, 2) == ids, "repeated, it changes nothing"
    assert fleet.scale("web", haneul.image, 1) == ids[:1]
    assert {one["State"]["Name"] for one in fleet.instances("web")} == {"running"}


def test_tests_do_not_see_each_other(haneul):
    assert fleet.instances("web") == []


def test_what_aws_would_refuse(haneul):
    with pytest.raises(haneul.ec2.exceptions.ClientError, match=r"InvalidAMIID\.Malformed"):
        fleet.scale("web", "ami-nonsense", 1)
