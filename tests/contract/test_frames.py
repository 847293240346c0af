"""A guest with root can put any frame on its port. None gets to anybody whose security groups do not ask for it.

The test holds the taps itself, as QEMU does. Each test counts what it tried, and proves afterwards that what must
arrive still does.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.contract import wire, world
from tests.contract.attack import MARK, Frames, ask_for_lease, renew_lease
from tests.contract.wire import BROADCAST, IPV4, Port, payload_of
from tests.contract.world import HOST_PORT, OPEN, World

Tally = Callable[[str], None]
FRAMES = 20_000
BATCH = 25


@pytest.fixture(params=["checked", "router"])
def any_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A with and without its source/destination check."""
    if why := world.why_not():
        pytest.skip(why)
    with world.make(source_dest_check=request.param == "checked") as made:
        yield made


@pytest.fixture
def checked() -> Iterator[World]:
    if why := world.why_not():
        pytest.skip(why)
    with world.make() as made:
        yield made


@pytest.fixture
def router() -> Iterator[World]:
    if why := world.why_not():
        pytest.skip(why)
    with world.make(source_dest_check=False) as made:
        yield made


def _neighbours(found: World) -> set[str]:
    """Who is where, as the VPC's kernel believes; A's own entries are its own affair."""
    lines = found.inside("ip", "neigh", "show").splitlines()
    lines = [line for line in lines if " dev br" in line]
    known = {" ".join(line.split()[:5]) for line in lines if "lladdr" in line}
    return {line for line in known if found.a.mac not in line}


def _ports_of_macs(found: World) -> set[str]:
    lines = found.inside("bridge", "fdb", "show").splitlines()
    others = [one.mac for one in (found.b, found.c)]
    return {" ".join(line.split()[:3]) for line in lines if line.split()[0] in others}


def _unasked(found: World) -> list[str]:
    """What came to a victim, or to the host, although nobody else sends anything."""
    out = [f"{port.name}: {frame[:90].hex()}" for port in found.victims for frame in port.drain()]
    return out + [f"host: {packet[:90].hex()}" for packet in found.host.heard(MARK)] + found.host.received()


def _stolen(found: World) -> list[str]:
    """What A heard that is not A's to hear: other people's frames and addresses."""
    a, out = found.a, []
    for frame in a.drain():
        to = wire.mac_text(frame[:6])
        offered = frame[58:62] if len(frame) > 282 and frame[34:36] == b"\0\x43" else None
        if to != a.mac and not int(to[:2], 16) & 1:
            out.append(f"for {to}: {frame[:60].hex()}")
        elif offered is not None and offered not in (bytes(4), bytes([10, 0, 0, 10])):
            out.append(f"DHCP told A of {'.'.join(str(part) for part in offered)}")
    a.heard.clear()
    return out


def test_no_frame_gets_through(any_world: World, record_tally: Tally) -> None:
    found = any_world
    found.exchange()
    before = (_neighbours(found), _ports_of_macs(found))
    frames = Frames(found, seed=20260)
    taken = 0
    for start in range(0, FRAMES, BATCH):
        for _ in range(BATCH):
            header, frame = frames.one()
            taken += found.a.put(frame, header)
        assert not (came := _unasked(found)), f"after frame {start}: {came}"
        assert not (heard := _stolen(found)), f"after frame {start}: {heard}"
    after = (_neighbours(found), _ports_of_macs(found))
    assert after[0] <= before[0] and after[1] == before[1], "somebody else's place was changed"
    found.settle()
    assert not (came := [one for one in _unasked(found) if MARK.hex() in one]), came
    for victim in (found.b, found.c):
        ask_for_lease(victim)
    found.exchange()
    kinds = ", ".join(f"{count} {kind}" for kind, count in frames.made.most_common())
    record_tally(
        f"raw frames of a guest{'' if found.checked else ' without source/destination check'}: {FRAMES} ({kinds}), "
        f"{taken} taken by the tap; 0 reached another instance, another VPC or the host"
    )


# --- places ---------------------------------------------------------------------------------------------


def _claims(port: Port, mac: str, address: str) -> Iterator[bytes]:
    """Frames that could teach a bridge, or a kernel, that `mac` and `address` are at this port."""
    for to in (port.gateway_mac, BROADCAST, *(f"01:80:c2:00:00:{end:02x}" for end in range(16))):
        for said in (mac, port.mac):
            for operation in (1, 2):
                yield wire.arp(operation, said, address, said, address, source=mac, destination=to)
                yield wire.arp(operation, said, port.address, said, port.gateway, source=mac, destination=to)
        yield wire.ether(to, mac, IPV4, wire.ip(address, port.gateway, 1, wire.icmp(8, 0, bytes(4), MARK)))
        yield wire.ether(to, mac, 0x88CC, MARK * 12)


def test_nobody_takes_anothers_place(any_world: World, record_tally: Tally) -> None:
    """What was meant for a victim goes on going to it, whatever A says about the victim's MAC and address."""
    found, a, sent = any_world, any_world.a, 0
    for victim in (found.b, found.c):
        for frame in _claims(a, victim.mac, victim.address):
            sent += a.put(frame)
            a.drain()
            if sent % 8 == 0:
                found.exchange(b"SECRET")
    found.exchange(b"SECRET")
    assert not any(b"SECRET" in frame for frame in a.heard)
    record_tally(f"claims to another's MAC and address: {sent}; 0 of a victim's frames went astray")


#: What a tap's descriptor lets its holder do to the port, whoever that is (Linux, drivers/net/tun.c).
_SIOCSIFHWADDR, _TUNSETCARRIER, _TUNSETOWNER, _TUNSETSNDBUF = 0x8924, 0x400454E2, 0x400454CC, 0x400454D4


def _become(descriptor: int, mac: str) -> None:
    fcntl.ioctl(descriptor, _SIOCSIFHWADDR, struct.pack("16sH6s16x", b"", 1, wire.mac_bytes(mac)))


def test_who_took_a_qemu_over_gives_its_port_anothers_mac_in_vain(any_world: World, record_tally: Tally) -> None:
    """It has the tap's descriptor, which no filter of frames stands before."""
    found, tried = any_world, 0
    before = _ports_of_macs(found)
    for mac in (found.b.mac, found.c.mac, found.a.gateway_mac, found.c.gateway_mac, found.a.mac, "06:00:00:00:00:99"):
        for _ in range(2):
            _become(found.a.descriptor, mac)
            for request, value in (
                (_TUNSETCARRIER, 0),
                (_TUNSETCARRIER, 1),
                (_TUNSETOWNER, 1),
                (_TUNSETSNDBUF, 1 << 30),
            ):
                fcntl.ioctl(found.a.descriptor, request, struct.pack("I", value))
            for victim in (found.b, found.c):
                for frame in _claims(found.a, victim.mac, victim.address):
                    found.a.put(frame)
                    tried += 1
            found.exchange(b"SECRET")
            assert not (came := _unasked(found)), came
    _become(found.a.descriptor, found.b.mac)
    os.close(found.b.descriptor)
    found.b.descriptor = asyncio.run(found.networks.open_tap(world.nic(world.B)))
    found.settle()
    assert _ports_of_macs(found) == before, "also after B was off and on again"
    assert not any(b"SECRET" in frame for frame in found.a.heard)
    record_tally(f"frames after a tap was given another's MAC: {tried}; 0 arrived, 0 of a victim's frames went astray")


def test_a_guest_hears_nothing_of_its_neighbours(checked: World) -> None:
    """Neither whom the gateway looks for nor what DHCP tells others, not even if it tells all."""
    found = checked
    found.inside("ip", "neigh", "flush", "all")
    xid = b"\1\2\3\4"
    text = wire.dhcp(1, found.b.mac, xid, broadcast=True)
    packet = wire.ip("0.0.0.0", "255.255.255.255", 17, wire.udp("0.0.0.0", "255.255.255.255", 68, 67, text))
    found.b.put(wire.ether(BROADCAST, found.b.mac, IPV4, packet))
    assert found.b.until(lambda frame: xid in frame), "an offer to all reaches the one that asked"
    found.exchange()
    assert not found.a.heard


# --- DHCP -----------------------------------------------------------------------------------------------


def _dhcp_lies(a: Port, b: Port) -> Iterator[tuple[str, bytes]]:
    """(sender's address, message): A in the name of B, by every field that names a client."""
    names = [wire.option(61, b"\1" + wire.mac_bytes(b.mac)), b""]
    wanted = wire.option(50, bytes([10, 0, 0, 11])) + wire.option(54, bytes([10, 0, 0, 1]))
    for kind in (1, 3, 4, 7, 8):
        for chaddr in (b.mac, a.mac):
            for identifier in names:
                for own in ("0.0.0.0", b.address):
                    for relay in ("0.0.0.0", b.address):
                        extra = identifier + wanted + wire.option(12, b"ip-10-0-0-11")
                        text = wire.dhcp(kind, chaddr, MARK, own=own, relay=relay, options=extra)
                        yield from (("0.0.0.0", text), (a.address, text))


def test_dhcp_in_anothers_name_does_nothing(any_world: World, record_tally: Tally) -> None:
    found, a, b = any_world, any_world.a, any_world.b
    before = ask_for_lease(b)
    lease = [line for line in world.leases().splitlines() if b.mac in line]
    assert lease
    sent = 0
    for source, text in _dhcp_lies(a, b):
        for target in ("255.255.255.255", a.gateway):
            packet = wire.ip(source, target, 17, wire.udp(source, target, 68, 67, text))
            sent += a.put(wire.ether(BROADCAST, a.mac, IPV4, packet))
            assert not (heard := _stolen(found)), heard
    found.settle()
    assert not any(MARK in frame for frame in b.heard), "DHCP answered A's message to B"
    assert [line for line in world.leases().splitlines() if b.mac in line] == lease
    for port in (b, a):
        acknowledged = ask_for_lease(port)
        assert bytes(int(part) for part in port.address.split(".")) in acknowledged
    assert len(before) == len(ask_for_lease(b)) and renew_lease(b)
    record_tally(f"DHCP messages in another's name: {sent}; 0 changed its lease, told of it or reached it")


# --- flows of others ------------------------------------------------------------------------------------


def _errors(one: Port, other: Port, said_by: Port) -> Iterator[bytes]:
    """ICMP errors about the flow from one to the other, told to either."""
    for source, target in ((one, other), (other, one)):
        inner = wire.ip(source.address, target.address, 17, wire.udp(source.address, target.address, 4000, OPEN, MARK))
        swapped = wire.ip(
            source.address, target.address, 17, wire.udp(source.address, target.address, OPEN, 4000, MARK)
        )
        for quoted in (inner, swapped):
            for kind, code in ((3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (4, 0), (5, 1), (11, 0), (12, 0)):
                error = wire.icmp(kind, code, struct.pack("!HH", 0, 600), quoted)
                for told in (one, other):
                    packet = wire.ip(said_by.address, told.address, 1, error)
                    yield wire.ether(said_by.gateway_mac, said_by.mac, IPV4, packet)


def test_errors_about_the_flows_of_others_are_not_passed_on(checked: World, record_tally: Tally) -> None:
    found = checked
    found.exchange()  # now there are flows between B and C, in both directions
    sent = sum(found.a.put(frame) for frame in _errors(found.b, found.c, found.a))
    found.settle()
    assert not any(MARK in frame for port in found.victims for frame in port.heard)
    # The one whom a flow concerns may say so: C has no such port.
    number = 4001
    found.b.put_udp(found.c.address, number, OPEN, b"anyone?")
    assert found.c.until(lambda frame: payload_of(frame, found.b.address, OPEN) == b"anyone?")
    quoted = wire.ip(found.b.address, found.c.address, 17,
                     wire.udp(found.b.address, found.c.address, number, OPEN, b"anyone?"))  # fmt: skip
    found.c.put_ip(found.b.address, 1, wire.icmp(3, 3, bytes(4), quoted))
    assert found.b.until(lambda frame: b"anyone?" in frame and frame[23] == 1), "an honest error comes through"
    record_tally(f"ICMP errors about flows of others: {sent}; 0 passed on")


# --- a guest that may send from other addresses -----------------------------------------------------------


def test_without_its_check_a_guest_speaks_for_neighbours_and_for_nobody_else(router: World) -> None:
    """What is documented works (another instance's address, inside the VPC, by that instance's rules), and no more."""
    a, c = router.a, router.c

    def say(source: str, destination: str, text: bytes) -> None:
        packet = wire.ip(source, destination, 17, wire.udp(source, destination, 4000, OPEN, text))
        a.put(wire.ether(a.gateway_mac, a.mac, IPV4, packet))

    for source in (
        a.gateway,
        c.gateway,
        "169.254.169.254",
        "169.254.169.253",
        "169.254.169.123",
        "10.0.0.2",
        "10.0.9.9",
        "8.8.8.8",
        world.HOST,
    ):
        say(source, c.address, MARK)
    for destination in (world.HOST, router.d.public, "8.8.8.8"):
        say(router.b.address, destination, MARK)
    say(router.b.address, c.address, b"as B")
    assert c.until(lambda frame: payload_of(frame, router.b.address, OPEN) == b"as B")
    router.settle()
    assert not any(MARK in frame for port in router.victims for frame in port.heard)
    assert not router.host.heard(MARK)


# --- the host -------------------------------------------------------------------------------------------


def _knocks(a: Port, target: str, number: int) -> Iterator[bytes]:
    """First packets of every kind, and sequences that one table of connections knows and the next does not."""
    for flags in (2, 0x12, 0x10, 1, 0x11, 4, 0x14, 0, 0x29, 0x3F):
        yield wire.ip(a.address, target, 6, wire.tcp(a.address, target, number, HOST_PORT, flags, MARK))
    for port in (HOST_PORT, 9):
        number += 1
        for flags in (2, 4, 1, 0x11, 0x10, 0x29, 0):
            yield wire.ip(a.address, target, 6, wire.tcp(a.address, target, number, port, flags, MARK))
    for port in (HOST_PORT, 53, 9):
        yield wire.ip(a.address, target, 17, wire.udp(a.address, target, number, port, MARK))
    for kind in (8, 13, 15, 17):
        yield wire.ip(a.address, target, 1, wire.icmp(kind, 0, bytes(4), MARK * 3))
    for protocol in (2, 4, 41, 47, 50, 132, 255):
        yield wire.ip(a.address, target, protocol, MARK * 4)


def test_with_an_uplink_guests_go_past_the_host_and_never_to_it(record_tally: Tally) -> None:
    if why := world.why_not():
        pytest.skip(why)
    with world.make(uplink=True) as found:
        a, sent = found.a, 0
        for number in range(1000, 1060, 3):
            for target in (world.HOST, *world.EXTRA):
                for packet in _knocks(a, target, number):
                    sent += a.put(wire.ether(a.gateway_mac, a.mac, IPV4, packet))
        a.put_udp("192.0.2.77", 4000, 4000, b"out it goes")
        found.settle()
        assert not (came := found.host.received()), came
        ours = {bytes(int(part) for part in one.split(".")) for one in (world.HOST, *world.EXTRA)}
        a.drain()
        assert not [frame.hex() for frame in a.heard if frame[26:30] in ours], "the host answered"
        assert b"lan0" in world.sh("ip", "neigh", "show", "192.0.2.77").encode(), "what is meant for others goes out"
    record_tally(f"packets to the host's own addresses past an uplink: {sent}; 0 taken or answered")


# --- exhaustion -----------------------------------------------------------------------------------------


def _all_addresses() -> Iterator[str]:
    """Every address of the VPC's two subnets."""
    for number in range(1, 8191):
        yield f"10.0.{number >> 8}.{number & 255}"


def _entries(found: World) -> int:
    return len(found.inside("ip", "neigh", "show").splitlines())


def test_a_scan_does_not_fill_the_table_of_neighbours(any_world: World, record_tally: Tally) -> None:
    """That table is one for the whole server (1,024 by default): full, nobody's address is found any more."""
    found, a, sent = any_world, any_world.a, 0
    for target in _all_addresses():
        question = wire.arp(1, a.mac, a.address, "00:00:00:00:00:00", target, source=a.mac, destination=BROADCAST)
        forged = wire.arp(1, a.mac, target, a.mac, a.gateway, source=a.mac, destination=BROADCAST)
        past_the_bridge = wire.arp(1, a.mac, target, a.mac, a.gateway, source=a.mac, destination="01:80:c2:00:00:0e")
        call = wire.ip(a.address, target, 17, wire.udp(a.address, target, 9, 9, MARK))
        answered = wire.ip(target, a.gateway, 1, wire.icmp(8, 0, bytes(4), MARK))
        expiring = wire.ip(target, "8.8.8.8", 17, wire.udp(target, "8.8.8.8", 9, 9, MARK), ttl=1)
        told = wire.dhcp(8, a.mac, MARK, own=target)
        inform = wire.ip(a.address, a.gateway, 17, wire.udp(a.address, a.gateway, 68, 67, told))
        packets = (wire.ether(a.gateway_mac, a.mac, IPV4, one) for one in (call, answered, expiring, inform))
        sent += sum(a.put(frame) for frame in (question, forged, past_the_bridge, *packets))
        a.drain()
    known = _entries(found)
    found.settle()
    assert known < 16, f"{known} neighbours are known"
    assert not any(MARK in frame for port in found.victims for frame in port.heard)
    record_tally(f"packets to and from every address of two /20: {sent}; {known} entries in the table of neighbours")


def _asks_services(port: Port) -> None:
    """The name server and the metadata address answer it."""
    question = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\x0cip-10-0-0-11\3ec2\x08internal\0\0\1\0\1"
    port.put_udp("169.254.169.253", 5353, 53, question)
    answer = port.until(lambda frame: (payload_of(frame, "169.254.169.253", 5353) or b"").startswith(b"\x12\x34"))
    assert answer and answer.endswith(bytes([10, 0, 0, 11])), "DNS"
    port.put_ip("169.254.169.254", 6, wire.tcp(port.address, "169.254.169.254", 5000, 80, 2, b""))
    source = bytes([169, 254, 169, 254])
    assert port.until(lambda frame: frame[26:30] == source and frame[47] == 0x12), "SYN and ACK of the metadata service"


def test_twenty_thousand_flows_do_not_cut_others_off(checked: World, record_tally: Tally) -> None:
    """To where they may go (DNS, metadata, the outside, itself by its public address) and to where they may not."""
    found, a, flows = checked, checked.a, 20_000
    targets = ("169.254.169.253", "169.254.169.254", "8.8.8.8", found.b.address, a.public)
    for number in range(flows):
        target = targets[number % len(targets)]
        source, port = 1024 + number // len(targets), {1: 80, 0: 53}.get(number % len(targets), 9)
        if port == 80:
            payload = wire.tcp(a.address, target, source, port, 2, b"", seq=number)
            a.put_ip(target, 6, payload)
        else:
            a.put_udp(target, source, port, MARK)
        if number % 50 == 0:
            a.drain()
            a.heard.clear()
    count = int(found.inside("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))
    found.settle()
    for victim in (found.b, found.c):
        ask_for_lease(victim)
    _asks_services(found.b)
    record_tally(f"flows that a guest opened: {flows}, {count} tracked; the others' traffic, old and new, works")
