"""What a second attack on the API found, kept as tests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from haneul.api.workers import Workers
from haneul.errors import CloudError
from haneul.services import accounts
from haneul.services.context import Caller
from haneul.store import tables
from tests.conformance.conftest import FakeCloud
from tests.conformance.test_door import _send, _signed
from tests.conformance.test_instances import AMI, refused, run, wait


def test_a_report_that_cannot_be_written_is_written_later(
    start_cloud: Callable[..., FakeCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part of the machines fails once: neither it nor the parts after it are lost."""
    cloud = start_cloud()
    control, failed = cloud.running.control, threading.Event()
    observe = control._observe

    def once(*arguments: Any) -> bool:
        if not failed.is_set():
            failed.set()
            raise OSError("disk full")
        return observe(*arguments)

    monkeypatch.setattr(control, "_observe", once)
    ids = run(cloud.client(), 250)
    wait(cloud.client(), "instance_running", *ids)
    assert failed.is_set()


def test_others_images_never_stand_in(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud(auth="open", unknown_image="debian-12")
    one, other = (cloud.client(aws_access_key_id=f"{n}" * 12, aws_secret_access_key="x") for n in (1, 2))
    one.describe_vpcs(), other.describe_vpcs()
    cloud.put_image("ami-0bbbbbbbbbbbbbbbb", "2" * 12, name="debian-12", disk="other", public=True)
    with refused("InvalidAMIID.NotFound"):
        run(one)
    cloud.put_image("ami-0cccccccccccccccc", name="debian-12", disk="real")
    (made,) = run(one)
    with cloud.running.store.read() as tx:
        row = tx.get(tables.instances, made)
    assert row is not None and row["image_name"] == "real"


def test_filters_of_what_there_is_none_of(ec2: Any) -> None:
    assert ec2.describe_nat_gateways(Filter=[{"Name": "state", "Values": ["available"]}])["NatGateways"] == []
    with refused("NatGatewayNotFound"):
        ec2.describe_nat_gateways(NatGatewayIds=["nat-0123456789abcdef0"])
    with refused("NatGatewayMalformed"):
        ec2.describe_nat_gateways(NatGatewayIds=["nat-x"])


def test_an_account_that_comes_again_begins_anew(start_cloud: Callable[..., FakeCloud]) -> None:
    running = start_cloud().running
    for _ in range(2):
        running.accounts("add", {"name": "bob", "id": "222222222222"})
        found = running.cloud.call("ec2", "DescribeVpcs", Caller("222222222222", "us-east-1", ""), {})
        assert len(found["Vpcs"]) == 1
        running.accounts("rm", {"account": "bob"})


def test_no_name_is_an_id(start_cloud: Callable[..., FakeCloud]) -> None:
    running = start_cloud().running
    for arguments in ({"name": "0" * 12}, {"name": "x", "id": "100000000000"}, {"name": "x", "id": "0" * 12}):
        with pytest.raises(CloudError):
            running.accounts("add", arguments)
    assert len(running.accounts("list", {})) == 1


def test_an_empty_list_of_ids_is_no_small_read(fake: FakeCloud) -> None:
    caller = Caller("000000000000", "us-east-1", "")
    fake.client().describe_vpcs()
    quick = fake.running.cloud.is_quick
    assert quick("ec2", "DescribeInstances", caller, {"InstanceIds": ["i-1"]})
    assert not quick("ec2", "DescribeInstances", caller, {"InstanceIds": []})
    assert not quick("ec2", "DescribeInstances", caller, {"InstanceIds": ["i-1"], "Filters": []})
    assert not quick("ec2", "DescribeVpcs", Caller("9" * 12, "us-east-1", ""), {"VpcIds": ["vpc-1"]}), "it would write"


def test_waiting_writers_hold_no_reader_up(fake: FakeCloud) -> None:
    fake.client().describe_regions()
    threads = [
        threading.Thread(
            target=lambda n=n: fake.client().create_security_group(GroupName=f"waits-{n}", Description="d")
        )
        for n in range(30)
    ]
    with fake.running.store._writer:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while fake.running.store._writer.locked() and time.monotonic() < deadline:
            fake.client().describe_regions()
            if sum(thread.is_alive() for thread in threads) == 30:
                break
        fake.client().describe_regions()
    for thread in threads:
        thread.join()


def test_a_busy_worker_does_not_keep_another_job_waiting() -> None:
    import asyncio

    async def main() -> None:
        workers, gate = Workers("test", 4), threading.Event()
        blocked = [asyncio.ensure_future(workers.run(lambda: gate.wait(20))) for _ in range(3)]
        assert await asyncio.wait_for(workers.run(lambda: 7), 10) == 7
        gate.set()
        assert all(await asyncio.gather(*blocked))
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(workers.run(lambda: next(iter(()))), 10)
        workers.close()

    asyncio.run(main())


def test_a_key_that_is_void_stays_void(start_cloud: Callable[..., FakeCloud], monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that began before the rotation ends after it."""
    cloud = start_cloud()
    identities, store = cloud.running.identities, cloud.running.store
    old, _ = cloud.identity.read_credentials()
    real = store.read

    class Slow:
        def __enter__(self) -> Any:
            self.inner = real()
            tx = self.inner.__enter__()
            row = tx.get(tables.access_keys, old)
            self.inner.__exit__(None, None, None)
            monkeypatch.setattr(store, "read", real)
            cloud.running.accounts("rotate", {"account": "default"})
            return type("Tx", (), {"get": lambda *_: row})()

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(store, "read", Slow)
    assert identities.find(old) is not None, "it was there when the look-up began"
    assert identities.find(old) is None
    new, secret = cloud.identity.read_credentials()
    assert new != old and identities.find(new) is not None and secret


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-320, 1000.0])
def test_weights_of_fleets(ec2: Any, weight: float) -> None:
    config = [
        {
            "LaunchTemplateSpecification": {"LaunchTemplateName": "x", "Version": "1"},
            "Overrides": [{"WeightedCapacity": weight}],
        }
    ]
    with refused("InvalidParameterValue"):
        ec2.create_fleet(
            Type="instant", LaunchTemplateConfigs=config, TargetCapacitySpecification={"TotalTargetCapacity": 1}
        )


@pytest.mark.parametrize(
    "capacity",
    [{"TotalTargetCapacity": 1, "OnDemandTargetCapacity": 7}, {"TotalTargetCapacity": 3, "OnDemandTargetCapacity": -3}],
)
def test_capacities_of_fleets(ec2: Any, capacity: dict[str, int]) -> None:
    config = [{"LaunchTemplateSpecification": {"LaunchTemplateName": "x", "Version": "1"}}]
    with refused("InvalidParameterValue"):
        ec2.create_fleet(Type="instant", LaunchTemplateConfigs=config, TargetCapacitySpecification=capacity)


@pytest.mark.parametrize("number", ["nan", "inf", "-Infinity", "1e999"])
def test_numbers_that_are_none(fake: FakeCloud, number: str) -> None:
    body = f"Action=CreateFleet&Type=instant&LaunchTemplateConfigs.1.Overrides.1.WeightedCapacity={number}&TargetCapacitySpecification.TotalTargetCapacity=1"
    status, text = _send(fake, "POST", "/", body, _signed(fake, body))
    assert status == 400 and "InvalidParameterValue" in text


def test_one_protected_instance_keeps_one_fleet(ec2: Any) -> None:
    data = {"ImageId": AMI, "InstanceType": "t3.nano"}
    ec2.create_launch_template(LaunchTemplateName="protected-fleet", LaunchTemplateData=data)
    config = [{"LaunchTemplateSpecification": {"LaunchTemplateName": "protected-fleet", "Version": "1"}}]
    made = [
        ec2.create_fleet(
            Type="instant", LaunchTemplateConfigs=config, TargetCapacitySpecification={"TotalTargetCapacity": 1}
        )
        for _ in range(2)
    ]
    one = made[0]["Instances"][0]["InstanceIds"][0]
    ec2.modify_instance_attribute(InstanceId=one, DisableApiTermination={"Value": True})
    answer = ec2.delete_fleets(FleetIds=[each["FleetId"] for each in made], TerminateInstances=True)
    assert [gone["FleetId"] for gone in answer["SuccessfulFleetDeletions"]] == [made[1]["FleetId"]]
    assert [kept["FleetId"] for kept in answer["UnsuccessfulFleetDeletions"]] == [made[0]["FleetId"]]


def test_json_is_for_services_that_speak_it(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud(auth="open")
    for target, body in (
        ("ec2.DescribeInstances", {"Filters": [{"Name": "instance-type", "Values": ["\ud800"]}]}),
        ("AmazonSSM.GetParameter", {"Name": "\ud800"}),
        ("sts.GetCallerIdentity", {}),
    ):
        status, text = _send(cloud, "POST", "/", json.dumps(body), {"X-Amz-Target": target})
        assert status == 400 and "__type" in text, text


def test_several_users_may_be_asked_for(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud(auth="open")
    one, other = (cloud.client(aws_access_key_id=f"{n}" * 12, aws_secret_access_key="x") for n in (1, 2))
    one.describe_vpcs()
    cloud.put_image(AMI, "2" * 12, name="shared")
    other.modify_image_attribute(ImageId=AMI, LaunchPermission={"Add": [{"UserId": "1" * 12}, {"UserId": "9" * 12}]})
    for users in (["self"], ["self", "9" * 12], ["9" * 12, "self"]):
        assert [image["ImageId"] for image in one.describe_images(ExecutableUsers=users)["Images"]] == [AMI]


def test_a_token_of_another_version_is_refused(fake: FakeCloud, ec2: Any) -> None:
    """Signed by the same secret, but it names its place in another way."""
    from haneul.services import describe
    from haneul.services.context import Context

    cloud = fake.running.cloud
    with cloud.store.read() as tx:
        ctx: Context = cloud._context(tx, Caller("000000000000", "us-east-1", ""), "DescribeVolumes")
        token = describe._encode_token(ctx, "vol-0123456789abcdef0")
    with refused("InvalidNextToken"):
        ec2.describe_volumes(MaxResults=5, NextToken=token)


def test_removing_an_account_leaves_nothing_of_it(start_cloud: Callable[..., FakeCloud]) -> None:
    running = start_cloud().running
    key = running.accounts("add", {"name": "gone"})
    caller = Caller(key["account"], "us-east-1", "")
    running.cloud.call(
        "ec2", "CreateLaunchTemplate", caller, {"LaunchTemplateName": "xyz", "LaunchTemplateData": {"ImageId": AMI}}
    )
    running.cloud.call("ec2", "CreateKeyPair", caller, {"KeyName": "k", "KeyType": "ed25519"})
    running.accounts("rm", {"account": "gone"})
    with running.store.read() as tx:
        for table in tables.metadata.sorted_tables:
            assert key["account"] not in json.dumps(tx.select(table), default=str), table.name
        assert [one["name"] for one in accounts.listed(tx)] == ["default"]
