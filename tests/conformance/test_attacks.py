"""What an attack on the API found, kept as tests: no 500, no hang, nothing stored that breaks something else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import FakeCloud
from tests.conformance.test_door import BODY, _send, _signed
from tests.conformance.test_instances import AMI, get, refused, run


@pytest.mark.parametrize(
    "body",
    [
        "Action=DescribeInstances&InstanceId.%C2%B2=i-1",
        "Action=DescribeInstances&InstanceId." + "9" * 5000 + "=i-1",
        "Action=DescribeSpotPriceHistory&StartTime=0001-01-01T00:00:00%2B23:59",
        "Action=DescribeSpotPriceHistory&StartTime=9999-12-31T23:59:59-23:59",
        "Action=DescribeInstances&NextToken=" + "W1tbW1tb" * 30000,
        "Action=AuthorizeSecurityGroupIngress&GroupName=default&IpPermissions.1.IpProtocol=%C2%B2&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0",
        "Action=CreateTags&ResourceId.1=&Tag.1.Key=&Tag.1.Value=",
        "Action=RunInstances&MinCount=1&MaxCount=1&ImageId=" + "a" * 5000,
    ],
)
def test_malformed_requests_are_the_users_fault(fake: FakeCloud, body: str) -> None:
    status, text = _send(fake, "POST", "/", body, _signed(fake, body))
    assert status == 400, text


def test_a_query_list_of_a_value(fake: FakeCloud) -> None:
    body = "Action=AssumeRole&Version=2011-06-15&RoleArn=arn:aws:iam::000000000000:role/xx&RoleSessionName=aaa&Tags.member=12"
    status, text = _send(fake, "POST", "/", body, _signed(fake, body, service="sts"))
    assert status == 400 and "<ErrorResponse>" in text


def test_presigned_nonsense(fake: FakeCloud) -> None:
    credential = "AK/20260101/us-east-1/ec2/aws4_request"
    path = f"/?{BODY}&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date=20260101T000000Z&X-Amz-Expires=%C2%B2"
    assert _send(fake, "GET", path)[0] == 401


def test_signed_headers_cannot_be_multiplied(fake: FakeCloud) -> None:
    headers = _signed(fake)
    headers["Authorization"] = headers["Authorization"].replace("SignedHeaders=", "SignedHeaders=" + "host;" * 8000)
    assert _send(fake, "POST", "/", BODY, headers)[0] in (400, 401)


def test_what_is_not_signed_does_not_count(fake: FakeCloud) -> None:
    assert _send(fake, "POST", "/", BODY, _signed(fake) | {"X-Amz-Target": "x"})[0] == 401
    assert _send(fake, "POST", "/", BODY, _signed(fake) | {"Content-Type": "text/plain"})[0] == 401


@pytest.mark.parametrize(
    "permission",
    [
        {"IpProtocol": "icmp", "FromPort": 99999, "ToPort": -77, "IpRanges": [{"CidrIp": "1.2.3.0/24"}]},
        {"IpProtocol": "icmp", "FromPort": 3, "ToPort": 256, "IpRanges": [{"CidrIp": "1.2.3.0/24"}]},
        {"IpProtocol": "٧", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/0.0.0.255"}]},
        {"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::%a accept ; add rule x\n/0"}]},
        {"IpProtocol": "06", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
    ],
)
def test_no_rule_is_stored_that_nft_would_refuse(ec2: Any, permission: dict[str, Any]) -> None:
    """One such rule would keep every later change of the VPC from being loaded."""
    with refused("InvalidParameterValue"):
        ec2.authorize_security_group_ingress(GroupName="default", IpPermissions=[permission])


def test_limits(ec2: Any) -> None:
    mappings = [
        {"DeviceName": f"/dev/sd{chr(98 + n % 25)}{n // 25 or ''}", "Ebs": {"VolumeSize": 1}} for n in range(60)
    ]
    with refused("AttachmentLimitExceeded"):
        run(ec2, BlockDeviceMappings=mappings)
    (one,) = run(ec2)
    with refused("TagLimitExceeded"):
        ec2.delete_tags(Resources=[one], Tags=[{"Key": f"k{n}"} for n in range(51)])
    rules = [
        {"IpProtocol": "tcp", "FromPort": n, "ToPort": n, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]} for n in range(61)
    ]
    group = ec2.create_security_group(GroupName="full", Description="d")["GroupId"]
    with refused("RulesPerSecurityGroupLimitExceeded"):
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rules)


def test_system_tags_are_not_the_users(fake: FakeCloud, ec2: Any) -> None:
    (one,) = run(ec2)
    with refused("InvalidParameterValue"):
        ec2.delete_tags(Resources=[one], Tags=[{"Key": "aws:haneul:virtualization"}])


@pytest.mark.parametrize("name", ["a\nssh-rsa EVIL", "a\0b", ""])
def test_names_have_no_control_characters(ec2: Any, name: str) -> None:
    with refused("InvalidParameterValue"):
        ec2.create_key_pair(KeyName=name)
    with refused("InvalidAMIName.Malformed|MissingParameter"):
        ec2.register_image(Name=name, ImageLocation="haneul/x")


@pytest.mark.parametrize(
    ("mapping", "code"),
    [
        ({"DeviceName": "../../x\n;rm", "Ebs": {"VolumeSize": 1}}, "InvalidBlockDeviceMapping"),
        ({"Ebs": {"VolumeSize": 1}}, "InvalidBlockDeviceMapping"),
        ({"DeviceName": "/dev/xvda", "NoDevice": ""}, "InvalidBlockDeviceMapping"),
        ({"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": "snap-0123456789abcdef0"}}, "InvalidBlockDeviceMapping"),
        (
            {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 1, "VolumeType": "gp2", "Throughput": 200}},
            "InvalidParameterCombination",
        ),
        ({"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 1, "VolumeType": "io1"}}, "MissingParameter"),
        ({"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": -7}}, "InvalidBlockDeviceMapping"),
    ],
)
def test_block_devices(ec2: Any, mapping: dict[str, Any], code: str) -> None:
    with refused(code):
        run(ec2, BlockDeviceMappings=[mapping])


def test_what_we_do_not_honour_we_refuse(ec2: Any) -> None:
    for parameters in (
        {"CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 1}},
        {"Ipv6AddressCount": 1},
    ):
        with refused("UnsupportedOperation"):
            run(ec2, **parameters)
    (one,) = run(ec2, Placement={"AvailabilityZoneId": "use1-az3"})
    assert get(ec2, one)["Placement"]["AvailabilityZone"] == "us-east-1c"
    subnet = get(ec2, one)["SubnetId"]
    address = get(ec2, one)["PrivateIpAddress"].rsplit(".", 2)[0] + ".40.41"
    listed = [{"Primary": True, "PrivateIpAddress": address}]
    (two,) = run(ec2, NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": subnet, "PrivateIpAddresses": listed}])
    assert get(ec2, two)["PrivateIpAddress"] == address


def test_a_key_called_haneul_is_the_users_own(fake: FakeCloud, ec2: Any) -> None:
    ec2.create_key_pair(KeyName="haneul", KeyType="ed25519")
    (one,) = run(ec2, KeyName="haneul")
    assignment = fake.running.control.assignment(fake.running.lease.server_id)
    assert assignment is not None
    keys = next(spec.public_keys for spec in assignment.metadata if spec.instance_id == one)
    assert len(keys) == 2 and len({text for _, text in keys}) == 2


def test_open_door_against_web_pages(start_cloud: Any) -> None:
    cloud = start_cloud(auth="open")
    for headers in ({"Referer": "http://evil.example/"}, {"Host": "localhost:evil.example"}):
        assert _send(cloud, "GET", f"/?{BODY}", "", headers)[0] == 401
    write = "Action=CreateSecurityGroup&GroupName=pwn&GroupDescription=x"
    assert _send(cloud, "GET", f"/?{write}")[0] == 401
    assert cloud.client(aws_access_key_id="any", aws_secret_access_key="thing").run_instances(
        ImageId=AMI, MinCount=1, MaxCount=1
    )
