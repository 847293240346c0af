"""A seeded source of frames that a guest should not get through with: every one carries a mark and a number."""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import dataclass, field

from tests.contract import wire
from tests.contract.wire import BROADCAST, IPV4, IPV6, Port
from tests.contract.world import EXTRA, HOST, HOST_PORT, OPEN, SSH, TAP, World

MARK = b"ESC!"
_STP, _PAUSE, _LLDP, _GVRP = (f"01:80:c2:00:00:{end}" for end in ("00", "01", "0e", "0d"))
_MULTICAST = "01:00:5e:00:00:fb"
_OTHER_TYPES = (0x8847, 0x8848, 0x8863, 0x8864, 0x88E5, 0x88CC, 0x9000, 0x88F7, 0x8809, 0x0842, 0x6558, 0x1234)
#: Ports that the groups let in, from the right sender: a spoofed source could be let in rightly where the guest
#: may send from other addresses.
_LET_IN = (SSH, OPEN)


@dataclass
class Frames:
    """Frames of A's against everybody else."""

    world: World
    seed: int
    made: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        a, b, c, d = self.world.a, self.world.b, self.world.c, self.world.d
        tap = self.world.inside("ip", "-o", "link", "show", "dev", TAP).split("link/ether ")[1].split()[0]
        self.macs_from = [a.mac] * 6 + [b.mac, c.mac, a.gateway_mac, tap, BROADCAST, _MULTICAST, "00:00:00:00:00:00"]
        self.macs_to = [a.gateway_mac] * 6 + [c.gateway_mac, b.mac, c.mac, tap, BROADCAST, _MULTICAST, a.mac]
        self.macs_to += [_STP, _PAUSE, _LLDP, _GVRP, "33:33:00:00:00:01", "00:00:00:00:00:00"]
        people = [b.address, c.address, b.public, d.public, "198.18.6.99"]
        local = [a.gateway, c.gateway, "10.0.0.2", "169.254.169.254", "169.254.169.253", "169.254.255.1"]
        local += [self._side(), "169.254.1.1", "127.0.0.1", "0.0.0.0"]
        hosts = [HOST, "198.18.6.2", *EXTRA]
        many = ["255.255.255.255", "10.0.15.255", "10.0.0.0", "224.0.0.1", "224.0.0.251", "239.255.255.250"]
        self.from_addresses = [a.address] * 8 + [*people, *local, *hosts, *many, a.public, "8.8.8.8", "10.0.9.9"]
        self.to_addresses = people * 3 + hosts * 2 + local + many + [a.address, a.public, "8.8.8.8", "10.0.9.9"]

    def _side(self) -> str:
        """The VPC's own address on its link to the edge."""
        out = self.world.inside("ip", "-4", "-o", "addr", "show", "dev", "ext")
        return out.split(" inet ")[1].split("/")[0]

    # --- the whole ------------------------------------------------------------------------------------

    def one(self) -> tuple[bytes, bytes]:
        """(virtio-net header, frame)."""
        number = sum(self.made.values())
        mark = MARK + struct.pack("!I", number)
        makers = {
            "ip": (50, self._ip_frame),
            "arp": (14, self._arp_frame),
            "dhcp": (10, self._dhcp_frame),
            "ipv6": (7, self._ipv6_frame),
            "tagged": (9, self._tagged),
            "other": (6, self._other),
            "noise": (4, self._noise),
        }
        (kind,) = self.random.choices(list(makers), [weight for weight, _ in makers.values()])
        self.made[kind] += 1
        return self._header(), makers[kind][1](mark)

    def _pick(self, values: list[str]) -> str:
        return self.random.choice(values)

    def _header(self) -> bytes:
        """Mostly no offload; sometimes one that makes no sense (linux/virtio_net.h)."""
        if self.random.random() < 0.85:
            return wire.PLAIN
        number = self.random.randrange
        kinds = (0, 1, 3, 4, 5, 0x81, 0x84, self.random.randrange(256))
        head = struct.pack("<BBH", number(8), self.random.choice(kinds), number(200))
        return head + struct.pack("<HHH", number(3000), number(1600), number(70000) & 0xFFFF)

    # --- link layer -------------------------------------------------------------------------------------

    def _ether(self, kind: int, payload: bytes) -> bytes:
        return wire.ether(self._pick(self.macs_to), self._pick(self.macs_from), kind, payload)

    def _ip_frame(self, mark: bytes) -> bytes:
        return self._ether(IPV4, self._ip(mark))

    def _arp_frame(self, mark: bytes) -> bytes:
        """Questions, answers, announcements and probes, for and about others. The mark is what pads the frame."""
        target = self._pick(self.to_addresses)
        sender = self.random.choice([self._pick(self.from_addresses), target])
        body = wire.arp(
            self.random.choice((1, 1, 2, 2, 3, 8, 9)),
            self._pick(self.macs_from), sender, self._pick(self.macs_to), target,
            source=self._pick(self.macs_from), destination=self._pick(self.macs_to),
        )  # fmt: skip
        return body + mark + bytes(18)

    def _tagged(self, mark: bytes) -> bytes:
        """802.1Q and QinQ around IPv4, ARP or a DHCP message; the null identifier is a priority only."""
        inner = self.random.choice((self._ip_frame, self._arp_frame, self._dhcp_frame))(mark)
        tags = b""
        for kind in self.random.choice(((0x8100,), (0x88A8, 0x8100), (0x8100, 0x8100), (0x9100,))):
            tags += struct.pack("!HH", kind, self.random.choice((0, 0, 1, 2, 4095, 0xE000)))
        return inner[:12] + tags + inner[12:]

    def _other(self, mark: bytes) -> bytes:
        if self.random.random() < 0.3:  # 802.3: a length and LLC instead of a type
            return self._ether(self.random.randrange(1500), b"\xaa\xaa\x03\0\0\0\x08\0" + mark + self._ip(mark))
        around = {0x8847: bytes(4), 0x8864: b"\x11\0\0\1\0\x40\0\x21", 0x88E5: bytes(14)}
        kind = self.random.choice(_OTHER_TYPES)
        return self._ether(kind, around.get(kind, b"") + self._ip(mark) + mark)

    def _noise(self, mark: bytes) -> bytes:
        """Cut short, or very long."""
        frame = self._ip_frame(mark)
        if self.random.random() < 0.5:
            return frame[: self.random.randrange(len(frame))]
        return frame + mark * self.random.choice((500, 2000, 16000))

    # --- IPv6 -------------------------------------------------------------------------------------------

    def _ipv6_frame(self, mark: bytes) -> bytes:
        """Router and neighbour advertisements, DHCPv6, mDNS, echo."""
        kind, body = self.random.choice(
            (
                (58, struct.pack("!BBHI", 134, 0, 0, 0x40000708) + bytes(8) + mark),
                (58, struct.pack("!BBHI", 135, 0, 0, 0) + bytes(16) + mark),
                (58, struct.pack("!BBHI", 136, 0, 0, 0x60000000) + bytes(16) + mark),
                (58, struct.pack("!BBHI", 128, 0, 0, 1) + mark),
                (17, struct.pack("!HHHH", 547, 546, 16, 0) + mark),
                (17, struct.pack("!HHHH", 5353, 5353, 16, 0) + mark),
            )
        )
        ends = (b"\xfe\x80" + bytes(13) + b"\1", b"\xff\x02" + bytes(13) + b"\1", bytes(15) + b"\1", bytes(16))
        head = struct.pack("!IHBB", 6 << 28, len(body), kind, self.random.choice((1, 255)))
        return self._ether(IPV6, head + self.random.choice(ends) + self.random.choice(ends) + body)

    # --- DHCP -------------------------------------------------------------------------------------------

    def _dhcp_frame(self, mark: bytes) -> bytes:
        """As another's client, as a relay, and as a server."""
        a, b = self.world.a, self.world.b
        client = self.random.random() < 0.7
        chaddr = self._pick([b.mac, b.mac, self.world.c.mac, a.gateway_mac, BROADCAST, *([] if client else [a.mac])])
        options = wire.option(54, bytes([10, 0, 0, 1])) + wire.option(50, bytes([10, 0, 0, 11]))
        options += wire.option(61, b"\1" + wire.mac_bytes(b.mac)) + wire.option(12, b"ip-10-0-0-11") + mark
        text = wire.dhcp(
            self.random.choice((1, 3, 4, 7, 8) if client else (2, 5, 6)), chaddr, mark[4:],
            operation=1 if client else 2, broadcast=self.random.random() < 0.5, options=options,
            own=self._pick(["0.0.0.0", a.address, b.address]), given=self._pick(["0.0.0.0", b.address, "10.0.9.9"]),
            relay=self._pick(["0.0.0.0", "0.0.0.0", b.address, self.world.c.gateway]),
        )  # fmt: skip
        ports = (68, 67) if client else (67, 68)
        source = self._pick(["0.0.0.0", a.address] if client else [a.address, a.gateway, "169.254.169.254"])
        target = self._pick(["255.255.255.255", a.gateway, b.address, "10.0.0.2"])
        return self._ether(IPV4, wire.ip(source, target, 17, wire.udp(source, target, *ports, text)))

    # --- IPv4 -------------------------------------------------------------------------------------------

    def _ip(self, mark: bytes) -> bytes:
        source, target = self._pick(self.from_addresses), self._pick(self.to_addresses)
        protocol, payload = self._transport(source, target, mark)
        change = self.random.random()
        options: dict[str, object] = {"number": self.random.randrange(65536)}
        if change < 0.08:
            options["options"] = self._route_option()
        elif change < 0.16:
            # The first, a middle, an overlapping and the last piece, of what cannot be whole.
            options["fragment"] = self.random.choice((0x2000, 0x2001, 0x2002, 1, 3, 0x1FFF, 0x4000, 0x8000))
            payload = payload[: self.random.choice((8, 16, 24, len(payload)))] + mark
        elif change < 0.22:
            options["ttl"] = self.random.choice((0, 1, 1, 2))
        elif change < 0.26:
            options["sum_offset"] = self.random.randrange(1, 65535)
        elif change < 0.30:
            options["length"] = self.random.choice((0, 10, 20, 28, 1400, 65535))
        elif change < 0.32:
            options["version"] = self.random.choice((0, 5, 6, 15))
        return wire.ip(source, target, protocol, payload, **options)  # type: ignore[arg-type]

    def _route_option(self) -> bytes:
        """Loose and strict source route, record route, timestamp, router alert, and what is no option."""
        hop = bytes(int(part) for part in self._pick(self.to_addresses).split("."))
        kind = self.random.choice((0x83, 0x89, 0x07, 0x44, 0x94, 0x86, 0xFF))
        return bytes([kind, self.random.choice((7, 11, 3, 40)), 4]) + hop + hop

    def _transport(self, source: str, target: str, mark: bytes) -> tuple[int, bytes]:
        kind = self.random.choice(("icmp", "error", "tcp", "tcp", "udp", "udp", "udp", "tunnel", "rare"))
        if kind == "icmp":
            rest = struct.pack("!HH", self.random.randrange(65536), 1)
            return 1, wire.icmp(self.random.choice((8, 0, 13, 17, 10, 9, 5)), 0, rest, mark * 4)
        if kind == "error":
            return 1, self._error(mark)
        if kind == "tcp":
            flags = self.random.choice((2, 0x10, 0x12, 4, 0x14, 1, 0x29, 0, 0x3F))
            return 6, wire.tcp(source, target, *self._ports(), flags, mark, ack=self.random.randrange(1 << 32))
        if kind == "udp":
            return 17, wire.udp(source, target, *self._ports(), mark * 3)
        if kind == "tunnel":
            inner = wire.ip(self.world.c.address, self.world.b.address, 17, wire.udp(
                self.world.c.address, self.world.b.address, 4000, OPEN, mark))  # fmt: skip
            return self.random.choice(((4, inner), (47, struct.pack("!HH", 0, IPV4) + inner), (41, inner), (94, inner)))
        return self.random.choice((2, 50, 51, 88, 89, 103, 112, 132, 136, 255, 0)), mark * 4

    def _ports(self) -> tuple[int, int]:
        source = self.random.choice((40000 + self.random.randrange(9999), 53, 67, 68, 80, 4000, OPEN, SSH))
        target = self.random.choice((53, 67, 68, 69, 80, 443, 1900, 5353, HOST_PORT, 8443, 4000, 1))
        return source, target

    def _error(self, mark: bytes) -> bytes:
        """Unreachable, too big, redirect, time exceeded: about flows that others have."""
        b, c = self.world.b, self.world.c
        one, other = self.random.choice(((b, c), (c, b)))
        inner = wire.ip(one.address, other.address, 17, wire.udp(one.address, other.address, 4000, OPEN, mark * 2))
        kind, code = self.random.choice(((3, 1), (3, 3), (3, 4), (5, 0), (5, 1), (11, 0), (11, 1), (12, 0), (4, 0)))
        return wire.icmp(kind, code, bytes([*([0, 0, 2, 40] if code == 4 else [10, 0, 0, 10])]), inner)


def ask_for_lease(port: Port) -> bytes:
    """A whole DHCP exchange of a port's own; its acknowledgement. Raises if there is none."""
    xid = wire.checksum(port.address.encode()).to_bytes(2, "big") + b"ok"

    def exchange(kind: int, options: bytes, expected: int) -> bytes:
        identifier = wire.option(61, b"\1" + wire.mac_bytes(port.mac))
        text = wire.dhcp(kind, port.mac, xid, options=identifier + options)
        packet = wire.ip("0.0.0.0", "255.255.255.255", 17, wire.udp("0.0.0.0", "255.255.255.255", 68, 67, text))
        for _ in range(3):
            port.put(wire.ether(BROADCAST, port.mac, IPV4, packet))
            answer = port.until(lambda frame: xid in frame and bytes([53, 1, expected]) in frame, 2.0)
            if answer is not None:
                return answer
        raise AssertionError(f"{port.name} got no answer to its DHCP message {kind}")

    exchange(1, b"", 2)
    return exchange(3, wire.option(50, bytes(int(part) for part in port.address.split("."))), 5)


def renew_lease(port: Port) -> bool:
    """What a client says when half of the time is over, from its own address to the server's."""
    text = wire.dhcp(3, port.mac, b"anew", own=port.address)
    port.put_udp(port.gateway, 68, 67, text)
    return port.until(lambda frame: b"anew" in frame and bytes([53, 1, 5]) in frame) is not None
