"""Frames, made and taken apart by hand: what a guest with root can put on its port."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

#: Before every frame on a tap with IFF_VNET_HDR (linux/virtio_net.h): no offload.
PLAIN = bytes(10)
BROADCAST = "ff:ff:ff:ff:ff:ff"
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(raw: bytes) -> str:
    return raw.hex(":")


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(destination: str, source: str, kind: int, payload: bytes) -> bytes:
    return mac_bytes(destination) + mac_bytes(source) + struct.pack("!H", kind) + payload


def arp(
    operation: int, sender_mac: str, sender: str, target_mac: str, target: str, *, source: str, destination: str
) -> bytes:
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    body += mac_bytes(sender_mac) + socket.inet_aton(sender) + mac_bytes(target_mac) + socket.inet_aton(target)
    return ether(destination, source, ARP, body)


def ip(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    options: bytes = b"",
    fragment: int = 0,
    number: int = 0,
    length: int | None = None,
    sum_offset: int = 0,
    version: int = 4,
) -> bytes:
    """`fragment` is the field of flags and offset as it stands in the header."""
    options += bytes(-len(options) % 4)
    words = 5 + len(options) // 4
    total = words * 4 + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBH", version << 4 | words, 0, total & 0xFFFF, number, fragment, ttl, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination) + options
    found = (checksum(head) + sum_offset) & 0xFFFF
    return head[:10] + struct.pack("!H", found) + head[12:] + payload


def udp(source: str, destination: str, source_port: int, port: int, payload: bytes) -> bytes:
    length = 8 + len(payload)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 17, length)
    head = struct.pack("!HHHH", source_port, port, length, 0)
    return head[:6] + struct.pack("!H", checksum(pseudo + head + payload) or 0xFFFF) + payload


def tcp(
    source: str, destination: str, source_port: int, port: int, flags: int, payload: bytes, seq: int = 1, ack: int = 0
) -> bytes:
    head = struct.pack("!HHIIBBHHH", source_port, port, seq, ack, 5 << 4, flags, 65535, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, 20 + len(payload))
    return head[:16] + struct.pack("!H", checksum(pseudo + head + payload)) + head[18:] + payload


def icmp(kind: int, code: int, rest: bytes, payload: bytes) -> bytes:
    head = struct.pack("!BBH", kind, code, 0) + rest
    return struct.pack("!BBH", kind, code, checksum(head + payload)) + rest + payload


def dhcp(
    kind: int,
    chaddr: str,
    xid: bytes,
    *,
    operation: int = 1,
    own: str = "0.0.0.0",
    given: str = "0.0.0.0",
    relay: str = "0.0.0.0",
    broadcast: bool = False,
    options: bytes = b"",
) -> bytes:
    """RFC 2131. `options` is what follows the message type."""
    head = struct.pack("!BBBB", operation, 1, 6, 0) + xid + struct.pack("!HH", 0, 0x8000 if broadcast else 0)
    head += b"".join(socket.inet_aton(one) for one in (own, given, "0.0.0.0", relay))
    head += mac_bytes(chaddr) + bytes(10) + bytes(64) + bytes(128) + b"\x63\x82\x53\x63"
    return head + bytes([53, 1, kind]) + options + b"\xff"


def option(number: int, value: bytes) -> bytes:
    return bytes([number, len(value)]) + value


@dataclass
class Port:
    """The guest's end of a tap. It answers ARP for its own address, as a guest does, and keeps all else."""

    name: str
    descriptor: int
    mac: str
    address: str
    gateway: str
    gateway_mac: str
    public: str = ""
    heard: list[bytes] = field(default_factory=list)

    def put(self, frame: bytes, header: bytes = PLAIN) -> bool:
        """Says whether the tap took it."""
        try:
            os.write(self.descriptor, header + frame)
        except OSError:
            return False
        return True

    def put_ip(self, destination: str, protocol: int, payload: bytes) -> None:
        self.put(ether(self.gateway_mac, self.mac, IPV4, ip(self.address, destination, protocol, payload)))

    def put_udp(self, destination: str, source_port: int, port: int, payload: bytes) -> None:
        self.put_ip(destination, 17, udp(self.address, destination, source_port, port, payload))

    def drain(self) -> list[bytes]:
        """What has come since the last time, without the gateway's questions for its own address (answered)."""
        found = []
        while True:
            try:
                frame = os.read(self.descriptor, 70000)[len(PLAIN) :]
            except BlockingIOError:
                break
            if not self._answers(frame):
                found.append(frame)
        self.heard += found
        return found

    def _answers(self, frame: bytes) -> bool:
        """The question that the kernel asks for this very port's address is the only frame that needs no reason."""
        if len(frame) < 42 or frame[12:14] != struct.pack("!H", ARP) or frame[20:22] != b"\0\1":
            return False
        sender_mac, sender, target = frame[22:28], frame[28:32], frame[38:42]
        asked_by_gateway = (mac_text(sender_mac), sender) == (self.gateway_mac, socket.inet_aton(self.gateway))
        if not asked_by_gateway or target != socket.inet_aton(self.address):
            return False
        reply = arp(
            2, self.mac, self.address, self.gateway_mac, self.gateway, source=self.mac, destination=self.gateway_mac
        )
        self.put(reply)
        return True

    def until(self, good: Callable[[bytes], bool], seconds: float = 5.0) -> bytes | None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            select.select([self.descriptor], [], [], left)
            for frame in self.drain():
                if good(frame):
                    return frame
        return None


def payload_of(frame: bytes, source: str, port: int) -> bytes | None:
    """The data of a UDP datagram from `source` to `port`, None for any other frame."""
    if len(frame) < 42 or frame[12:14] != struct.pack("!H", IPV4) or frame[23] != 17:
        return None
    start = 14 + (frame[14] & 15) * 4
    if frame[26:30] != socket.inet_aton(source) or frame[start + 2 : start + 4] != struct.pack("!H", port):
        return None
    return frame[start + 8 :]
