"""Pure rules of VPC networks: security group rules, addresses, MACs."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from haneul.errors import CloudError, invalid

Direction = Literal["ingress", "egress"]
_PROTOCOL_NUMBERS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6"}
_WITH_PORTS = ("tcp", "udp")
_PREFIXED = re.compile(r"[0-9a-fA-F.:]+/[0-9]{1,3}\Z")


@dataclass(frozen=True, order=True)
class Rule:
    """One security group rule. Exactly one of `cidr`, `cidr6`, `group` is set; -1 ports mean "all".

    For ICMP `from_port` is the type and `to_port` the code, as EC2 has it.
    """

    direction: Direction
    protocol: str
    from_port: int
    to_port: int
    cidr: str = ""
    cidr6: str = ""
    group: str = ""


def normal_protocol(value: str) -> str:
    """`6` -> `tcp`; `all` and `-1` -> `-1`; other protocol numbers stay as text."""
    if re.fullmatch(r"[0-9]{1,3}", value):
        value = str(int(value))
    text = _PROTOCOL_NUMBERS.get(value, value).lower()
    if text in ("-1", "all"):
        return "-1"
    if text in ("tcp", "udp", "icmp", "icmpv6"):
        return text
    if re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= 255:
        return text
    raise invalid(value, "IpProtocol", "The protocol is not known.")


def normal_ports(protocol: str, from_port: int | None, to_port: int | None) -> tuple[int, int]:
    """Port range of a rule, checked as EC2 does; protocols without ports give (-1, -1)."""
    if protocol not in (*_WITH_PORTS, "icmp", "icmpv6"):
        return -1, -1
    if protocol in ("icmp", "icmpv6"):
        for number in (from_port, to_port):
            if number is not None and not -1 <= number <= 255:
                raise CloudError("InvalidParameterValue", f"Invalid value '{number}' for ICMP type or code.")
        return (-1 if from_port is None else from_port), (-1 if to_port is None else to_port)
    if from_port is None or to_port is None:
        raise CloudError(
            "InvalidParameterValue",
            f"Invalid value 'Must specify both from and to ports with {protocol.upper()}' for portRange.",
        )
    if (from_port, to_port) == (-1, -1):
        return 0, 65535
    for port in (from_port, to_port):
        if not 0 <= port <= 65535:
            raise CloudError("InvalidParameterValue", f"Invalid value '{port}' for port. Must be between 0 and 65535.")
    if from_port > to_port:
        raise CloudError(
            "InvalidParameterValue",
            f"Invalid TCP/UDP port range ({from_port}:{to_port})" if from_port else "Invalid port range",
        )
    return from_port, to_port


def normal_cidr(value: str, parameter: str = "cidrIp") -> str:
    """The network form of an IPv4 CIDR (`10.0.0.1/8` -> `10.0.0.0/8`); a bare address is an error, as on EC2."""
    try:
        if not _PREFIXED.match(value):
            raise ValueError
        return str(ipaddress.IPv4Network(value, strict=False))
    except ValueError:
        raise CloudError("InvalidParameterValue", f"CIDR block {value} is malformed") from None


def normal_cidr6(value: str) -> str:
    try:
        if not _PREFIXED.match(value):
            raise ValueError
        return str(ipaddress.IPv6Network(value, strict=False))
    except ValueError:
        raise CloudError("InvalidParameterValue", f"CIDR block {value} is malformed") from None


def host_addresses(cidr: str, seed: str) -> Iterator[str]:
    """The addresses of a subnet that hosts may have: AWS keeps the first four and the last.

    They begin at a place derived from `seed`, so that a terminated instance's address is not handed out
    again at once.
    """
    network = ipaddress.IPv4Network(cidr)
    base, first, count = int(network[0]), 4, network.num_addresses - 5
    if count <= 0:
        return
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") % count
    for step in range(count):
        yield str(ipaddress.IPv4Address(base + first + (start + step) % count))


def free_address(cidr: str, used: Collection[str], seed: str) -> str | None:
    """A free host address of a subnet, or None when it is full."""
    return next((address for address in host_addresses(cidr, seed) if address not in used), None)


def gateway(cidr: str) -> str:
    return str(ipaddress.IPv4Network(cidr)[1])


def resolver(vpc_cidr: str) -> str:
    """The address of the VPC's own DNS server: the base of the VPC plus two."""
    return str(ipaddress.IPv4Network(vpc_cidr)[2])


def mac_address(interface_id: str) -> str:
    """A locally administered MAC made from the id (06:… is unicast and local, as EC2's own are)."""
    digest = hashlib.sha256(interface_id.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x06, *digest[:5]))
