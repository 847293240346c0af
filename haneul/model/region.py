"""Regions and availability zones by name. Every region name that AWS uses is a name space of its own."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

from haneul.model.aws import session

_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+-\d{1,2}\Z")
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


#: Regions that an account has to opt in to (AWS Account Management, "Enable or disable AWS Regions").
OPT_IN = frozenset(
    {
        "af-south-1", "ap-east-1", "ap-east-2", "ap-south-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5", "ap-southeast-6",
        "ap-southeast-7", "ca-west-1", "eu-central-2", "eu-south-1", "eu-south-2", "il-central-1", "me-central-1", "me-south-1",
        "mx-central-1",
    }
)  # fmt: skip


@cache
def known_regions() -> frozenset[str]:
    """Those of every partition: China's, the government's, the isolated ones."""
    partitions = session().get_available_partitions()
    return frozenset(name for one in partitions for name in session().get_available_regions("ec2", one))


def has_form(name: str) -> bool:
    """Whether a text could be a region's name."""
    return _REGION.match(name) is not None


def is_region(name: str, more: Collection[str] = ()) -> bool:
    """Whether AWS has the region, or `more` names it: what anybody may make up would be a cloud of its own, without end."""
    return name in known_regions() or name in more


def zones(region: str) -> tuple[str, ...]:
    return tuple(region + letter for letter in ZONE_LETTERS)


def zone_id(zone: str) -> str:
    """`us-east-1a` -> `use1-az1`, the form of AWS's zone ids (here letter and number agree for all)."""
    place, direction, number = zone[:-1].rsplit("-", 2)
    place = place.replace("us-gov", "usg").replace("us-iso", "usi") if place in ("us-gov", "us-iso") else place
    return f"{place.replace('-', '')}{_DIRECTIONS.get(direction, direction)}{number}-az{ord(zone[-1]) - 96}"


def dns_domain(region: str) -> str:
    """Private DNS domain of a region (AWS VPC guide, "DNS attributes for your VPC")."""
    return "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"


def private_dns_name(address: str, region: str) -> str:
    return f"ip-{address.replace('.', '-')}.{dns_domain(region)}"


def public_dns_name(address: str, region: str) -> str:
    domain = "compute-1" if region == "us-east-1" else f"{region}.compute"
    return f"ec2-{address.replace('.', '-')}.{domain}.amazonaws.com"
