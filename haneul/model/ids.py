"""Identifiers in EC2's form: a prefix and 17 hexadecimal digits; and access keys in IAM's."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable

NewId = Callable[[str], str]

_WELL_FORMED = re.compile(r"[0-9a-f]{8}(?:[0-9a-f]{9})?\Z")

#: Prefix of an id -> resource type, as `TagSpecifications` and `DescribeTags` name it.
RESOURCE_TYPES = {
    "i": "instance",
    "ami": "image",
    "vol": "volume",
    "snap": "snapshot",
    "eni": "network-interface",
    "vpc": "vpc",
    "subnet": "subnet",
    "sg": "security-group",
    "sgr": "security-group-rule",
    "rtb": "route-table",
    "igw": "internet-gateway",
    "acl": "network-acl",
    "dopt": "dhcp-options",
    "key": "key-pair",
    "lt": "launch-template",
    "pg": "placement-group",
    "fleet": "fleet",
}


def new_id(prefix: str) -> str:
    """A fresh id such as `i-0f3c…`; EC2's long ids begin with `0`."""
    return f"{prefix}-0{secrets.token_hex(8)}"


def new_access_key() -> tuple[str, str]:
    """(access key id, secret), in AWS's form."""
    return "AKIA" + base64.b32encode(secrets.token_bytes(10)).decode(), secrets.token_urlsafe(30)


def is_id(prefix: str, value: str) -> bool:
    head, _, tail = value.rpartition("-")
    return head == prefix and _WELL_FORMED.match(tail) is not None


def resource_type(value: str) -> str | None:
    """The resource type that the prefix of `value` stands for, or None for a foreign form."""
    prefix, _, tail = value.rpartition("-")
    return RESOURCE_TYPES.get(prefix) if _WELL_FORMED.match(tail) else None
