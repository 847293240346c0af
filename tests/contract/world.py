"""Two VPCs whose guests are taps in the test's own hands: an attacker, its victims, and the host that all are on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from haneul.drivers.networks.linux import nftables
from haneul.drivers.networks.linux.driver import BridgeNetworks
from haneul.linux import netns
from haneul.model.assignment import GroupSpec, InterfaceSpec, NetworkSpec, NicSpec, SubnetSpec
from haneul.model.network import Rule
from tests.contract.wire import Port, payload_of

DIRECTORY = Path("/run/haneul-frames")
POOL = "198.18.6.0/23"
#: The host's end of its link to the edge.
HOST = "198.18.6.1"
EXTRA = ("10.99.0.1", "192.0.2.1")
OPEN, SSH, HOST_PORT = 7777, 22, 8080
ALL_OUT = Rule("egress", "-1", -1, -1, "0.0.0.0/0")


def _subnet(number: int, third: int) -> SubnetSpec:
    return SubnetSpec(f"subnet-{number:017x}", f"10.0.{third}.0/20", f"10.0.{third}.1")


def _group(number: int, *rules: Rule) -> GroupSpec:
    return GroupSpec(f"sg-{number:017x}", (ALL_OUT, *rules), ())


def _interface(number: int, subnet: SubnetSpec, address: str, public: str, group: GroupSpec) -> InterfaceSpec:
    names = (f"ip-{address.replace('.', '-')}.ec2.internal",)
    mac = f"06:00:00:00:00:{number:02x}"
    return InterfaceSpec(
        f"eni-{number:017x}", subnet.subnet_id, mac, address, public, (group.group_id,), names, (f"public-{number}",)
    )


FIRST, SECOND = _subnet(0xA1, 0), _subnet(0xA2, 16)
ELSEWHERE = _subnet(0xA3, 0)
_CLOSED = _group(0xB1)
_FROM_C = _group(
    0xB2, Rule("ingress", "tcp", SSH, SSH, "10.0.16.12/32"), Rule("ingress", "udp", OPEN, OPEN, "10.0.16.12/32")
)
_FROM_B = _group(0xB3, Rule("ingress", "udp", OPEN, OPEN, "10.0.0.11/32"))
_FROM_HOST = _group(0xB4, Rule("ingress", "udp", OPEN, OPEN, f"{HOST}/32"))
A = _interface(0xA, FIRST, "10.0.0.10", "198.18.6.10", _CLOSED)
B = _interface(0xB, FIRST, "10.0.0.11", "198.18.6.11", _FROM_C)
C = _interface(0xC, SECOND, "10.0.16.12", "", _FROM_B)
TAP = nftables.tap_name(A.interface_id)
#: Another VPC, with B's address.
D = _interface(0xD, ELSEWHERE, "10.0.0.11", "198.18.6.13", _FROM_HOST)
VPC = NetworkSpec(
    "vpc-000000000000000a1",
    "10.0.0.0/16",
    "ec2.internal",
    "10.0.0.2",
    (FIRST, SECOND),
    (A, B, C),
    (_CLOSED, _FROM_C, _FROM_B),
)
OTHER_VPC = NetworkSpec(
    "vpc-000000000000000a2", "10.0.0.0/16", "ec2.internal", "10.0.0.2", (ELSEWHERE,), (D,), (_FROM_HOST,)
)


def gateway_mac(gateway: str) -> str:
    return "02:00:" + socket.inet_aton(gateway).hex(":")


def why_not() -> str:
    """Why this process may not make namespaces and links; empty if it may."""
    if os.geteuid() != 0 or {name for _, name in socket.if_nameindex()} - {"lo"} or shutil.which("dnsmasq") is None:
        return "namespaces need root and a network of their own: run `make test`"
    return ""


def sh(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass
class Host:
    """Everything that could notice a guest's packet on the host."""

    sniffer: socket.socket
    listeners: list[socket.socket]
    packets: list[bytes] = field(default_factory=list)

    def heard(self, marker: bytes) -> list[bytes]:
        """Packets with the marker on any link of the host, since the beginning."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (link, *_) = self.sniffer.recvfrom(70000)
                self.packets.append(f"{link}: ".encode() + packet)
        return [packet for packet in self.packets if marker in packet]

    def received(self) -> list[str]:
        """What came to the listening sockets."""
        found = []
        for one in self.listeners:
            with contextlib.suppress(BlockingIOError):
                if one.type == socket.SOCK_STREAM:
                    found.append(f"TCP connection from {one.accept()[1]}")
                else:
                    data, peer = one.recvfrom(70000)
                    found.append(f"UDP {data[:40]!r} from {peer}")
        return found


@dataclass
class World:
    networks: BridgeNetworks
    a: Port
    b: Port
    c: Port
    d: Port
    host: Host
    checked: bool = True

    def inside(self, *command: str, vpc: str = VPC.vpc_id) -> str:
        return sh("nsenter", f"--net={DIRECTORY / 'netns' / vpc}", *command)

    @property
    def victims(self) -> list[Port]:
        return [self.b, self.c, self.d]

    def settle(self) -> None:
        """Everything that A has sent so far has arrived, where it was going to: what was sent later has."""
        self.exchange()
        self.from_host()

    def exchange(self, marker: bytes = b"CTRL") -> None:
        """B and C send each other what their groups allow. Raises if it does not come, whole, to them alone."""
        for sender, receiver in ((self.c, self.b), (self.b, self.c)):
            text = marker + os.urandom(6).hex().encode()
            arrived = None
            deadline = time.monotonic() + 5
            while arrived is None and time.monotonic() < deadline:  # a first packet may wait for ARP in vain
                sender.put_udp(receiver.address, 4000, OPEN, text)
                self.a.drain()
                arrived = receiver.until(lambda frame: payload_of(frame, sender.address, OPEN) == text, 1.0)  # noqa: B023
            assert arrived is not None, f"{receiver.name} did not get what it lets in from {sender.name}"
            self.a.drain()
            assert not any(text in frame for frame in self.a.heard), f"A got what {sender.name} sent {receiver.name}"

    def from_host(self) -> None:
        """The host and D talk to each other, as D's group allows."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind((HOST, 0))
            asking.settimeout(5)
            text = b"HOST" + os.urandom(6).hex().encode()
            asking.sendto(text, (self.d.public, OPEN))
            assert self.d.until(lambda frame: payload_of(frame, HOST, OPEN) == text), "D did not hear the host"
            self.d.put_udp(HOST, OPEN, asking.getsockname()[1], b"back" + text)
            assert asking.recv(100) == b"back" + text
            assert self.host.heard(b"back" + text), "the sniffer hears what comes to the host"


def _listeners() -> list[socket.socket]:
    out = []
    for kind, port in ((socket.SOCK_DGRAM, HOST_PORT), (socket.SOCK_STREAM, HOST_PORT), (socket.SOCK_DGRAM, 53)):
        one = socket.socket(socket.AF_INET, kind)
        one.bind(("0.0.0.0", port))
        if kind == socket.SOCK_STREAM:
            one.listen(64)
        one.setblocking(False)
        out.append(one)
    return out


def _host() -> Host:
    sh("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    for name in ("lo", "lan0", "lan1"):
        sh("ip", "link", "set", name, "up")
    sh("ip", "addr", "add", f"{EXTRA[0]}/32", "dev", "lo")
    sh("ip", "addr", "add", f"{EXTRA[1]}/24", "dev", "lan0")
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sniffer.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: nothing is missed
    sniffer.setblocking(False)
    return Host(sniffer, _listeners())


def _knock(host: Host) -> None:
    """The listeners hear what is sent to any address of the host."""
    for address in (HOST, *EXTRA):
        socket.create_connection((address, HOST_PORT)).close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"knock", (address, HOST_PORT))
        assert len(host.received()) == 2, address


def nic(one: InterfaceSpec, vpc: NetworkSpec = VPC) -> NicSpec:
    return NicSpec(one.interface_id, vpc.vpc_id, one.subnet_id, one.mac, one.address)


async def _ports(networks: BridgeNetworks, vpc: NetworkSpec) -> list[Port]:
    gateways = {one.subnet_id: one.gateway for one in vpc.subnets}
    out = []
    for one in vpc.interfaces:
        await networks.apply(vpc, 1)
        descriptor = await networks.open_tap(nic(one, vpc))
        gateway = gateways[one.subnet_id]
        name = one.interface_id[-1].upper()
        out.append(Port(name, descriptor, one.mac, one.address, gateway, gateway_mac(gateway), one.public))
    return out


def _metadata(world: World) -> socket.socket:
    """What listens on the metadata address, for the time being: somebody has to."""

    def listen() -> socket.socket:
        one = socket.create_server(("169.254.169.254", 80), backlog=64)
        one.setblocking(False)
        return one

    return netns.call(DIRECTORY / "netns" / VPC.vpc_id, listen)


@contextmanager
def make(source_dest_check: bool = True, uplink: bool = False) -> Iterator[World]:
    """The world. A's own check can be off: then it may send from other addresses."""
    networks = BridgeNetworks(DIRECTORY, "fr", POOL, uplink=uplink)
    attacker = replace(A, source_dest_check=source_dest_check)
    vpc = replace(VPC, interfaces=(attacker, B, C))
    host = _host()
    ports: list[Port] = []
    try:

        async def build() -> None:
            ports.extend(await _ports(networks, vpc))
            ports.extend(await _ports(networks, OTHER_VPC))

        asyncio.run(build())
        world = World(networks, *ports, host, source_dest_check)
        with _metadata(world):
            world.settle()
            _knock(host)
            yield world
    finally:
        for one in ports:
            os.close(one.descriptor)
        for one in (host.sniffer, *host.listeners):
            one.close()
        asyncio.run(networks.remove_all())
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        sh("ip", "link", "del", "lan0")
        sh("ip", "addr", "del", f"{EXTRA[0]}/32", "dev", "lo")


def leases() -> str:
    return (DIRECTORY / "vpcs" / VPC.vpc_id / "leases").read_text()
