"""What a launch shares with a template of launches and with changes of a running instance: its parts, checked."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from haneul.errors import CloudError, invalid
from haneul.services.context import Context
from haneul.services.ec2.instances import types as instance_types
from haneul.services.ec2.network import security_groups

MAX_USER_DATA = 16384


def check_groups(ctx: Context, wanted: list[str], vpc_id: str) -> list[str]:
    """The groups as they are, if all are of the VPC."""
    most = ctx.settings.quota_groups_per_interface
    if len(wanted) > most:
        raise CloudError("SecurityGroupsPerInterfaceLimitExceeded", f"An interface has at most {most} security groups.")
    for one in wanted:
        if security_groups.find(ctx, one)["vpc_id"] != vpc_id:
            raise CloudError("InvalidParameter", f"Security group {one} and the subnet belong to different networks.")
    return wanted


def read_user_data(text: str, too_large: str = "InvalidParameterValue") -> str:
    """Base64 user data, checked. White space in it does not count: tools break lines. Raises `CloudError`."""
    try:
        decoded = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise CloudError("InvalidParameterValue", "Invalid BASE64 encoding of user data.") from None
    if len(decoded) > MAX_USER_DATA:
        raise CloudError(too_large, f"User data is limited to {MAX_USER_DATA} bytes")
    return base64.b64encode(decoded).decode()


def metadata_options(given: dict[str, Any], present: dict[str, Any] | None = None) -> dict[str, Any]:
    """`MetadataOptions` with what is given laid over what is present (or EC2's defaults)."""
    hops = given.get("HttpPutResponseHopLimit")
    if hops is not None and not 1 <= hops <= 64:
        raise invalid(hops, "HttpPutResponseHopLimit", "It is between 1 and 64.")
    if given.get("HttpProtocolIpv6") == "enabled":
        raise CloudError("UnsupportedOperation", "haneul does not serve metadata over IPv6 yet.")
    defaults = {
        "HttpTokens": "optional",
        "HttpPutResponseHopLimit": 1,
        "HttpEndpoint": "enabled",
        "HttpProtocolIpv6": "disabled",
        "InstanceMetadataTags": "disabled",
    }
    base = present or defaults
    return base | {name: given[name] for name in defaults if given.get(name) is not None}


def check_credit(instance_type: str, credit: str) -> str:
    """`standard` or `unlimited`, for a burstable type."""
    if credit not in ("standard", "unlimited"):
        raise invalid(credit, "CpuCredits", "It is standard or unlimited.")
    if not instance_types.find(instance_type).burstable:
        raise CloudError(
            "InvalidParameterCombination", f"CPU credits are not supported for the instance type {instance_type}."
        )
    return credit
