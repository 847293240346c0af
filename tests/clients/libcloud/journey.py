"""Libcloud's EC2 driver, unchanged, from a key to a node's end."""

import os
import time
from urllib.parse import urlsplit

from libcloud.compute.base import NodeImage
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState, Provider

IMAGE = os.environ.get("JOURNEY_IMAGE", "ami-0123456789abcdef0")
NAME = "libcloud-journey"

endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
driver = get_driver(Provider.EC2)(
    os.environ["AWS_ACCESS_KEY_ID"],
    os.environ["AWS_SECRET_ACCESS_KEY"],
    region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    host=endpoint.hostname,
    port=endpoint.port,
    secure=endpoint.scheme == "https",
    signature_version="4",
)
if os.environ.get("JOURNEY_NO_ADDRESSES"):  # list_nodes() always asks for DescribeAddresses; for a server without it
    driver.ex_describe_addresses = lambda nodes: {one.id: [] for one in nodes}

key = driver.create_key_pair(NAME)
assert "PRIVATE KEY" in key.private_key, key
assert NAME in [one.name for one in driver.list_key_pairs()]

group = driver.ex_create_security_group(NAME, "Made by Libcloud")
assert group["group_id"].startswith("sg-"), group
assert driver.ex_authorize_security_group_ingress(group["group_id"], 22, 22, cidr_ips=["10.0.0.0/8"], protocol="tcp")
[seen] = driver.ex_get_security_groups(group_ids=[group["group_id"]])
assert seen.ingress_rules[0]["cidr_ips"] == ["10.0.0.0/8"], seen.ingress_rules

size = next(one for one in driver.list_sizes() if one.id == "t3.micro")
image = NodeImage(id=IMAGE, name=None, driver=driver)
assert driver.list_locations()

node = driver.create_node(
    name=NAME,
    image=image,
    size=size,
    ex_keyname=NAME,
    ex_securitygroup=[NAME],
    ex_metadata={"made-by": "libcloud"},
)
print("made", node.id, node.state)
[(node, addresses)] = driver.wait_until_running([node], timeout=60, ssh_interface="private_ips")
assert addresses and node.state == NodeState.RUNNING, (node, addresses)
assert node.name == NAME and node.extra["key_name"] == NAME, node.extra
assert [one.id for one in driver.list_nodes(ex_node_ids=[node.id])] == [node.id]
assert [one.id for one in driver.list_nodes(ex_filters={"tag:Name": NAME})]

assert driver.ex_create_tags(node, {"stage": "test"})
tags = driver.ex_describe_tags(node)
assert tags == {"Name": NAME, "made-by": "libcloud", "stage": "test"}, tags
assert driver.ex_delete_tags(node, {"stage": "test"})


def turn(state):
    """The node once it is in that state."""
    for _ in range(120):
        [now] = driver.list_nodes(ex_node_ids=[node.id])
        if now.state == state:
            return now
        time.sleep(0.5)
    raise AssertionError(f"{now.state}, not {state}")


assert driver.reboot_node(node)
turn(NodeState.RUNNING)
assert driver.stop_node(node)
turn(NodeState.STOPPED)
assert driver.start_node(node)
turn(NodeState.RUNNING)
print("console", driver.ex_get_console_output(node)["instance_id"])
assert driver.destroy_node(node)
turn(NodeState.TERMINATED)
assert driver.ex_delete_security_group_by_id(group["group_id"])
assert driver.delete_key_pair(key)
assert NAME not in [one.name for one in driver.list_key_pairs()]
print("libcloud: ok")
