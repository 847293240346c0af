"""Accounts: their keys, their quotas, what they share and what they never see; and what launching asks of IAM and SSM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.conformance.conftest import FakeCloud
from tests.conformance.test_instances import AMI, get, refused, run, wait


def _client(endpoint: str, key: dict[str, str], service: str = "ec2") -> Any:
    return boto3.client(
        service,
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id=key["access_key"],
        aws_secret_access_key=key["secret"],
    )


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def haneul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command itself, with a haneul of fake drivers in the background."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    data = tmp_path_factory.mktemp("accounts") / "data"
    (data.parent / "haneul.toml").write_text("")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HANEUL_")}
    environment |= {"HANEUL_DATA": str(data), "HANEUL_PORT": str(port), "HANEUL_DRIVERS": "fake"}
    environment["HANEUL_CONFIG"] = str(data.parent / "haneul.toml")

    def command(*arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "haneul", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == ok, done.stderr
        return done

    assert "haneul up" in command("account", "list", ok=False).stderr
    command("up", "--detach")
    yield command
    command("down", "--purge")


def _endpoint(haneul: Command) -> str:
    found = re.search(r"AWS_ENDPOINT_URL=(\S+)", haneul("env").stdout)
    assert found
    return found.group(1)


def test_accounts_come_and_go(haneul: Command) -> None:
    endpoint = _endpoint(haneul)
    made = json.loads(haneul("account", "add", "team-a", "--json").stdout)
    other = json.loads(haneul("account", "add", "team-b", "--id", "111122223333", "--json").stdout)
    assert other["account"] == "111122223333"
    assert _client(endpoint, other, "sts").get_caller_identity()["Account"] == "111122223333"
    (one,) = run(_client(endpoint, made))
    assert _client(endpoint, other).describe_instances()["Reservations"] == []
    listed = {row["name"]: row for row in json.loads(haneul("account", "list", "--json").stdout)}
    assert listed["team-a"]["instances"] == 1 and listed["team-a"]["access_keys"] == [made["access_key"]]
    assert made["secret"] not in haneul("account", "list").stdout, "told once"
    new = json.loads(haneul("account", "rotate", "team-a", "--json").stdout)
    with refused("AuthFailure"):
        _client(endpoint, made).describe_instances()
    ec2 = _client(endpoint, new)
    assert get(ec2, one)["InstanceId"] == one
    assert "terminate them first" in haneul("account", "rm", "team-a", ok=False).stderr
    ec2.terminate_instances(InstanceIds=[one])
    wait(ec2, "instance_terminated", one)
    haneul("account", "rm", "team-a")
    with refused("AuthFailure"):
        ec2.describe_instances()
    assert "team-a" not in haneul("account", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("add", ""), "name"),
        (("add", "x", "--id", "12"), "twelve digits"),
        (("add", "twice"), "already"),
        (("rm", "nobody"), "no account"),
        (("rotate", "nobody"), "no account"),
        (("rm", "default"), "default account"),
    ],
)
def test_refusals(haneul: Command, arguments: tuple[str, ...], text: str) -> None:
    if "twice" not in haneul("account", "list").stdout:
        haneul("account", "add", "twice")
    assert text in haneul("account", *arguments, ok=False).stderr


def test_the_default_accounts_keys_rotate_too(haneul: Command) -> None:
    endpoint = _endpoint(haneul)
    old = haneul("env").stdout
    haneul("account", "rotate", "default")
    new = haneul("env").stdout
    assert old != new
    found = dict(re.findall(r"export (AWS_\w+)=(\S+)", new))
    key = {"access_key": found["AWS_ACCESS_KEY_ID"], "secret": found["AWS_SECRET_ACCESS_KEY"]}
    assert _client(endpoint, key).describe_regions()["Regions"]


# --- quotas -----------------------------------------------------------------------------------------


def test_quotas(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud(
        quota_instances=4, quota_vcpus=8, quota_key_pairs=1, quota_security_groups=3, quota_rules=2, quota_tags=2,
        quota_groups_per_interface=1, quota_placement_groups=1, quota_launch_templates=1, quota_launch_template_versions=2,
    )  # fmt: skip
    ec2 = cloud.client()
    ids = run(ec2, 3)
    with refused("VcpuLimitExceeded"):
        run(ec2, InstanceType="m5.xlarge")
    with refused("InstanceLimitExceeded"):
        run(ec2, 2)
    more = run(ec2, 5, MinCount=1)
    assert len(more) == 1, "as many as the quota lets in"
    with refused("InstanceLimitExceeded"):
        run(ec2)
    wait(ec2, "instance_running", *ids, *more)
    ec2.stop_instances(InstanceIds=ids[:1])
    wait(ec2, "instance_stopped", ids[0])
    ec2.terminate_instances(InstanceIds=ids[1:])
    wait(ec2, "instance_terminated", *ids[1:])
    other = run(ec2, InstanceType="m5.xlarge")
    ec2.modify_instance_attribute(InstanceId=ids[0], InstanceType={"Value": "m5.xlarge"})
    with refused("VcpuLimitExceeded"):
        ec2.start_instances(InstanceIds=[ids[0]])
    assert len(other) == 1
    ec2.create_key_pair(KeyName="one", KeyType="ed25519")
    with refused("KeyPairLimitExceeded"):
        ec2.create_key_pair(KeyName="two", KeyType="ed25519")
    group = ec2.create_security_group(GroupName="g1", Description="d")["GroupId"]
    second = ec2.create_security_group(GroupName="g2", Description="d")["GroupId"]
    with refused("SecurityGroupLimitExceeded"):
        ec2.create_security_group(GroupName="g3", Description="d")
    with refused("SecurityGroupsPerInterfaceLimitExceeded"):
        ec2.modify_instance_attribute(InstanceId=ids[0], Groups=[group, second])
    rules = [
        {"IpProtocol": "tcp", "FromPort": n, "ToPort": n, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]} for n in range(3)
    ]
    with refused("RulesPerSecurityGroupLimitExceeded"):
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rules)
    ec2.create_tags(Resources=[group], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "1"}])
    ec2.create_tags(Resources=[group], Tags=[{"Key": "a", "Value": "2"}])
    with refused("TagLimitExceeded"):
        ec2.create_tags(Resources=[group], Tags=[{"Key": "c", "Value": "1"}])
    ec2.create_placement_group(GroupName="p")
    with refused("PlacementGroupLimitExceeded"):
        ec2.create_placement_group(GroupName="q")
    ec2.create_launch_template(LaunchTemplateName="one", LaunchTemplateData={"ImageId": AMI})
    with refused("LaunchTemplateLimitExceeded"):
        ec2.create_launch_template(LaunchTemplateName="two", LaunchTemplateData={"ImageId": AMI})
    ec2.create_launch_template_version(LaunchTemplateName="one", LaunchTemplateData={"ImageId": AMI})
    with refused("LaunchTemplateVersionLimitExceeded"):
        ec2.create_launch_template_version(LaunchTemplateName="one", LaunchTemplateData={"ImageId": AMI})
    # Another region, another account: quotas of their own.
    run(cloud.client(region="eu-west-1"), 2)


def test_account_attributes(ec2: Any) -> None:
    found = ec2.describe_account_attributes(AttributeNames=["max-instances", "supported-platforms"])[
        "AccountAttributes"
    ]
    assert {one["AttributeName"]: one["AttributeValues"][0]["AttributeValue"] for one in found} == {
        "max-instances": "20000", "supported-platforms": "VPC",
    }  # fmt: skip
    with refused("InvalidParameterValue"):
        ec2.describe_account_attributes(AttributeNames=["nothing"])


# --- images that are shared -------------------------------------------------------------------------


@pytest.fixture
def two(start_cloud: Callable[..., FakeCloud]) -> tuple[Any, Any, str]:
    """(an owner, somebody else, an image of the owner's)."""
    cloud = start_cloud(drivers="fake", unknown_image="refuse", auth="open")
    owner, other = (cloud.client(aws_access_key_id=f"{n}" * 12, aws_secret_access_key="x") for n in (1, 2))
    owner.describe_vpcs()
    cloud.put_image(AMI, "1" * 12, name="mine", snapshot_id="snap-0123456789abcdef0")
    return owner, other, AMI


def _images(ec2: Any, **parameters: Any) -> list[str]:
    return [one["ImageId"] for one in ec2.describe_images(**parameters)["Images"]]


def test_sharing_an_image(two: tuple[Any, Any, str]) -> None:
    owner, other, image = two
    assert _images(owner, Owners=["self"]) == [image] and _images(other) == []
    with refused("InvalidAMIID.NotFound"):
        other.describe_image_attribute(ImageId=image, Attribute="description")
    owner.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": "2" * 12}]})
    assert _images(other) == [image] and _images(other, ExecutableUsers=["self"]) == [image]
    assert _images(owner, ExecutableUsers=["2" * 12]) == [image]
    assert owner.describe_image_attribute(ImageId=image, Attribute="launchPermission")["LaunchPermissions"] == [
        {"UserId": "2" * 12}
    ]
    with refused("AuthFailure"):
        other.describe_image_attribute(ImageId=image, Attribute="launchPermission")
    with refused("AuthFailure"):
        other.modify_image_attribute(ImageId=image, Description={"Value": "stolen"})
    with refused("AuthFailure"):
        other.deregister_image(ImageId=image)
    run(other, ImageId=image)
    owner.modify_image_attribute(
        ImageId=image, Attribute="launchPermission", OperationType="remove", UserIds=["2" * 12]
    )
    assert _images(other) == []
    owner.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})
    assert _images(other) == [image] and _images(other, ExecutableUsers=["all"]) == [image]
    owner.reset_image_attribute(ImageId=image, Attribute="launchPermission")
    assert _images(other) == []
    owner.modify_image_attribute(ImageId=image, Description={"Value": "new"})
    assert owner.describe_image_attribute(ImageId=image, Attribute="description")["Description"] == {"Value": "new"}
    with refused("InvalidAMIAttributeItemValue"):
        owner.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": "me"}]})
    with refused("InvalidParameterCombination"):
        owner.modify_image_attribute(ImageId=image)


# --- small reads and switches -----------------------------------------------------------------------


def test_monitoring_and_credits(ec2: Any) -> None:
    (one,) = run(ec2, CreditSpecification={"CpuCredits": "standard"})
    (big,) = run(ec2, InstanceType="m5.large")
    assert ec2.monitor_instances(InstanceIds=[one])["InstanceMonitorings"][0]["Monitoring"]["State"] == "pending"
    assert get(ec2, one)["Monitoring"]["State"] == "enabled"
    ec2.unmonitor_instances(InstanceIds=[one])
    assert get(ec2, one)["Monitoring"]["State"] == "disabled"

    def credit(ident: str) -> str:
        return str(
            ec2.describe_instance_credit_specifications(InstanceIds=[ident])["InstanceCreditSpecifications"][0][
                "CpuCredits"
            ]
        )

    assert credit(one) == "standard"
    answer = ec2.modify_instance_credit_specification(
        InstanceCreditSpecifications=[
            {"InstanceId": one, "CpuCredits": "unlimited"},
            {"InstanceId": big, "CpuCredits": "unlimited"},
        ]
    )
    assert [ok["InstanceId"] for ok in answer["SuccessfulInstanceCreditSpecifications"]] == [one]
    assert (
        answer["UnsuccessfulInstanceCreditSpecifications"][0]["Error"]["Code"]
        == "InstanceCreditSpecification.NotSupported"
    )
    assert credit(one) == "unlimited"
    with refused("InvalidParameterCombination"):
        credit(big)
    with refused("InvalidParameterCombination"):
        run(ec2, InstanceType="m5.large", CreditSpecification={"CpuCredits": "unlimited"})


def test_volume_status(ec2: Any) -> None:
    (one,) = run(ec2)
    volume = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [one]}])["Volumes"][0][
        "VolumeId"
    ]
    (found,) = ec2.describe_volume_status(VolumeIds=[volume])["VolumeStatuses"]
    assert found["VolumeStatus"]["Status"] == "ok" and found["AvailabilityZone"] == "us-east-1a"


@pytest.mark.parametrize("attribute", ["instanceType", "kernel", "ramdisk", "userData", "disableApiTermination", "disableApiStop",
    "instanceInitiatedShutdownBehavior", "rootDeviceName", "blockDeviceMapping", "productCodes", "sourceDestCheck", "groupSet",
    "ebsOptimized", "sriovNetSupport", "enaSupport", "enclaveOptions"])  # fmt: skip
def test_every_attribute_of_an_instance(ec2: Any, attribute: str) -> None:
    (one,) = run(ec2)
    assert ec2.describe_instance_attribute(InstanceId=one, Attribute=attribute)["InstanceId"] == one


NOTHING = [
    "describe_reserved_instances", "describe_reserved_instances_offerings", "describe_spot_instance_requests",
    "describe_spot_price_history", "describe_spot_fleet_requests", "describe_hosts", "describe_addresses",
    "describe_capacity_reservations", "describe_nat_gateways", "describe_iam_instance_profile_associations",
    "describe_elastic_gpus", "describe_host_reservation_offerings", "describe_host_reservations",
    "describe_reserved_instances_listings", "describe_reserved_instances_modifications", "describe_scheduled_instances",
    "describe_volumes_modifications", "describe_vpc_endpoints", "describe_vpc_peering_connections", "describe_vpn_gateways",
]  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_what_there_is_none_of(ec2: Any, name: str) -> None:
    answer = getattr(ec2, name)()
    answer.pop("ResponseMetadata")
    assert all(value == [] for value in answer.values()), answer


def test_unknown_ids_of_what_there_is_none_of(ec2: Any) -> None:
    with refused("InvalidAllocationID.NotFound"):
        ec2.describe_addresses(AllocationIds=["eipalloc-0123456789abcdef0"])
    with refused("InvalidAddress.NotFound"):
        ec2.describe_addresses(PublicIps=["198.51.100.1"])
    with refused("InvalidSpotInstanceRequestID.NotFound"):
        ec2.describe_spot_instance_requests(SpotInstanceRequestIds=["sir-0123456789abcdef0"])


# --- IAM and SSM ------------------------------------------------------------------------------------


def test_iam_has_no_profiles(fake: FakeCloud) -> None:
    with pytest.raises(ClientError, match="NoSuchEntity") as error:
        fake.client("iam").get_instance_profile(InstanceProfileName="web")
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert fake.client("iam").list_instance_profiles()["InstanceProfiles"] == []
    assert fake.client("iam").list_account_aliases()["AccountAliases"] == []
    with refused("UnsupportedOperation"):
        fake.client("iam").list_users()


DEBIAN = "/aws/service/debian/release/12/latest/amd64"


def test_public_parameters_name_images(fake: FakeCloud, start_cloud: Callable[..., FakeCloud]) -> None:
    ssm = fake.client("ssm")
    linux = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    image = ssm.get_parameter(Name=linux)["Parameter"]["Value"]
    assert ssm.get_parameter(Name=linux)["Parameter"]["Value"] == image, "the same every time"
    run(fake.client(), ImageId=image)
    answer = ssm.get_parameters(Names=[linux, DEBIAN, "/my/own"])
    assert len(answer["Parameters"]) == 2 and answer["InvalidParameters"] == ["/my/own"]
    with refused("ParameterNotFound"):
        ssm.get_parameter(Name="/my/own")
    with refused("UnsupportedOperation"):
        ssm.put_parameter(Name="/x", Value="y")


def test_a_parameter_of_an_image_that_is_here(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud()
    cloud.put_image("ami-0aaaaaaaaaaaaaaaa", name="debian-12", disk="debian-12")
    assert cloud.client("ssm").get_parameter(Name=DEBIAN)["Parameter"]["Value"] == "ami-0aaaaaaaaaaaaaaaa"
    assert (
        cloud.client("ssm").get_parameter(Name="/haneul/images/debian-12")["Parameter"]["Value"]
        == "ami-0aaaaaaaaaaaaaaaa"
    )


def test_files_with_secrets_are_for_their_owner(fake: FakeCloud) -> None:
    for path in (fake.identity.credentials, fake.running.settings.data / "haneul.db"):
        assert Path(path).stat().st_mode & 0o077 == 0
