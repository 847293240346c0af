"""Machines of this server, whatever engine runs them. Each is a folder, a uid and a process group of its own, which outlives haneul.

What is true is read from files and locks: `boot.json` (which ordered boot was begun), `lock` (held as long as a
process of the machine lives), `events.log` (how it ended, in QEMU's own words), `stopping.json` (an order to end).
An `Engine` knows the command of a machine; every one of them is spoken to by QMP (QEMU, docs/interop/qmp-spec).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from haneul.drivers.interface import DriverError
from haneul.drivers.machines import pace, qmp
from haneul.drivers.machines.engine import Boot, Engine, Resume
from haneul.drivers.machines.folder import Places, cold, take_back_cold
from haneul.drivers.machines.qemu import resume as warm
from haneul.drivers.run import run
from haneul.linux import boot, files, locks
from haneul.model.assignment import MachineReport, MachineSpec
from haneul.model.generation import ABILITIES, parse

log = logging.getLogger(__name__)

QMP_TIMEOUT = 5.0
START_TIMEOUT = 20.0
#: A guest that is still booting does not hear its power button: it is pressed again.
PRESS_AGAIN = 2.0
REBOOT_SECONDS = 60
CONSOLE_BYTES = 65536
EVENTS_BYTES = 16384
#: Machines that are looked at before others have their turn on the event loop.
LOOKS_AT_ONCE = 50
#: A server that has ended a machine is down itself after so long (systemd's own limit for a service is 90 s).
SHUTDOWN_SECONDS = 120.0
#: Free space of the volumes' disk (bytes) with which a paused machine goes on.
ROOM = 64 << 20
#: Accelerator -> the program that ends with a machine.
_PROGRAMS = {"uml": "User-mode Linux"}

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


#: What the first line on a machine's event monitor has to be.
CAPABILITIES = b'{"execute":"qmp_capabilities"}\n'


@dataclass(frozen=True)
class Stopping:
    """An order to end: `why` it was given, since when (`_now`), when the button was last pressed."""

    why: Literal["stop", "reboot"]
    since: float
    pressed: float


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (FileNotFoundError, ValueError):
        return None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    # Whether a disk was booted before, and by which boot: a power cut must not make that unknown.
    files.replace(path, json.dumps(value).encode(), durable=True)


def _now() -> float:
    """Seconds since the server's boot: no machine outlives that, and setting the server's clock does not change it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _told(events: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of every event of a log.

    A QEMU that was taken over writes there what it likes: whatever is no event is passed over.
    """
    found = []
    for line in events.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                data = event.get("data")
                found.append((event["event"], data if isinstance(data, dict) else {}))
    return found


def _plain(value: object) -> str:
    """Text of a QEMU, which may have been taken over, as it may go into a database and onto a terminal."""
    return "".join(one if one.isprintable() and one.isascii() else "?" for one in str(value)[:200])


def why_paused(events: str) -> str:
    """Why QEMU holds the machine's processors, by its last events: the server's disk did not take what it wrote."""
    if "BLOCK_IO_ERROR" not in events:
        return ""  # nearly always: reading every event of every machine at every look would hold the loop up
    why = ""
    for name, data in _told(events):
        if name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            failure = f"the server's disk fails: {_plain(data.get('reason'))}"
            why = "the server's disk is full" if data.get("nospace") else failure
        elif name in ("RESUME", "BOOT"):
            why = ""
    return why


def how_it_ended(events: str) -> str:
    """QEMU's reason in the SHUTDOWN event of its last boot; empty if it never said one (a crash)."""
    for name, data in reversed(_told(events)):
        if name == "SHUTDOWN" and "reason" in data:
            return _plain(data["reason"])
        if name == "BOOT":
            return ""
    return ""


def exit_code(events: str) -> int:
    """How the last process of the machine ended, as the shell tells it (128 + signal); 0 if nothing is known."""
    codes = [data.get("code") for name, data in _told(events) if name == "EXIT"]
    return codes[-1] if codes and isinstance(codes[-1], int) else 0


class _Reader:
    """Files of machines as they were read last: most have not changed since, which lstat(2) tells."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[tuple[int, int, int], Any]] = {}

    def json(self, machine: str, path: Path) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._of(machine, path, _read_json)
        return found

    def paused(self, machine: str, path: Path) -> str:
        """Why the machine is paused, by its events."""
        return str(
            self._of(machine, path, lambda file: why_paused(_tail(file, EVENTS_BYTES).decode(errors="replace"))) or ""
        )

    def _of(self, machine: str, path: Path, read: Callable[[Path], Any]) -> Any:
        key = (machine, path.name)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            self._known.pop(key, None)
            return None
        signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._known.get(key)
        if known is None or known[0] != signature:
            known = self._known[key] = (signature, read(path))
        return known[1]

    def keep(self, machines: Collection[str]) -> None:
        """Forget what is of no machine any more."""
        if len(self._known) > 4 * len(machines) + 100:
            there = set(machines)
            self._known = {key: value for key, value in self._known.items() if key[0] in there}


class Machines:
    """`directory` has a folder for each machine; `volume_file` says where disks are; `engines` has one for each generation."""

    def __init__(
        self,
        directory: Path,
        volume_file: Callable[[str], Path],
        first_uid: int,
        engines: Mapping[str, Engine],
        changed: Callable[[], None],
        boot_id: Callable[[], str] = boot.boot_id,
        going_down: Callable[[], bool] = boot.goes_down,
    ) -> None:
        self._going_down = going_down
        self.directory = directory
        self._boot_id = boot_id()
        self._volume_file = volume_file
        self._first_uid = first_uid
        self._engines = engines
        self._changed = changed
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._watched: set[str] = set()
        self._unwatched: set[str] = set()
        #: Machines that a signal has ended -> whether the server was going down then.
        self._verdicts: dict[str, bool] = {}
        self._undecided: set[str] = set()
        self._read = _Reader()
        self._starting: set[str] = set()
        self._pace = pace.Pace()
        self.launches: Counter[str] = Counter()

    def places(self, instance_id: str) -> Places:
        return Places(self.directory / instance_id)

    def logs(self) -> list[str]:
        """Patterns of the logs that machines write without bound."""
        return [str(self.directory / "*" / name) for name in ("run/console.log", "events.log", "stderr.log")]

    # --- observing --------------------------------------------------------------------------------------

    async def observe(self) -> dict[str, MachineReport]:
        names = await asyncio.to_thread(self._names)
        found: dict[str, MachineReport] = {}
        for start in range(0, len(names), LOOKS_AT_ONCE):
            found |= {name: self._look(name) for name in names[start : start + LOOKS_AT_ONCE]}
            await asyncio.sleep(0)  # others have their turn between hundreds of machines
        await self._watch_all()
        if self._undecided:
            down = await asyncio.to_thread(self._going_down)
            self._verdicts |= dict.fromkeys(self._undecided, down)
            found |= {name: self._look(name) for name in self._undecided if name in found}
            self._undecided.clear()
        self._read.keep(names)
        return found

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []

    def _look(self, instance_id: str) -> MachineReport:
        places = self.places(instance_id)
        if instance_id in self._starting:
            # Its files and its lock are half those of the boot before: whoever starts it tells.
            return MachineReport(instance_id, "starting", phase="starting")
        child = self._children.get(instance_id)
        if child is not None and child.poll() is not None:
            del self._children[instance_id]
        boot = self._read.json(instance_id, places.boot)
        if boot is None:
            return MachineReport(instance_id, "absent")
        count, accelerator = boot["boot_count"], boot["accelerator"]
        on = "on, from a template" if boot.get("path") == "warm" else "on"
        if boot.get("resuming"):
            # haneul ended while the guest was not itself yet: that boot has not happened, whatever of it still runs.
            return MachineReport(instance_id, "off", count - 1, accelerator=accelerator)
        if locks.held(places.lock):
            self._watch(instance_id)
            if (not boot["begun"] and instance_id not in self._children) or "server_boot" not in boot:
                # haneul ended between starting QEMU and hearing from it, or was an older one, which wrote less.
                _write_json(places.boot, boot | {"begun": True, "server_boot": self._boot_id})
            power: Literal["running", "stopping"] = "running"
            stopping = self._stopping(places)
            phase = on
            if stopping is not None:
                power = "stopping" if stopping.why == "stop" else "running"
                phase = "shutting down" if stopping.why == "stop" else "rebooting"
            paused = self._read.paused(instance_id, places.events)
            if paused:
                return MachineReport(
                    instance_id, power, count, detail=f"paused: {paused}", phase=f"paused: {paused}",
                    accelerator=accelerator, reachable=False,
                )  # fmt: skip
            return MachineReport(instance_id, power, count, phase=phase, accelerator=accelerator)
        if not boot["begun"] and not self._reason(places):
            # QEMU was never heard of (or haneul ended before it could start it): that boot has not happened.
            return MachineReport(instance_id, "off", count - 1, accelerator=accelerator)
        if self._has_just_been_told_to_end(places) and self._verdicts.get(instance_id, True):
            # An orderly shutdown of the server ends QEMU by a signal, and haneul is still there to see it. What becomes of
            # the machine is decided when the server is back. Asking takes a process: `observe` does it, off the loop.
            self._undecided.add(instance_id)
            if instance_id not in self._verdicts:
                self._changed()
            return MachineReport(instance_id, "stopping", count, phase="the server goes down", accelerator=accelerator)
        cause, detail = self._ending(places, boot)
        return MachineReport(instance_id, "off", count, cause, detail, "off", accelerator)

    def _stopping(self, places: Places) -> Stopping | None:
        value = _read_json(places.stopping)
        return Stopping(**value) if value else None

    def _reason(self, places: Places) -> str:
        return how_it_ended(self._events(places))

    def _has_just_been_told_to_end(self, places: Places) -> bool:
        """By a signal, and not by us. Whether the server goes down is asked for as long as that may take, not for ever."""
        with contextlib.suppress(OSError):
            recent = time.time() - places.events.stat().st_mtime < SHUTDOWN_SECONDS
            return recent and self._reason(places) == "host-signal" and self._stopping(places) is None
        return False

    def _events(self, places: Places) -> str:
        return _tail(places.events, EVENTS_BYTES).decode(errors="replace")

    def _ending(self, places: Places, boot: dict[str, Any]) -> tuple[str, str]:
        """(cause, detail) of a machine that is off."""
        reason = self._reason(places)
        if self._stopping(places) is not None:
            return "ordered", ""
        if reason == "guest-shutdown":
            return "guest-shutdown", ""
        if boot.get("server_boot", self._boot_id) != self._boot_id:
            return "server-reboot", "the server was restarted"
        program = _PROGRAMS.get(boot.get("accelerator", ""), "QEMU")
        if reason:
            return "crash", f"{program} ended: {reason}"
        code = exit_code(self._events(places))
        if code > 128:
            killed = "killed: was the server out of memory?" if code == 128 + signal.SIGKILL else "it crashed"
            return "crash", f"{program} ended by signal {code - 128} ({killed})"
        said = _tail(places.errors, 600).decode(errors="replace").strip()
        return "crash", f"{program} ended without an orderly shutdown (killed or crashed). {said}".strip()

    def _watch(self, instance_id: str) -> None:
        """Look again as soon as the machine ends, not at the next period."""
        if instance_id in self._watched:
            return
        started = self._children.get(instance_id)
        if started is not None:
            self._watch_process(instance_id, started.pid)
        else:
            self._unwatched.add(instance_id)

    async def _watch_all(self) -> None:
        """Watch those that this haneul has not started, by one look through /proc for all of them."""
        wanted = {name: self.places(name).lock for name in self._unwatched - self._watched}
        self._unwatched.clear()
        if not wanted:
            return
        found = await asyncio.to_thread(locks.all_holders, list(wanted.values()))
        for name, lock in wanted.items():
            for pid in found.get(lock, [])[:1]:
                self._watch_process(name, pid)

    def _watch_process(self, instance_id: str, pid: int) -> None:
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
            self._watched.add(instance_id)
            loop = asyncio.get_running_loop()
            loop.add_reader(descriptor, self._ended, loop, descriptor, instance_id)

    def _ended(self, loop: asyncio.AbstractEventLoop, descriptor: int, instance_id: str) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        self._watched.discard(instance_id)
        self._verdicts.pop(instance_id, None)
        self._changed()

    # --- running ----------------------------------------------------------------------------------------

    def needs_taps(self, spec: MachineSpec) -> bool:
        found = self._look(spec.instance_id)
        return found.power == "absent" or (found.power == "off" and found.boot_count < spec.boot_count)

    async def ensure_running(self, spec: MachineSpec, taps: dict[str, int]) -> MachineReport:
        found = self._look(spec.instance_id)
        if found.power in ("running", "stopping"):
            places = self.places(spec.instance_id)
            stopping = self._stopping(places)
            if stopping is not None and stopping.why == "stop":
                places.stopping.unlink(missing_ok=True)  # an order that was taken back
            if found.boot_count < spec.boot_count:
                await self._end(spec.instance_id, "reboot", REBOOT_SECONDS, force=False)
            elif found.reachable is False:
                await self._go_on(spec.instance_id, places)
            return self._look(spec.instance_id)
        if found.power == "off" and found.boot_count >= spec.boot_count:
            return found
        if spec.nics and not taps:
            return MachineReport(spec.instance_id, "starting", found.boot_count, phase="waiting for its network")
        await self._start(spec, taps, first=found.power == "absent" or found.boot_count == 0)
        return self._look(spec.instance_id)

    async def _go_on(self, instance_id: str, places: Places) -> None:
        """Let a machine go on that was paused for want of disk. One that cannot yet is no failure: it lives."""
        try:
            found = os.statvfs(self._volume_file("any").parent)
            if found.f_bavail * found.f_frsize > ROOM:
                await self._qmp(places, "cont")
        except (DriverError, OSError) as error:
            log.warning("%s stays paused: %s", instance_id, error)

    async def _start(self, spec: MachineSpec, taps: dict[str, int], first: bool) -> None:
        places = self.places(spec.instance_id)
        uid = self._own_folder(places)
        disks = {disk.volume_id: self._volume_file(disk.volume_id) for disk in spec.disks}
        await self._end_earlier_lives(uid, disks.values())
        if first:
            await self._kill(places)
            for file in disks.values():
                take_back_cold(file)
        await self._prepare(places, uid)
        for file in disks.values():
            os.chown(file, uid, uid)
        engine = self._engine(spec)
        accelerator = engine.accelerator(spec)
        boot = {"boot_count": spec.boot_count, "accelerator": accelerator, "begun": False, "server_boot": self._boot_id}
        _write_json(places.boot, boot)
        given = Boot(spec, places, disks, taps, uid, first)
        self._starting.add(spec.instance_id)
        try:
            async with self._pace.launch():
                warm_one = await self._begin(engine, given, boot)
            # Before the disk that it had is gone: what was begun has that disk no more.
            path = "warm" if warm_one else "cold"
            _write_json(places.boot, boot | {"begun": True, "path": path})
            if first:
                self.launches[path] += 1
        finally:
            self._starting.discard(spec.instance_id)
        for file in disks.values():
            cold(file).unlink(missing_ok=True)
        if first and not warm_one:
            engine.cold_booted(spec)

    async def _begin(self, engine: Engine, given: Boot, boot: dict[str, Any]) -> bool:
        """Start the machine until it lives; whether it has gone on from a template."""
        spec, places = given.spec, given.places
        resume = await asyncio.to_thread(self._spawn, engine, given)
        if resume is not None:
            if await self._resumed(spec, places, resume):
                return True
            for file in given.files.values():
                take_back_cold(file)
            await self._prepare(places, given.uid)
            _write_json(places.boot, boot)
            await asyncio.to_thread(self._spawn, engine, replace(given, warm=False))
        await self._until_it_answers(engine, places)
        return False

    async def _resumed(self, spec: MachineSpec, places: Places, resume: Resume) -> bool:
        """Whether the machine goes on from its template, as itself. If not, nothing of it is left but its files."""
        try:
            with contextlib.ExitStack() as held, resume.monitor:
                held.enter_context(resume.port)
                # Those that start at once share the processors.
                await warm.go_on(spec, resume, warm.ALONE_SECONDS + warm.EACH_SECONDS * len(self._starting))
                held.pop_all()
            if (started := self._children.get(spec.instance_id)) is not None:
                pace.set_niceness(started.pid, 0)
            self._pace.hold(resume.port, urgent=spec.identity is not None and spec.identity.user_data)
            resume.went_on("")
            return True
        except (DriverError, OSError, TimeoutError) as error:
            said = _plain(" ".join(_tail(places.errors, 200).decode(errors="replace").split()))
            why = f"{_plain(error) or type(error).__name__} {said}".strip()
            log.warning("%s boots cold, its template does not do: %s", spec.instance_id, why)
            await self._kill(places)
            # Of several at once the last may be late because of the others.
            if not isinstance(error, TimeoutError) or len(self._starting) == 1:
                resume.went_on(why)
            return False

    def _engine(self, spec: MachineSpec) -> Engine:
        engine = self._engines.get(spec.generation)
        if engine is None:
            raise DriverError(f"this server has no machines of the generation {spec.generation}", fatal=True)
        most = ABILITIES[parse([spec.generation])[0]].volumes
        if most is not None and len(spec.disks) > most:
            raise DriverError(f"a machine of the generation {spec.generation} has at most {most} disks", fatal=True)
        return engine

    async def _end_earlier_lives(self, uid: int, disks: Iterable[Path]) -> None:
        """A process that let go of its machine's lock outlives a stop, and still has the disks open that it had."""
        owners = {uid for uid in (file.stat().st_uid for file in disks) if uid in self._uids()} - {uid}
        # Nearly always there is none: a new volume is root's, and another's only after it was detached from there.
        running = await asyncio.to_thread(self._uids_in_use) if owners else set()
        for owner in (owners - running) | {uid}:
            if not await locks.kill_user(owner):
                raise DriverError("a process of an earlier boot cannot be killed")

    def _uids_in_use(self) -> set[int | None]:
        return {self._uid(self.places(path.name)) for path in self.directory.iterdir() if locks.held(path / "lock")}

    def _own_folder(self, places: Places) -> int:
        """The machine's folder, which has its uid."""
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        places.directory.mkdir(mode=0o710, exist_ok=True)
        if self._uid(places) is None:
            files.replace(places.uid, str(self._free_uid()).encode(), durable=True)
        uid = self._uid(places)
        assert uid is not None
        os.chown(places.directory, 0, uid)
        return uid

    async def _prepare(self, places: Places, uid: int) -> None:
        await _remove_tree(places.run)
        places.run.mkdir(mode=0o700)
        os.chown(places.run, uid, uid)
        for path in (places.stopping, places.events):
            path.unlink(missing_ok=True)

    def _uids(self) -> range:
        return range(self._first_uid + 1, self._first_uid + 65536)

    def _uid(self, places: Places) -> int | None:
        try:
            return int(places.uid.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _free_uid(self) -> int:
        used = set()
        for path in self.directory.iterdir():
            used.add(self._uid(self.places(path.name)))
        return next(uid for uid in self._uids() if uid not in used)

    def _spawn(self, engine: Engine, boot: Boot) -> Resume | None:
        spec, places, uid = boot.spec, boot.places, boot.uid
        lock = locks.take(places.lock)
        if lock is None:
            raise DriverError(f"{spec.instance_id}: a process of an earlier boot still runs")
        reading, feed = os.pipe2(os.O_CLOEXEC)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC
        events = os.open(places.events, flags, 0o640)
        errors = os.open(places.errors, flags, 0o600)
        given: tuple[int, ...] = ()
        try:
            os.fchown(events, 0, uid)
            os.fchmod(events, 0o640)
            os.fchown(feed, uid, uid)  # the machine's shell opens it again by its number
            os.write(feed, CAPABILITIES)
            launch = engine.launch(replace(boot, feed=feed))
            given = launch.descriptors
            if launch.resume is not None:
                _write_json(places.boot, (_read_json(places.boot) or {}) | {"resuming": True})
            started = self._children[spec.instance_id] = subprocess.Popen(
                launch.command,
                stdin=reading,
                stdout=events,
                stderr=errors,
                pass_fds=(lock, feed, *boot.taps.values(), *given),
                start_new_session=True,
                cwd="/",
                env={"PATH": "/usr/bin:/bin"},
            )
            if launch.resume is not None:
                pace.set_niceness(started.pid, pace.LAUNCHING)
        finally:
            for descriptor in (lock, reading, feed, events, errors, *given):
                os.close(descriptor)
        return launch.resume

    async def _until_it_answers(self, engine: Engine, places: Places) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                await self._qmp(places, "query-status")
                return
            except DriverError:
                if not locks.held(places.lock):
                    said = _tail(places.errors, 1000).decode(errors="replace").strip()
                    raise DriverError(f"{engine.program} did not start: {said or 'it said nothing'}") from None
                if time.monotonic() > deadline:
                    await locks.kill(places.lock)
                    raise DriverError(f"{engine.program} did not answer on its control socket in time") from None
            await asyncio.sleep(0.01)

    async def _qmp(self, places: Places, command: str, **arguments: object) -> object:
        """One command on a connection of its own. Raises `DriverError`."""
        try:
            async with asyncio.timeout(QMP_TIMEOUT), qmp.connected(places.qmp) as client:
                return await client.execute(command, arguments or None)
        except (DriverError, TimeoutError) as error:
            raise DriverError(f"QMP {command}: {error or type(error).__name__}") from None

    # --- ending -----------------------------------------------------------------------------------------

    async def _give_up_resuming(self, instance_id: str, disks: Iterable[Path]) -> None:
        """haneul ended while the guest was not itself yet: what runs of it has no owner, and a disk that is not its own."""
        places = self.places(instance_id)
        if (_read_json(places.boot) or {}).get("resuming") and instance_id not in self._starting:
            if locks.held(places.lock):
                await self._kill(places)
            for disk in disks:
                take_back_cold(disk)

    async def ensure_stopped(self, spec: MachineSpec) -> MachineReport:
        await self._give_up_resuming(spec.instance_id, [self._volume_file(disk.volume_id) for disk in spec.disks])
        found = self._look(spec.instance_id)
        if found.power in ("running", "stopping"):
            await self._end(spec.instance_id, "stop", spec.stop_seconds, spec.force)
        return self._look(spec.instance_id)

    async def _end(self, instance_id: str, why: Literal["stop", "reboot"], seconds: int, force: bool) -> None:
        """Press the power button until the deadline, then cut the power."""
        places = self.places(instance_id)
        now = _now()
        stopping = self._stopping(places)
        # What an older haneul wrote was on another clock.
        if stopping is None or stopping.why != why or stopping.since > now:
            stopping = Stopping(why, now, 0.0)
        overdue = now - stopping.since >= seconds
        pressing = now - stopping.pressed >= PRESS_AGAIN
        if pressing or force or overdue:
            _write_json(places.stopping, {"why": why, "since": stopping.since, "pressed": now})
        if force or overdue:
            await self._cut(places)
        elif pressing:
            try:
                await self._qmp(places, "system_powerdown")
            except DriverError as error:
                log.warning("%s: %s", instance_id, error)

    async def _cut(self, places: Places) -> None:
        with contextlib.suppress(DriverError):
            await self._qmp(places, "quit")
            deadline = time.monotonic() + 2
            while locks.held(places.lock) and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
        await self._kill(places)

    async def _kill(self, places: Places) -> None:
        """Every process of the machine: what holds its lock and, whatever it did to that, what runs as its uid."""
        gone = await locks.kill(places.lock)
        uid = self._uid(places)
        if uid is not None:
            gone = await locks.kill_user(uid) and gone
        if not gone:
            raise DriverError("a process of the machine cannot be killed")

    async def ensure_absent(self, instance_id: str) -> MachineReport:
        places = self.places(instance_id)
        if not places.directory.is_dir():
            return MachineReport(instance_id, "absent")
        await self._kill(places)
        self._take_back_volumes(places)
        self._look(instance_id)
        self._verdicts.pop(instance_id, None)
        await _remove_tree(places.directory)
        return MachineReport(instance_id, "absent")

    def _take_back_volumes(self, places: Places) -> None:
        """A volume that outlives its machine must not belong to the next machine that gets the uid."""
        uid = self._uid(places)
        volumes = self._volume_file("any").parent
        for path in volumes.iterdir() if volumes.is_dir() else ():
            if path.lstat().st_uid == uid:
                os.chown(path, 0, 0, follow_symlinks=False)

    async def power_off(self, seconds: int) -> None:
        """Every machine, orderly, in at most `seconds`. Used when haneul itself is not running."""
        for path in list(self.directory.iterdir()) if self.directory.is_dir() else []:
            places = self.places(path.name)
            if (_read_json(places.boot) or {}).get("resuming"):
                await self._kill(places)  # its disk is taken back by the next start, or by the next haneul
        while running := [
            one for one, found in (await self.observe()).items() if found.power in ("running", "stopping")
        ]:
            await asyncio.gather(*(self._end(one, "stop", seconds, force=False) for one in running))
            await asyncio.sleep(0.2)

    def remember(self, instance_id: str, boots: int, accelerator: str) -> None:
        """A machine that has carried out so many boots, here before or elsewhere, and is off by order."""
        places = self.places(instance_id)
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        places.directory.mkdir(mode=0o710, exist_ok=True)
        places.events.unlink(missing_ok=True)
        now = _now()
        _write_json(places.stopping, {"why": "stop", "since": now, "pressed": now})
        _write_json(places.boot, {"boot_count": boots, "accelerator": accelerator, "begun": True})

    # --- looking inside ---------------------------------------------------------------------------------

    async def console_output(self, instance_id: str) -> bytes:
        return await asyncio.to_thread(_tail, self.places(instance_id).console_log, CONSOLE_BYTES)

    async def screenshot(self, instance_id: str) -> bytes:
        places = self.places(instance_id)
        places.screen.unlink(missing_ok=True)
        await self._qmp(places, "screendump", filename=str(places.screen), format="png")
        try:
            return _tail(places.screen, 64 << 20)
        finally:
            places.screen.unlink(missing_ok=True)


async def _remove_tree(path: Path) -> None:
    """Whatever a machine may have left there: folders in folders, too deep for Python's own way to remove them."""
    if os.path.lexists(path):  # a process costs a first boot ten milliseconds
        await run(["rm", "-rf", "--", str(path)])


def _tail(path: Path, most: int) -> bytes:
    """The end of a regular file. What a machine's uid put there instead (a link, a pipe) is nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return b""
        return os.pread(descriptor, most, max(status.st_size - most, 0))
    finally:
        os.close(descriptor)
