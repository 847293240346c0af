"""Instances and what launches them. Importing this package fills the table of operations."""

from haneul.services.ec2.instances import (
    attributes,
    console,
    credits,
    describe,
    fleets,
    launch,
    launch_templates,
    placement_groups,
    power,
    types,
)

__all__ = [
    "attributes",
    "console",
    "credits",
    "describe",
    "fleets",
    "launch",
    "launch_templates",
    "placement_groups",
    "power",
    "types",
]
