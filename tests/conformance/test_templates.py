"""Launch templates, fleets and placement groups."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from haneul.services.placement import Member, group_refuses, least_used_partition
from haneul.store import tables
from tests.conformance.conftest import FakeCloud
from tests.conformance.test_instances import AMI, get, refused, run, wait


@pytest.fixture
def ec2(start_cloud: Callable[..., FakeCloud], own: FakeCloud) -> Any:
    return own.client()


@pytest.fixture(scope="module")
def own(start_cloud: Callable[..., FakeCloud]) -> FakeCloud:
    return start_cloud()


def _template(ec2: Any, name: str, **data: Any) -> str:
    answer = ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData={"ImageId": AMI} | data)
    return str(answer["LaunchTemplate"]["LaunchTemplateId"])


def test_the_life_of_a_template(ec2: Any) -> None:
    one = _template(ec2, "life", InstanceType="t3.nano")
    second = ec2.create_launch_template_version(
        LaunchTemplateId=one,
        SourceVersion="1",
        VersionDescription="bigger",
        LaunchTemplateData={"InstanceType": "t3.small"},
    )["LaunchTemplateVersion"]
    assert (second["VersionNumber"], second["DefaultVersion"], second["LaunchTemplateData"]) == (
        2, False, {"ImageId": AMI, "InstanceType": "t3.small"},
    )  # fmt: skip
    ec2.create_launch_template_version(LaunchTemplateName="life", LaunchTemplateData={"InstanceType": "t3.medium"})
    (shown,) = ec2.describe_launch_templates(LaunchTemplateNames=["life"])["LaunchTemplates"]
    assert (shown["DefaultVersionNumber"], shown["LatestVersionNumber"]) == (1, 3)
    ec2.modify_launch_template(LaunchTemplateId=one, DefaultVersion="2")

    def versions(**parameters: Any) -> list[int]:
        answer = ec2.describe_launch_template_versions(**{"LaunchTemplateId": one} | parameters)
        return [version["VersionNumber"] for version in answer["LaunchTemplateVersions"]]

    assert versions() == [3, 2, 1]
    assert versions(Versions=["$Latest", "$Default", "1"]) == [3, 2, 1]
    assert versions(MinVersion="2", MaxVersion="2") == [2]
    assert versions(Filters=[{"Name": "is-default-version", "Values": ["true"]}]) == [2]
    assert versions(Filters=[{"Name": "instance-type", "Values": ["t3.n*"]}]) == [1]
    with refused("InvalidLaunchTemplateId.VersionNotFound"):
        versions(Versions=["9"])
    answer = ec2.delete_launch_template_versions(LaunchTemplateId=one, Versions=["3", "2", "7"])
    assert [gone["VersionNumber"] for gone in answer["SuccessfullyDeletedLaunchTemplateVersions"]] == [3]
    assert [kept["ResponseError"]["Code"] for kept in answer["UnsuccessfullyDeletedLaunchTemplateVersions"]] == [
        "unexpectedError", "launchTemplateVersionDoesNotExist",
    ]  # fmt: skip
    number = ec2.create_launch_template_version(LaunchTemplateId=one, LaunchTemplateData={"KeyName": "k"})
    assert number["LaunchTemplateVersion"]["VersionNumber"] == 4, "numbers are not used again"
    assert ec2.delete_launch_template(LaunchTemplateId=one)["LaunchTemplate"]["LaunchTemplateName"] == "life"
    with refused("InvalidLaunchTemplateId.NotFound"):
        ec2.describe_launch_templates(LaunchTemplateIds=[one])


@pytest.mark.parametrize(
    ("call", "parameters", "code"),
    [
        ("create_launch_template", {"LaunchTemplateName": "a b", "LaunchTemplateData": {"ImageId": AMI}}, "InvalidLaunchTemplateName.MalformedException"),
        ("create_launch_template", {"LaunchTemplateName": "empty", "LaunchTemplateData": {}}, "MissingParameter"),
        ("create_launch_template", {"LaunchTemplateName": "bad", "LaunchTemplateData": {"UserData": "§"}}, "InvalidParameterValue"),
        ("delete_launch_template", {"LaunchTemplateId": "lt-0123456789abcdef0"}, "InvalidLaunchTemplateId.NotFound"),
        ("delete_launch_template", {"LaunchTemplateId": "lt-x"}, "InvalidLaunchTemplateId.Malformed"),
        ("delete_launch_template", {"LaunchTemplateName": "nobody"}, "InvalidLaunchTemplateName.NotFoundException"),
        ("delete_launch_template", {}, "MissingParameter"),
        ("describe_launch_template_versions", {}, "InvalidParameterValue"),
    ],
)  # fmt: skip
def test_refusals(ec2: Any, call: str, parameters: dict[str, Any], code: str) -> None:
    with refused(code):
        getattr(ec2, call)(**parameters)


def test_names_are_taken_once(ec2: Any) -> None:
    _template(ec2, "once")
    with refused("InvalidLaunchTemplateName.AlreadyExistsException"):
        _template(ec2, "once")


def test_launching_through_a_template(ec2: Any) -> None:
    """The request's parameters go before the template's; tags and volumes of both are there."""
    ec2.create_key_pair(KeyName="through", KeyType="ed25519")
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "template"}, {"Key": "b", "Value": "template"}]},
            {"ResourceType": "volume", "Tags": [{"Key": "v", "Value": "template"}]}]  # fmt: skip
    one = _template(
        ec2, "through", InstanceType="t3.nano", KeyName="through", UserData=base64.b64encode(b"hello").decode(),
        TagSpecifications=tags, BlockDeviceMappings=[{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 3}}],
        MetadataOptions={"HttpTokens": "required"}, Monitoring={"Enabled": True}, DisableApiStop=True,
    )  # fmt: skip
    (made,) = run(
        ec2, ImageId=AMI, InstanceType="t3.small", LaunchTemplate={"LaunchTemplateId": one},
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "b", "Value": "request"}]}],
        BlockDeviceMappings=[{"DeviceName": "/dev/sdc", "Ebs": {"VolumeSize": 4}}],
    )  # fmt: skip
    found = get(ec2, made)
    assert (found["InstanceType"], found["KeyName"], found["MetadataOptions"]["HttpTokens"]) == (
        "t3.small",
        "through",
        "required",
    )
    assert {tag["Key"]: tag["Value"] for tag in found["Tags"]} == {
        "a": "template", "b": "request", "aws:ec2launchtemplate:id": one, "aws:ec2launchtemplate:version": "1",
    }  # fmt: skip
    assert {one["DeviceName"] for one in found["BlockDeviceMappings"]} == {"/dev/xvda", "/dev/sdb", "/dev/sdc"}
    data = ec2.describe_instance_attribute(InstanceId=made, Attribute="userData")["UserData"]["Value"]
    assert base64.b64decode(data) == b"hello"
    with refused("InvalidLaunchTemplateId.VersionNotFound"):
        run(ec2, LaunchTemplate={"LaunchTemplateId": one, "Version": "5"})
    same = ec2.run_instances(
        MinCount=1, MaxCount=1, LaunchTemplate={"LaunchTemplateName": "through", "Version": "$Latest"}
    )
    assert same["Instances"][0]["ImageId"] == AMI and same["Instances"][0]["InstanceType"] == "t3.nano"


def test_an_instance_as_a_template(ec2: Any) -> None:
    """GetLaunchTemplateData's answer launches the like of the instance."""
    (one,) = run(ec2, InstanceType="t3.small", UserData="x", EbsOptimized=True,
                 TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "model"}]}])  # fmt: skip
    data = ec2.get_launch_template_data(InstanceId=one)["LaunchTemplateData"]
    ec2.create_launch_template(LaunchTemplateName="like", LaunchTemplateData=data)
    answer = ec2.run_instances(MinCount=1, MaxCount=1, LaunchTemplate={"LaunchTemplateName": "like"})
    two = answer["Instances"][0]["InstanceId"]
    old, new = get(ec2, one), get(ec2, two)
    for name in ("ImageId", "InstanceType", "SubnetId", "EbsOptimized", "SecurityGroups", "MetadataOptions"):
        assert old[name] == new[name], name
    assert {"Key": "Name", "Value": "model"} in new["Tags"]


# --- fleets -----------------------------------------------------------------------------------------


def _fleet(ec2: Any, total: int, configs: list[Any], **more: Any) -> dict[str, Any]:
    capacity = {"TotalTargetCapacity": total, "DefaultTargetCapacityType": "on-demand"}
    answer: dict[str, Any] = ec2.create_fleet(
        Type="instant", LaunchTemplateConfigs=configs, TargetCapacitySpecification=capacity, **more
    )
    return answer


def test_a_fleet(ec2: Any) -> None:
    _template(ec2, "fleet", InstanceType="t3.micro")
    spec = {"LaunchTemplateName": "fleet", "Version": "$Latest"}
    overrides = [
        {"InstanceType": "t3.gigantic", "Priority": 1},
        {"InstanceType": "t3.small", "WeightedCapacity": 2, "Priority": 2, "AvailabilityZone": "us-east-1b"},
    ]
    config = [{"LaunchTemplateSpecification": spec, "Overrides": overrides}]
    tags = [{"ResourceType": kind, "Tags": [{"Key": "fleet", "Value": "x"}]} for kind in ("instance", "fleet")]
    answer = _fleet(ec2, 5, config, OnDemandOptions={"AllocationStrategy": "prioritized"}, TagSpecifications=tags)
    (made,) = answer["Instances"]
    assert len(made["InstanceIds"]) == 3 and made["InstanceType"] == "t3.small", "three of weight two for five"
    assert get(ec2, made["InstanceIds"][0])["Placement"]["AvailabilityZone"] == "us-east-1b"
    assert {"Key": "fleet", "Value": "x"} in get(ec2, made["InstanceIds"][0])["Tags"]
    assert [error["ErrorCode"] for error in answer["Errors"]] == ["InvalidParameterValue"]
    (shown,) = ec2.describe_fleets(FleetIds=[answer["FleetId"]])["Fleets"]
    assert (shown["Type"], shown["FleetState"], shown["Tags"]) == (
        "instant",
        "active",
        [{"Key": "fleet", "Value": "x"}],
    )
    assert ec2.describe_fleets()["Fleets"] == []
    gone = ec2.delete_fleets(FleetIds=[answer["FleetId"], "fleet-x"], TerminateInstances=True)
    assert len(gone["SuccessfulFleetDeletions"]) == len(gone["UnsuccessfulFleetDeletions"]) == 1
    wait(ec2, "instance_terminated", *made["InstanceIds"])


def test_a_fleet_below_its_minimum_launches_nothing(start_cloud: Callable[..., FakeCloud]) -> None:
    """Two could be launched, three are the least: what was launched is undone."""
    cloud = start_cloud(quota_instances=2)
    ec2 = cloud.client()
    _template(ec2, "minimum", InstanceType="t3.micro")
    config = [
        {
            "LaunchTemplateSpecification": {"LaunchTemplateName": "minimum", "Version": "1"},
            "Overrides": [{"InstanceType": "t3.nano"}, {"InstanceType": "t3.small"}],
        }
    ]
    enough = _fleet(ec2, 3, config, OnDemandOptions={"MinTargetCapacity": 2})
    assert len(enough["Instances"][0]["InstanceIds"]) == 2
    (shown,) = ec2.describe_fleets(FleetIds=[enough["FleetId"]])["Fleets"]
    assert (shown["ActivityStatus"], shown["FulfilledCapacity"]) == ("error", 2.0)
    ids = enough["Instances"][0]["InstanceIds"]
    ec2.terminate_instances(InstanceIds=ids)
    wait(ec2, "instance_terminated", *ids)
    answer = _fleet(ec2, 3, config, OnDemandOptions={"MinTargetCapacity": 3})
    assert answer["Instances"] == [] and answer["Errors"]
    assert len(ec2.describe_instances()["Reservations"]) == 1
    with cloud.running.store.read() as tx:
        (server,) = tx.select(tables.servers)
    assert (server["reserved_vcpus"], server["reserved_memory_mib"]) == (0, 0)


@pytest.mark.parametrize(
    "more", [{"Type": "maintain"}, {"Type": "request"}, {}, {"Type": "instant", "spot": True}], ids=["maintain", "request", "default", "spot"]
)  # fmt: skip
def test_fleets_that_we_do_not_have(ec2: Any, more: dict[str, Any]) -> None:
    kind = "spot" if more.pop("spot", False) else "on-demand"
    with refused("UnsupportedOperation"):
        ec2.create_fleet(
            LaunchTemplateConfigs=[{"LaunchTemplateSpecification": {"LaunchTemplateName": "x", "Version": "1"}}],
            TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": kind}, **more,
        )  # fmt: skip


# --- placement groups -------------------------------------------------------------------------------


def test_the_life_of_a_placement_group(ec2: Any) -> None:
    made = ec2.create_placement_group(GroupName="parts", Strategy="partition", PartitionCount=3)["PlacementGroup"]
    assert (made["Strategy"], made["PartitionCount"], made["State"]) == ("partition", 3, "available")
    with refused("InvalidPlacementGroup.Duplicate"):
        ec2.create_placement_group(GroupName="parts", Strategy="cluster")
    (one,) = run(ec2, Placement={"GroupName": "parts", "PartitionNumber": 2})
    assert get(ec2, one)["Placement"] | {"GroupName": "parts", "PartitionNumber": 2} == get(ec2, one)["Placement"]
    others = run(ec2, 2, Placement={"GroupName": "parts"})
    assert {get(ec2, other)["Placement"]["PartitionNumber"] for other in others} == {1, 3}, "evenly"
    with refused("InvalidPlacementGroup.InUse"):
        ec2.delete_placement_group(GroupName="parts")
    with refused("InvalidPlacementGroup.Unknown"):
        run(ec2, Placement={"GroupName": "nobody"})
    with refused("InvalidParameterCombination"):
        run(ec2, Placement={"PartitionNumber": 1})
    wait(ec2, "instance_running", one)
    with refused("IncorrectInstanceState"):
        ec2.modify_instance_placement(InstanceId=one, GroupName="")
    ec2.stop_instances(InstanceIds=[one])
    wait(ec2, "instance_stopped", one)
    ec2.modify_instance_placement(InstanceId=one, GroupName="")
    assert get(ec2, one)["Placement"]["GroupName"] == ""
    ec2.terminate_instances(InstanceIds=[one, *others])
    wait(ec2, "instance_terminated", *others)
    ec2.delete_placement_group(GroupName="parts")


def test_a_spread_group_has_seven_in_a_zone(ec2: Any) -> None:
    ec2.create_placement_group(GroupName="spread", Strategy="spread")
    run(ec2, 7, Placement={"GroupName": "spread", "AvailabilityZone": "us-east-1a"})
    with refused("InstanceLimitExceeded"):
        run(ec2, Placement={"GroupName": "spread", "AvailabilityZone": "us-east-1a"})
    run(ec2, Placement={"GroupName": "spread", "AvailabilityZone": "us-east-1b"})


def test_what_strategies_refuse() -> None:
    """Pure: which server a further instance may not be on."""
    members = [Member("s1", "a", 1), Member("s2", "a", 2)]
    servers = ["s1", "s2", "s3"]
    assert set(group_refuses("spread", members, servers, 0)) == {"s1", "s2"}
    assert set(group_refuses("cluster", members[:1], servers, 0)) == {"s2", "s3"}
    assert set(group_refuses("cluster", [], servers, 0)) == set()
    assert set(group_refuses("partition", members, servers, 1)) == {"s2"}
    assert least_used_partition(3, members) == [3, 1, 2]


def test_capacity_is_given_back(own: FakeCloud) -> None:
    """After all of this, what the server has promised is what living instances hold."""
    ec2 = own.client()
    ids = [one["InstanceId"] for r in ec2.describe_instances()["Reservations"] for one in r["Instances"]
           if one["State"]["Name"] not in ("terminated", "shutting-down")]  # fmt: skip
    for one in ids:
        ec2.modify_instance_attribute(InstanceId=one, DisableApiTermination={"Value": False})
    ec2.terminate_instances(InstanceIds=ids)
    wait(ec2, "instance_terminated", *ids)
    with own.running.store.read() as tx:
        (server,) = tx.select(tables.servers)
    assert (server["reserved_vcpus"], server["reserved_memory_mib"]) == (0, 0)
