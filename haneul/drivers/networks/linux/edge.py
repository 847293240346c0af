"""The edge: the namespace that routes between the host and the VPCs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pyroute2.iproute import IPRoute  # type: ignore[attr-defined]

from haneul.drivers.networks.linux import nftables
from haneul.drivers.networks.linux.netlink import (
    add_address,
    delete_link,
    link_index,
    load_nft,
    loopback,
    no_ipv6,
    set_sysctl,
)
from haneul.linux import files, netns

#: The edge's end of every link to a VPC; the links are apart, so all may have the same.
EDGE_SIDE = "169.254.255.1"


def edge_port(vpc_id: str) -> str:
    return f"v{nftables.short(vpc_id)}"


def pool_ends(pool: str) -> tuple[str, str]:
    """The host's address and the edge's: the pool's first two."""
    base = int.from_bytes(socket.inet_aton(pool.partition("/")[0]), "big")
    ends = (socket.inet_ntoa((base + step).to_bytes(4, "big")) for step in (1, 2))
    return next(ends), next(ends)


def make_edge(host: int, link: str, pool: str, uplink: bool) -> None:
    near, far = pool_ends(pool)
    router()
    with IPRoute() as routes:
        loopback(routes)
        if not routes.link_lookup(ifname="host"):
            routes.link("add", ifname="host", kind="veth", peer={"ifname": link, "net_ns_fd": host})
        index = link_index(routes, "host")
        add_address(routes, index, far, 32)
        routes.link("set", index=index, state="up")
        routes.route("replace", dst=f"{near}/32", oif=index)
        # An address that nobody has must not come back to the host and go round.
        routes.route("replace", dst=pool, type="unreachable", priority=1000)
        if uplink:
            routes.route("replace", dst="default", gateway=near, oif=index, flags=["onlink"])
    load_nft(nftables.edge(uplink))


#: A new namespace takes these from the host, whatever they are there.
_STRICT = {
    "send_redirects": "0",
    "accept_redirects": "0",
    "accept_source_route": "0",
    "route_localnet": "0",
    "arp_accept": "0",
    "arp_ignore": "0",
}


class Edge:
    """`directory` has its namespace, `link` is its veth's name on the host, `pool` the public addresses behind it."""

    def __init__(self, directory: Path, link: str, pool: str, uplink: bool) -> None:
        self._directory = directory
        self._link = link
        self._pool = pool
        self._uplink = uplink
        self._made = False
        # Two VPCs that are made at once need it both: a namespace mounted twice is broken for good.
        self._making = asyncio.Lock()

    @property
    def _place(self) -> Path:
        return self._directory / "netns" / "edge"

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of its namespace."""
        descriptor = os.open(self._place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    async def ensure(self) -> bool:
        """The namespace and its link to the host are there, also if somebody has removed them since; says whether they are new."""
        async with self._making:
            if self._made and netns.exists(self._place) and _has_link(self._link):
                return False
            self._made = False
            host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                await asyncio.to_thread(netns.create, self._place)
                await netns.inside(self._place, lambda: make_edge(host, self._link, self._pool, self._uplink))
            finally:
                os.close(host)
            await asyncio.to_thread(self._ensure_host_side)
            self._made = True
            return True

    async def route(self, vpc_id: str, side: str, public: list[str]) -> None:
        """The public addresses that lead into a VPC are exactly `public`."""
        await netns.inside(self._place, lambda: route_public(edge_port(vpc_id), side, public))

    async def remove_port(self, vpc_id: str) -> None:
        if netns.exists(self._place):
            await netns.inside(self._place, lambda: delete_link(edge_port(vpc_id)))

    async def remove(self) -> None:
        """The namespace, and what is on the host."""
        async with self._making:
            self._made = False
            await asyncio.to_thread(netns.remove, self._place)
            await asyncio.to_thread(self._remove_host_side)

    def _ensure_host_side(self) -> None:
        near, far = pool_ends(self._pool)
        with IPRoute() as routes:
            index = link_index(routes, self._link)
            add_address(routes, index, near, 32)
            set_sysctl(f"ipv6/conf/{self._link}/disable_ipv6", "1")
            routes.link("set", index=index, state="up")
            routes.route("replace", dst=self._pool, oif=index, gateway=far, prefsrc=near, flags=["onlink"])
        if self._uplink:
            self._keep("ip_forward", Path("/proc/sys/net/ipv4/ip_forward"), "1")
            load_nft(nftables.host_uplink(f"haneul_{self._link}", self._link, self._pool))

    def _keep(self, name: str, path: Path, value: str) -> None:
        """Write a setting of the host and remember what it was."""
        saved = self._directory / f"host-{name}"
        if not saved.exists():
            files.replace(saved, path.read_text().encode())
        path.write_text(value)

    def _remove_host_side(self) -> None:
        delete_link(self._link)
        saved = self._directory / "host-ip_forward"
        if saved.exists():
            table = f"haneul_{self._link}"
            load_nft(f"table ip {table}\ndelete table ip {table}\n")
            tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
            if "haneul_" not in tables:  # another haneul may still need it
                Path("/proc/sys/net/ipv4/ip_forward").write_text(saved.read_text())
            saved.unlink()


def _has_link(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def router() -> None:
    """What the edge and every VPC's namespace are; after `ip_forward`, which sets some of the others anew."""
    set_sysctl("ipv4/ip_forward", "1")
    for name, value in _STRICT.items():
        set_sysctl(f"ipv4/conf/all/{name}", value)
        set_sysctl(f"ipv4/conf/default/{name}", value)
    no_ipv6()


def route_public(port: str, side: str, wanted: list[str]) -> None:
    """The edge's /32 routes into one VPC are exactly `wanted`."""
    with IPRoute() as routes:
        index = link_index(routes, port)
        add_address(routes, index, EDGE_SIDE, 32)
        routes.link("set", index=index, state="up")
        routes.route("replace", dst=f"{side}/32", oif=index)
        present = set()
        for route in routes.get_routes(oif=index, family=socket.AF_INET, table=254):
            destination = route.get_attr("RTA_DST")
            if destination and route["dst_len"] == 32 and route.get_attr("RTA_GATEWAY"):
                present.add(destination)
        for address in present - set(wanted):
            routes.route("del", dst=f"{address}/32", oif=index)
        for address in set(wanted) - present:
            routes.route("replace", dst=f"{address}/32", oif=index, gateway=side, flags=["onlink"])
