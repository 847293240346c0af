"""A VPC's namespace: its links, bridges and addresses."""

from __future__ import annotations

import socket
from typing import Any

from pyroute2.iproute import IPRoute  # type: ignore[attr-defined]

from haneul.drivers.networks.linux import dnsmasq, links, nftables
from haneul.drivers.networks.linux.edge import EDGE_SIDE, router
from haneul.drivers.networks.linux.netlink import add_address, link_index, loopback, set_sysctl
from haneul.model.assignment import NetworkSpec

METADATA = "169.254.169.254"


RESOLVER = "169.254.169.253"


TIME = "169.254.169.123"


def used(network: NetworkSpec) -> set[str]:
    return {one.subnet_id for one in network.interfaces}


def present_side() -> str:
    """The address that this namespace has on its link to the edge already; empty if it has none."""
    with IPRoute() as routes:
        for index in routes.link_lookup(ifname="ext"):
            for one in routes.get_addr(index=index, family=socket.AF_INET):
                text = str(one.get_attr("IFA_ADDRESS"))
                if links.is_link(text):
                    return text
    return ""


def make_vpc(network: NetworkSpec, edge: int, port: str, side: str) -> None:
    """`edge` is a descriptor of the edge's namespace, `port` the name of the link there, `side` the VPC's address on it."""
    router()
    # What the kernel itself answers to a forged frame has that frame's mark, and is dropped for it.
    set_sysctl("ipv4/fwmark_reflect", "1")
    # Built-in br_netfilter is on in new namespaces; frames must not meet the IP hooks twice.
    set_sysctl("bridge/bridge-nf-call-iptables", "0")
    set_sysctl("bridge/bridge-nf-call-arptables", "0")
    with IPRoute() as routes:
        loopback(routes, METADATA, RESOLVER, TIME, network.resolver)
        if not routes.link_lookup(ifname="ext"):
            routes.link("add", ifname="ext", kind="veth", peer={"ifname": port, "net_ns_fd": edge})
        ext = link_index(routes, "ext")
        add_address(routes, ext, side, 32)
        routes.link("set", index=ext, state="up")
        routes.route("replace", dst=f"{EDGE_SIDE}/32", oif=ext)
        routes.route("replace", dst="default", gateway=EDGE_SIDE, oif=ext, flags=["onlink"])
        for subnet in dnsmasq.subnets_here(network):
            _make_bridge(routes, nftables.bridge_name(subnet.subnet_id), subnet.gateway, subnet.cidr)


def _make_bridge(routes: Any, name: str, gateway: str, cidr: str) -> None:
    if not routes.link_lookup(ifname=name):
        mac = "02:00:" + ":".join(f"{byte:02x}" for byte in socket.inet_aton(gateway))
        routes.link("add", ifname=name, kind="bridge", address=mac, br_forward_delay=0, br_stp_state=0)
        routes.link("set", ifname=name, kind="bridge", br_mcast_snooping=0)  # guests' IGMP is not listened to
    index = link_index(routes, name)
    add_address(routes, index, gateway, int(cidr.rpartition("/")[2]))
    routes.link("set", index=index, state="up")
    set_sysctl(f"ipv4/conf/{name}/proxy_arp_pvlan", "1")
    set_sysctl(f"ipv4/neigh/{name}/proxy_delay", "0")
    set_sysctl(f"ipv4/conf/{name}/send_redirects", "0")
