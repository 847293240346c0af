"""The network as guests and the host meet it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.system.conftest import Haneul, eventually

Launch = Callable[..., str]


@pytest.fixture
def pair(haneul: Haneul) -> Any:
    """Two guests, the second in a group of its own that lets in SSH only."""
    ec2 = haneul.client()
    group = ec2.create_security_group(GroupName="narrow", Description="ssh")["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0")
    ids = [*haneul.launch(), *haneul.launch(SecurityGroupIds=[group])]
    for one in ids:
        haneul.until_ssh(one)
    yield (*ids, group)
    haneul.terminate(*ids)
    ec2.delete_security_group(GroupId=group)


def _pings(haneul: Haneul, sender: str, address: str, extra: str = "") -> bool:
    return haneul.ssh(sender, f"ping -c 1 -W 2 {extra} {address} >/dev/null 2>&1 && echo yes || echo no") == "yes"


def test_groups_filter_inside_a_subnet_and_change_live(haneul: Haneul, pair: tuple[str, str, str]) -> None:
    wide, narrow, group = pair
    ec2 = haneul.client()
    there = haneul.instance(narrow)["PrivateIpAddress"]
    back = haneul.instance(wide)["PrivateIpAddress"]
    assert haneul.instance(narrow)["SubnetId"] == haneul.instance(wide)["SubnetId"]
    assert not _pings(haneul, wide, there), "no rule lets ICMP into the narrow group"
    assert _pings(haneul, narrow, back), "and the answer to what it began itself comes in"
    ping = {"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1, "IpRanges": [{"CidrIp": f"{back}/32"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ping])
    eventually("the new rule lets ICMP in", lambda: _pings(haneul, wide, there), 60)
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[ping])
    eventually("the revoked rule is gone", lambda: not _pings(haneul, wide, there), 60)
    everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[everything])
    eventually("without egress rules nothing gets out", lambda: not _pings(haneul, narrow, back), 60)
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[everything])
    peer = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": haneul.open_group()}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[peer])
    eventually("members of another group may be let in", lambda: _pings(haneul, wide, there), 60)


def test_a_guest_cannot_lie_about_its_address(haneul: Haneul, pair: tuple[str, str, str]) -> None:
    wide, narrow, _ = pair
    back = haneul.instance(wide)["PrivateIpAddress"]
    assert _pings(haneul, narrow, back)
    stolen = "172.31.9.9"
    haneul.ssh(narrow, f"ip addr add {stolen}/32 dev eth0")
    assert not _pings(haneul, narrow, back, f"-I {stolen}")
    answer = haneul.ssh(
        narrow,
        f"mac=$(cat /sys/class/net/eth0/address); ip link add v0 link eth0 type macvlan 2>/dev/null;"
        f"(ip link set eth0 address 06:00:00:00:00:99; ping -c 1 -W 2 {back} >/dev/null 2>&1 && echo yes || echo no) > /tmp/lied;"
        "ip link set eth0 address $mac; cat /tmp/lied",
        timeout=30,
    )
    assert answer == "no"


def test_names(haneul: Haneul, pair: tuple[str, str, str]) -> None:
    wide, narrow, _ = pair
    other = haneul.instance(narrow)

    def resolve(name: str) -> str:
        return haneul.ssh(wide, f"nslookup -type=a {name} 2>&1 || true")

    assert other["PrivateIpAddress"] in resolve(other["PrivateDnsName"])
    assert other["PrivateIpAddress"] in resolve(other["PublicDnsName"]), (
        "inside, the public name is the private address"
    )
    assert "NXDOMAIN" in resolve("nobody.ec2.internal")
    assert haneul.ssh(wide, "cat /etc/resolv.conf | grep -c 172.31.0.2") == "1"


def test_the_host_is_out_of_reach_and_the_metadata_address_is_ours(haneul: Haneul, pair: tuple[str, str, str]) -> None:
    """The host's side of the link, its API, and other addresses of the link-local range."""
    wide, _, _ = pair
    pool = haneul.status()["public_pool"].partition("/")[0].rsplit(".", 1)
    near = f"{pool[0]}.{int(pool[1]) + 1}"
    listener = subprocess.Popen(["python3", "-m", "http.server", "8099", "--bind", near], stdout=-3, stderr=-3)
    try:
        eventually("something listens on the host", lambda: subprocess.run(
            ["python3", "-c", f"import socket; socket.create_connection(('{near}', 8099), 1)"], check=True, capture_output=True
        ).returncode == 0, 20)  # fmt: skip
        for address, port in ((near, 8099), (near, haneul.port), ("169.254.255.1", 8099), ("169.254.1.1", 80)):
            answer = haneul.ssh(wide, f"nc -w 2 {address} {port} </dev/null >/dev/null 2>&1 && echo in || echo out")
            assert answer == "out", f"{address}:{port}"
    finally:
        listener.kill()
        listener.wait()


def test_the_public_address_of_a_neighbour_works_from_inside(haneul: Haneul, pair: tuple[str, str, str]) -> None:
    wide, narrow, _ = pair
    public = haneul.instance(narrow)["PublicIpAddress"]
    greeting = haneul.ssh(wide, f"(sleep 2) | nc -w 3 {public} 22 | head -c 4")
    assert greeting == "SSH-"
