"""The EC2 operations. Importing this package fills the table of operations."""

from haneul.services.ec2 import (
    account,
    credits,
    fleets,
    images,
    instance_types,
    instances,
    keypairs,
    launch,
    launch_templates,
    networks,
    nothing,
    placement_groups,
    regions,
    security_groups,
    tags,
    volumes,
)

__all__ = [
    "account",
    "credits",
    "fleets",
    "images",
    "instance_types",
    "instances",
    "keypairs",
    "launch",
    "launch_templates",
    "networks",
    "nothing",
    "placement_groups",
    "regions",
    "security_groups",
    "tags",
    "volumes",
]
