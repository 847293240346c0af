"""VPCs on Linux: a namespace for each, a bridge per subnet with isolated ports, nftables, dnsmasq.

Everything is in namespaces of haneul's own. On the host there is one veth with one address and one route to the
pool of public addresses. In between stands the *edge*, a namespace that routes between the host and the VPCs:

    host ── hnXX ═ host [edge] v… ═ ext [VPC] br… ── tap (isolated) ── guest

Ports are isolated, so that frames inside a subnet too are routed by the bridge (`proxy_arp_pvlan`) and meet the
ordinary forward hook; br_netfilter is never loaded, it would filter other people's bridges.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from haneul.drivers.interface import DriverError
from haneul.drivers.networks.linux import nftables
from haneul.drivers.networks.linux.asking import arp
from haneul.drivers.networks.linux.dnsmasq_process import DnsmasqProcess
from haneul.drivers.networks.linux.edge import Edge, edge_port
from haneul.drivers.networks.linux.links import Links
from haneul.drivers.networks.linux.netlink import Generation, load_nft
from haneul.drivers.networks.linux.taps import open_tap
from haneul.drivers.networks.linux.vpc import make_vpc, present_side, used
from haneul.linux import files, locks, netns
from haneul.model.assignment import NetworkSpec, NicSpec

log = logging.getLogger(__name__)


class BridgeNetworks:
    """`directory` is on a file system that a reboot empties (below /run), as all that it describes is."""

    def __init__(self, directory: Path, tag: str, pool: str, uplink: bool) -> None:
        self.directory = directory
        self.uplink = uplink
        self.edge = Edge(directory, f"hn{tag}", pool, uplink)
        self._links = Links(directory / "links.json")
        self._applied: dict[str, NetworkSpec] = {}
        self._revisions: dict[str, int] = {}
        #: VPCs of which a try to apply has not come to its end.
        self._unsure: set[str] = set()
        self._loaded: dict[str, _Loaded] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    # --- places ---------------------------------------------------------------------------------------

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

    async def apply(self, network: NetworkSpec, revision: int) -> None:
        async with self._lock(network.vpc_id):
            if revision < self._revisions.get(network.vpc_id, revision):
                return
            self._revisions[network.vpc_id] = revision
            try:
                if await self.edge.ensure():
                    self._unsure.update(self._applied)  # their ports went with the old one
                if not await self._is_as_applied(network):
                    await self._ensure_vpc(network)
            except (NetlinkError, subprocess.SubprocessError) as error:
                raise DriverError(f"network {network.vpc_id}: {_said(error)}") from None
            self._applied[network.vpc_id] = network
            self._unsure.discard(network.vpc_id)

    async def _is_as_applied(self, network: NetworkSpec) -> bool:
        """Whether this value was applied, and nobody has changed the namespace's rules or ended its dnsmasq since."""
        known = self._known(network.vpc_id)
        if known is None or (known is not network and known != network):
            return False
        loaded = self._loaded.get(network.vpc_id)
        if loaded is None or not netns.exists(self.namespace(network.vpc_id)) or loaded.has_changed():
            self._forget_loaded(network.vpc_id)
            self._applied.pop(network.vpc_id, None)
            return False
        return self._dnsmasq(network).is_alive

    def _known(self, vpc_id: str) -> NetworkSpec | None:
        """The value that is in force, if all of it is: a try that ended early leaves something of both values."""
        if vpc_id not in self._unsure:
            return self._applied.get(vpc_id)
        self._forget_loaded(vpc_id)
        return None

    async def open_tap(self, nic: NicSpec) -> int:
        if nic.vpc_id not in self._applied:
            raise DriverError(f"{nic.vpc_id} is not here yet")
        try:
            return await netns.inside(self.namespace(nic.vpc_id), lambda: open_tap(nic))
        except NetlinkError as error:
            raise DriverError(f"tap of {nic.interface_id}: {error}") from None

    async def ensure_absent(self, vpc_id: str) -> None:
        async with self._lock(vpc_id):
            place = self._files(vpc_id)
            if not await locks.kill(place / "dnsmasq.lock"):
                raise DriverError(f"dnsmasq of {vpc_id} cannot be killed")
            try:
                await self.edge.remove_port(vpc_id)
            except NetlinkError as error:
                raise DriverError(f"network {vpc_id}: {error}") from None
            await asyncio.to_thread(netns.remove, self.namespace(vpc_id))
            files.remove_tree(place)
            self._links.free(vpc_id)
            self._applied.pop(vpc_id, None)
            self._unsure.discard(vpc_id)
            self._forget_loaded(vpc_id)

    def _forget_loaded(self, vpc_id: str) -> None:
        if (loaded := self._loaded.pop(vpc_id, None)) is not None:
            loaded.close()

    async def reachable(self, nic: NicSpec) -> bool:
        """ARP, asked from the bridge. Filters of the guest do not matter to it, as to EC2's own check."""
        network = self._applied.get(nic.vpc_id)
        if network is None:
            return False
        subnet = next(one for one in network.subnets if one.subnet_id == nic.subnet_id)
        bridge = nftables.bridge_name(nic.subnet_id)

        def ask() -> bool:
            return arp(bridge, subnet.gateway, nic.address)

        try:
            return await netns.inside(self.namespace(network.vpc_id), ask)
        except OSError:
            return False

    async def remove_all(self) -> None:
        """Every VPC, the edge and what is on the host."""
        for vpc_id in await self.observe():
            await self.ensure_absent(vpc_id)
        await self.edge.remove()
        self._links.forget()
        for name in ("netns", "vpcs"):
            files.remove_tree(self.directory / name)

    # --- one VPC --------------------------------------------------------------------------------------

    async def _ensure_vpc(self, network: NetworkSpec) -> None:
        vpc_id, place = network.vpc_id, self.namespace(network.vpc_id)
        if not netns.exists(place):
            self._forget_loaded(vpc_id)
            await asyncio.to_thread(netns.create, place)
        before = self._known(vpc_id)
        self._unsure.add(vpc_id)
        loaded = self._loaded.get(vpc_id)
        wanted = nftables.ruleset(network, (before, loaded.ruleset) if before and loaded else None)
        script = nftables.difference(loaded.ruleset, wanted) if loaded else nftables.whole(wanted)
        side = self._links.of(vpc_id) or self._links.allocate(vpc_id, await netns.inside(place, present_side))
        if before is None or before.subnets != network.subnets or used(before) != used(network):
            with self.edge.opened() as edge:
                await netns.inside(place, lambda: make_vpc(network, edge, edge_port(vpc_id), side))
        if script:
            await netns.inside(place, lambda: load_nft(script))
        if script or loaded is None:
            self._forget_loaded(vpc_id)
            self._loaded[vpc_id] = _Loaded(wanted, await netns.inside(place, Generation))
        else:
            self._loaded[vpc_id] = replace(loaded, ruleset=wanted)
        dnsmasq = self._dnsmasq(network)
        if before is None or replace(before, groups=network.groups) != network or not dnsmasq.is_alive:
            await self.edge.route(vpc_id, side, sorted(one.public for one in network.interfaces if one.public))
            await dnsmasq.ensure(told=before is not None)

    def _dnsmasq(self, network: NetworkSpec) -> DnsmasqProcess:
        return DnsmasqProcess(network, self._files(network.vpc_id), self.namespace(network.vpc_id), self.uplink)


@dataclass(frozen=True)
class _Loaded:
    """What was loaded into a VPC's namespace, and the kernel's count of changes then."""

    ruleset: nftables.Ruleset
    generation: Generation

    def has_changed(self) -> bool:
        return self.generation.has_changed()

    def close(self) -> None:
        self.generation.close()


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error.cmd[0]} ended with {error.returncode}: {error.stderr.strip()[-800:]}"
    return str(error)
