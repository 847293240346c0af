"""Pure rules of networks and their rulesets."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haneul.drivers.networks.linux import dnsmasq, nftables
from haneul.errors import CloudError
from haneul.model.assignment import GroupSpec
from haneul.model.network import Rule, free_address, mac_address, normal_cidr, normal_ports, normal_protocol
from tests.contract.test_networks import GROUP, INTERFACE, NETWORK


def test_protocols_and_ports_are_normal() -> None:
    assert [normal_protocol(one) for one in ("6", "TCP", "-1", "all", "47")] == ["tcp", "tcp", "-1", "-1", "47"]
    assert normal_ports("tcp", -1, -1) == (0, 65535)
    assert normal_ports("-1", 5, 6) == (-1, -1)
    assert normal_cidr("10.1.2.3/8") == "10.0.0.0/8"
    for wrong in ("10.0.0.1", "x/8", "10.0.0.0/33", "::/0"):
        with pytest.raises(CloudError):
            normal_cidr(wrong)


@given(st.sets(st.integers(4, 14)), st.text(max_size=8))
def test_free_addresses_are_free_and_inside(used: set[int], seed: str) -> None:
    network = ipaddress.IPv4Network("10.0.0.0/28")
    taken = {str(network[one]) for one in used}
    found = free_address(str(network), taken, seed)
    if len(taken) == 11:
        assert found is None
    else:
        assert found not in taken and 4 <= int(ipaddress.IPv4Address(found)) - int(network[0]) <= 14  # type: ignore[arg-type]


@given(st.text(min_size=1, max_size=20))
def test_macs_are_local_and_unicast(identifier: str) -> None:
    first = int(mac_address(identifier).split(":")[0], 16)
    assert first & 0b11 == 0b10


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule("ingress", "tcp", 22, 22, "10.0.0.0/8"), "ip saddr 10.0.0.0/8 tcp dport 22 accept"),
        (Rule("egress", "udp", 1, 9, "10.0.0.0/8"), "ip daddr 10.0.0.0/8 udp dport 1-9 accept"),
        (Rule("ingress", "tcp", 0, 65535, "0.0.0.0/0"), "meta l4proto tcp accept"),
        (Rule("ingress", "icmp", 8, -1, "0.0.0.0/0"), "icmp type 8 accept"),
        (Rule("ingress", "icmp", 3, 4, "0.0.0.0/0"), "icmp type 3 icmp code 4 accept"),
        (Rule("ingress", "47", -1, -1, "0.0.0.0/0"), "meta l4proto 47 accept"),
        (Rule("ingress", "-1", -1, -1, group="sg-0123456789abcdef0"), "ip saddr @m_56789abcdef0 accept"),
        (Rule("ingress", "-1", -1, -1, cidr6="::/0"), None),
    ],
)
def test_rules_as_nft_writes_them(rule: Rule, text: str | None) -> None:
    assert nftables.rule_text(rule) == text


def test_an_interface_without_a_matching_rule_drops() -> None:
    wanted = nftables.ruleset(NETWORK)
    assert wanted.chains["i_56789abcdef0_ingress"] == ("jump g_bbbbbbbbbbbb_ingress", "drop")


def test_the_difference_touches_only_what_differs() -> None:
    loaded = nftables.ruleset(NETWORK)
    assert nftables.difference(loaded, loaded) == ""
    more = replace(GROUP, rules=(*GROUP.rules, Rule("ingress", "tcp", 80, 80, "0.0.0.0/0")))
    script = nftables.difference(loaded, nftables.ruleset(replace(NETWORK, groups=(more,))))
    assert script.splitlines() == [
        "flush chain ip vpc g_bbbbbbbbbbbb_ingress",
        "add rule ip vpc g_bbbbbbbbbbbb_ingress tcp dport 22 accept",
        "add rule ip vpc g_bbbbbbbbbbbb_ingress tcp dport 80 accept",
    ]


def test_what_goes_is_unreferenced_before_it_is_deleted() -> None:
    lines = nftables.difference(
        nftables.ruleset(NETWORK), nftables.ruleset(replace(NETWORK, interfaces=(), groups=()))
    ).splitlines()
    flushed = max(number for number, line in enumerate(lines) if line.startswith("flush"))
    deleted = min(number for number, line in enumerate(lines) if line.startswith("delete chain"))
    taken = max(number for number, line in enumerate(lines) if line.startswith("delete element"))
    assert taken < flushed < deleted


def test_members_of_a_group_are_a_set() -> None:
    group = GroupSpec("sg-0eeeeeeeeeeeeeeee", (), ("172.31.0.11", "172.31.0.12"))
    script = nftables.difference(nftables.ruleset(NETWORK), nftables.ruleset(replace(NETWORK, groups=(GROUP, group))))
    assert "add element ip vpc m_eeeeeeeeeeee { 172.31.0.11, 172.31.0.12 }" in script


def test_names_and_addresses_that_dnsmasq_hands_out() -> None:
    assert dnsmasq.dhcp_hosts(NETWORK) == f"{INTERFACE.mac},172.31.0.10,ip-172-31-0-10\n"
    assert dnsmasq.hosts(NETWORK).split() == [
        "172.31.0.10",
        "ip-172-31-0-10.ec2.internal",
        "ec2-198-18-4-10.compute-1.amazonaws.com",
    ]
