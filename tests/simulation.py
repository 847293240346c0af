"""The cloud on a simulated clock: the real control plane and the real agent over a world that fails wherever it is awaited.

One seed is one run: a user who launches, stops, starts, reboots and terminates, guests that end by themselves, and at every
await of the agent a delay, an error, or a kill of haneul, which then begins anew on the same store and the same world. What
must hold is checked at each step (`Run.check` and the doors), and that all is as it should be once the faults end.
"""

from __future__ import annotations

import asyncio
import os
import random
import selectors
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from haneul.agent import agent as agent_module
from haneul.agent.agent import Agent, Drivers
from haneul.config import Settings
from haneul.drivers.interface import DriverError
from haneul.errors import CloudError
from haneul.model.assignment import (
    Assignment,
    DiskSpec,
    MachineReport,
    MachineSpec,
    MetadataSpec,
    NetworkSpec,
    NicSpec,
    Report,
    ServerFacts,
)
from haneul.model.generation import GENERATIONS
from haneul.reconcile import assign
from haneul.reconcile.assign import Signer
from haneul.reconcile.control import Control
from haneul.services import ec2
from haneul.services.context import Caller
from haneul.services.dispatch import Cloud
from haneul.store import tables
from haneul.store.database import Row, Store
from haneul.store.rows import state_of

#: Importing it fills the table of operations.
assert ec2
SERVER = "server-1"
#: Each has a VPC of its own.
CALLERS = (Caller("000000000000", "us-east-1", ""), Caller("111111111111", "us-east-1", ""))
#: Seconds of the simulated clock in which faults are injected, and in which all must be well after them.
FAULTS_FOR = 60.0
PEACE_FOR = 600.0
#: What a user may be told who acts without looking first.
_REFUSALS = {"IncorrectInstanceState", "InvalidInstanceID.NotFound", "InvalidPermission.Duplicate"}
#: Every step from one EC2 state to another that one transaction may make.
_STEPS = {
    "pending": {"running", "stopping", "stopped", "shutting-down", "terminated"},
    "running": {"stopping", "stopped", "shutting-down", "terminated"},
    "stopping": {"stopped", "shutting-down", "terminated"},
    "stopped": {"pending", "shutting-down", "terminated"},
    "shutting-down": {"terminated"},
    "terminated": set(),
}


class _Selector(selectors.DefaultSelector):
    """Nothing outside happens: instead of waiting, the clock goes on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found and timeout is None:
            raise AssertionError("everybody waits, and nothing will ever happen")
        if not found and timeout:
            self.now += timeout
        return found


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while everybody waits. Seconds from 0."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


@dataclass
class Run:
    """One seed: the world (what would be processes, files and interfaces), and who acts on it."""

    seed: int
    store: Store
    settings: Settings
    loop: SimulatedLoop
    machines: dict[str, MachineReport] = field(default_factory=dict)
    disks_of: dict[str, set[str]] = field(default_factory=dict)
    nets_of: dict[str, set[str]] = field(default_factory=dict)
    volumes: set[str] = field(default_factory=set)
    networks: dict[str, int] = field(default_factory=dict)
    served: set[str] = field(default_factory=set)
    #: Boots that were begun, each once: (instance id, boot).
    boots: set[tuple[str, int]] = field(default_factory=set)
    #: Machines that somebody works at now.
    worked_at: set[str] = field(default_factory=set)
    states: dict[str, str] = field(default_factory=dict)
    instances: list[tuple[Caller, str]] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    calm: bool = False
    kills: int = 0
    agent: Agent | None = None
    _task: asyncio.Task[None] | None = None
    _last_id: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.cloud = Cloud(self.store, self.settings, SimpleNamespace(), self.clock, b"s" * 32, self._new_id)
        self.store.on_commit(self._committed)

    def clock(self) -> float:
        return 1_000_000_000.0 + self.loop.time()

    def _new_id(self, prefix: str) -> str:
        self._last_id += 1
        return f"{prefix}-{self._last_id:017x}"

    # --- what must hold -----------------------------------------------------------------------------

    def must(self, holds: bool, told: str) -> None:
        """An invariant. The agent tolerates exceptions, so that a broken one is also written down."""
        if not holds and not self.wrong:
            self.wrong.append(f"{self.loop.time():.3f} {told}")
            raise AssertionError(told)

    def _committed(self) -> None:
        self.check()
        if self.agent is not None:
            self.agent.wake()

    def rows(self, table: Any) -> dict[str, Row]:
        with self.store.read() as tx:
            return {row["id"]: row for row in tx.select(table)}

    def check(self) -> None:
        """Each instance has gone on by one step that EC2 knows, and none that was shown is lost."""
        rows = self.rows(tables.instances)
        for one, row in rows.items():
            state, before = str(state_of(row)), self.states.get(one, "pending")
            # A reboot of one that has ended meanwhile is a boot like the first.
            again = (before, state) == ("running", "pending") and row["boot_count"] > row["observed_boot_count"]
            self.must(again or state == before or state in _STEPS[before], f"{one} went from {before} to {state}")
            self.states[one] = state
        self.must(self.states.keys() <= rows.keys(), f"lost: {self.states.keys() - rows.keys()}")

    # --- faults -------------------------------------------------------------------------------------

    async def moment(self, what: str, error: Callable[[str], Exception] = DriverError) -> None:
        """Somebody waits for something: it takes its time, fails, or is the moment of the kill."""
        self.history.append(f"{self.loop.time():.3f} {what}")
        if self.calm:
            await asyncio.sleep(0)
            return
        draw = self.random.random()
        if draw < 0.01:
            self.kill()
            await asyncio.sleep(3600)
        elif draw < 0.05:
            self.history.append(f"{self.loop.time():.3f} {what} fails")
            raise error("injected")
        elif draw < 0.3:
            await asyncio.sleep(self.random.random() * 3)
        else:
            await asyncio.sleep(0)

    def kill(self) -> None:
        assert self._task is not None
        self.history.append(f"{self.loop.time():.3f} haneul is killed")
        self.kills += 1
        self._task.cancel()

    async def haneul(self) -> None:
        """The process, again and again: it remembers nothing but the store."""
        while True:
            self._task = asyncio.create_task(self._process())
            done, _ = await asyncio.wait({self._task})
            for task in done:
                if not task.cancelled() and not isinstance(task.exception(), ConnectionError | None):
                    raise task.exception() or AssertionError("haneul ended")
            self.agent = None
            self.worked_at.clear()
            await asyncio.sleep(self.random.random() * 2)

    async def _process(self) -> None:
        control = Control(self.store, self.settings, Signer(None, "ssh-rsa key"), self.clock, list)
        agent = Agent(_Link(self, control), _drivers(self), SERVER)
        await agent.introduce()
        self.agent = agent
        await agent.run()

    # --- who acts -----------------------------------------------------------------------------------

    def call(self, caller: Caller, name: str, **params: Any) -> Any:
        self.history.append(f"{self.loop.time():.3f} {name} {sorted(params.items())}")
        return self.cloud.call("ec2", name, caller, params)

    async def user(self) -> None:
        while self.loop.time() < FAULTS_FOR:
            await asyncio.sleep(self.random.random() * 4)
            try:
                self._act(self.random.choice(["Run", "Run", "Stop", "Start", "Reboot", "Terminate", "Rule"]))
            except CloudError as refused:
                self.must(refused.code in _REFUSALS, f"{refused.code}: {refused}")

    def _act(self, act: str) -> None:
        caller = self.random.choice(CALLERS)
        if act == "Rule":
            port = self.random.randrange(1, 9)
            rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}
            self.call(caller, "AuthorizeSecurityGroupIngress", GroupName="default", IpPermissions=[rule])
        elif act == "Run":
            answer = self.call(
                caller,
                "RunInstances",
                ImageId="ami-0123456789abcdef0",
                MinCount=1,
                MaxCount=self.random.randrange(1, 3),
                InstanceType="t3.nano",
                InstanceInitiatedShutdownBehavior=self.random.choice(["stop", "terminate"]),
            )
            self.instances += [(caller, one["InstanceId"]) for one in answer["Instances"]]
        elif self.instances:
            caller, one = self.random.choice(self.instances)
            self.call(caller, f"{act}Instances", InstanceIds=[one])

    async def guests(self) -> None:
        """Who is inside powers off, or panics."""
        while self.loop.time() < FAULTS_FOR:
            await asyncio.sleep(self.random.random() * 12)
            running = sorted(one for one, machine in self.machines.items() if machine.power == "running")
            if running:
                one, cause = self.random.choice(running), self.random.choice(["guest-shutdown", "crash"])
                self.history.append(f"{self.loop.time():.3f} {one} ends: {cause}")
                self.machines[one] = replace(self.machines[one], power="off", cause=cause, reachable=None)

    # --- the run ------------------------------------------------------------------------------------

    async def main(self) -> None:
        process = asyncio.create_task(self.haneul())
        while not self.rows(tables.servers):
            await asyncio.sleep(0.1)
        acting: asyncio.Future[Any] = asyncio.gather(self.user(), self.guests())
        await asyncio.wait([process, acting], return_when=asyncio.FIRST_COMPLETED)
        if not process.done():
            await acting
            self.calm = True
            await self._peace(process)
        if process.done():
            process.result()

    async def _peace(self, process: asyncio.Task[None]) -> None:
        end = self.loop.time() + PEACE_FOR
        while (left := list(self._left())) and not process.done():
            self.must(self.loop.time() < end, f"still not as it should be: {left}")
            await asyncio.sleep(1)

    def _left(self) -> Iterator[str]:
        """What is not yet as the store has it."""
        with self.store.read() as tx:
            rows = {row["id"]: row for row in tx.select(tables.instances)}
            volumes = {row["id"] for row in tx.select(tables.volumes)}
            tombstones = [row["id"] for row in tx.select(tables.tombstones)]
            networks = assign.vpcs_of(tx, SERVER)
        wanted = {"running": "running", "stopped": "stopped", "terminated": "terminated"}
        for one, row in rows.items():
            machine = self.machines.get(one)
            power = machine.power if machine is not None else "absent"
            fits = {"running": power == "running", "stopped": power in ("off", "absent"), "terminated": machine is None}
            if state_of(row) != wanted[row["power"]] or not fits[row["power"]]:
                yield f"{one} is {power} and {state_of(row)}, wanted {row['power']}"
            if machine is not None and row["power"] == "running" and machine.boot_count != row["boot_count"]:
                yield f"{one} has carried out {machine.boot_count} of {row['boot_count']} boots"
            if (row["power"] == "running" and one not in self.served) or (
                row["power"] == "terminated" and one in self.served
            ):
                yield f"{one}, {row['power']}, among those that metadata serves: {one in self.served}"
        if unknown := self.machines.keys() - rows.keys():
            yield f"machines of nobody: {unknown}"
        if self.volumes != volumes:
            yield f"volumes: {self.volumes ^ volumes}"
        if self.networks.keys() != set(networks):
            yield f"networks: {self.networks.keys() ^ set(networks)}"
        if tombstones:
            yield f"tombstones: {tombstones}"
        if self.agent is None or self.agent.unclaimed:
            yield f"unclaimed: {self.agent.unclaimed if self.agent is not None else 'no agent'}"


@dataclass
class _Link:
    """Between haneul's two halves: what is asked may not arrive, and what was done may not be answered."""

    run: Run
    control: Control

    async def assignment(self, after: int) -> Assignment | None:
        await self.run.moment("assignment", ConnectionError)
        found = self.control.assignment(SERVER, after)
        await self.run.moment("assignment's answer", ConnectionError)
        return found

    async def report(self, report: Report) -> None:
        await self.run.moment("report", ConnectionError)
        self.control.report(report)
        await self.run.moment("report's answer", ConnectionError)


@dataclass
class _Machines:
    run: Run

    async def observe(self) -> dict[str, MachineReport]:
        await self.run.moment("machines?")
        return dict(self.run.machines)

    def needs_taps(self, spec: MachineSpec) -> bool:
        machine = self.run.machines.get(spec.instance_id)
        return machine is None or (machine.power == "off" and machine.boot_count < spec.boot_count)

    @contextmanager
    def _alone(self, one: str) -> Iterator[None]:
        self.run.must(one not in self.run.worked_at, f"two work at {one}")
        self.run.worked_at.add(one)
        try:
            yield
        finally:
            self.run.worked_at.discard(one)

    async def ensure_running(self, spec: MachineSpec, taps: dict[str, int]) -> MachineReport:
        run, one = self.run, spec.instance_id
        with self._alone(one):
            await run.moment(f"{one} runs, boot {spec.boot_count}")
            machine = run.machines.get(one) or MachineReport(one, "off")
            if machine.boot_count < spec.boot_count and machine.power == "off" and len(taps) < len(spec.nics):
                # It ended after it was asked whether it needs them.
                return MachineReport(one, "starting", machine.boot_count, phase="waiting for its network")
            if machine.boot_count < spec.boot_count:
                run.must((one, spec.boot_count) not in run.boots, f"{one} boots twice for {spec.boot_count}")
                run.must({disk.volume_id for disk in spec.disks} <= run.volumes, f"{one} has no disks")
                run.boots.add((one, spec.boot_count))
                run.disks_of[one] = {disk.volume_id for disk in spec.disks}
                run.nets_of[one] = {nic.vpc_id for nic in spec.nics}
                run.machines[one] = MachineReport(one, "running", spec.boot_count)
                await run.moment(f"{one} has begun")
            return run.machines.get(one, machine)

    async def ensure_stopped(self, spec: MachineSpec) -> MachineReport:
        run, one = self.run, spec.instance_id
        with self._alone(one):
            await run.moment(f"{one} stops")
            machine = run.machines.get(one)
            if machine is None:
                return MachineReport(one, "off")
            if machine.power == "running":
                run.machines[one] = replace(machine, power="stopping")
            elif machine.power == "stopping":
                run.machines[one] = replace(machine, power="off", cause="ordered")
            await run.moment(f"{one} is told to stop")
            return run.machines[one]

    async def ensure_absent(self, instance_id: str) -> MachineReport:
        run = self.run
        with self._alone(instance_id):
            await run.moment(f"{instance_id} goes")
            row = run.rows(tables.instances).get(instance_id)
            run.must(row is None or row["power"] == "terminated", f"{instance_id} is removed and nobody ordered it")
            run.machines.pop(instance_id, None)
            await run.moment(f"{instance_id} is gone")
            return MachineReport(instance_id, "absent")


@dataclass
class _Disks:
    run: Run

    async def observe(self) -> frozenset[str]:
        await self.run.moment("volumes?")
        return frozenset(self.run.volumes)

    async def ensure(self, disk: DiskSpec) -> None:
        await self.run.moment(f"{disk.volume_id} is made")
        self.run.must(disk.volume_id in self.run.volumes or not disk.made, f"{disk.volume_id} was here and is lost")
        self.run.volumes.add(disk.volume_id)
        await self.run.moment(f"{disk.volume_id} is there")

    async def ensure_absent(self, volume_id: str) -> None:
        run = self.run
        await run.moment(f"{volume_id} goes")
        run.must(volume_id not in run.rows(tables.volumes), f"{volume_id} is removed and nobody ordered it")
        users = [one for one in run.machines if volume_id in run.disks_of[one]]
        run.must(not users, f"{volume_id} is removed under {users}")
        run.volumes.discard(volume_id)
        await run.moment(f"{volume_id} is gone")


@dataclass
class _Networks:
    run: Run

    async def observe(self) -> frozenset[str]:
        await self.run.moment("networks?")
        return frozenset(self.run.networks)

    async def apply(self, network: NetworkSpec, revision: int) -> None:
        await self.run.moment(f"{network.vpc_id} at {revision}")
        known = self.run.networks.get(network.vpc_id, 0)
        self.run.must(known <= revision, f"{network.vpc_id} goes back from {known} to {revision}")
        self.run.networks[network.vpc_id] = revision
        await self.run.moment(f"{network.vpc_id} is at {revision}")

    async def open_tap(self, nic: NicSpec) -> int:
        await self.run.moment(f"tap of {nic.interface_id}")
        if nic.vpc_id not in self.run.networks:
            raise DriverError(f"{nic.vpc_id} is not here")
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    async def ensure_absent(self, vpc_id: str) -> None:
        run = self.run
        await run.moment(f"{vpc_id} goes")
        inside = [one for one, machine in run.machines.items() if vpc_id in run.nets_of[one] and machine.power != "off"]
        run.must(not inside, f"{vpc_id} is removed under {inside}")
        run.networks.pop(vpc_id, None)
        await run.moment(f"{vpc_id} is gone")

    async def reachable(self, nic: NicSpec) -> bool:
        await self.run.moment(f"{nic.address}?")
        return nic.vpc_id in self.run.networks


@dataclass
class _Metadata:
    run: Run

    async def apply(self, instances: tuple[MetadataSpec, ...]) -> None:
        await self.run.moment("metadata")
        self.run.served = {one.instance_id for one in instances}

    async def ensure_absent(self) -> None:
        self.run.served = set()


class _Server:
    async def facts(self) -> ServerFacts:
        here = {"tcg": "simulated", "kvm": "simulated"}
        return ServerFacts(1 << 20, 1 << 30, "simulated", "fake", here, dict.fromkeys(GENERATIONS, ""))


def _drivers(run: Run) -> Drivers:
    return Drivers(_Machines(run), _Disks(run), _Networks(run), _Metadata(run), _Server())


def prepare(directory: Path) -> Path:
    """An empty store, migrated once: each run has a copy."""
    path = directory / "empty.db"
    store = Store.embedded(path)
    store.migrate()
    store.close()
    return path


def simulate(seed: int, empty: Path) -> Run:
    """One run. Raises `AssertionError` where something did not hold; the seed repeats it."""
    path = empty.with_name(f"{seed}.db")
    shutil.copy(empty, path)
    store = Store(f"sqlite:///{path}", durable=False)
    loop = SimulatedLoop()
    ticks = SimpleNamespace(monotonic=loop.time, process_time=lambda: 0.0)
    run = Run(seed, store, Settings(data=empty.parent, drivers="fake", public_pool="127.100.0.0/16"), loop)
    try:
        with patch.object(agent_module, "time", ticks), asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run.main())
        assert not run.wrong, run.wrong
    except BaseException as error:
        last = "\n".join(run.history[-40:])
        raise AssertionError(f"seed {seed}: {run.wrong or error!r}; what came before:\n{last}") from error
    finally:
        store.close()
        for one in empty.parent.glob(f"{seed}.db*"):
            one.unlink()
    return run
