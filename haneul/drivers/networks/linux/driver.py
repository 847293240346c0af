"""VPCs on Linux: a namespace for each, a bridge per subnet with isolated ports, nftables, dnsmasq.

Everything is in namespaces of haneul's own. On the host there is one veth with one address and one route to the
pool of public addresses. In between stands the *edge*, a namespace that routes between the host and the VPCs:

    host ── hnXX ═ host [edge] v… ═ ext [VPC] br… ── tap (isolated) ── guest

Ports are isolated, so that frames inside a subnet too are routed by the bridge (`proxy_arp_pvlan`) and meet the
ordinary forward hook; br_netfilter is never loaded, it would filter other people's bridges.
"""

from __future__ import annotations

import asyncio
import fcntl
import grp
import hashlib
import logging
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2.iproute import IPRoute  # type: ignore[attr-defined]
from pyroute2.netlink.exceptions import NetlinkError

from haneul.drivers.interface import DriverError
from haneul.drivers.networks.linux import dnsmasq, nftables
from haneul.linux import files, locks, netns
from haneul.model.assignment import NetworkSpec, NicSpec

log = logging.getLogger(__name__)

METADATA = "169.254.169.254"
RESOLVER = "169.254.169.253"
TIME = "169.254.169.123"
#: The edge's end of every link to a VPC; the links are apart, so all may have the same.
_EDGE_SIDE = "169.254.255.1"
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUNSETIFF = 0x400454CA
_NUD_PERMANENT, _NTF_MASTER = 0x80, 0x04
_EEXIST, _ENODEV, _ESRCH = 17, 19, 3


class BridgeNetworks:
    """`directory` is on a file system that a reboot empties (below /run), as all that it describes is."""

    def __init__(self, directory: Path, tag: str, pool: str, uplink: bool) -> None:
        self.directory = directory
        self.link = f"hn{tag}"
        self.pool = pool
        self.uplink = uplink
        self._edge_ready = False
        self._applied: dict[str, NetworkSpec] = {}
        self._loaded: dict[str, nftables.Ruleset] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    # --- places ---------------------------------------------------------------------------------------

    @property
    def _edge(self) -> Path:
        return self.directory / "netns" / "edge"

    def namespace(self, vpc_id: str) -> Path:
        return self.directory / "netns" / vpc_id

    def _files(self, vpc_id: str) -> Path:
        return self.directory / "vpcs" / vpc_id

    def _lock(self, vpc_id: str) -> asyncio.Lock:
        return self._locks.setdefault(vpc_id, asyncio.Lock())

    def logs(self) -> list[str]:
        """Patterns of files that grow: dnsmasq writes a line for each wrong request of a guest."""
        return [str(self.directory / "vpcs" / "*" / "dnsmasq.lock")]

    # --- the interface --------------------------------------------------------------------------------

    async def observe(self) -> frozenset[str]:
        found: set[str] = set()
        for place in (self.directory / "netns", self.directory / "vpcs"):
            if place.is_dir():
                found.update(path.name for path in place.iterdir() if path.name.startswith("vpc-"))
        return frozenset(found)

    async def apply(self, network: NetworkSpec) -> None:
        async with self._lock(network.vpc_id):
            alive = locks.held(self._files(network.vpc_id) / "dnsmasq.lock")
            if self._applied.get(network.vpc_id) == network and alive:
                return
            try:
                await self._ensure_edge()
                await self._ensure_vpc(network)
            except (NetlinkError, subprocess.SubprocessError) as error:
                # What is loaded is not known any more: the next try replaces it whole.
                self._loaded.pop(network.vpc_id, None)
                raise DriverError(f"network {network.vpc_id}: {_said(error)}") from None
            self._applied[network.vpc_id] = network

    async def open_tap(self, network: NetworkSpec, nic: NicSpec) -> int:
        await self.apply(network)
        try:
            return await netns.inside(self.namespace(nic.vpc_id), lambda: _open_tap(nic))
        except NetlinkError as error:
            raise DriverError(f"tap of {nic.interface_id}: {error}") from None

    async def ensure_absent(self, vpc_id: str) -> None:
        async with self._lock(vpc_id):
            place = self._files(vpc_id)
            if not await locks.kill(place / "dnsmasq.lock"):
                raise DriverError(f"dnsmasq of {vpc_id} cannot be killed")
            if netns.exists(self._edge):
                try:
                    await netns.inside(self._edge, lambda: _delete_link(_edge_port(vpc_id)))
                except NetlinkError as error:
                    raise DriverError(f"network {vpc_id}: {error}") from None
            await asyncio.to_thread(netns.remove, self.namespace(vpc_id))
            _remove_files(place)
            self._applied.pop(vpc_id, None)
            self._loaded.pop(vpc_id, None)

    async def reachable(self, network: NetworkSpec, nic: NicSpec) -> bool:
        """ARP, asked from the bridge. Filters of the guest do not matter to it, as to EC2's own check."""
        subnet = next(one for one in network.subnets if one.subnet_id == nic.subnet_id)
        bridge = nftables.bridge_name(nic.subnet_id)

        def ask() -> bool:
            return _arp(bridge, subnet.gateway, nic.address)

        try:
            return await netns.inside(self.namespace(network.vpc_id), ask)
        except OSError:
            return False

    async def remove_all(self) -> None:
        """Every VPC, the edge and what is on the host."""
        for vpc_id in await self.observe():
            await self.ensure_absent(vpc_id)
        await asyncio.to_thread(netns.remove, self._edge)
        await asyncio.to_thread(self._remove_host_side)
        for name in ("netns", "vpcs"):
            _remove_files(self.directory / name)
        self._edge_ready = False

    # --- edge and host --------------------------------------------------------------------------------

    async def _ensure_edge(self) -> None:
        if self._edge_ready and netns.exists(self._edge):
            return
        host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            await asyncio.to_thread(netns.create, self._edge)
            await netns.inside(self._edge, lambda: _make_edge(host, self.link, self.pool, self.uplink))
        finally:
            os.close(host)
        await asyncio.to_thread(self._ensure_host_side)
        self._edge_ready = True

    def _ensure_host_side(self) -> None:
        near, far = _pool_ends(self.pool)
        with IPRoute() as routes:
            index = _index(routes, self.link)
            _address(routes, index, near, 32)
            _set(f"ipv6/conf/{self.link}/disable_ipv6", "1")
            routes.link("set", index=index, state="up")
            routes.route("replace", dst=self.pool, oif=index, gateway=far, prefsrc=near, flags=["onlink"])
        if self.uplink:
            self._keep("ip_forward", Path("/proc/sys/net/ipv4/ip_forward"), "1")
            _nft(nftables.host_uplink(f"haneul_{self.link}", self.link, self.pool))

    def _keep(self, name: str, path: Path, value: str) -> None:
        """Write a setting of the host and remember what it was."""
        saved = self.directory / f"host-{name}"
        if not saved.exists():
            files.replace(saved, path.read_text().encode())
        path.write_text(value)

    def _remove_host_side(self) -> None:
        _delete_link(self.link)
        saved = self.directory / "host-ip_forward"
        if saved.exists():
            table = f"haneul_{self.link}"
            _nft(f"table ip {table}\ndelete table ip {table}\n")
            tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
            if "haneul_" not in tables:  # another haneul may still need it
                Path("/proc/sys/net/ipv4/ip_forward").write_text(saved.read_text())
            saved.unlink()

    # --- one VPC --------------------------------------------------------------------------------------

    async def _ensure_vpc(self, network: NetworkSpec) -> None:
        place = self.namespace(network.vpc_id)
        if not netns.exists(place):
            self._loaded.pop(network.vpc_id, None)
            await asyncio.to_thread(netns.create, place)
        wanted = nftables.ruleset(network)
        loaded = self._loaded.get(network.vpc_id)
        script = nftables.difference(loaded, wanted) if loaded else nftables.whole(wanted)
        port = _edge_port(network.vpc_id)
        before = self._applied.get(network.vpc_id)
        if before is None or before.subnets != network.subnets or _used(before) != _used(network):
            edge = os.open(self._edge, os.O_RDONLY | os.O_CLOEXEC)
            try:
                await netns.inside(place, lambda: _make_vpc(network, edge, port))
            finally:
                os.close(edge)
        if script:
            await netns.inside(place, lambda: _nft(script))
        self._loaded[network.vpc_id] = wanted
        public = sorted(one.public for one in network.interfaces if one.public)
        side = _vpc_side(network.vpc_id)
        await netns.inside(self._edge, lambda: _route_public(port, side, public))
        await self._ensure_dnsmasq(network)

    async def _ensure_dnsmasq(self, network: NetworkSpec) -> None:
        place = self._files(network.vpc_id)
        place.mkdir(parents=True, exist_ok=True)
        for directory in (self.directory, place.parent, place):
            directory.chmod(0o711)
        upstream = _resolv_conf() if self.uplink else None
        command = dnsmasq.command(network, place, upstream)
        written = _write(place / "dhcp", dnsmasq.dhcp_hosts(network)) | _write(place / "hosts", dnsmasq.hosts(network))
        lock = place / "dnsmasq.lock"
        if _read(place / "command") != "\0".join(command):
            await locks.kill(lock)
            _write(place / "command", "\0".join(command))
        if locks.held(lock):
            # After a restart of haneul nobody knows whether dnsmasq was told: it is told again.
            if written or network.vpc_id not in self._applied:
                for pid in await asyncio.to_thread(locks.holders, lock):
                    os.kill(pid, signal.SIGHUP)
            return
        (place / "leases").touch()
        (place / "leases").chmod(0o600)  # dnsmasq opens it while it is still root
        await self._start_dnsmasq(network.vpc_id, command, lock)

    async def _start_dnsmasq(self, vpc_id: str, command: list[str], lock: Path) -> None:
        """dnsmasq closes all descriptors that it inherits but standard error: that is its lock, and its log."""

        def start() -> None:
            descriptor = locks.take(lock)
            if descriptor is None:
                return
            try:
                os.ftruncate(descriptor, 0)
                fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=descriptor,
                    start_new_session=True,
                    cwd="/",
                )
            finally:
                os.close(descriptor)

        await netns.inside(self.namespace(vpc_id), start)
        deadline = time.monotonic() + 5
        while not await netns.inside(self.namespace(vpc_id), _listening):
            if not locks.held(lock) or time.monotonic() > deadline:
                raise DriverError(f"dnsmasq does not run: {lock.read_text()[-500:].strip()}")
            await asyncio.sleep(0.005)


# --- helpers that run inside a namespace --------------------------------------------------------------


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error.cmd[0]} ended with {error.returncode}: {error.stderr.strip()[-800:]}"
    return str(error)


def _edge_port(vpc_id: str) -> str:
    return f"v{nftables.short(vpc_id)}"


def _vpc_side(vpc_id: str) -> str:
    """The VPC's end of its link to the edge: its own, for what the VPC itself asks (upstream DNS)."""
    digest = hashlib.sha256(vpc_id.encode()).digest()
    return f"169.254.{64 + digest[0] % 64}.{1 + digest[1] % 254}"


def _used(network: NetworkSpec) -> set[str]:
    return {one.subnet_id for one in network.interfaces}


def _pool_ends(pool: str) -> tuple[str, str]:
    """The host's address and the edge's: the pool's first two."""
    base = int.from_bytes(socket.inet_aton(pool.partition("/")[0]), "big")
    ends = (socket.inet_ntoa((base + step).to_bytes(4, "big")) for step in (1, 2))
    return next(ends), next(ends)


def _nft(script: str) -> None:
    """One transaction. Raises `CalledProcessError` with what nft said."""
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True, timeout=60)


def _index(routes: Any, name: str) -> int:
    found = routes.link_lookup(ifname=name)
    if not found:
        raise DriverError(f"the interface {name} is not there")
    return int(found[0])


def _delete_link(name: str) -> None:
    with IPRoute() as routes:
        for index in routes.link_lookup(ifname=name):
            try:
                routes.link("del", index=index)
            except NetlinkError as error:
                if error.code != _ENODEV:
                    raise


def _tolerating(code: int, act: Callable[[], object]) -> None:
    try:
        act()
    except NetlinkError as error:
        if error.code != code:
            raise


def _address(routes: Any, index: int, address: str, prefix: int) -> None:
    _tolerating(_EEXIST, lambda: routes.addr("add", index=index, address=address, prefixlen=prefix))


def _set(name: str, value: str) -> None:
    path = Path("/proc/sys/net") / name
    if path.exists():
        path.write_text(value)


def _loopback(routes: Any, *addresses: str) -> None:
    index = _index(routes, "lo")
    routes.link("set", index=index, state="up")
    for address in addresses:
        _address(routes, index, address, 32)


def _no_ipv6() -> None:
    _set("ipv6/conf/all/disable_ipv6", "1")
    _set("ipv6/conf/default/disable_ipv6", "1")


def _make_edge(host: int, link: str, pool: str, uplink: bool) -> None:
    near, far = _pool_ends(pool)
    _router()
    with IPRoute() as routes:
        _loopback(routes)
        if not routes.link_lookup(ifname="host"):
            routes.link("add", ifname="host", kind="veth", peer={"ifname": link, "net_ns_fd": host})
        index = _index(routes, "host")
        _address(routes, index, far, 32)
        routes.link("set", index=index, state="up")
        routes.route("replace", dst=f"{near}/32", oif=index)
        # An address that nobody has must not come back to the host and go round.
        routes.route("replace", dst=pool, type="unreachable", priority=1000)
        if uplink:
            routes.route("replace", dst="default", gateway=near, oif=index, flags=["onlink"])
    _nft(nftables.edge(uplink))


#: A new namespace takes these from the host, whatever they are there.
_STRICT = {
    "send_redirects": "0",
    "accept_redirects": "0",
    "accept_source_route": "0",
    "route_localnet": "0",
    "arp_accept": "0",
    "arp_ignore": "0",
}


def _router() -> None:
    """What the edge and every VPC's namespace are; after `ip_forward`, which sets some of the others anew."""
    _set("ipv4/ip_forward", "1")
    for name, value in _STRICT.items():
        _set(f"ipv4/conf/all/{name}", value)
        _set(f"ipv4/conf/default/{name}", value)
    _no_ipv6()


def _make_vpc(network: NetworkSpec, edge: int, port: str) -> None:
    _router()
    # What the kernel itself answers to a forged frame has that frame's mark, and is dropped for it.
    _set("ipv4/fwmark_reflect", "1")
    # Built-in br_netfilter is on in new namespaces; frames must not meet the IP hooks twice.
    _set("bridge/bridge-nf-call-iptables", "0")
    _set("bridge/bridge-nf-call-arptables", "0")
    with IPRoute() as routes:
        _loopback(routes, METADATA, RESOLVER, TIME, network.resolver)
        if not routes.link_lookup(ifname="ext"):
            routes.link("add", ifname="ext", kind="veth", peer={"ifname": port, "net_ns_fd": edge})
        ext = _index(routes, "ext")
        _address(routes, ext, _vpc_side(network.vpc_id), 32)
        routes.link("set", index=ext, state="up")
        routes.route("replace", dst=f"{_EDGE_SIDE}/32", oif=ext)
        routes.route("replace", dst="default", gateway=_EDGE_SIDE, oif=ext, flags=["onlink"])
        for subnet in dnsmasq.subnets_here(network):
            _make_bridge(routes, nftables.bridge_name(subnet.subnet_id), subnet.gateway, subnet.cidr)


def _make_bridge(routes: Any, name: str, gateway: str, cidr: str) -> None:
    if not routes.link_lookup(ifname=name):
        mac = "02:00:" + ":".join(f"{byte:02x}" for byte in socket.inet_aton(gateway))
        routes.link("add", ifname=name, kind="bridge", address=mac, br_forward_delay=0, br_stp_state=0)
        routes.link("set", ifname=name, kind="bridge", br_mcast_snooping=0)  # guests' IGMP is not listened to
    index = _index(routes, name)
    _address(routes, index, gateway, int(cidr.rpartition("/")[2]))
    routes.link("set", index=index, state="up")
    _set(f"ipv4/conf/{name}/proxy_arp_pvlan", "1")
    _set(f"ipv4/neigh/{name}/proxy_delay", "0")
    _set(f"ipv4/conf/{name}/send_redirects", "0")


def _route_public(port: str, side: str, wanted: list[str]) -> None:
    """The edge's /32 routes into one VPC are exactly `wanted`."""
    with IPRoute() as routes:
        index = _index(routes, port)
        _address(routes, index, _EDGE_SIDE, 32)
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


def _open_tap(nic: NicSpec) -> int:
    """Guarded before it is up: the ruleset knows the port by its name already."""
    name = nftables.tap_name(nic.interface_id)
    with IPRoute() as routes:
        for index in routes.link_lookup(ifname=name):
            routes.link("del", index=index)  # left by a machine that is ending
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            index = _index(routes, name)
            _set(f"ipv6/conf/{name}/disable_ipv6", "1")
            # Frames to 01:80:c2:00:00:0e pass the bridge and its guard by: no ARP answers them on the port itself.
            routes.link("set", index=index, arp=False)
            routes.link("set", index=index, master=_index(routes, nftables.bridge_name(nic.subnet_id)))
            # A port is told its MAC and learns none: such a frame would teach it, and so draw another's traffic.
            routes.brport("set", index=index, isolated=1, learning=0, unicast_flood=0, mcast_flood=0)
            # Permanent: who has another tap's descriptor may give that port this MAC, and the bridge would believe it.
            routes.fdb("append", ifindex=index, lladdr=nic.mac, state=_NUD_PERMANENT, flags=_NTF_MASTER)
            routes.link("set", index=index, state="up")
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def dangling_tap() -> int:
    """A tap descriptor like any other that leads nowhere: in a namespace that ends with it."""
    box: list[int] = []

    def work() -> None:
        netns.leave_for_nowhere()
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"tap", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        box.append(descriptor)

    netns.in_new_thread(work)
    return box[0]


def _listening() -> bool:
    """Whether somebody has bound the DNS port of this namespace."""
    with open("/proc/thread-self/net/udp") as table:
        return any(line.split()[1].endswith(":0035") for line in list(table)[1:])


def _arp(interface: str, sender: str, wanted: str, timeout: float = 0.3) -> bool:
    """Whether anybody says that it has `wanted` (RFC 826)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0806)) as link:
        link.bind((interface, 0x0806))
        mac = link.getsockname()[4]
        head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        query = head + mac + socket.inet_aton(sender) + b"\0" * 6 + socket.inet_aton(wanted)
        link.sendto(query, (interface, 0x0806, 0, 1, b"\xff" * 6))
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            link.settimeout(left)
            try:
                answer = link.recv(64)
            except TimeoutError:
                break
            if len(answer) >= 28 and answer[6:8] == b"\0\2" and answer[14:18] == socket.inet_aton(wanted):
                return True
    return False


# --- files --------------------------------------------------------------------------------------------


def _resolv_conf() -> Path | None:
    """A file that names a resolver which is not on the host's loopback, where no VPC can reach it."""
    for path in (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf")):
        servers = [line.split()[1] for line in _read(path).splitlines() if line.startswith("nameserver ")]
        if servers and not all(one.startswith(("127.", "::1")) for one in servers):
            return path
    return None


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _write(path: Path, text: str) -> bool:
    """Says whether it changed."""
    if path.exists() and path.read_text() == text:
        return False
    # dnsmasq reads it again as nobody, on SIGHUP: it has its group from the moment it is there.
    files.replace(path, text.encode(), 0o640, group=grp.getgrnam(dnsmasq.GROUP).gr_gid)
    return True


def _remove_files(directory: Path) -> None:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_dir():
            _remove_files(path)
        else:
            path.unlink(missing_ok=True)
    directory.rmdir()
