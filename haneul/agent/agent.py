"""The server's half: one pass compares the assignment with what there is and calls the drivers.

A pass takes no input but the assignment and the world, keeps nothing that matters, and may be killed at any
line: the next pass finds out. It runs when it is woken and every few seconds besides. A machine that takes longer (one of fifty
that are launched at once) is worked at beside the next passes, so that nobody waits for it, and no two work at the same one.

Nothing is removed because the assignment does not name it: only a tombstone removes. What is here and neither named nor
buried is *unclaimed*: it is left alone and shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from haneul.agent.link import Link
from haneul.agent.tracing import Tracer
from haneul.drivers.interface import (
    DiskDriver,
    DriverError,
    MachineDriver,
    MetadataDriver,
    NetworkDriver,
    ServerDriver,
    TemplateDriver,
)
from haneul.model.assignment import Assignment, Holding, MachineReport, MachineSpec, Report

log = logging.getLogger(__name__)

PERIOD = 2.0
BUSY_PERIOD = 0.4
TRIES = 4
#: Once a guest has answered, it is asked again only this often (seconds).
REACHABLE_PERIOD = 30.0
#: A guest that has not answered for so long after its boot is impaired (seconds).
IMPAIRED_AFTER = 600.0


MACHINES_AT_ONCE = 50
#: So long a pass waits for the machines that it works at, then it reports the others (seconds).
PATIENCE = 0.5
CHECKS_AT_ONCE = 50


def _pause(cpu: float) -> float:
    """How long to rest after a pass that took `cpu` seconds of this process's time.

    A small cloud's passes follow each other at once; a large one's leave nine tenths of the time to the API.
    """
    return min(1.0, 9 * max(0.0, cpu - 0.02))


@dataclass(frozen=True)
class Drivers:
    machines: MachineDriver
    disks: DiskDriver
    networks: NetworkDriver
    metadata: MetadataDriver
    server: ServerDriver
    templates: TemplateDriver | None = None


#: The loop that a problem or a removal is of; each tells its own anew with every pass.
_Loop = Literal["machines", "networks"]


@dataclass
class _Health:
    """What is known of a guest's reachability in one boot."""

    boot_count: int
    since: float
    answered: bool | None = None
    asked: float = 0.0


@dataclass
class Agent:
    link: Link
    drivers: Drivers
    server_id: str
    #: Whether this agent may still act for the server: asked before anything is started, stopped or removed.
    may_act: Callable[[], bool] = lambda: True
    epoch: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _wake_networks: asyncio.Event = field(default_factory=asyncio.Event)
    _assignment: Assignment | None = None
    _failures: dict[tuple[str, int], int] = field(default_factory=dict)
    _health: dict[str, _Health] = field(default_factory=dict)
    _problems: dict[_Loop, list[str]] = field(default_factory=dict)
    _reports: dict[str, tuple[MachineSpec, MachineReport]] = field(default_factory=dict)
    _settled: dict[str, tuple[MachineSpec, MachineReport | None]] = field(default_factory=dict)
    _may_ask: float = 0
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tracer: Tracer = field(default_factory=Tracer)
    _at_work: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _late: set[str] = field(default_factory=set)
    #: One owner of networks and metadata: whoever holds it brings them to the newest assignment.
    _networking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _networked: int = -1
    _unclaimed: dict[str, frozenset[str]] = field(default_factory=dict)
    _buried: dict[_Loop, tuple[Holding, ...]] = field(default_factory=dict)
    _told_volumes: frozenset[str] | None = None

    @property
    def problems(self) -> list[str]:
        """What the last passes could not do, for people."""
        return [text for loop in ("machines", "networks") for text in self._problems.get(loop, ())]

    @property
    def unclaimed(self) -> list[Holding]:
        """What is here, and neither wanted nor ordered to be removed."""
        kinds: tuple[Literal["machine", "volume", "network"], ...] = ("machine", "volume", "network")
        return [Holding(kind, one) for kind in kinds for one in sorted(self._unclaimed.get(kind, ()))]

    def wake(self) -> None:
        """Look again soon. Call it on the agent's loop (`loop.call_soon_threadsafe` from elsewhere)."""
        self._wake.set()
        self._wake_networks.set()

    async def run(self) -> None:
        """Passes until cancelled: one loop for machines, and one for networks, so that a rule waits for no boot."""
        loops = [self._loop(self._wake, self.one_pass), self._loop(self._wake_networks, self.network_pass)]
        if self.drivers.templates is not None:
            loops.append(self.drivers.templates.run())
        try:
            await asyncio.gather(*loops)
        finally:
            left = list(self._at_work.values())
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _loop(self, wake: asyncio.Event, one_pass: Callable[[], Awaitable[bool]]) -> None:
        while True:
            wake.clear()
            began = time.process_time()
            try:
                busy = await one_pass()
            except Exception:
                log.exception("a pass failed; the next one tries again")
                busy = False
            await asyncio.sleep(_pause(time.process_time() - began))
            # Not wait_for(): Python 3.11's forgets a cancellation that comes together with what it waits for.
            with suppress(TimeoutError):
                async with asyncio.timeout(BUSY_PERIOD if busy else PERIOD):
                    await wake.wait()

    async def _latest(self) -> Assignment | None:
        """The newest assignment; both loops share it, and ask for it once."""
        async with self._asking:
            known = self._assignment.revision if self._assignment else -1
            found = await self.link.assignment(known)
            if found is not None and (self._assignment is None or found.revision > self._assignment.revision):
                self._assignment = found
            return self._assignment

    async def network_pass(self) -> bool:
        """Rules, addresses, names and metadata of all VPCs, as they are wanted now."""
        async with self._networking:
            assignment = await self._latest()
            if assignment is not None and self.may_act():
                await self._networks(assignment)
        return False

    async def _need_networks(self, revision: int) -> None:
        """Networks and metadata are those of an assignment that is at least as new as `revision`."""
        async with self._networking:
            assignment = await self._latest()
            if self._networked < revision and assignment is not None and self.may_act():
                await self._networks(assignment)

    async def _networks(self, assignment: Assignment) -> None:
        """The caller holds `_networking`, and took the assignment then: an older one is never applied after a newer one."""
        self._problems["networks"] = []
        # What is told twice must not end a tombstone that was written between.
        self._buried["networks"] = ()
        for network in assignment.networks:
            work = self.drivers.networks.apply(network, assignment.revision)
            await self._tolerate("networks", f"network {network.vpc_id}", work)
        await self._tolerate("networks", "metadata", self.drivers.metadata.apply(assignment.metadata))
        await self._tolerate("networks", "networks", self._remove_networks(assignment))
        self._networked = assignment.revision

    async def _remove_networks(self, assignment: Assignment) -> None:
        wanted = {network.vpc_id for network in assignment.networks}
        buried = {one.id for one in assignment.tombstones if one.kind == "network"} - wanted
        here = await self.drivers.networks.observe()
        # A machine that nobody claims may still be in one of them.
        if "machine" in self._unclaimed and not self._unclaimed["machine"]:
            for vpc_id in sorted(here & buried):
                await self._tolerate("networks", f"network {vpc_id}", self.drivers.networks.ensure_absent(vpc_id))
            here = await self.drivers.networks.observe()
        self._unclaimed["network"] = here - wanted - buried
        self._buried["networks"] = tuple(Holding("network", one) for one in sorted(buried - here))

    async def introduce(self) -> None:
        """Say what this server has, before anything is asked of it."""
        facts = await self.drivers.server.facts()
        await self.link.report(Report(-1, self.server_id, facts, epoch=self.epoch))

    async def one_pass(self) -> bool:
        """Make it so, and report. Says whether something is still on its way."""
        assignment = await self._latest()
        if assignment is None:
            return False
        if not self.may_act():
            self._problems["machines"] = [
                "another haneul may have taken over this server: nothing is started or removed"
            ]
            return False
        self._problems["machines"] = []
        seen = await self.drivers.machines.observe()
        await self._remove_machines(assignment, seen)
        reports = await self._machines(assignment, seen)
        self._forget(assignment)
        volumes = await self._remove_volumes(assignment)
        await self._report(assignment, reports, volumes)
        return bool(self._at_work) or any(
            one.power in ("starting", "stopping") or (one.power == "running" and one.reachable is None)
            for one in reports
        )

    async def _report(self, assignment: Assignment, reports: list[MachineReport], volumes: frozenset[str]) -> None:
        facts, traces = await self.drivers.server.facts(), self._tracer.take()
        report = Report(
            assignment.revision,
            self.server_id,
            facts,
            tuple(reports),
            tuple(self.problems),
            traces,
            (*self._buried.get("machines", ()), *self._buried.get("networks", ())),
            None if volumes == self._told_volumes else tuple(sorted(volumes)),
            self.epoch,
        )
        try:
            await self.link.report(report)
            self._told_volumes = volumes
        except BaseException:
            self._tracer.give_back(traces)
            raise

    async def _tolerate(self, loop: _Loop, what: str, work: Awaitable[None]) -> None:
        """One part's failure does not keep the others from being made so."""
        try:
            await work
        except Exception as error:
            if not isinstance(error, DriverError | OSError):
                log.exception("%s", what)
            self._problems.setdefault(loop, []).append(f"{what}: {error}")
            log.warning("%s: %s", what, error)

    async def _machines(self, assignment: Assignment, seen: dict[str, MachineReport]) -> list[MachineReport]:
        """Every machine as it should be; those that are so already cost one comparison."""
        # All guests are asked again in one period, but not all in the same pass.
        self._may_ask = max(CHECKS_AT_ONCE, len(assignment.machines) * PERIOD // REACHABLE_PERIOD + 1)
        free = (spec for spec in assignment.machines if spec.instance_id not in self._at_work)
        due = deque(
            # Who is to end does not wait for those that begin: it takes little, and gives room back.
            sorted((one for one in free if not self._is_settled(one, seen)), key=lambda one: one.power == "running")
        )
        while due or self._at_work:
            for _ in range(min(len(due), MACHINES_AT_ONCE - len(self._at_work))):
                spec = due.popleft()
                self._work_at(spec, seen.get(spec.instance_id), assignment.revision)
            _, late = await asyncio.wait(self._at_work.values(), timeout=PATIENCE)
            if late:
                self._late.update(self._at_work)
                break
        done = (spec.instance_id for spec in assignment.machines if spec.instance_id not in self._at_work)
        return [self._reports[one][1] for one in done if one in self._reports]

    def _work_at(self, spec: MachineSpec, seen: MachineReport | None, revision: int) -> None:
        async def work() -> None:
            try:
                self._reports[spec.instance_id] = (spec, await self._machine(spec, seen, revision))
            finally:
                del self._at_work[spec.instance_id]
                if spec.instance_id in self._late:
                    self._late.remove(spec.instance_id)
                    self._wake.set()  # no pass waits for it

        self._at_work[spec.instance_id] = asyncio.create_task(work())

    def _is_settled(self, spec: MachineSpec, seen: dict[str, MachineReport]) -> bool:
        """This very value was made so, nothing is on its way, and the machine is still as it was reported."""
        now = seen.get(spec.instance_id)
        health = self._health.get(spec.instance_id)
        if health is not None and self._may_ask > 0 and time.monotonic() - health.asked >= REACHABLE_PERIOD:
            self._may_ask -= 1
            return False
        known = self._settled.get(spec.instance_id)
        if known is not None and known[0] is spec and known[1] is now:
            return True
        settled = self._looks_settled(spec, now, health)
        if settled:
            self._settled[spec.instance_id] = (spec, now)
        return settled

    def _looks_settled(self, spec: MachineSpec, now: MachineReport | None, health: _Health | None) -> bool:
        made, report = self._reports.get(spec.instance_id, (None, None))
        if report is None or made != spec:
            return False
        if spec.power == "running" and report.power == "running":
            answered = health is not None and health.answered
            return (
                bool(answered or not spec.nics)
                and now is not None
                and now.reachable is not False
                and replace(now, reachable=report.reachable) == report
            )
        if report.power not in ("off", "absent") or report.cause == "launch-failed":
            return False
        return report.power == "absent" if now is None else now == report

    # --- one machine --------------------------------------------------------------------------------

    def _forget(self, assignment: Assignment) -> None:
        current = {(machine.instance_id, machine.boot_count) for machine in assignment.machines}
        self._failures = {key: count for key, count in self._failures.items() if key in current}
        present = {machine.instance_id for machine in assignment.machines}
        for gone in self._reports.keys() - present:
            del self._reports[gone]
            self._settled.pop(gone, None)
            self._tracer.forget(gone)

    async def _machine(self, spec: MachineSpec, seen: MachineReport | None, revision: int) -> MachineReport:
        try:
            if spec.power == "absent":
                return await self._absent(spec)
            if spec.power == "stopped":
                self._health.pop(spec.instance_id, None)
                return await self.drivers.machines.ensure_stopped(spec)
            return await self._running(spec, revision)
        except Exception as error:
            if not isinstance(error, DriverError | OSError):
                log.exception("%s", spec.instance_id)
            return self._failed(spec, error, seen)

    async def _running(self, spec: MachineSpec, revision: int) -> MachineReport:
        taps: dict[str, int] = {}
        begins = self.drivers.machines.needs_taps(spec)
        try:
            if begins:
                with self._step(spec, "disks"):
                    for disk in spec.disks:
                        await self.drivers.disks.ensure(disk)
                with self._step(spec, "network"):
                    await self._need_networks(revision)
                    for nic in spec.nics:
                        taps[nic.interface_id] = await self.drivers.networks.open_tap(nic)
                if not self.may_act():
                    raise DriverError("another haneul may have taken over this server")
            with self._step(spec, "machine") if begins else nullcontext():
                report = await self.drivers.machines.ensure_running(spec, taps)
        finally:
            for descriptor in taps.values():
                os.close(descriptor)
        self._failures.pop((spec.instance_id, spec.boot_count), None)
        report = replace(report, reachable=await self._reachable(spec, report))
        if report.power == "running" and (report.reachable or not spec.nics):
            self._tracer.over(spec.instance_id, spec.boot_count, "guest")
        return report

    def _step(self, spec: MachineSpec, name: str) -> AbstractContextManager[None]:
        return self._tracer.step(spec.instance_id, spec.boot_count, name)

    async def _absent(self, spec: MachineSpec) -> MachineReport:
        self._health.pop(spec.instance_id, None)
        return await self.drivers.machines.ensure_absent(spec.instance_id)

    def _failed(self, spec: MachineSpec, error: Exception, seen: MachineReport | None) -> MachineReport:
        """Trying again is the next pass's work, a few times; then the launch has failed and says why."""
        key = (spec.instance_id, spec.boot_count)
        self._failures[key] = self._failures.get(key, 0) + 1
        text = str(error) if isinstance(error, DriverError) else f"{type(error).__name__}: {error}"
        log.warning("%s: %s (try %d)", spec.instance_id, text, self._failures[key])
        if seen is not None and _says_all(spec, seen):
            return replace(seen, phase=text[:200])
        fatal = isinstance(error, DriverError) and error.fatal
        if spec.power == "running" and (fatal or self._failures[key] >= TRIES):
            self._tracer.over(spec.instance_id, spec.boot_count, "failed", text)
            return MachineReport(spec.instance_id, "off", spec.boot_count, "launch-failed", text)
        power = "starting" if spec.power == "running" else "stopping"
        return MachineReport(spec.instance_id, power, max(spec.boot_count - 1, 0), detail=text, phase="trying again")  # type: ignore[arg-type]

    async def _reachable(self, spec: MachineSpec, report: MachineReport) -> bool | None:
        """EC2's instance status check: does the guest answer at its address? None until it is known."""
        if report.power != "running" or not spec.nics or report.reachable is False:
            return report.reachable
        now = time.monotonic()
        health = self._health.get(spec.instance_id)
        if health is None or health.boot_count != report.boot_count:
            health = self._health[spec.instance_id] = _Health(report.boot_count, now)
        if health.answered and now - health.asked < REACHABLE_PERIOD:
            return True
        nic = spec.nics[0]
        health.asked = now
        if await self.drivers.networks.reachable(nic):
            health.answered = True
        elif health.answered or now - health.since > IMPAIRED_AFTER:
            health.answered = False
        return health.answered

    # --- removing -----------------------------------------------------------------------------------

    async def _remove_machines(self, assignment: Assignment, seen: dict[str, MachineReport]) -> None:
        wanted = {machine.instance_id for machine in assignment.machines}
        buried = {one.id for one in assignment.tombstones if one.kind == "machine"} - wanted
        for instance_id in sorted((seen.keys() & buried) - self._at_work.keys()):
            await self._tolerate("machines", f"machine {instance_id}", self._remove(instance_id))
        self._unclaimed["machine"] = frozenset(seen.keys() - wanted - buried)

    async def _remove(self, instance_id: str) -> None:
        self._health.pop(instance_id, None)
        await self.drivers.machines.ensure_absent(instance_id)

    async def _remove_volumes(self, assignment: Assignment) -> frozenset[str]:
        """Volumes whose removal was ordered go; gives those that are left."""
        wanted = {disk.volume_id for disk in assignment.volumes}
        buried = {one.id for one in assignment.tombstones if one.kind == "volume"} - wanted
        here = await self.drivers.disks.observe()
        # A machine that is being started or ended may still have one of them open.
        if not self._at_work.keys() - {machine.instance_id for machine in assignment.machines}:
            for volume_id in sorted(here & buried):
                await self._tolerate("machines", f"volume {volume_id}", self.drivers.disks.ensure_absent(volume_id))
            here = await self.drivers.disks.observe() if here & buried else here
        self._unclaimed["volume"] = here - wanted - buried
        gone = [Holding("volume", one) for one in sorted(buried - here)]
        machines = (
            await self.drivers.machines.observe() if any(one.kind == "machine" for one in assignment.tombstones) else {}
        )
        left = {one.id for one in assignment.tombstones if one.kind == "machine"} - machines.keys()
        self._buried["machines"] = (*gone, *(Holding("machine", one) for one in sorted(left)))
        return here

    async def remove_unclaimed(self, wanted: str) -> Holding:
        """Remove, by its owner's order, what is unclaimed now. Raises `DriverError` if it is not, or cannot go."""
        found = next((one for one in self.unclaimed if one.id == wanted), None)
        assignment = await self._latest()
        if not self.may_act():
            raise DriverError("another haneul may have taken over this server")
        if found is None or assignment is None or _is_named(assignment, wanted):
            raise DriverError(f"{wanted} is not unclaimed here; `haneul unclaimed` lists what is")
        if found.kind == "machine":
            await self._remove(wanted)
        elif found.kind == "volume":
            await self.drivers.disks.ensure_absent(wanted)
        else:
            async with self._networking:
                await self.drivers.networks.ensure_absent(wanted)
        self._unclaimed[found.kind] = self._unclaimed[found.kind] - {wanted}
        return found


def _says_all(spec: MachineSpec, seen: MachineReport) -> bool:
    """What was seen is the machine's state whatever has failed since: it lives, it ended in this very boot, or it is off."""
    if spec.power == "running":
        return seen.power == "running" or (seen.power == "off" and seen.boot_count >= spec.boot_count)
    return spec.power == "stopped" and seen.power == "off"


def _is_named(assignment: Assignment, wanted: str) -> bool:
    return (
        any(one.instance_id == wanted for one in assignment.machines)
        or any(one.volume_id == wanted for one in assignment.volumes)
        or any(one.vpc_id == wanted for one in assignment.networks)
    )
