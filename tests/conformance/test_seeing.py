"""What haneul lets its owner see: metrics, events, the audit, the log."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from prometheus_client.parser import text_string_to_metric_families

from haneul.records import journal
from tests.conformance.conftest import FakeCloud
from tests.system.conftest import eventually

AMI = "ami-0123456789abcdef0"


@pytest.fixture
def seen(start_cloud: Callable[..., FakeCloud], tmp_path: Path) -> FakeCloud:
    return start_cloud(tmp_path)


def _scrape(cloud: FakeCloud, **headers: str) -> dict[tuple[str, ...], float]:
    request = urllib.request.Request(f"{cloud.endpoint}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def _records(cloud: FakeCloud, name: str) -> list[dict[str, Any]]:
    return list(journal.read(cloud.running.settings.data / name))


def test_metrics_count_requests_and_instances(seen: FakeCloud) -> None:
    ec2 = seen.client()
    ids = [one["InstanceId"] for one in ec2.run_instances(ImageId=AMI, MinCount=2, MaxCount=2)["Instances"]]
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig={"Delay": 1})
    with pytest.raises(ClientError):
        ec2.terminate_instances(InstanceIds=["i-00000000000000000"])
    found = _scrape(seen)
    assert found["haneul_requests_total", "OK", "RunInstances", "ec2"] == 1
    assert found["haneul_requests_total", "InvalidInstanceID.NotFound", "TerminateInstances", "ec2"] == 1
    assert found["haneul_instances", "running"] == 2
    assert found["haneul_server_reserved_memory_mib", seen.running.lease.server_id] > 0
    assert found["haneul_launch_seconds_count", "guest"] == 2
    assert found["process_open_fds",] > 0
    assert "haneul_loop_lag_seconds_max" in {name for name, *_ in found}


def test_strange_requests_make_no_labels(seen: FakeCloud) -> None:
    for number in range(50):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{seen.endpoint}/?Action=Strange{number}", timeout=20)
    labels = {key for key in _scrape(seen) if key[0] == "haneul_requests_total"}
    assert not [key for key in labels if "Strange" in str(key)] and len(labels) <= 3


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Referer": "x"}])
def test_no_web_page_reads_the_metrics(seen: FakeCloud, headers: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        _scrape(seen, **headers)
    assert refused.value.code == 403


def test_events_and_audit_tell_the_life_of_an_instance(seen: FakeCloud) -> None:
    ec2 = seen.client()
    (one,) = ec2.run_instances(ImageId=AMI, MinCount=1, MaxCount=1, UserData="s3cret")["Instances"]
    one = one["InstanceId"]
    ec2.get_waiter("instance_running").wait(InstanceIds=[one], WaiterConfig={"Delay": 1})
    machine = seen.world.get("machine", one)
    seen.world.put("machine", one, machine | {"power": "off", "cause": "crash", "detail": "it was killed"})
    ec2.get_waiter("instance_stopped").wait(InstanceIds=[one], WaiterConfig={"Delay": 1})
    ec2.terminate_instances(InstanceIds=[one])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[one], WaiterConfig={"Delay": 1})
    with pytest.raises(ClientError):
        ec2.stop_instances(InstanceIds=[one, "i-00000000000000000"])

    def states() -> list[str]:
        return [event["now"] for event in _records(seen, journal.EVENTS) if event["event"] == "state"]

    eventually("every change is told", lambda: states() == ["running", "stopped", "terminated"], 10, 0.05)
    stopped = next(event for event in _records(seen, journal.EVENTS) if event.get("now") == "stopped")
    assert "it was killed" in stopped["why"]
    boots = [event for event in _records(seen, journal.EVENTS) if event["event"] == "boot"]
    assert [span["name"] for span in boots[0]["spans"]] == ["disks", "network", "machine", "guest"]
    calls = eventually(
        "calls are recorded", lambda: len(found := _records(seen, journal.AUDIT)) >= 3 and found, 10, 0.05
    )
    named = [(call["eventName"], call.get("errorCode", "")) for call in calls]  # type: ignore[attr-defined]
    assert named == [("RunInstances", ""), ("TerminateInstances", ""), ("StopInstances", "InvalidInstanceID.NotFound")]
    assert one in calls[0]["resources"] and "s3cret" not in json.dumps(calls)  # type: ignore[index]


def test_a_stranger_cannot_fill_the_audit(seen: FakeCloud) -> None:
    stranger = seen.client(aws_access_key_id="AKIASTRANGER", aws_secret_access_key="x")
    for _ in range(5):
        with pytest.raises(ClientError):
            stranger.run_instances(ImageId=AMI, MinCount=1, MaxCount=1)
    seen.client().create_key_pair(KeyName="k")
    eventually("the known one is recorded", lambda: _records(seen, journal.AUDIT), 10, 0.05)
    assert [call["eventName"] for call in _records(seen, journal.AUDIT)] == ["CreateKeyPair"]


def test_all_calls_or_none(start_cloud: Callable[..., FakeCloud], tmp_path: Path) -> None:
    for audit, expected in (("all", ["DescribeKeyPairs"]), ("off", [])):
        data = tmp_path / audit
        data.mkdir()
        cloud = start_cloud(data, audit=audit)
        cloud.client().describe_key_pairs()
        cloud.stop()
        assert [call["eventName"] for call in _records(cloud, journal.AUDIT)] == expected
