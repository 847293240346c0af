"""DHCP and DNS of a VPC: dnsmasq's command line and files. Pure.

Every address is promised by the API, so DHCP only hands out what it was told (`static`). Names are host records:
`--address` would answer AAAA questions with "no such name".
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from haneul.model.assignment import NetworkSpec, SubnetSpec

LEASE = "1h"
GROUP = "nogroup"


def subnets_here(network: NetworkSpec) -> list[SubnetSpec]:
    """The subnets of the VPC that have an interface on this server."""
    used = {one.subnet_id for one in network.interfaces}
    return [one for one in network.subnets if one.subnet_id in used]


def command(network: NetworkSpec, directory: Path, upstream: Path | None) -> list[str]:
    """`upstream` is a resolv.conf to forward other names to, or None to answer that there are none."""
    out = [
        "dnsmasq",
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--user=nobody",
        f"--group={GROUP}",
        "--pid-file=",
        "--bind-dynamic",
        "--except-interface=ext",
        f"--listen-address={network.resolver},169.254.169.253",
        "--interface=br*",
        "--no-hosts",
        "--no-ping",
        "--dhcp-authoritative",
        "--dhcp-ignore-clid",  # the guard vouches for the MAC; an identifier is what a guest says
        "--domain-needed",
        "--bogus-priv",
        "--log-facility=-",
        "--quiet-dhcp",
        f"--dhcp-leasefile={directory / 'leases'}",
        f"--dhcp-hostsfile={directory / 'dhcp'}",
        f"--addn-hosts={directory / 'hosts'}",
        f"--local=/{network.domain}/",
        f"--domain={network.domain}",
        "--dhcp-option=option:mtu,1500",
        f"--dhcp-option=option:dns-server,{network.resolver}",
        f"--dhcp-option=option:domain-name,{network.domain}",
    ]
    out.append(f"--resolv-file={upstream}" if upstream else "--no-resolv")
    for subnet in subnets_here(network):
        net = ipaddress.IPv4Network(subnet.cidr)
        tag = f"s{subnet.subnet_id[-12:]}"
        out.append(f"--dhcp-range=set:{tag},{net[0]},static,{net.netmask},{LEASE}")
        out.append(f"--dhcp-option=tag:{tag},option:router,{subnet.gateway}")
        # A client that takes option 121 ignores option 3: it has to repeat the default route.
        routes = f"169.254.169.254/32,{subnet.gateway},0.0.0.0/0,{subnet.gateway}"
        out.append(f"--dhcp-option=tag:{tag},121,{routes}")
    return out


def dhcp_hosts(network: NetworkSpec) -> str:
    lines = (f"{one.mac},{one.address},{one.names[0].split('.')[0]}\n" for one in network.interfaces)
    return "".join(lines)


def hosts(network: NetworkSpec) -> str:
    """Inside its VPC an instance's public name leads to its private address, as on EC2."""
    lines = []
    for one in network.interfaces:
        lines.append(f"{one.address} {' '.join((*one.names, *one.public_names))}\n")
    return "".join(lines)
