"""Questions to a VPC's links: who listens, who answers."""

from __future__ import annotations

import socket
import struct
import time


def listening() -> bool:
    """Whether somebody has bound the DNS port of this namespace."""
    with open("/proc/thread-self/net/udp") as table:
        return any(line.split()[1].endswith(":0035") for line in list(table)[1:])


def arp(interface: str, sender: str, wanted: str, timeout: float = 0.3) -> bool:
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
