"""Regions and availability zones by name. Every region name that AWS uses is a name space of its own."""

from __future__ import annotations

import re
from functools import cache

from haneul.model.aws import session

_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-\d\Z")
ZONE_LETTERS = "abc"
_DIRECTIONS = {
    "north": "n",
    "south": "s",
    "east": "e",
    "west": "w",
    "central": "c",
    "northeast": "ne",
    "northwest": "nw",
    "southeast": "se",
    "southwest": "sw",
}


@cache
def regions() -> tuple[str, ...]:
    """The regions of AWS's commercial partition, from botocore's endpoint data, sorted."""
    return tuple(sorted(session().get_available_regions("ec2")))


def is_region(name: str) -> bool:
    return _REGION.match(name) is not None


def zones(region: str) -> tuple[str, ...]:
    return tuple(region + letter for letter in ZONE_LETTERS)


def zone_id(zone: str) -> str:
    """`us-east-1a` -> `use1-az1`, the form of AWS's zone ids (here letter and number agree for all)."""
    place, direction, number = zone[:-1].rsplit("-", 2)
    return f"{place.replace('-', '')}{_DIRECTIONS.get(direction, direction)}{number}-az{ord(zone[-1]) - 96}"


def dns_domain(region: str) -> str:
    """Private DNS domain of a region (AWS VPC guide, "DNS attributes for your VPC")."""
    return "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"


def private_dns_name(address: str, region: str) -> str:
    return f"ip-{address.replace('.', '-')}.{dns_domain(region)}"


def public_dns_name(address: str, region: str) -> str:
    domain = "compute-1" if region == "us-east-1" else f"{region}.compute"
    return f"ec2-{address.replace('.', '-')}.{domain}.amazonaws.com"
