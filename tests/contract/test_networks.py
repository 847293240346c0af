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
from haneul.drivers.interface import NetworkDriver
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
