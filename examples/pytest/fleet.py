"""Some infrastructure code: web servers, one command to make them and one to take them away."""

from __future__ import annotations

from typing import Any

import boto3

USER_DATA = "#!/bin/sh\necho ready > /run/web\n"


def _named(name: str) -> list[dict[str, Any]]:
    alive = ["pending", "running", "stopping", "stopped"]
    return [{"Name": "tag:fleet", "Values": [name]}, {"Name": "instance-state-name", "Values": alive}]


def instances(name: str) -> list[dict[str, Any]]:
    pages = boto3.client("ec2").get_paginator("describe_instances").paginate(Filters=_named(name))
    return [one for page in pages for reservation in page["Reservations"] for one in reservation["Instances"]]


def scale(name: str, image: str, count: int) -> list[str]:
    """Launch or terminate until there are `count`; gives the ids. Repeated, it changes nothing."""
    ec2 = boto3.client("ec2")
    present = [one["InstanceId"] for one in instances(name)]
    for surplus in present[count:]:
        ec2.terminate_instances(InstanceIds=[surplus])
    missing = count - len(present)
    if missing <= 0:
        return present[:count]
    made = ec2.run_instances(
        ImageId=image,
        InstanceType="t3.nano",
        MinCount=missing,
        MaxCount=missing,
        UserData=USER_DATA,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "fleet", "Value": name}]}],
    )
    ids = [one["InstanceId"] for one in made["Instances"]]
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig={"Delay": 1})
    return present + ids
