"""Small inputs that clients really send, each with what EC2 answers. The comments say where the right value is known from."""

from __future__ import annotations

import base64
import json
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import rsa

from haneul.model.aws import service_model
from haneul.model.instance_types import instance_types
from tests.conformance.conftest import FakeCloud

AMI = "ami-0123456789abcdef0"


def _run(ec2: Any, **more: Any) -> str:
    answer = ec2.run_instances(**({"ImageId": AMI, "MinCount": 1, "MaxCount": 1} | more))
    return str(answer["Instances"][0]["InstanceId"])


def _refused(code: str, text: str = "") -> Any:
    return pytest.raises(ClientError, match=rf"\({code}\).*{text}")


# --- an empty text that a client sends for "nothing" -------------------------------------------------------


@pytest.mark.parametrize(
    "empty",
    [
        {"IamInstanceProfile": {"Name": ""}},  # Terraform's provider 3 sends it with every aws_instance
        {"IamInstanceProfile": {"Arn": ""}},
        {"KeyName": ""},
        {"PrivateIpAddress": ""},
        {"SubnetId": ""},
        {"InstanceInitiatedShutdownBehavior": ""},
        {"Placement": {"Tenancy": "", "AvailabilityZone": "", "GroupName": ""}},
        {"ClientToken": ""},
        {"UserData": ""},
        {"CreditSpecification": {"CpuCredits": "standard"}, "InstanceType": "t3.micro", "RamdiskId": ""},
    ],
    ids=lambda given: next(iter(given)),
)
def test_an_empty_text_is_none(ec2: Any, empty: dict[str, Any]) -> None:
    _run(ec2, **empty)


def test_an_empty_account_is_the_own_one(ec2: Any) -> None:
    """Terraform's aws_security_group_rule sends it."""
    group = ec2.create_security_group(GroupName="empty-user", Description="d")["GroupId"]
    pair = {"GroupId": group, "UserId": ""}
    permission = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "UserIdGroupPairs": [pair]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])


def test_what_may_be_empty_stays_so(ec2: Any) -> None:
    one = _run(ec2, TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "k", "Value": ""}]}])
    assert ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [one]}])["Tags"][0]["Value"] == ""
    with _refused("MissingParameter"):
        ec2.create_security_group(GroupName="no-description", Description="")


# --- what launches can be described ------------------------------------------------------------------------


def test_fake_drivers_describe_what_they_launch(ec2: Any, fake: FakeCloud) -> None:
    (one,) = ec2.describe_images(ImageIds=["ami-12c6146b"])["Images"]
    assert one["ImageId"] == "ami-12c6146b" and one["State"] == "available" and one["RootDeviceName"]
    name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    found = fake.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    assert ec2.describe_images(ImageIds=[found])["Images"][0]["ImageId"] == found


def test_two_unknown_images(start_cloud: Any) -> None:
    ec2 = start_cloud(unknown_image="refuse", drivers="fake").client()
    with _refused("InvalidAMIID.Malformed"):
        ec2.describe_images(ImageIds=["ami-zz"])


# --- aliases, codes, texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cidr", "cidr-block", "cidrBlock"])
def test_the_cidr_of_a_vpc_has_three_names(ec2: Any, name: str) -> None:
    """Ansible's ec2_vpc_net always sends cidr-block."""
    assert len(ec2.describe_vpcs(Filters=[{"Name": name, "Values": ["172.31.0.0/16"]}])["Vpcs"]) == 1
    assert not ec2.describe_vpcs(Filters=[{"Name": name, "Values": ["10.0.0.0/16"]}])["Vpcs"]


@pytest.mark.parametrize("verb", ["terminate", "stop", "start", "reboot"])
def test_no_instances(ec2: Any, verb: str) -> None:
    with _refused("InvalidParameterCombination", "No instances specified"):
        getattr(ec2, f"{verb}_instances")(InstanceIds=[])


def test_no_resources(ec2: Any) -> None:
    with _refused("MissingParameter", "The request must contain the parameter resourceIdSet"):
        ec2.create_tags(Resources=[], Tags=[{"Key": "a", "Value": "b"}])


def test_the_same_permission_twice(ec2: Any) -> None:
    group = ec2.create_security_group(GroupName="twice", Description="d")["GroupId"]
    cidrs = [{"CidrIp": "10.0.0.0/8"}, {"CidrIp": "10.0.0.0/8"}]
    permission = {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "IpRanges": cidrs}
    with _refused("InvalidParameterValue", "The same permission must not appear multiple times"):
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
    permission["IpRanges"] = cidrs[:1]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
    with _refused("InvalidPermission.Duplicate"):
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])


def test_an_untagged_resource_has_no_tags(ec2: Any) -> None:
    """Code that says `instance["Tags"]` fails at AWS, and has to fail here."""
    launched = ec2.run_instances(ImageId=AMI, MinCount=1, MaxCount=1)["Instances"][0]
    (described,) = ec2.describe_instances(InstanceIds=[launched["InstanceId"]])["Reservations"][0]["Instances"]
    assert "Tags" not in launched
    assert not [tag for tag in described.get("Tags", []) if not tag["Key"].startswith("aws:")]


def test_versions_of_no_template(ec2: Any) -> None:
    with _refused("InvalidParameterValue"):
        ec2.describe_launch_template_versions(Versions=["1"])


def test_texts_of_templates(ec2: Any) -> None:
    made = ec2.create_launch_template(LaunchTemplateName="texts", LaunchTemplateData={"ImageId": AMI})["LaunchTemplate"]
    with _refused("InvalidLaunchTemplateName.NotFoundException", "At least one of the launch templates specified"):
        ec2.describe_launch_templates(LaunchTemplateNames=["nobody"])
    with _refused("InvalidParameterCombination", "Either provide launch template ID or launch template name"):
        ec2.modify_launch_template(
            LaunchTemplateId=made["LaunchTemplateId"], LaunchTemplateName="texts", DefaultVersion="1"
        )
    with _refused("InvalidLaunchTemplateId.VersionNotFound", "The launch template version 2 is not found for the"):
        _run(ec2, LaunchTemplate={"LaunchTemplateName": "texts", "Version": "2"})


def test_pages_and_ids(ec2: Any) -> None:
    one = _run(ec2)
    with _refused("InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter maxR"):
        ec2.describe_instances(InstanceIds=[one], MaxResults=5)


def test_a_volume_that_was_never_modified(ec2: Any) -> None:
    one = _run(ec2)
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [one]}])["Volumes"]
    with _refused("InvalidVolumeModification.NotFound"):
        ec2.describe_volumes_modifications(VolumeIds=[volume["VolumeId"]])


@pytest.mark.parametrize(
    ("operation", "parameter", "code"),
    [
        ("describe_dhcp_options", "DhcpOptionsIds", "InvalidDhcpOptionsId.Malformed"),
        ("describe_network_interfaces", "NetworkInterfaceIds", "InvalidNetworkInterfaceId.Malformed"),
        ("describe_route_tables", "RouteTableIds", "InvalidRouteTableId.Malformed"),
        ("describe_vpc_peering_connections", "VpcPeeringConnectionIds", "InvalidVpcPeeringConnectionId.Malformed"),
        ("describe_spot_fleet_requests", "SpotFleetRequestIds", "InvalidSpotFleetRequestId.Malformed"),
    ],
)
def test_malformed_ids(ec2: Any, operation: str, parameter: str, code: str) -> None:
    """AWS's C++ SDK has these codes in its list of errors."""
    with _refused(code):
        getattr(ec2, operation)(**{parameter: ["zz"]})


@pytest.mark.parametrize("spelling", ["lowestPrice", "lowest-price"])
def test_both_spellings_of_a_strategy(ec2: Any, spelling: str) -> None:
    name = f"spelled-{spelling}"
    ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData={"ImageId": AMI})
    made = ec2.create_fleet(
        Type="instant",
        LaunchTemplateConfigs=[{"LaunchTemplateSpecification": {"LaunchTemplateName": name, "Version": "1"}}],
        TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "on-demand"},
        SpotOptions={"AllocationStrategy": spelling},
        OnDemandOptions={"AllocationStrategy": spelling},
    )
    assert len(made["Instances"][0]["InstanceIds"]) == 1


# --- types and regions -------------------------------------------------------------------------------------


def test_every_type_is_one_of_awss(ec2: Any) -> None:
    """But for haneul's own family. c5 has 9xlarge and 18xlarge."""
    enum = set(service_model("ec2").shape_for("InstanceType").enum)
    assert {name for name in instance_types() if not name.startswith("e1.")} <= enum
    (c5,) = ec2.describe_instance_types(InstanceTypes=["c5.9xlarge"])["InstanceTypes"]
    assert (c5["VCpuInfo"]["DefaultVCpus"], c5["MemoryInfo"]["SizeInMiB"]) == (36, 73728)
    (t2,) = ec2.describe_instance_types(InstanceTypes=["t2.large"])["InstanceTypes"]
    assert t2["CurrentGeneration"] and t2["NetworkInfo"]["Ipv4AddressesPerInterface"] == 12


def test_no_burstable_type_is_in_a_cluster(ec2: Any) -> None:
    ec2.create_placement_group(GroupName="tight", Strategy="cluster")
    with _refused("InvalidParameterCombination", "Cluster placement groups are not supported by the 't3.micro'"):
        _run(ec2, InstanceType="t3.micro", Placement={"GroupName": "tight"})
    _run(ec2, InstanceType="m5.large", Placement={"GroupName": "tight"})


def test_regions(ec2: Any, fake: FakeCloud) -> None:
    found = {one["RegionName"]: one["OptInStatus"] for one in ec2.describe_regions()["Regions"]}
    assert found["us-east-1"] == "opt-in-not-required" and found["ap-east-1"] == "opted-in"
    assert found["me-south-1"] == "opted-in"
    for region, zone in (("us-gov-east-1", "usge1-az1"), ("us-gov-west-1", "usgw1-az1"), ("us-east-1", "use1-az1")):
        zones = fake.client(region=region).describe_availability_zones()["AvailabilityZones"]
        assert zones[0]["ZoneId"] == zone


def test_a_region_is_one_of_awss_or_of_the_settings(start_cloud: Any) -> None:
    """A made-up one would be a cloud of its own, with rows for ever."""
    cloud = start_cloud(more_regions="eu-home-1")
    for name in ("zz-nowhere-1", "eu-home-2"):
        with _refused("AuthFailure", "more_regions"):
            cloud.client(region=name).describe_vpcs()
    assert cloud.client(region="eu-home-1").describe_vpcs()["Vpcs"]


def test_a_look_makes_nothing_but_what_it_looks_at(start_cloud: Any) -> None:
    from haneul.store import tables

    cloud = start_cloud()
    for region in ("eu-west-1", "eu-west-2"):
        ec2 = cloud.client(region=region)
        ec2.describe_instances(), ec2.describe_key_pairs(), ec2.describe_volumes()
    with cloud.running.store.read() as tx:
        assert not tx.select(tables.vpcs)
    assert cloud.client(region="eu-west-2").describe_subnets()["Subnets"]
    with cloud.running.store.read() as tx:
        assert [row["region"] for row in tx.select(tables.vpcs)] == ["eu-west-2"]


def test_the_open_door_does_not_make_accounts_without_end(start_cloud: Any) -> None:
    cloud = start_cloud(auth="open", quota_accounts=2)
    for number in range(2):
        cloud.client(aws_access_key_id=f"{number:012d}").describe_vpcs()
    with _refused("RequestLimitExceeded", "quota_accounts"):
        cloud.client(aws_access_key_id="9" * 12).describe_vpcs()


# --- nothing is taken without effect -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"PrivateDnsNameOptions": {"HostnameType": "resource-name"}},
        {"PrivateDnsNameOptions": {"EnableResourceNameDnsARecord": True}},
        {"NetworkPerformanceOptions": {"BandwidthWeighting": "ebs-1"}},
        {"Placement": {"Affinity": "host"}},
        {"NetworkInterfaces": [{"DeviceIndex": 0, "InterfaceType": "efa"}]},
        {"NetworkInterfaces": [{"DeviceIndex": 0, "NetworkCardIndex": 1}]},
        {"NetworkInterfaces": [{"DeviceIndex": 0, "AssociateCarrierIpAddress": True}]},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "OutpostArn": "arn:x"}}]},
        {"AdditionalInfo": "x"},
    ],
    ids=lambda given: json.dumps(given)[:60],
)
def test_what_is_not_honoured_is_refused(ec2: Any, given: dict[str, Any]) -> None:
    with _refused("UnsupportedOperation"):
        _run(ec2, **given)


def test_an_unknown_capacity_reservation(ec2: Any) -> None:
    target = {"CapacityReservationTarget": {"CapacityReservationId": "cr-0123456789abcdef0"}}
    with _refused("InvalidCapacityReservationId.NotFound"):
        _run(ec2, CapacityReservationSpecification=target)


def test_what_is_taken_is_shown(ec2: Any) -> None:
    one = _run(
        ec2,
        MaintenanceOptions={"AutoRecovery": "disabled"},
        CapacityReservationSpecification={"CapacityReservationPreference": "none"},
        PrivateDnsNameOptions={"HostnameType": "ip-name", "EnableResourceNameDnsARecord": False},
        NetworkInterfaces=[{"DeviceIndex": 0, "InterfaceType": "interface", "NetworkCardIndex": 0}],
    )
    (found,) = ec2.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"]
    assert found["MaintenanceOptions"]["AutoRecovery"] == "disabled"
    assert found["CapacityReservationSpecification"]["CapacityReservationPreference"] == "none"


@pytest.mark.parametrize(
    ("ebs", "text"),
    [
        ({"VolumeType": "st1", "VolumeSize": 10}, "too small for volume type st1"),
        ({"VolumeType": "io2", "VolumeSize": 1, "Iops": 100}, "too small for volume type io2"),
        ({"VolumeType": "gp3", "VolumeSize": 1, "Iops": 16000}, "ratio of 16000.000000 is too high"),
        ({"VolumeType": "io1", "VolumeSize": 10, "Iops": 1000}, "maximum is 50"),
        ({"VolumeType": "gp3", "VolumeSize": 100, "Throughput": 1000, "Iops": 3000}, "Throughput to iops ratio"),
        ({"VolumeType": "standard", "VolumeSize": 2000}, "too large for volume type standard"),
    ],
)
def test_bounds_of_volumes_by_type(ec2: Any, ebs: dict[str, Any], text: str) -> None:
    with _refused("InvalidParameterValue", text):
        _run(ec2, BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": ebs}])


# --- keys, user data, tags in metadata ---------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2048, 3072, 8192])
def test_rsa_keys_of_the_sizes_that_people_have(ec2: Any, bits: int) -> None:
    """3072 is what OpenSSH makes."""
    numbers = rsa.RSAPublicNumbers(65537, (1 << bits) - 159)
    public = numbers.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
    ec2.import_key_pair(KeyName=f"rsa-{bits}", PublicKeyMaterial=public)


def test_user_data_is_base64_and_nothing_else(fake: FakeCloud, ec2: Any) -> None:
    data = base64.b64encode(b"#!/bin/sh\necho hello\n" * 10).decode()
    broken = "\n".join(data[start : start + 20] for start in range(0, len(data), 20))
    template = ec2.create_launch_template(LaunchTemplateName="lines", LaunchTemplateData={"UserData": broken})
    assert template["LaunchTemplate"]["LaunchTemplateName"] == "lines"
    for text in ("#!/bin/sh\necho not base64\n", "a\nb\n"):
        with _refused("InvalidParameterValue", "Invalid BASE64 encoding of user data"):
            ec2.create_launch_template(LaunchTemplateName="bad", LaunchTemplateData={"UserData": text})
    large = base64.b64encode(b"x" * 20000).decode()
    with _refused("InvalidUserData.Malformed"):
        ec2.create_launch_template(LaunchTemplateName="large", LaunchTemplateData={"UserData": large})


SHOWN = {"MetadataOptions": {"InstanceMetadataTags": "enabled"}}


@pytest.mark.parametrize("key", ["Patch Group", "a/b", ".", "..", "_index", "Größe"])
def test_a_tag_that_metadata_cannot_show_is_refused(ec2: Any, key: str) -> None:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": key, "Value": "v"}]}]
    with _refused("InvalidParameterValue", "is not a valid tag key"):
        _run(ec2, TagSpecifications=tags, **SHOWN)
    with _refused("InvalidParameterValue", "is not a valid tag key"):
        data = {"TagSpecifications": tags, **SHOWN}
        ec2.create_launch_template(LaunchTemplateName="shown", LaunchTemplateData=data)
    one = _run(ec2, **SHOWN)
    with _refused("InvalidParameterValue", "is not a valid tag key"):
        ec2.create_tags(Resources=[one], Tags=[{"Key": key, "Value": "v"}])
    other = _run(ec2, TagSpecifications=tags)
    with _refused("InvalidParameterValue", "is not a valid tag key"):
        ec2.modify_instance_metadata_options(InstanceId=other, InstanceMetadataTags="enabled")


def test_a_page_for_people_is_no_error(fake: FakeCloud) -> None:
    """A browser at `/`."""
    import urllib.request

    request = urllib.request.Request(fake.endpoint + "/", headers={"Accept": "text/html,*/*"})
    with urllib.request.urlopen(request) as answer:
        text = answer.read().decode()
    assert answer.headers["Content-Type"].startswith("text/html") and "haneul" in text


def test_names_and_owners_of_public_images(tmp_path: Any) -> None:
    """`data "aws_ami"` looks them up, in a cloud that has built nothing."""
    from haneul.app.compose import catalogue_of
    from haneul.config import Settings

    names = {one.name for one in catalogue_of(Settings(data=tmp_path, drivers="fake"))()}
    assert any(name.startswith("al2023-ami-2023") for name in names) and "debian-12" in names
    assert any(name.startswith("ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-amd64-server-") for name in names)
    assert not catalogue_of(Settings(data=tmp_path, drivers="auto"))()
    assert boto3  # the clients above are unmodified
