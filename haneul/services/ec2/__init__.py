"""The EC2 operations. Importing this package fills the table of operations."""

from haneul.services.ec2 import (
    images,
    instance_types,
    instances,
    keypairs,
    launch,
    networks,
    regions,
    security_groups,
    tags,
    volumes,
)

__all__ = [
    "images",
    "instance_types",
    "instances",
    "keypairs",
    "launch",
    "networks",
    "regions",
    "security_groups",
    "tags",
    "volumes",
]
