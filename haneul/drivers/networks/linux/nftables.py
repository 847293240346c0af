"""Security groups, addresses and guards of a VPC as an nftables ruleset. Pure: values in, text out.

Two base chains see every forwarded packet: `egress` asks the sender's groups, `ingress` the receiver's (a verdict
`accept` ends only its own base chain). Each group is a chain, each interface a chain that jumps to its groups,
and maps lead from an address to its interface's chain. A change is the difference of two rulesets: chains that
differ are refilled, elements that differ come and go, in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from haneul.model.assignment import GroupSpec, InterfaceSpec, NetworkSpec
from haneul.model.network import Rule

_FRAME = """\
table ip vpc {
  set public_holders { type ipv4_addr; }
  set holders { type ipv4_addr; }
  set same { type ipv4_addr . ipv4_addr; }
  map egress_of { type ipv4_addr : verdict; }
  map ingress_of { type ipv4_addr : verdict; }
  map private_of { type ipv4_addr : ipv4_addr; }
  map public_of { type ipv4_addr : ipv4_addr; }
  # What a bridge does not take (frames to 01:80:c2:00:00:0e) comes up here past the guard.
  chain unbridged {
    type filter hook prerouting priority raw; policy accept;
    iifname "t*" drop
  }
  # An ICMP error is taken from an end of the flow that it quotes, not from anybody who has guessed that flow.
  chain quoting {
    ct original ip saddr . ip saddr @same accept
    ct reply ip saddr . ip saddr @same accept
    drop
  }
  chain egress {
    type filter hook forward priority 0; policy accept;
    ct state established accept
    iifname "br*" ct state related goto quoting
    ct state related accept
    ct state invalid drop
    iifname "br*" ip saddr vmap @egress_of
    iifname "br*" drop
  }
  chain ingress {
    type filter hook forward priority 10; policy drop;
    oifname "ext" meta mark 1 drop
    ct state established,related accept
    oifname "br*" ip daddr vmap @ingress_of
    oifname "ext" ip saddr @public_holders accept
  }
  chain input {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    meta mark 1 drop
    ct state established accept
    iifname "br*" ct state related goto quoting
    ct state related accept
    iifname "br*" udp sport 68 udp dport 67 accept
    iifname "br*" meta l4proto { tcp, udp } th dport 53 ip daddr { 169.254.169.253, %(resolver)s } accept
    iifname "br*" ip daddr 169.254.169.254 tcp dport 80 accept
    iifname "br*" ip daddr 169.254.169.123 udp dport 123 accept
    iifname "br*" ip daddr %(cidr)s icmp type echo-request accept
  }
  # Nothing here answers a forged sender, nor asks who has an address that nobody has: neighbour tables are small.
  chain output {
    type filter hook output priority 0; policy accept;
    meta mark 1 drop
    oifname "br*" ip daddr != 255.255.255.255 ip daddr != @holders drop
    udp sport 67 meta mark set 2
  }
  chain pre {
    type nat hook prerouting priority dstnat; policy accept;
    dnat to ip daddr map @private_of
  }
  chain post {
    type nat hook postrouting priority srcnat; policy accept;
    oifname "ext" snat to ip saddr map @public_of
  }
}
# A port sends as itself, and hears only what is for it. Mark 1: a sender that is not the port's.
# Mark 2: said by our DHCP server, also to all.
table bridge guard {
  set addresses { type ifname . ether_addr . ipv4_addr; }
  set asked { type ifname . ipv4_addr; }
  set ports { type ifname . ether_addr; }
  set routers { type ifname . ether_addr; }
  # The client's MAC inside a DHCP message (RFC 2131): a server believes that, not the frame.
  set clients { typeof iifname . @th,288,48; }
  chain pre {
    type filter hook prerouting priority -300; policy drop;
    ether type arp iifname . ether saddr . arp saddr ip @addresses iifname . arp saddr ether . arp saddr ip @addresses accept
    ether type ip udp sport 68 udp dport 67 goto dhcp
    ether type ip iifname . ether saddr . ip saddr @addresses accept
    ether type ip iifname . ether saddr @routers meta mark set 1 accept
  }
  # A request (1) from Ethernet (1, 6), through no relay, for the port's own MAC.
  chain dhcp {
    @th,64,24 0x010106 @th,256,32 0 iifname . @th,288,48 @clients goto dhcp_sender
    drop
  }
  chain dhcp_sender {
    ip saddr 0.0.0.0 iifname . ether saddr @ports accept
    iifname . ether saddr . ip saddr @addresses accept
    drop
  }
  chain forward {
    type filter hook forward priority -300; policy drop;
  }
  chain out {
    type filter hook output priority -300; policy drop;
    ether type arp oifname . arp daddr ip @asked accept
    meta mark 2 oifname . @th,288,48 @clients accept
    meta mark 2 drop
    ether type ip oifname . ether daddr @ports accept
  }
}
"""


@dataclass(frozen=True)
class Ruleset:
    """`chains`: name -> rules (table ip vpc). `elements`: (table, set or map) -> elements as nft writes them."""

    frame: str
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sets: dict[str, str] = field(default_factory=dict)
    elements: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)


def short(identifier: str, length: int = 12) -> str:
    """The end of an id: enough to tell resources of one VPC apart, short enough for an interface name."""
    return identifier[-length:]


def tap_name(interface_id: str) -> str:
    return f"t{short(interface_id)}"


def bridge_name(subnet_id: str) -> str:
    return f"br{short(subnet_id)}"


def _group_chain(group_id: str, direction: str) -> str:
    return f"g_{short(group_id)}_{direction}"


def _member_set(group_id: str) -> str:
    return f"m_{short(group_id)}"


def _ports(rule: Rule) -> str:
    if rule.protocol in ("tcp", "udp"):
        if (rule.from_port, rule.to_port) == (0, 65535):
            return f"meta l4proto {rule.protocol} "
        ports = str(rule.from_port) if rule.from_port == rule.to_port else f"{rule.from_port}-{rule.to_port}"
        return f"{rule.protocol} dport {ports} "
    if rule.protocol == "icmp":
        kind = "" if rule.from_port == -1 else f"icmp type {rule.from_port} "
        code = "" if rule.from_port == -1 or rule.to_port == -1 else f"icmp code {rule.to_port} "
        return kind + code or "meta l4proto icmp "
    return "" if rule.protocol == "-1" else f"meta l4proto {rule.protocol} "


def rule_text(rule: Rule) -> str | None:
    """One `accept`, or None for a rule that no IPv4 packet can meet."""
    if rule.cidr6 or rule.protocol == "icmpv6":
        return None
    side = "saddr" if rule.direction == "ingress" else "daddr"
    peer = ""
    if rule.group:
        peer = f"ip {side} @{_member_set(rule.group)} "
    elif rule.cidr != "0.0.0.0/0":
        peer = f"ip {side} {rule.cidr} "
    return f"{peer}{_ports(rule)}accept"


def _group(group: GroupSpec) -> Iterable[tuple[str, tuple[str, ...]]]:
    for direction in ("ingress", "egress"):
        texts = (rule_text(rule) for rule in group.rules if rule.direction == direction)
        yield _group_chain(group.group_id, direction), tuple(text for text in texts if text)


def _interface(one: InterfaceSpec) -> Iterable[tuple[str, tuple[str, ...]]]:
    for direction in ("ingress", "egress"):
        jumps = tuple(f"jump {_group_chain(group, direction)}" for group in one.groups)
        yield f"i_{short(one.interface_id)}_{direction}", (*jumps, "drop")


def _quoted(port: str) -> str:
    return f'"{port}"'


def ruleset(network: NetworkSpec, before: tuple[NetworkSpec, Ruleset] | None = None) -> Ruleset:
    """`before` is a value of the same VPC with its ruleset: of groups that are the same there, nothing is written anew."""
    chains: dict[str, tuple[str, ...]] = {}
    sets: dict[str, str] = {}
    elements: dict[tuple[str, str], frozenset[str]] = {}
    known = {one.group_id: one for one in before[0].groups} if before else {}
    for group in network.groups:
        sets[_member_set(group.group_id)] = "ipv4_addr"
        place = ("ip vpc", _member_set(group.group_id))
        if before is not None and known.get(group.group_id) is group:
            names = (_group_chain(group.group_id, direction) for direction in ("ingress", "egress"))
            chains.update((name, before[1].chains[name]) for name in names)
            elements[place] = before[1].elements[place]
            continue
        chains.update(_group(group))
        elements[place] = frozenset(group.members)
    for one in network.interfaces:
        chains.update(_interface(one))
    for direction in ("egress", "ingress"):
        goto = (f"{one.address} : goto i_{short(one.interface_id)}_{direction}" for one in network.interfaces)
        elements["ip vpc", f"{direction}_of"] = frozenset(goto)
    elements["ip vpc", "holders"] = frozenset(one.address for one in network.interfaces)
    elements["ip vpc", "same"] = frozenset(f"{one.address} . {one.address}" for one in network.interfaces)
    public = [one for one in network.interfaces if one.public]
    elements["ip vpc", "public_holders"] = frozenset(one.address for one in public)
    elements["ip vpc", "private_of"] = frozenset(f"{one.public} : {one.address}" for one in public)
    elements["ip vpc", "public_of"] = frozenset(f"{one.address} : {one.public}" for one in public)
    ports = {one: f"{_quoted(tap_name(one.interface_id))} . {one.mac}" for one in network.interfaces}
    elements["bridge guard", "addresses"] = frozenset(f"{port} . {one.address}" for one, port in ports.items())
    elements["bridge guard", "ports"] = frozenset(ports.values())
    loose = (port for one, port in ports.items() if not one.source_dest_check)
    elements["bridge guard", "routers"] = frozenset(loose)
    asked = (f"{_quoted(tap_name(one.interface_id))} . {one.address}" for one in network.interfaces)
    elements["bridge guard", "asked"] = frozenset(asked)
    clients = (f"{_quoted(tap_name(one.interface_id))} . 0x{one.mac.replace(':', '')}" for one in network.interfaces)
    elements["bridge guard", "clients"] = frozenset(clients)
    frame = _FRAME % {"cidr": network.cidr, "resolver": network.resolver}
    return Ruleset(frame, chains, sets, elements)


def whole(wanted: Ruleset) -> str:
    """A script that replaces whatever is loaded by `wanted`, in one transaction without a gap."""
    out = ["table ip vpc", "delete table ip vpc", "table bridge guard", "delete table bridge guard", wanted.frame]
    return "\n".join([*out, *_changes(Ruleset(wanted.frame), wanted)]) + "\n"


def difference(loaded: Ruleset, wanted: Ruleset) -> str:
    """A script that turns `loaded` into `wanted`; empty if nothing differs."""
    if loaded.frame != wanted.frame:
        return whole(wanted)
    lines = _changes(loaded, wanted)
    return "\n".join(lines) + "\n" if lines else ""


def _changes(loaded: Ruleset, wanted: Ruleset) -> list[str]:
    """In an order that never refers to what is not there: make, empty, fill, remove."""
    made = [
        f"add set ip vpc {name} {{ type {kind}; }}" for name, kind in wanted.sets.items() if name not in loaded.sets
    ]
    made += [f"add chain ip vpc {name}" for name in wanted.chains if name not in loaded.chains]
    filled: list[str] = []
    for name, rules in wanted.chains.items():
        if (before := loaded.chains.get(name, ())) is not rules and before != rules:
            filled += [f"flush chain ip vpc {name}"] if loaded.chains.get(name) else []
            filled += [f"add rule ip vpc {name} {rule}" for rule in rules]
    taken, given = _elements(loaded, wanted)
    gone = [name for name in loaded.chains if name not in wanted.chains]
    removed = [f"flush chain ip vpc {name}" for name in gone] + [f"delete chain ip vpc {name}" for name in gone]
    removed += [f"delete set ip vpc {name}" for name in loaded.sets if name not in wanted.sets]
    return made + taken + filled + given + removed


def _elements(loaded: Ruleset, wanted: Ruleset) -> tuple[list[str], list[str]]:
    taken, given = [], []
    for place in {**loaded.elements, **wanted.elements}:
        table, name = place
        before, after = loaded.elements.get(place, frozenset()), wanted.elements.get(place, frozenset())
        if before - after:
            taken.append(f"delete element {table} {name} {{ {', '.join(sorted(before - after))} }}")
        if after - before:
            given.append(f"add element {table} {name} {{ {', '.join(sorted(after - before))} }}")
    return taken, given


def edge(uplink: bool) -> str:
    """The ruleset of the edge, which joins the VPCs and the host. Without an uplink no guest begins anything there."""
    # Link-local addresses (169.254.169.254 above all) never leave, whatever the uplink.
    out = 'iifname "v*" oifname "host" ip daddr != 169.254.0.0/16 accept' if uplink else ""
    return f"""\
table ip edge
delete table ip edge
table ip edge {{
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "host" oifname "v*" accept
    iifname "v*" oifname "v*" accept
    {out}
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iifname "host" icmp type echo-request accept
  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "host" ip saddr 169.254.0.0/16 masquerade
  }}
}}
"""


def host_uplink(table: str, link: str, pool: str) -> str:
    """What `uplink = "nat"` adds to the host: guests reach out under the host's address, and never the host itself."""
    return f"""\
table ip {table}
delete table ip {table}
table ip {table} {{
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname "{link}" ct state {{ new, invalid }} drop
  }}
  chain post {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool} oifname != "{link}" masquerade
  }}
}}
"""
