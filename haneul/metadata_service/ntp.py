"""What 169.254.169.123 answers: the server's own clock, as on EC2. Pure.

Source: RFC 5905, section 7.3 (the packet), 9.2 (what a server without state answers).
EC2 User Guide, "Set the time reference on your EC2 instance to use the local Amazon Time Sync Service".
"""

from __future__ import annotations

import struct

PORT = 123
_LENGTH = 48
#: leap and version and mode, stratum, poll, precision, root delay, root dispersion, reference id, reference, origin, receive, transmit.
_PACKET = struct.Struct("!BBbbII4s8s8s8s8s")
_CLIENT, _SERVER = 3, 4
#: A clock that is told to others though nobody says here how good it is (chrony's `local stratum`), and what it is called then.
_STRATUM, _LOCAL = 10, bytes((127, 127, 1, 1))
#: Parts of a second that the clock tells apart, as a power of two; how far it may be off (seconds as 16.16).
_PRECISION, _DISPERSION = -20, 1 << 6
#: From 1900 to 1970, in seconds.
_ERA = 2208988800


def answer(request: bytes, received_ns: int, sent_ns: int) -> bytes | None:
    """To a client of version 1 to 4; None for whatever else came. Times are nanoseconds since 1970."""
    if len(request) < _LENGTH:
        return None
    version, mode = request[0] >> 3 & 7, request[0] & 7
    if mode != _CLIENT or not 1 <= version <= 4:
        return None
    poll, origin = struct.unpack_from("!b", request, 2)[0], request[40:48]
    received, sent = _timestamp(received_ns), _timestamp(sent_ns)
    return _PACKET.pack(
        version << 3 | _SERVER, _STRATUM, poll, _PRECISION, 0, _DISPERSION, _LOCAL, received, origin, received, sent
    )  # fmt: skip


def _timestamp(nanoseconds: int) -> bytes:
    """Seconds since 1900 as 32.32; from 2036 on the era begins anew."""
    return ((nanoseconds << 32) // 10**9 + (_ERA << 32) & (1 << 64) - 1).to_bytes(8, "big")
