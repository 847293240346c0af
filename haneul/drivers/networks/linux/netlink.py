"""Links, addresses and settings of the namespace that the calling thread is in (rtnetlink(7), nft(8))."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2.iproute import IPRoute  # type: ignore[attr-defined]
from pyroute2.netlink.exceptions import NetlinkError

from haneul.drivers.interface import DriverError

_EEXIST, _ENODEV = 17, 19
_NETLINK_NETFILTER, _NFT_GETGEN, _GEN_ID = 12, 10 << 8 | 16, 1


def load_nft(script: str) -> None:
    """One transaction. Raises `CalledProcessError` with what nft said."""
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True, timeout=60)


def link_index(routes: Any, name: str) -> int:
    found = routes.link_lookup(ifname=name)
    if not found:
        raise DriverError(f"the interface {name} is not there")
    return int(found[0])


def delete_link(name: str) -> None:
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


def add_address(routes: Any, index: int, address: str, prefix: int) -> None:
    _tolerating(_EEXIST, lambda: routes.addr("add", index=index, address=address, prefixlen=prefix))


def set_sysctl(name: str, value: str) -> None:
    path = Path("/proc/sys/net") / name
    if path.exists():
        path.write_text(value)


def loopback(routes: Any, *addresses: str) -> None:
    index = link_index(routes, "lo")
    routes.link("set", index=index, state="up")
    for address in addresses:
        add_address(routes, index, address, 32)


def no_ipv6() -> None:
    set_sysctl("ipv6/conf/all/disable_ipv6", "1")
    set_sysctl("ipv6/conf/default/disable_ipv6", "1")


class Generation:
    """How often the rules of a namespace have been changed (NFT_MSG_GETGEN, linux/netfilter/nf_tables.h).

    Made in the namespace by whoever has just loaded rules; from then on it tells whether somebody else has changed them.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.settimeout(1)
        self._loaded = self._read()

    def has_changed(self) -> bool:
        return self._read() != self._loaded

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> int:
        header = struct.pack("=IHHII", 20, _NFT_GETGEN, 1, 1, 0)  # length, type, NLM_F_REQUEST, sequence, port
        self._socket.send(header + struct.pack("=BBH", 0, 0, 0))
        answer = self._socket.recv(4096)
        at = 20
        while at + 4 <= len(answer):
            length, kind = struct.unpack_from("=HH", answer, at)
            if kind == _GEN_ID:
                return int(struct.unpack_from(">I", answer, at + 4)[0])
            at += max((length + 3) & ~3, 4)
        return -1
