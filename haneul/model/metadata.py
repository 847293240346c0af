"""What the metadata service says, as data (EC2 User Guide, "Instance metadata categories").

Only keys that can be answered are listed: cloud-init walks everything it is shown, and one 404 empties all.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Interface:
    interface_id: str
    mac: str
    device_index: int
    address: str
    public: str
    private_name: str
    public_name: str
    subnet_id: str
    subnet_cidr: str
    vpc_id: str
    vpc_cidr: str
    group_ids: tuple[str, ...]
    group_names: tuple[str, ...]
    owner: str


@dataclass(frozen=True)
class Facts:
    """`devices` maps `ami`, `root`, `ebs1`… to device names; `pending_time` is ISO 8601."""

    instance_id: str
    account: str
    region: str
    zone: str
    zone_id: str
    image_id: str
    instance_type: str
    architecture: str
    launch_index: int
    reservation_id: str
    pending_time: str
    devices: dict[str, str]
    interface: Interface
    hypervisor: str = "nitro"


_TAG_KEY = re.compile(r"[0-9a-zA-Z\-_+=,.@:]{1,255}\Z")


def is_tag_key(key: str) -> bool:
    """Whether a tag can be shown: its key is one part of a path (EC2 User Guide, "Work with instance tags in instance metadata")."""
    return _TAG_KEY.match(key) is not None and key not in (".", "..", "_index")


def tree(facts: Facts) -> dict[str, str]:
    """Path below `meta-data/` -> text."""
    nic = facts.interface
    found = {
        "ami-id": facts.image_id,
        "ami-launch-index": str(facts.launch_index),
        "ami-manifest-path": "(unknown)",
        "hostname": nic.private_name,
        "instance-action": "none",
        "instance-id": facts.instance_id,
        "instance-life-cycle": "on-demand",
        "instance-type": facts.instance_type,
        "local-hostname": nic.private_name,
        "local-ipv4": nic.address,
        "mac": nic.mac,
        "placement/availability-zone": facts.zone,
        "placement/availability-zone-id": facts.zone_id,
        "placement/region": facts.region,
        "profile": "default-hvm",
        "reservation-id": facts.reservation_id,
        "security-groups": "\n".join(nic.group_names),
        "services/domain": "amazonaws.com",
        "events/maintenance/history": "[]",
        "events/maintenance/scheduled": "[]",
        "system": facts.hypervisor,
        "services/partition": "aws",
    }
    found |= {f"block-device-mapping/{name}": device for name, device in facts.devices.items()}
    if nic.public:
        found |= {"public-ipv4": nic.public, "public-hostname": nic.public_name}
    prefix = f"network/interfaces/macs/{nic.mac}"
    found |= {f"{prefix}/{name}": text for name, text in _interface(nic).items()}
    return found


def _interface(nic: Interface) -> dict[str, str]:
    found = {
        "device-number": str(nic.device_index),
        "interface-id": nic.interface_id,
        "local-hostname": nic.private_name,
        "local-ipv4s": nic.address,
        "mac": nic.mac,
        "network-card": "0",
        "owner-id": nic.owner,
        "security-group-ids": "\n".join(nic.group_ids),
        "security-groups": "\n".join(nic.group_names),
        "subnet-id": nic.subnet_id,
        "subnet-ipv4-cidr-block": nic.subnet_cidr,
        "vpc-id": nic.vpc_id,
        "vpc-ipv4-cidr-block": nic.vpc_cidr,
        "vpc-ipv4-cidr-blocks": nic.vpc_cidr,
    }
    if nic.public:
        found |= {
            "public-ipv4s": nic.public,
            "public-hostname": nic.public_name,
            f"ipv4-associations/{nic.public}": nic.address,
        }
    return found


def identity_document(facts: Facts) -> str:
    """The instance identity document, in the key order and form that EC2 gives it."""
    document = {
        "accountId": facts.account,
        "architecture": facts.architecture,
        "availabilityZone": facts.zone,
        "billingProducts": None,
        "devpayProductCodes": None,
        "marketplaceProductCodes": None,
        "imageId": facts.image_id,
        "instanceId": facts.instance_id,
        "instanceType": facts.instance_type,
        "kernelId": None,
        "pendingTime": facts.pending_time,
        "privateIp": facts.interface.address,
        "ramdiskId": None,
        "region": facts.region,
        "version": "2017-09-30",
    }
    return json.dumps(document, indent=2, separators=(",", " : "))
