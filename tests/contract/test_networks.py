"""The contract of `NetworkDriver`, over the fake and over bridges in namespaces."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from haneul.drivers.fake import FakeNetworks, World
from haneul.drivers.interface import DriverError, NetworkDriver
from haneul.drivers.networks.linux import dnsmasq_process
from haneul.drivers.networks.linux.driver import BridgeNetworks
from haneul.model.assignment import GroupSpec, InterfaceSpec, NetworkSpec, NicSpec, SubnetSpec
from haneul.model.network import Rule

Make = Callable[[], NetworkDriver]

SUBNET = SubnetSpec("subnet-0aaaaaaaaaaaaaaaa", "172.31.0.0/20", "172.31.0.1")
GROUP = GroupSpec(
    "sg-0bbbbbbbbbbbbbbbb",
    (Rule("egress", "-1", -1, -1, "0.0.0.0/0"), Rule("ingress", "tcp", 22, 22, "0.0.0.0/0")),
    ("172.31.0.10",),
)
INTERFACE = InterfaceSpec(
    "eni-0123456789abcdef0",
    SUBNET.subnet_id,
    "06:00:00:00:00:01",
    "172.31.0.10",
    "198.18.4.10",
    (GROUP.group_id,),
    ("ip-172-31-0-10.ec2.internal",),
    ("ec2-198-18-4-10.compute-1.amazonaws.com",),
)
NETWORK = NetworkSpec(
    "vpc-0ccccccccccccccc0", "172.31.0.0/16", "ec2.internal", "172.31.0.2", (SUBNET,), (INTERFACE,), (GROUP,)
)
NIC = NicSpec(INTERFACE.interface_id, NETWORK.vpc_id, SUBNET.subnet_id, INTERFACE.mac, INTERFACE.address)


@pytest.fixture(params=["fake", "bridge"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    if request.param == "fake":
        yield lambda: FakeNetworks(World(tmp_path / "world.db"))
        return
    if os.geteuid() != 0 or {name for _, name in socket.if_nameindex()} - {"lo"} or shutil.which("dnsmasq") is None:
        pytest.skip("namespaces need root and a network of their own: run `make test`")
    directory = Path("/run/haneul-contract")
    yield lambda: BridgeNetworks(directory, "ct", "198.18.4.0/23", uplink=False)
    asyncio.run(BridgeNetworks(directory, "ct", "198.18.4.0/23", uplink=False).remove_all())
    shutil.rmtree(directory, ignore_errors=True)


def _inside(vpc_id: str, *command: str) -> str:
    place = f"/run/haneul-contract/netns/{vpc_id}"
    return subprocess.run(["nsenter", f"--net={place}", *command], capture_output=True, text=True, check=True).stdout


def test_apply_may_be_repeated_and_found_again(make: Make) -> None:
    async def run() -> None:
        driver = make()
        assert await driver.observe() == frozenset()
        await driver.apply(NETWORK, 1)
        await driver.apply(NETWORK, 1)
        after_a_crash = make()
        assert await after_a_crash.observe() == {NETWORK.vpc_id}
        await after_a_crash.apply(NETWORK, 1)

    asyncio.run(run())


def test_a_tap_can_be_opened_again_and_again(make: Make) -> None:
    async def run() -> None:
        driver = make()
        await driver.apply(NETWORK, 1)
        for _ in range(3):
            os.close(await driver.open_tap(NIC))

    asyncio.run(run())


def test_absent_leaves_nothing(make: Make) -> None:
    async def run() -> None:
        driver = make()
        await driver.apply(NETWORK, 1)
        for _ in range(2):
            await driver.ensure_absent(NETWORK.vpc_id)
            assert await driver.observe() == frozenset()
        await driver.apply(NETWORK, 1)
        assert await driver.observe() == {NETWORK.vpc_id}

    asyncio.run(run())


def test_a_change_is_loaded_by_difference(make: Make) -> None:
    """What an existing connection rests on stays: only what differs is touched."""
    more = replace(GROUP, rules=(*GROUP.rules, Rule("ingress", "udp", 53, 54, "10.0.0.0/8")))

    async def run() -> None:
        driver = make()
        await driver.apply(NETWORK, 1)
        await driver.apply(replace(NETWORK, groups=(more,)), 2)
        if isinstance(driver, BridgeNetworks):
            assert "ip saddr 10.0.0.0/8 udp dport 53-54 accept" in _inside(NETWORK.vpc_id, "nft", "list", "ruleset")
        await driver.apply(replace(NETWORK, interfaces=(), groups=()), 3)
        if isinstance(driver, BridgeNetworks):
            loaded = _inside(NETWORK.vpc_id, "nft", "list", "ruleset")
            assert "172.31.0.10" not in loaded and "bbbb" not in loaded

    asyncio.run(run())


def test_what_was_changed_behind_its_back_is_mended_after_a_restart(make: Make) -> None:
    async def run() -> None:
        driver = make()
        await driver.apply(NETWORK, 1)
        if isinstance(driver, BridgeNetworks):
            _inside(NETWORK.vpc_id, "nft", "flush", "ruleset")
        again = make()
        await again.apply(NETWORK, 1)
        if isinstance(driver, BridgeNetworks):
            assert "tcp dport 22 accept" in _inside(NETWORK.vpc_id, "nft", "list", "ruleset")

    asyncio.run(run())


def _rules(driver: NetworkDriver, vpc_id: str) -> str:
    """What is in force: in the kernel, or in the fake's world."""
    if isinstance(driver, FakeNetworks):
        found = driver.applied(vpc_id)
        assert found is not None
        return "\n".join(str(rule) for group in found.groups for rule in group.rules)
    return _inside(vpc_id, "nft", "list", "ruleset")


#: The port of a rule, as the kernel and as the fake spell it.
OPENED = replace(GROUP, rules=(*GROUP.rules, Rule("ingress", "udp", 5353, 5353, "10.0.0.0/8")))


def test_an_older_value_after_a_newer_one_changes_nothing(make: Make) -> None:
    """A rule that was revoked must not be in force again because somebody was late."""

    async def run() -> None:
        driver = make()
        await driver.apply(replace(NETWORK, groups=(OPENED,)), 1)
        assert "5353" in _rules(driver, NETWORK.vpc_id)
        await driver.apply(NETWORK, 2)
        assert "5353" not in _rules(driver, NETWORK.vpc_id)
        await driver.apply(replace(NETWORK, groups=(OPENED,)), 1)
        assert "5353" not in _rules(driver, NETWORK.vpc_id)
        await driver.apply(replace(NETWORK, groups=(OPENED,)), 3)
        assert "5353" in _rules(driver, NETWORK.vpc_id)

    asyncio.run(run())


def test_every_part_is_held(make: Make) -> None:
    """Subnets, interfaces, rules: what was told is there, also for who looks after a crash."""

    async def run() -> None:
        await make().apply(replace(NETWORK, groups=(OPENED,)), 1)
        again = make()
        await again.apply(replace(NETWORK, groups=(OPENED,)), 1)
        assert "5353" in _rules(again, NETWORK.vpc_id) and "22" in _rules(again, NETWORK.vpc_id)
        os.close(await again.open_tap(NIC))
        with pytest.raises(DriverError):
            await again.open_tap(replace(NIC, vpc_id="vpc-0fffffffffffffff0"))
        await again.apply(replace(NETWORK, interfaces=(), groups=()), 2)
        assert "5353" not in _rules(again, NETWORK.vpc_id)

    asyncio.run(run())


def _vpcs(number: int) -> list[NetworkSpec]:
    return [
        replace(NETWORK, vpc_id=f"vpc-{one:017x}", interfaces=(replace(INTERFACE, public=""),)) for one in range(number)
    ]


def test_many_at_once_on_a_fresh_server(make: Make) -> None:
    """They share the edge: it is made once."""
    for _ in range(3):

        async def run() -> None:
            driver = make()
            await asyncio.gather(*(driver.apply(vpc, 1) for vpc in _vpcs(4)))
            assert await driver.observe() == {vpc.vpc_id for vpc in _vpcs(4)}
            if isinstance(driver, BridgeNetworks):
                mounts = Path("/proc/self/mountinfo").read_text()
                assert mounts.count("/run/haneul-contract/netns/edge ") == 1
                await driver.remove_all()

        asyncio.run(run())


def test_links_have_addresses_of_their_own(make: Make) -> None:
    async def run() -> None:
        driver = make()
        for vpc in _vpcs(5):
            await driver.apply(vpc, 1)
        if isinstance(driver, BridgeNetworks):
            found = [_inside(vpc.vpc_id, "ip", "-4", "-o", "addr", "show", "dev", "ext").split()[3] for vpc in _vpcs(5)]
            assert len(set(found)) == 5
            again = make()
            await again.apply(_vpcs(5)[3], 2)
            assert _inside(_vpcs(5)[3].vpc_id, "ip", "-4", "-o", "addr", "show", "dev", "ext").split()[3] == found[3]

    asyncio.run(run())


def test_what_somebody_changed_is_mended_by_the_next_pass(make: Make) -> None:
    """Without a restart: flushed rules, a removed link of the host."""

    async def run() -> None:
        driver = make()
        await driver.apply(NETWORK, 1)
        if isinstance(driver, BridgeNetworks):
            _inside(NETWORK.vpc_id, "nft", "flush", "ruleset")
            await driver.apply(NETWORK, 1)
            assert "tcp dport 22 accept" in _inside(NETWORK.vpc_id, "nft", "list", "ruleset")
            subprocess.run(["ip", "link", "del", "hnct"], check=True)
            await driver.apply(NETWORK, 1)
            subprocess.run(["ip", "link", "show", "hnct"], check=True, capture_output=True)

    asyncio.run(run())


def test_what_a_failed_try_has_loaded_does_not_stay(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new rule is in the kernel, then /run is full; the rule is taken back before the next try."""
    more = replace(GROUP, rules=(*GROUP.rules, Rule("ingress", "udp", 53, 54, "10.0.0.0/8")))
    wider = replace(NETWORK, groups=(more,), interfaces=(replace(INTERFACE, names=("other.ec2.internal",)),))

    async def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async def run() -> None:
        driver = make()
        await driver.apply(NETWORK, 1)
        if isinstance(driver, BridgeNetworks):
            with monkeypatch.context() as patch:
                patch.setattr(dnsmasq_process.DnsmasqProcess, "ensure", full)
                with pytest.raises(OSError, match="No space"):
                    await driver.apply(wider, 2)
            assert "udp dport 53-54" in _rules(driver, NETWORK.vpc_id), "the test has to fail after the rules"
        await driver.apply(NETWORK, 3)
        rules = _rules(driver, NETWORK.vpc_id)
        assert "10.0.0.0/8" not in rules and "22" in rules
        os.close(await driver.open_tap(NIC))

    asyncio.run(run())
