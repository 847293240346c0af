"""Which service a request means, for the services that haneul has and those that will come."""

from __future__ import annotations

import pytest

from haneul.api.registry import Registry

MANY = Registry.of(
    (
        "acm", "autoscaling", "cloudwatch", "dlm", "ebs", "ec2", "ec2-instance-connect", "elasticbeanstalk", "elb", "elbv2", "iam", "kms",
        "lightsail", "logs", "s3", "ssm", "sts",
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("signing", "version", "target", "service"),
    [
        ("ec2", "2016-11-15", "", "ec2"),
        ("ec2", "", "", "ec2"),  # old clients name other versions, or none
        ("sts", "2011-06-15", "", "sts"),
        ("", "2011-06-15", "", "sts"),
        ("", "2010-05-08", "", "iam"),
        ("elasticloadbalancing", "2012-06-01", "", "elb"),
        ("elasticloadbalancing", "2015-12-01", "", "elbv2"),
        ("monitoring", "2010-08-01", "", "cloudwatch"),
        ("ssm", "", "AmazonSSM", "ssm"),
        ("kms", "", "TrentService", "kms"),
        ("logs", "", "Logs_20140328", "logs"),
        ("", "", "AmazonSSM", "ssm"),
        ("ec2", "", "AmazonSSM", None),
        ("ssm", "", "Nobody", None),
        ("sqs", "2012-11-05", "", None),
        ("", "1999-01-01", "", None),
    ],
)
def test_a_request_means_one_service(signing: str, version: str, target: str, service: str | None) -> None:
    assert MANY.find(signing, version, target) == service


def test_what_is_not_here_is_none() -> None:
    assert Registry.of(("ec2",)).find("iam", "2010-05-08", "") is None
