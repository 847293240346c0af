"""The life of instances as clients see it, against fake drivers."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.conformance.conftest import FakeCloud

AMI = "ami-0123456789abcdef0"


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code}\)")


def run(ec2: Any, count: int = 1, **parameters: Any) -> list[str]:
    answer = ec2.run_instances(
        **({"ImageId": AMI, "MinCount": count, "MaxCount": count, "InstanceType": "t3.micro"} | parameters)
    )
    return [one["InstanceId"] for one in answer["Instances"]]


def wait(ec2: Any, name: str, *ids: str) -> None:
    ec2.get_waiter(name).wait(InstanceIds=list(ids), WaiterConfig={"Delay": 0.05, "MaxAttempts": 200})


def get(ec2: Any, one: str) -> dict[str, Any]:
    found: dict[str, Any] = ec2.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"][0]
    return found


def test_the_whole_life(ec2: Any) -> None:
    (one,) = run(ec2)
    assert get(ec2, one)["State"]["Name"] in ("pending", "running"), "found at once"
    wait(ec2, "instance_running", one)
    wait(ec2, "instance_status_ok", one)
    private = get(ec2, one)["PrivateIpAddress"]
    ec2.stop_instances(InstanceIds=[one])
    wait(ec2, "instance_stopped", one)
    stopped = get(ec2, one)
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert stopped["StateTransitionReason"].startswith("User initiated (")
    assert "PublicIpAddress" not in stopped
    ec2.start_instances(InstanceIds=[one])
    wait(ec2, "instance_running", one)
    assert get(ec2, one)["PrivateIpAddress"] == private
    assert get(ec2, one)["PublicIpAddress"]
    ec2.reboot_instances(InstanceIds=[one])
    assert get(ec2, one)["State"]["Name"] == "running"
    ec2.terminate_instances(InstanceIds=[one])
    wait(ec2, "instance_terminated", one)
    gone = get(ec2, one)
    assert gone["NetworkInterfaces"] == [] and gone["BlockDeviceMappings"] == []
    assert ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [one]}])["Volumes"] == []
    again = ec2.terminate_instances(InstanceIds=[one])["TerminatingInstances"][0]
    assert again["PreviousState"]["Name"] == again["CurrentState"]["Name"] == "terminated"
    with refused("IncorrectInstanceState"):
        ec2.start_instances(InstanceIds=[one])


def test_the_guest_ends_by_itself(fake: FakeCloud, ec2: Any) -> None:
    """The fake world's machines are made to end, as a guest or a crash would."""
    (crashed,) = run(ec2)
    (stops,) = run(ec2)
    (terminates,) = run(ec2, InstanceInitiatedShutdownBehavior="terminate")
    wait(ec2, "instance_running", crashed, stops, terminates)
    for one, cause in ((crashed, "crash"), (stops, "guest-shutdown"), (terminates, "guest-shutdown")):
        value = fake.world.get("machine", one)
        fake.world.put("machine", one, value | {"power": "off", "cause": cause, "detail": "the test did it"})
    wait(ec2, "instance_stopped", crashed, stops)
    wait(ec2, "instance_terminated", terminates)
    assert get(ec2, crashed)["StateReason"]["Code"] == "Server.InternalError"
    assert "the test did it" in get(ec2, crashed)["StateReason"]["Message"]
    assert get(ec2, stops)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    ec2.start_instances(InstanceIds=[crashed])
    wait(ec2, "instance_running", crashed)
    assert "StateReason" not in get(ec2, crashed)


def test_protection(ec2: Any) -> None:
    (one,) = run(ec2, DisableApiTermination=True, DisableApiStop=True)
    wait(ec2, "instance_running", one)
    with refused("OperationNotPermitted"):
        ec2.terminate_instances(InstanceIds=[one])
    with refused("OperationNotPermitted"):
        ec2.stop_instances(InstanceIds=[one])
    for name in ("disableApiTermination", "disableApiStop"):
        answer = ec2.describe_instance_attribute(InstanceId=one, Attribute=name)
        assert answer[name[0].upper() + name[1:]] == {"Value": True}
    ec2.modify_instance_attribute(InstanceId=one, DisableApiTermination={"Value": False})
    ec2.modify_instance_attribute(InstanceId=one, Attribute="disableApiStop", Value="false")
    ec2.stop_instances(InstanceIds=[one])
    wait(ec2, "instance_stopped", one)
    ec2.terminate_instances(InstanceIds=[one])


def test_attributes(ec2: Any) -> None:
    (one,) = run(ec2, UserData="hello")
    wait(ec2, "instance_running", one)
    value = ec2.describe_instance_attribute(InstanceId=one, Attribute="userData")["UserData"]["Value"]
    assert base64.b64decode(value) == b"hello"
    with refused("IncorrectInstanceState"):
        ec2.modify_instance_attribute(InstanceId=one, InstanceType={"Value": "t3.small"})
    with refused("InvalidParameterCombination"):
        ec2.modify_instance_attribute(InstanceId=one, DisableApiStop={"Value": True}, EbsOptimized={"Value": True})
    ec2.modify_instance_attribute(InstanceId=one, SourceDestCheck={"Value": False})
    assert get(ec2, one)["SourceDestCheck"] is False
    group = ec2.create_security_group(GroupName="other-group", Description="d")["GroupId"]
    ec2.modify_instance_attribute(InstanceId=one, Groups=[group])
    assert [g["GroupId"] for g in get(ec2, one)["SecurityGroups"]] == [group]
    with refused("DependencyViolation"):
        ec2.delete_security_group(GroupId=group)
    ec2.stop_instances(InstanceIds=[one])
    wait(ec2, "instance_stopped", one)
    ec2.modify_instance_attribute(InstanceId=one, InstanceType={"Value": "t3.small"})
    ec2.modify_instance_attribute(InstanceId=one, UserData={"Value": b"other"})
    assert get(ec2, one)["InstanceType"] == "t3.small"
    value = ec2.describe_instance_attribute(InstanceId=one, Attribute="userData")["UserData"]["Value"]
    assert base64.b64decode(value) == b"other"


def test_metadata_options(ec2: Any) -> None:
    (one,) = run(ec2, MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 2})
    assert get(ec2, one)["MetadataOptions"]["HttpTokens"] == "required"
    answer = ec2.modify_instance_metadata_options(InstanceId=one, HttpEndpoint="disabled")
    assert answer["InstanceMetadataOptions"]["HttpTokens"] == "required"
    assert get(ec2, one)["MetadataOptions"]["HttpEndpoint"] == "disabled"
    with refused("InvalidParameterValue"):
        ec2.modify_instance_metadata_options(InstanceId=one, HttpPutResponseHopLimit=65)


def test_console_and_screenshot(ec2: Any) -> None:
    (one,) = run(ec2)
    wait(ec2, "instance_running", one)
    assert one in ec2.get_console_output(InstanceId=one)["Output"]
    assert base64.b64decode(ec2.get_console_screenshot(InstanceId=one)["ImageData"])[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"ImageId": "ami-nonsense"}, "InvalidAMIID.Malformed"),
        ({"InstanceType": "t3.gigantic"}, "InvalidParameterValue"),
        ({"MinCount": 0}, "InvalidParameterValue"),
        ({"MinCount": 3, "MaxCount": 2}, "InvalidParameterValue"),
        ({"KeyName": "nobody"}, "InvalidKeyPair.NotFound"),
        ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID.NotFound"),
        ({"SubnetId": "subnet-x"}, "InvalidSubnetID.Malformed"),
        ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
        ({"SecurityGroups": ["nobody"]}, "InvalidGroup.NotFound"),
        ({"Placement": {"AvailabilityZone": "mars-1a"}}, "InvalidParameterValue"),
        ({"PrivateIpAddress": "10.0.0.1"}, "InvalidParameterValue"),
        ({"PrivateIpAddress": "172.31.0.1"}, "InvalidParameterValue"),
        ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 1}}]}, "InvalidBlockDeviceMapping"),
        ({"UserData": "x" * 20000}, "InvalidParameterValue"),
        ({"IamInstanceProfile": {"Name": "nobody"}}, "InvalidParameterValue"),
        ({"LaunchTemplate": {"LaunchTemplateName": "x"}}, "InvalidLaunchTemplateName.NotFoundException"),
        ({"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "aws:x", "Value": "y"}]}]}, "InvalidParameterValue"),
        ({"TagSpecifications": [{"ResourceType": "vpc", "Tags": [{"Key": "x", "Value": "y"}]}]}, "InvalidParameterValue"),
    ],
)  # fmt: skip
def test_bad_launches_are_refused_and_leave_nothing(fake: FakeCloud, parameters: dict[str, Any], code: str) -> None:
    ec2 = fake.client(region="eu-central-1")
    with refused(code):
        run(ec2, **parameters)
    assert ec2.describe_instances()["Reservations"] == []
    assert ec2.describe_network_interfaces()["NetworkInterfaces"] == []
    assert ec2.describe_volumes()["Volumes"] == []


def test_ids(ec2: Any) -> None:
    (one,) = run(ec2)
    with refused("InvalidInstanceID.Malformed"):
        ec2.describe_instances(InstanceIds=["i-xyz"])
    with refused("InvalidInstanceID.NotFound"):
        ec2.describe_instances(InstanceIds=[one, "i-0123456789abcdef0"])
    with pytest.raises(ClientError, match="The instance IDs 'i-0123456789abcdef0, i-0123456789abcdef1' do not exist"):
        ec2.terminate_instances(InstanceIds=[one, "i-0123456789abcdef0", "i-0123456789abcdef1"])
    assert get(ec2, one)["State"]["Name"] != "shutting-down", "all of them, or none"


def test_capacity(start_cloud: Callable[..., FakeCloud]) -> None:
    """A full server refuses at once, and says why; what ends gives its room back."""
    cloud = start_cloud(memory_reserve_mib=(1 << 30) - 3000)
    ec2 = cloud.client()
    (one,) = run(ec2, InstanceType="t3.small")
    with pytest.raises(
        ClientError,
        match=r"InsufficientInstanceCapacity.*srv-0[0-9a-f]{16} has 792 MiB of memory free, 1184 MiB are needed",
    ):
        run(ec2)
    assert len(run(ec2, MinCount=1, MaxCount=5, InstanceType="t3.nano")) == 1, "as many as there is room for"
    ec2.terminate_instances(InstanceIds=[one])
    wait(ec2, "instance_terminated", one)
    run(ec2)


def test_client_tokens(start_cloud: Callable[..., FakeCloud], fake: FakeCloud) -> None:
    ec2 = fake.client()
    first = run(ec2, ClientToken="token-1")
    assert run(ec2, ClientToken="token-1") == first
    with refused("IdempotentParameterMismatch"):
        run(ec2, ClientToken="token-1", InstanceType="t3.small")
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(fake.client(), ClientToken="token-2"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len({tuple(one) for one in found}) == 1


def test_dry_runs_change_nothing(fake: FakeCloud) -> None:
    ec2 = fake.client(region="eu-north-1")
    with refused("DryRunOperation"):
        run(ec2, DryRun=True)
    with refused("InvalidKeyPair.NotFound"):
        run(ec2, DryRun=True, KeyName="nobody")
    with refused("DryRunOperation"):
        ec2.create_key_pair(KeyName="dry", DryRun=True)
    with refused("DryRunOperation"):
        ec2.describe_instances(DryRun=True)
    assert ec2.describe_instances()["Reservations"] == [] and ec2.describe_key_pairs()["KeyPairs"] == []


def test_pages_count_instances_and_stay_right(fake: FakeCloud) -> None:
    ec2 = fake.client(region="ca-central-1")
    ids = run(ec2, 13)
    pages = ec2.get_paginator("describe_instances").paginate(PaginationConfig={"PageSize": 5})
    sizes, seen = [], []
    for number, page in enumerate(pages):
        found = [one["InstanceId"] for reservation in page["Reservations"] for one in reservation["Instances"]]
        sizes.append(len(found))
        seen += found
        if number == 0:
            ec2.terminate_instances(InstanceIds=[found[0]])
    assert sizes == [5, 5, 3] and sorted(seen) == sorted(ids)
    with refused("InvalidParameterCombination"):
        ec2.describe_instances(InstanceIds=ids[:1], MaxResults=5)
    with refused("InvalidParameterValue"):
        ec2.describe_instances(MaxResults=2)
    with refused("InvalidNextToken"):
        ec2.describe_instances(NextToken="forged", MaxResults=5)


def test_filters(fake: FakeCloud) -> None:
    ec2 = fake.client(region="sa-east-1")
    web = run(ec2, 2, TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web*1"}]}])
    (other,) = run(
        ec2,
        InstanceType="t3.small",
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web21"}]}],
    )

    def find(*pairs: tuple[str, list[str]]) -> set[str]:
        answer = ec2.describe_instances(Filters=[{"Name": name, "Values": values} for name, values in pairs])
        return {one["InstanceId"] for reservation in answer["Reservations"] for one in reservation["Instances"]}

    assert find(("tag:Name", ["web*"])) == {*web, other}
    assert find(("tag:Name", [r"web\*1"])) == set(web)
    assert find(("tag:Name", ["web?1"])) == {*web, other}
    assert find(("tag:Name", ["WEB*"])) == set()
    assert find(("tag-key", ["Name"]), ("instance-type", ["t3.small", "t3.large"])) == {other}
    assert find(("instance-type", ["t3.[sm]*"])) == set()
    assert find(("private-ip-address", [get(ec2, other)["PrivateIpAddress"]])) == {other}
    assert find(("network-interface.vpc-id", ["vpc-*"])) == {*web, other}
    assert find(("instance-id", ["i-0123456789abcdef0"])) == set(), "an unknown value in a filter is no error"
    with refused("InvalidParameterValue"):
        find(("no-such-filter", ["x"]))


def test_terraforms_form_of_an_interface(ec2: Any) -> None:
    subnet = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"][1]
    group = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]
    interface = {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "Groups": [group], "AssociatePublicIpAddress": False}
    (one,) = run(ec2, NetworkInterfaces=[interface | {"PrivateIpAddress": subnet["CidrBlock"].replace(".0/20", ".77")}])
    found = get(ec2, one)
    assert (
        found["SubnetId"] == subnet["SubnetId"] and found["Placement"]["AvailabilityZone"] == subnet["AvailabilityZone"]
    )
    assert found["PrivateIpAddress"].endswith(".77") and "PublicIpAddress" not in found
    with refused("InvalidIPAddress.InUse"):
        run(ec2, NetworkInterfaces=[interface | {"PrivateIpAddress": found["PrivateIpAddress"]}])
    with refused("InvalidParameterCombination"):
        run(ec2, NetworkInterfaces=[interface], SubnetId=subnet["SubnetId"])


def test_instance_types(ec2: Any) -> None:
    (micro,) = ec2.describe_instance_types(InstanceTypes=["t3.micro"])["InstanceTypes"]
    assert (micro["VCpuInfo"]["DefaultVCpus"], micro["MemoryInfo"]["SizeInMiB"], micro["FreeTierEligible"]) == (
        2,
        1024,
        True,
    )
    with refused("InvalidInstanceType"):
        ec2.describe_instance_types(InstanceTypes=["x9.huge"])
    found = ec2.get_paginator("describe_instance_type_offerings").paginate(LocationType="availability-zone")
    assert {one["Location"] for page in found for one in page["InstanceTypeOfferings"]} == {
        "us-east-1a",
        "us-east-1b",
        "us-east-1c",
    }


def test_the_aws_cli(fake: FakeCloud, tmp_path: Path) -> None:
    """The unmodified command, end to end."""

    def aws(*arguments: str) -> Any:
        command = [str(Path(sys.executable).with_name("aws")), "ec2", *arguments]
        done = subprocess.run(command, env=fake.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    key = aws("create-key-pair", "--key-name", "cli", "--key-type", "rsa")
    assert key["KeyMaterial"].startswith("-----BEGIN RSA PRIVATE KEY-----")
    one = aws("run-instances", "--image-id", AMI, "--instance-type", "t3.micro", "--key-name", "cli", "--count", "1")[
        "Instances"
    ][0]["InstanceId"]
    aws("wait", "instance-running", "--instance-ids", one)
    aws("create-tags", "--resources", one, "--tags", "Key=Name,Value=from-cli")
    shown = aws(
        "describe-instances",
        "--filters",
        "Name=tag:Name,Values=from-cli",
        "--query",
        "Reservations[].Instances[].InstanceId",
    )
    assert shown == [one]
    assert one in aws("get-console-output", "--instance-id", one)["Output"]
    aws("terminate-instances", "--instance-ids", one)


def test_it_is_all_there_after_a_restart(start_cloud: Callable[..., FakeCloud], tmp_path: Path) -> None:
    first = start_cloud(tmp_path)
    ids = run(first.client(), 3, ClientToken="kept")
    first.stop()
    second = start_cloud(tmp_path, port=0)
    assert run(second.client(), 3, ClientToken="kept") == ids
    wait(second.client(), "instance_running", *ids)


def test_terminated_instances_are_forgotten_after_a_while(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud(terminated_seconds=0)
    ec2 = cloud.client()
    (one,) = run(ec2)
    ec2.terminate_instances(InstanceIds=[one])
    import time

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            get(ec2, one)
        except ClientError as error:
            assert "InvalidInstanceID.NotFound" in str(error)
            return
        time.sleep(0.1)
    raise AssertionError("it is still described")
