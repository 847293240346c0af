"""Taps: a guest's network card, seen from the server."""

from __future__ import annotations

import fcntl
import os
import struct

from pyroute2.iproute import IPRoute  # type: ignore[attr-defined]

from haneul.drivers.networks.linux import nftables
from haneul.drivers.networks.linux.netlink import link_index, set_sysctl
from haneul.linux import netns
from haneul.model.assignment import NicSpec

_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


_TUNSETIFF = 0x400454CA


_NUD_PERMANENT, _NTF_MASTER = 0x80, 0x04


def open_tap(nic: NicSpec) -> int:
    """Guarded before it is up: the ruleset knows the port by its name already."""
    name = nftables.tap_name(nic.interface_id)
    with IPRoute() as routes:
        for index in routes.link_lookup(ifname=name):
            routes.link("del", index=index)  # left by a machine that is ending
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            index = link_index(routes, name)
            set_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
            # Frames to 01:80:c2:00:00:0e pass the bridge and its guard by: no ARP answers them on the port itself.
            routes.link("set", index=index, arp=False)
            routes.link("set", index=index, master=link_index(routes, nftables.bridge_name(nic.subnet_id)))
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
