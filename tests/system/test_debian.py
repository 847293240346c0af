"""Journeys of the unmodified AWS CLI and of boto3 with a real Debian, and cloud-init asked in the guest.

Emulated boots take half a minute, so all instances are launched before the first is waited for.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Haneul, eventually

pytestmark = pytest.mark.timeout(1800)

SHELL = "#!/bin/sh\necho shell-ran > /root/shell\n"
CLOUD_CONFIG = """#cloud-config
write_files:
- path: /root/config
  content: config-ran
runcmd:
- [ sh, -c, "echo runcmd-ran > /root/runcmd" ]
"""


def _multipart() -> bytes:
    message = MIMEMultipart()
    message.attach(MIMEText(CLOUD_CONFIG, "cloud-config"))
    message.attach(MIMEText(SHELL, "x-shellscript"))
    return message.as_bytes()


@dataclass
class Guests:
    """By the CLI with shell user data, by boto3 with gzipped multipart."""

    cli: str
    boto: str
    key: Path


@pytest.fixture(scope="module")
def guests(haneul: Haneul, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    ec2 = haneul.client()
    folder = tmp_path_factory.mktemp("keys")
    key = folder / "key.pem"
    made = haneul.aws("ec2", "create-key-pair", "--key-name", "journey", "--key-type", "ed25519")
    key.write_text(made["KeyMaterial"])
    key.chmod(0o600)
    script = folder / "user-data"
    script.write_text(SHELL)
    group = haneul.open_group()
    answer = haneul.aws(
        "ec2", "run-instances", "--image-id", haneul.image("debian-12"), "--instance-type", "t3.micro",
        "--key-name", "journey", "--user-data", f"file://{script}", "--security-group-ids", group,
        "--block-device-mappings", "DeviceName=/dev/xvda,Ebs={VolumeSize=10}",
        "--tag-specifications", "ResourceType=instance,Tags=[{Key=Name,Value=journey}]",
    )  # fmt: skip
    cli = answer["Instances"][0]["InstanceId"]
    answer = ec2.run_instances(
        ImageId=haneul.image("debian-12"),
        InstanceType="t3.small",
        MinCount=1,
        MaxCount=1,
        KeyName="journey",
        UserData=gzip.compress(_multipart()),
        SecurityGroupIds=[group],
        MetadataOptions={"HttpTokens": "required"},
    )
    boto = answer["Instances"][0]["InstanceId"]
    yield Guests(cli, boto, key)
    haneul.terminate(cli, boto)
    ec2.delete_key_pair(KeyName="journey")


def _in(haneul: Haneul, guests: Guests, instance: str, command: str, timeout: float = 120) -> str:
    return haneul.ssh(instance, command, user="admin", key=guests.key, timeout=timeout)


def _cloud_init(haneul: Haneul, guests: Guests, instance: str) -> tuple[str, dict[str, Any]]:
    """The status that cloud-init ends in, and its own result."""
    long = _in(haneul, guests, instance, "cloud-init status --long --wait", timeout=900)
    return long, json.loads(_in(haneul, guests, instance, "cat /run/cloud-init/result.json"))


def test_cloud_init_of_the_cli_journey(haneul: Haneul, guests: Guests) -> None:
    haneul.aws("ec2", "wait", "instance-running", "--instance-ids", guests.cli)
    haneul.until_ssh(guests.cli, 900, user="admin", key=guests.key)
    long, result = _cloud_init(haneul, guests, guests.cli)
    assert "status: done" in long and "DataSourceEc2Local" in long
    assert result["v1"]["errors"] == []
    found = haneul.instance(guests.cli)
    answer = _in(
        haneul, guests, guests.cli,
        "hostname; sudo cat /root/shell; df -BG --output=size / | tail -1; systemctl --failed --no-legend | wc -l;"
        "sudo cloud-init query ds.meta_data.instance_id; systemd-detect-virt >/dev/null;"
        "for i in $(seq 90); do [ -e /run/systemd/timesync/synchronized ] && break; sleep 1; done;"
        "timedatectl show --property=NTPSynchronized --value",
    ).split("\n")  # fmt: skip
    assert answer[0] == found["PrivateDnsName"].split(".")[0]
    assert answer[1] == "shell-ran"
    assert 9 <= int(answer[2].strip("G ")) <= 10, "growpart has grown the root to the volume"
    assert answer[3] == "0", "no unit of the guest has failed"
    assert answer[4] == guests.cli
    assert answer[5] == "yes", "its clock follows the server's (169.254.169.123)"


def test_cloud_init_takes_gzipped_multipart_over_imds_v2_alone(haneul: Haneul, guests: Guests) -> None:
    haneul.until_ssh(guests.boto, 900, user="admin", key=guests.key)
    long, result = _cloud_init(haneul, guests, guests.boto)
    assert "status: done" in long
    assert result["v1"]["errors"] == []
    answer = _in(haneul, guests, guests.boto, "sudo cat /root/config; echo; sudo cat /root/runcmd /root/shell; nproc")
    assert answer.split() == ["config-ran", "runcmd-ran", "shell-ran", "2"]


def test_the_journey_with_the_aws_cli(haneul: Haneul, guests: Guests) -> None:
    """stop → start → reboot → console → terminate, each waited for with the CLI's own waiters."""
    one = guests.cli
    before = _in(haneul, guests, one, "cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub")
    haneul.aws("ec2", "stop-instances", "--instance-ids", one)
    haneul.aws("ec2", "wait", "instance-stopped", "--instance-ids", one)
    haneul.aws("ec2", "start-instances", "--instance-ids", one)
    haneul.aws("ec2", "wait", "instance-running", "--instance-ids", one)
    haneul.until_ssh(one, 900, user="admin", key=guests.key)
    assert _in(haneul, guests, one, "cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub") == before
    boot = _in(haneul, guests, one, "cat /proc/sys/kernel/random/boot_id")
    haneul.aws("ec2", "reboot-instances", "--instance-ids", one)
    eventually(
        "the guest has rebooted",
        lambda: _in(haneul, guests, one, "cat /proc/sys/kernel/random/boot_id", timeout=30) != boot,
        300,
        1,
    )
    assert "cloud-init" in haneul.aws("ec2", "get-console-output", "--instance-id", one, "--latest")["Output"]
    haneul.aws("ec2", "terminate-instances", "--instance-ids", one)
    haneul.aws("ec2", "wait", "instance-terminated", "--instance-ids", one)


def test_the_journey_with_boto3_and_its_waiters(haneul: Haneul, guests: Guests) -> None:
    ec2, one = haneul.client(), guests.boto
    ec2.get_waiter("instance_exists").wait(InstanceIds=[one])
    ec2.get_waiter("instance_running").wait(InstanceIds=[one])
    ec2.get_waiter("instance_status_ok").wait(InstanceIds=[one])
    ec2.stop_instances(InstanceIds=[one])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=[one])
    ec2.modify_instance_attribute(InstanceId=one, InstanceType={"Value": "t3.micro"})
    ec2.start_instances(InstanceIds=[one])
    ec2.get_waiter("instance_running").wait(InstanceIds=[one])
    haneul.until_ssh(one, 900, user="admin", key=guests.key)
    memory = int(_in(haneul, guests, one, "awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert memory < 1024 * 1024, "it has the memory of its new type"
    assert base64.b64decode(ec2.get_console_screenshot(InstanceId=one)["ImageData"])[:2] == b"\xff\xd8"
    ec2.terminate_instances(InstanceIds=[one])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[one])
