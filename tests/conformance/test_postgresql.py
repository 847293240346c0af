"""The whole cloud on PostgreSQL: a journey, a restart, and two haneuls' worth of concurrent launches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from haneul.store import tables
from tests.conformance.conftest import FakeCloud
from tests.postgresql import Server
from tests.system.conftest import eventually

AMI = "ami-0123456789abcdef0"


def test_a_cloud_on_postgresql(
    start_cloud: Callable[..., FakeCloud], postgresql_server: Server, tmp_path: Path
) -> None:
    database = postgresql_server.database()
    cloud = start_cloud(tmp_path, database=database)
    ec2 = cloud.client()

    def launch(number: int) -> str:
        answer = cloud.client().run_instances(
            ImageId=AMI, InstanceType="t3.nano", MinCount=1, MaxCount=1, ClientToken=f"t{number // 2}",
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "n", "Value": str(number // 2)}]}],
        )  # fmt: skip
        return str(answer["Instances"][0]["InstanceId"])

    with ThreadPoolExecutor(8) as pool:
        launched = list(pool.map(launch, range(24)))
    assert len(set(launched)) == 12, "a token launches once, whoever was first"
    ids = sorted(set(launched))
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig={"Delay": 1})
    ec2.stop_instances(InstanceIds=ids[:3])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=ids[:3], WaiterConfig={"Delay": 1})
    cloud.stop()

    again = start_cloud(tmp_path, database=database)
    ec2 = again.client()
    states = [{"Name": "instance-state-name", "Values": ["stopped"]}, {"Name": "tag:n", "Values": ["*"]}]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=states, PaginationConfig={"PageSize": 5})
    found = [one["InstanceId"] for page in pages for r in page["Reservations"] for one in r["Instances"]]
    assert sorted(found) == ids[:3]
    ec2.terminate_instances(InstanceIds=ids)
    ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig={"Delay": 1})
    with again.running.store.read() as tx:
        assert tx.select(tables.servers)[0]["reserved_memory_mib"] == 0
        assert not tx.select(tables.volumes) and not tx.select(tables.interfaces)
    eventually("nothing is left", lambda: not again.world.all("machine") and not again.world.all("volume"))
