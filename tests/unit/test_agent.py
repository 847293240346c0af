"""Passes of the agent over machines that take their time. Its drivers here are made for that: nothing of them is real."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from haneul.agent import agent as agent_module
from haneul.agent.agent import Agent, Drivers
from haneul.model.assignment import (
    Assignment,
    DiskSpec,
    Holding,
    MachineReport,
    MachineSpec,
    NetworkSpec,
    NicSpec,
    Report,
)

SPEC = MachineSpec("i-0", "running", 1, False, 60, 1, 128, "tiny", "t3.nano", "hvm", "u", (), ())


class Machines:
    """Each machine begins when its event is set."""

    def __init__(self) -> None:
        self.may: dict[str, asyncio.Event] = {}
        self.there: dict[str, MachineReport] = {}
        self.working: list[str] = []
        self.most = 0

    async def observe(self) -> dict[str, MachineReport]:
        return dict(self.there)

    def needs_taps(self, spec: MachineSpec) -> bool:
        return False

    async def ensure_running(self, spec: MachineSpec, taps: dict[str, int]) -> MachineReport:
        assert spec.instance_id not in self.working, "two work at it"
        self.working.append(spec.instance_id)
        self.most = max(self.most, len(self.working))
        try:
            if event := self.may.get(spec.instance_id):
                await event.wait()
        finally:
            self.working.remove(spec.instance_id)
        self.there[spec.instance_id] = MachineReport(spec.instance_id, "running", spec.boot_count)
        return self.there[spec.instance_id]

    async def ensure_stopped(self, spec: MachineSpec) -> MachineReport:
        self.there[spec.instance_id] = MachineReport(spec.instance_id, "off", spec.boot_count)
        return self.there[spec.instance_id]

    async def ensure_absent(self, instance_id: str) -> MachineReport:
        assert instance_id not in self.working, "it is being started"
        self.there.pop(instance_id, None)
        return MachineReport(instance_id, "absent")


class Rest:
    """Disks, networks, metadata and server of nobody; what was taken away is remembered."""

    def __init__(self) -> None:
        self.disks = frozenset({"vol-left"})
        self.removed: list[str] = []

    async def observe(self) -> frozenset[str]:
        return self.disks

    async def apply(self, _: object, revision: int = 0) -> None: ...

    async def ensure_absent(self, one: str) -> None:
        self.removed.append(one)
        self.disks -= {one}

    async def facts(self) -> Any:
        return None


class Told:
    """The control plane."""

    def __init__(self, assignment: Assignment) -> None:
        self.given = assignment
        self.reports: list[Report] = []

    async def assignment(self, after: int) -> Assignment | None:
        return self.given if self.given.revision > after else None

    async def report(self, report: Report) -> None:
        self.reports.append(report)

    @property
    def running(self) -> set[str]:
        return (
            {one.instance_id for one in self.reports[-1].machines if one.power == "running"} if self.reports else set()
        )

    def want(self, *machines: MachineSpec, buried: tuple[Holding, ...] = ()) -> None:
        self.given = replace(self.given, revision=self.given.revision + 1, machines=machines, tombstones=buried)


def _specs(number: int) -> tuple[MachineSpec, ...]:
    return tuple(replace(SPEC, instance_id=f"i-{one}") for one in range(number))


async def _until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.005)


def _with(agent_does: Callable[[Agent, Machines, Rest, Told], Awaitable[None]], *machines: MachineSpec) -> None:
    async def main() -> None:
        own, rest, told = Machines(), Rest(), Told(Assignment(1, "server-1", machines=machines))
        agent = Agent(told, Drivers(own, rest, rest, rest, rest), "server-1")  # type: ignore[arg-type]
        running = asyncio.create_task(agent.run())
        try:
            await agent_does(agent, own, rest, told)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert not own.working, "what was being started is no longer, when the agent ends"

    asyncio.run(main())


def test_a_slow_machine_keeps_nobody_waiting() -> None:
    """Others are reported, new ones begun and old ones ended; the slow one is begun once."""

    async def do(agent: Agent, own: Machines, rest: Rest, told: Told) -> None:
        own.may["i-0"] = asyncio.Event()
        await _until(lambda: told.running == {"i-1", "i-2"})
        told.want(*_specs(2), replace(SPEC, instance_id="i-2", power="stopped"), replace(SPEC, instance_id="i-3"))
        agent.wake()
        await _until(lambda: told.running == {"i-1", "i-3"})
        assert own.working == ["i-0"]
        own.may["i-0"].set()
        await _until(lambda: told.running == {"i-0", "i-1", "i-3"})

    _with(do, *_specs(3))


def test_one_that_nobody_wants_is_removed_when_its_start_is_over() -> None:
    async def do(agent: Agent, own: Machines, rest: Rest, told: Told) -> None:
        own.may["i-0"] = asyncio.Event()
        await _until(lambda: own.working == ["i-0"])
        own.there["i-0"] = MachineReport("i-0", "starting")
        told.want(replace(SPEC, instance_id="i-1"), buried=(Holding("machine", "i-0"), Holding("volume", "vol-0")))
        agent.wake()
        await _until(lambda: told.running == {"i-1"})
        rest.disks = frozenset({"vol-0"})
        before = len(told.reports)
        await _until(lambda: len(told.reports) > before + 1)
        assert "vol-0" in rest.disks and "i-0" in own.there, "it may still have that open"
        own.may["i-0"].set()
        await _until(lambda: "i-0" not in own.there and "vol-0" not in rest.disks)

    _with(do, *_specs(1))


def test_no_more_than_so_many_at_once_and_all_of_them() -> None:
    number = 2 * agent_module.MACHINES_AT_ONCE + 7

    async def do(agent: Agent, own: Machines, rest: Rest, told: Told) -> None:
        own.may.update({f"i-{one}": asyncio.Event() for one in range(number)})
        await _until(lambda: len(own.working) == agent_module.MACHINES_AT_ONCE)
        told.want(*_specs(number - 1), replace(SPEC, instance_id="i-last", power="stopped"))
        agent.wake()
        own.may[own.working[0]].set()
        await _until(lambda: "i-last" in own.there)  # before those that are to begin
        for event in own.may.values():
            event.set()
        await _until(lambda: len(told.running) == number - 1)
        assert own.most == agent_module.MACHINES_AT_ONCE

    _with(do, *_specs(number))


class OrderedNetworks(Rest):
    """Networks that remember in which order they were told, and may take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.disks = frozenset()
        self.told: list[tuple[str, int]] = []
        self.slow = asyncio.Event()
        self.slow.set()
        self.inside = 0

    async def apply(self, network: Any, revision: int = 0) -> None:
        if not isinstance(network, NetworkSpec):
            return
        self.inside += 1
        assert self.inside == 1, "networks have one owner"
        await self.slow.wait()
        self.told.append((network.vpc_id, revision))
        self.disks |= {network.vpc_id}
        self.inside -= 1

    async def open_tap(self, nic: NicSpec) -> int:
        assert nic.vpc_id in {vpc for vpc, _ in self.told}, "a machine begins when its network is there"
        return os.open(os.devnull, os.O_RDONLY)

    async def reachable(self, nic: NicSpec) -> bool:
        return True

    async def ensure(self, disk: object) -> None: ...


def _network(vpc: str) -> NetworkSpec:
    return NetworkSpec(vpc, "10.0.0.0/16", "d", "10.0.0.2", (), (), ())


def _agent(told: Told, networks: OrderedNetworks, own: Machines, may_act: Callable[[], bool] = lambda: True) -> Agent:
    rest = Rest()
    rest.disks = frozenset()
    rest.ensure = networks.ensure  # type: ignore[attr-defined]
    return Agent(told, Drivers(own, rest, networks, rest, rest), "server-1", may_act)  # type: ignore[arg-type]


def test_an_older_assignment_is_never_applied_after_a_newer_one() -> None:
    """Both loops work at once; the slow one must not bring back what was revoked meanwhile."""

    async def main() -> None:
        told, networks, own = (
            Told(Assignment(1, "server-1", networks=(_network("vpc-1"),))),
            OrderedNetworks(),
            Machines(),
        )
        own.needs_taps = lambda spec: True  # type: ignore[method-assign]
        agent = _agent(told, networks, own)
        networks.slow.clear()
        first = asyncio.create_task(agent.network_pass())
        await _until(lambda: networks.inside == 1)
        nic = NicSpec("eni-1", "vpc-1", "subnet-1", "m", "10.0.0.4")
        told.given = replace(told.given, revision=2, machines=(replace(SPEC, instance_id="i-1", nics=(nic,)),))
        second = asyncio.create_task(agent.one_pass())
        await asyncio.sleep(0)
        told.given = replace(told.given, revision=3)
        networks.slow.set()
        await asyncio.gather(first, second)
        await _until(lambda: "i-1" in own.there)
        revisions = [revision for _, revision in networks.told]
        assert revisions == sorted(revisions) and revisions[-1] >= 2

    asyncio.run(main())


def test_what_is_not_named_is_left_alone_and_shown() -> None:
    async def main() -> None:
        told, networks, own = Told(Assignment(1, "server-1")), OrderedNetworks(), Machines()
        own.there["i-lost"] = MachineReport("i-lost", "running", 1)
        networks.disks = frozenset({"vpc-lost"})
        agent = _agent(told, networks, own)
        agent.drivers.disks.disks = frozenset({"vol-lost"})  # type: ignore[attr-defined]
        for _ in range(3):
            await agent.network_pass()
            await agent.one_pass()
        assert "i-lost" in own.there and not agent.drivers.disks.removed and not networks.removed  # type: ignore[attr-defined]
        assert [one.id for one in agent.unclaimed] == ["i-lost", "vol-lost", "vpc-lost"]
        # A machine that nobody claims may be in a network that is ordered away: it stays.
        told.want(buried=(Holding("network", "vpc-lost"), Holding("volume", "vol-lost")))
        await agent.network_pass()
        await agent.one_pass()
        assert not networks.removed and agent.drivers.disks.removed == ["vol-lost"]  # type: ignore[attr-defined]
        told.want(buried=(Holding("network", "vpc-lost"), Holding("machine", "i-lost")))
        await agent.one_pass()
        await agent.network_pass()
        await agent.one_pass()
        assert not own.there and networks.removed == ["vpc-lost"]
        assert set(told.reports[-1].removed) == {Holding("machine", "i-lost"), Holding("network", "vpc-lost")}

    asyncio.run(main())


def test_who_may_not_act_starts_and_removes_nothing() -> None:
    async def main() -> None:
        told = Told(Assignment(1, "server-1", machines=_specs(2), networks=(_network("vpc-1"),)))
        told.given = replace(
            told.given, tombstones=(Holding("machine", "i-9"),), volumes=(DiskSpec("vol-1", "", 1, ""),)
        )
        networks, own = OrderedNetworks(), Machines()
        own.there["i-9"] = MachineReport("i-9", "running", 1)
        agent = _agent(told, networks, own, lambda: False)
        for _ in range(2):
            await agent.network_pass()
            await agent.one_pass()
        assert own.there.keys() == {"i-9"} and not networks.told and not told.reports
        assert "another haneul" in agent.problems[0]

    asyncio.run(main())
