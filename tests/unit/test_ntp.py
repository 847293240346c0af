"""The clock of 169.254.169.123 (RFC 5905)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haneul.metadata_service import ntp

#: 2026-11-24T13:30:00.25Z.
NOW = 1795527000_250_000_000
ORIGIN = bytes(range(8))


def _request(first: int = 0x23, poll: int = 6) -> bytes:
    return bytes([first, 0, poll, 0]) + bytes(36) + ORIGIN


def test_the_time_is_that_of_the_server() -> None:
    reply = ntp.answer(_request(), NOW, NOW + 250_000_000)
    assert reply is not None and len(reply) == 48
    assert reply[0] == 0x24 and 0 < reply[1] < 16 and reply[2] == 6, (
        "no alarm, version 4, mode server; a stratum; its poll"
    )
    assert reply[24:32] == ORIGIN, "the client knows its own question by it"
    received, sent = struct.unpack("!QQ", reply[32:])
    assert received == (1795527000 + 2208988800 << 32) + (1 << 30)
    assert sent - received == 1 << 30
    delay, dispersion = struct.unpack("!II", reply[4:12])
    assert delay + dispersion < 5 << 16, "systemd-timesyncd takes no worse clock (NTP_MAX_DISTANCE)"


def test_the_era_begins_anew() -> None:
    """On 2036-02-07 at 06:28:16."""
    reply = ntp.answer(_request(), (1 << 32) * 10**9 - 2208988800 * 10**9, NOW)
    assert reply is not None and reply[32:40] == bytes(8)


@pytest.mark.parametrize("first", [0x24, 0x26, 0x25, 0x03, 0x2B, 0x33, 0x00])
def test_only_a_clients_question_has_an_answer(first: int) -> None:
    """No server's answer, no order to a daemon (mode 6 and 7), no version that there is not."""
    assert ntp.answer(_request(first), NOW, NOW) is None


@given(st.binary(max_size=200))
def test_never_more_than_came(data: bytes) -> None:
    reply = ntp.answer(data, NOW, NOW)
    assert reply is None or len(reply) == 48 <= len(data)
