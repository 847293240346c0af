"""The main job: from nothing to a guest that says who it is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from haneul.cli.context import Cli, here
from haneul.cli.instances import ssh_command, tags, wait_for_ssh
from haneul.cli.output import out, progress
from haneul.cli.running import client
from haneul.cli.templates import DEFAULT_TYPE
from haneul.errors import SettingsError
from haneul.images.store import DEFAULT

app = typer.Typer()

QUICKSTART = "haneul-quickstart"


_ASK_GUEST = """
token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
id=$(curl -sf -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/instance-id)
echo "kernel        $(uname -a)"
echo "instance id   $id (from its own metadata service)"
echo "cloud-init    $(cloud-init status --wait 2>/dev/null | tail -n 1 | sed 's/^status: //')"
machine=$(cat /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name 2>/dev/null | tr '\\n' ' ')
echo "virtualized   $(systemd-detect-virt 2>/dev/null || echo unknown), ${machine:-a machine without DMI data}"
"""


@app.command()
def quickstart(
    ctx: typer.Context,
    instance_type: Annotated[str, typer.Option("--type", help="The instance type to launch.")] = DEFAULT_TYPE,
    image: Annotated[str, typer.Option(help="The image to launch.")] = DEFAULT,
) -> None:
    """Build the image, start haneul, launch an instance, wait for SSH and ask the guest who it is.

    What is there already is used: repeated, this takes seconds. Example: `haneul quickstart`
    """
    cli = here(ctx)
    store = cli.lifecycle.images(cli.settings)
    _step(f"image {image}")
    with progress(every=True) as say:
        ami = store.build(image, say).image_id
    _step(f"haneul on {cli.settings.endpoint}")
    if not cli.lifecycle.is_running(cli.settings):
        cli.lifecycle.start_detached(cli.settings)
    ec2 = client(cli)
    found = _quickstart_instance(ec2, ami, instance_type)
    _step(f"SSH of {found['InstanceId']}")
    with progress(every=True) as say:
        found = wait_for_ssh(ec2, found["InstanceId"], say)
    _ask(cli, ec2, found)
    _how_to_go_on(found)


def _step(text: str) -> None:
    out.print(f"[bold]==>[/] {text}", highlight=False)


def _quickstart_instance(ec2: Any, ami: str, instance_type: str) -> dict[str, Any]:
    """The instance of an earlier quickstart, started if it is stopped, or a new one."""
    wanted = [
        {"Name": "tag:Name", "Values": [QUICKSTART]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
    ]
    answer = ec2.describe_instances(Filters=wanted)
    old: list[dict[str, Any]] = [one for reservation in answer["Reservations"] for one in reservation["Instances"]]
    if old:
        instance_id, state = old[0]["InstanceId"], old[0]["State"]["Name"]
        _step(f"instance {instance_id} of an earlier run ({state})")
        if state == "stopping":
            ec2.get_waiter("instance_stopped").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 1})
        if state in ("stopping", "stopped"):
            ec2.start_instances(InstanceIds=[instance_id])
        return old[0]
    group = _quickstart_group(ec2)
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": QUICKSTART}]}]
    answer = ec2.run_instances(
        ImageId=ami,
        InstanceType=instance_type,
        MinCount=1,
        MaxCount=1,
        SecurityGroupIds=[group],
        TagSpecifications=tags,
    )
    instance: dict[str, Any] = answer["Instances"][0]
    _step(f"instance {instance['InstanceId']} ({instance_type}), launched through the EC2 API")
    return instance


def _quickstart_group(ec2: Any) -> str:
    """A security group that lets SSH in, as on AWS: the default group lets in only its own members."""
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [QUICKSTART]}])["SecurityGroups"]
    if found:
        return str(found[0]["GroupId"])
    group = str(ec2.create_security_group(GroupName=QUICKSTART, Description="SSH for haneul quickstart")["GroupId"])
    ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0")
    return group


def _ask(cli: Cli, ec2: Any, found: dict[str, Any]) -> None:
    """What the guest itself says."""
    import subprocess

    command = [*ssh_command(cli, ec2, found), "sh -s"]
    deadline = time.monotonic() + 120
    while True:
        answer = subprocess.run(command, input=_ASK_GUEST, capture_output=True, text=True, timeout=120, check=False)
        if answer.returncode == 0:
            break
        # sshd answers a little before cloud-init has put the key in place.
        if time.monotonic() > deadline:
            raise SettingsError(f"{found['InstanceId']} does not let haneul in: {answer.stderr.strip()}")
        time.sleep(0.5)
    generation = tags(found).get("aws:haneul:virtualization", "HVM (KVM) with virtio devices")
    out.print(f"\n[bold]The guest says[/] ({found['PublicIpAddress']})", highlight=False)
    print(f"{answer.stdout.rstrip()}\ngeneration    {generation}")


def _how_to_go_on(found: dict[str, Any]) -> None:
    here = Path(sys.executable).parent
    print(
        f"""
Go on:
  eval "$({here}/haneul env)"        # points aws, boto3, Terraform, Ansible … at haneul
  haneul ssh {found["InstanceId"]}
  aws ec2 describe-instances --query 'Reservations[].Instances[].[InstanceId,State.Name,PublicIpAddress]' --output table
  aws ec2 run-instances --image-id {found["ImageId"]} --instance-type t3.micro
  haneul status
  haneul down --purge                # removes every trace"""
    )
