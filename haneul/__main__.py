"""The only place that puts concrete parts together.

What a command does not need it does not import: the parts of the cloud are imported where they are put together.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from haneul.app import daemon
from haneul.cli import commands as cli
from haneul.cli.commands import Finding
from haneul.config import Settings
from haneul.drivers.interface import DriverError
from haneul.errors import SettingsError
from haneul.images.store import ImageStore

if TYPE_CHECKING:
    from haneul.agent.agent import Drivers
    from haneul.backup import Machine
    from haneul.drivers.disks.qcow2 import Qcow2Disks
    from haneul.drivers.fake import FakeMachines, World
    from haneul.drivers.host.linux import LinuxServer
    from haneul.drivers.machines.driver import Machines
    from haneul.drivers.machines.engine import Engine
    from haneul.drivers.machines.qemu.templates import Templates
    from haneul.drivers.metadata import MetadataProcess
    from haneul.drivers.networks.linux.driver import BridgeNetworks
    from haneul.identity import Identity
    from haneul.model.generation import Generation
    from haneul.model.template import TemplateReport

log = logging.getLogger(__name__)

#: Program -> the Debian package that has it.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "linux.uml": "user-mode-linux",
}
#: Without these there are fewer commands or generations, but a cloud.
OPTIONAL = frozenset({"bwrap", "linux.uml"})


def fake_drivers(world: World) -> Drivers:
    from haneul.agent.agent import Drivers
    from haneul.drivers.fake import FakeDisks, FakeMachines, FakeMetadata, FakeNetworks, FakeServer

    return Drivers(FakeMachines(world), FakeDisks(world), FakeNetworks(world), FakeMetadata(world), FakeServer())


@dataclass(frozen=True)
class RealParts:
    """The drivers of this server, by their concrete types: purging needs more than the interfaces have."""

    machines: Machines
    disks: Qcow2Disks
    networks: BridgeNetworks
    metadata: MetadataProcess
    server: LinuxServer
    templates: Templates | None
    runtime: Path

    @property
    def drivers(self) -> Drivers:
        from haneul.agent.agent import Drivers

        return Drivers(self.machines, self.disks, self.networks, self.metadata, self.server, self.templates)


def real_parts(settings: Settings, who: Identity, changed: Callable[[], None]) -> RealParts:
    from haneul.drivers.disks.qcow2 import Qcow2Disks
    from haneul.drivers.machines.driver import Machines
    from haneul.drivers.machines.qemu.engine import QemuEngine
    from haneul.drivers.machines.uml.engine import UmlEngine
    from haneul.drivers.metadata import MetadataProcess
    from haneul.drivers.networks.linux.driver import BridgeNetworks

    data, images = settings.data, settings.image_directory
    # Namespaces and what lives in them go with a reboot: so does the folder that describes them.
    runtime = Path("/run") / f"haneul-{who.tag}"
    pool = who.pool if settings.public_pool == "auto" else settings.public_pool
    server = _server(settings, who.first_uid, changed)
    disks = Qcow2Disks(data / "volumes", images)
    templates = _templates(settings, who.first_uid, server) if settings.warm == "auto" else None
    qemu = QemuEngine(images, server.accelerator, templates, settings.tcg_buffer_mib)
    engines: dict[str, Engine] = {"emulated": qemu, "hvm": qemu, "paravirtual": UmlEngine(images)}
    machines = Machines(data / "instances", disks.file, who.first_uid, engines, changed)
    networks = BridgeNetworks(runtime, who.tag, pool, settings.uplink == "nat")
    metadata = MetadataProcess(runtime / "metadata", networks.namespace, lambda: [*machines.logs(), *networks.logs()])
    return RealParts(machines, disks, networks, metadata, server, templates, runtime)


def _templates(settings: Settings, uid: int, server: LinuxServer) -> Templates:
    """`uid` is one that no machine has."""
    from haneul.drivers.host.linux import memory_mib
    from haneul.drivers.machines.qemu.templates import Server, Templates
    from haneul.drivers.networks.linux.driver import dangling_tap
    from haneul.images.resume import unit as resume

    vcpus = (os.cpu_count() or 1) * settings.vcpu_overcommit
    memory = memory_mib() - settings.memory_reserve_mib - settings.memory_overhead_mib
    has = Server(uid, vcpus, memory, dangling_tap, server.settled)
    return Templates(settings.data / "templates", settings.image_directory, has, settings.warm_max_mib, resume.PROTOCOL)


def _server(settings: Settings, uid: int, changed: Callable[[], None]) -> LinuxServer:
    """`uid` is one that no machine has: the probe of paravirtual machines runs as it."""
    from haneul.drivers.host.linux import LinuxServer
    from haneul.drivers.machines.uml import engine as uml

    file, images = settings.data / "probes.json", settings.image_directory
    return LinuxServer(file, images, settings.accelerator, changed, partial(uml.probe, settings.data, uid))


def _make_drivers(settings: Settings, who: Identity) -> Callable[[Callable[[], None]], Drivers]:
    if settings.drivers == "fake":
        from haneul.drivers.fake import World

        world = World(settings.data / "fake-world.db")
        return lambda changed: fake_drivers(world)
    return lambda changed: real_parts(settings, who, changed).drivers


def _check_machine(settings: Settings) -> None:
    """What real drivers cannot do without. Raises `SettingsError` that says what to do."""
    if settings.drivers == "fake":
        return
    if os.geteuid() != 0:
        raise SettingsError(
            "real virtual servers need root (namespaces, taps, a uid for each machine): use sudo, "
            "or HANEUL_DRIVERS=fake for a cloud without guests"
        )
    needed = {program: package for program, package in PROGRAMS.items() if program not in OPTIONAL}
    missing = [package for program, package in needed.items() if shutil.which(program) is None]
    if missing:
        raise SettingsError(f"packages are missing: {' '.join(missing)}; `make setup` installs them")
    for directory in (settings.data, settings.image_directory):
        for path in (directory, *directory.absolute().parents):
            if path.exists() and not path.stat().st_mode & 0o001:
                raise SettingsError(
                    f"machines run under uids of their own and could not enter {path}: choose another directory "
                    f"(HANEUL_DATA, HANEUL_IMAGES) or run chmod o+x {path}"
                )


class Lifecycle(cli.Lifecycle):
    """What the commands need beyond the public API."""

    def up(self, settings: Settings, ready_fd: int | None) -> None:
        """Serve until SIGTERM or SIGINT."""
        import uvloop

        from haneul import identity
        from haneul.api.app import REQUEST

        self._prepare(settings)
        _outlive_machines(settings)
        lock = daemon.be_the_only_one(settings.data)
        daemon.log_to_file(settings.data, settings.log_format, REQUEST.get)
        _finish_restore(settings)
        who = identity.ensure(settings.data)
        _tune()
        with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(settings, who, ready_fd))
        os.close(lock)

    async def _serve(self, settings: Settings, who: Identity, ready_fd: int | None) -> None:
        from haneul.app import control_plane as cloud

        store = ImageStore(settings.image_directory)
        drivers = _make_drivers(settings, who)
        async with cloud.start(settings, who, drivers, store.catalogue, daemon.control_path(settings.data)) as running:
            daemon.share_with_invoker(settings.data, os.environ)
            # What is there now stays: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            log.info("serving on %s", running.settings.endpoint)
            if ready_fd is None:
                print(f"haneul serves on {running.settings.endpoint} (Ctrl-C stops it; instances go on)", flush=True)
            else:
                os.write(ready_fd, b"1")
                os.close(ready_fd)
            await cloud.until_told_to_stop()
        log.info("stopped; instances go on")

    def agent(self, settings: Settings, socket: Path, server_id: str) -> None:
        """An agent of its own, until its control plane goes away."""
        from haneul import identity
        from haneul.agent.agent import Agent
        from haneul.agent.link import LINE_LIMIT, StreamLink

        async def serve() -> None:
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=LINE_LIMIT)
            agents: list[Agent] = []

            def wake() -> None:
                for one in agents:
                    one.wake()

            drivers = _make_drivers(settings, identity.ensure(settings.data))(wake)
            agents.append(Agent(StreamLink(reader, writer), drivers, server_id))
            await agents[0].introduce()
            running = asyncio.create_task(agents[0].run())
            await asyncio.wait([running, asyncio.create_task(cloud_gone(reader))], return_when=asyncio.FIRST_COMPLETED)

        async def cloud_gone(reader: asyncio.StreamReader) -> None:
            while not reader.at_eof():
                await asyncio.sleep(0.5)

        self._prepare(settings)
        asyncio.run(serve())

    def _prepare(self, settings: Settings) -> None:
        leave_keys()
        settings.data.mkdir(mode=0o711, parents=True, exist_ok=True)
        _check_machine(settings)

    def start_detached(self, settings: Settings) -> None:
        self._prepare(settings)
        if daemon.is_running(settings.data):
            raise SettingsError(
                f"another haneul runs on {settings.data}; `haneul status` shows it, `haneul down` stops it"
            )
        daemon.start_detached(settings.data)

    def is_running(self, settings: Settings) -> bool:
        return daemon.is_running(settings.data)

    def down(self, settings: Settings, instances: bool, purge: bool) -> bool:
        from haneul import identity

        was_running = daemon.stop(settings.data)
        if _is_between(settings.data):
            with _alone(settings.data, "a restore was interrupted"):
                _finish_restore(settings)
        who = identity.load(settings.data)
        if who is None:
            if purge:
                shutil.rmtree(_purging(settings.data), ignore_errors=True)
            return was_running
        if (instances or purge) and settings.drivers != "fake":
            asyncio.run(self._end_machines(real_parts(settings, who, lambda: None), settings, purge))
        if purge:
            _remove_all(settings.data)
        return was_running

    def backup(
        self, settings: Settings, file: Path, volumes: bool, force: bool, say: Callable[[str], None]
    ) -> list[str]:
        from haneul.backup import make, swap

        alone = _alone(settings.data, "disks are copied while haneul is down") if volumes else contextlib.nullcontext()
        with alone:
            if swap.is_unfinished(settings.data):
                raise SettingsError("a restore was interrupted; `haneul up` finishes it")
            made = make.make(settings, _Server(settings), file, volumes, force, say)
        return make.summary(made, file)

    def restore(
        self, settings: Settings, file: Path, replace: bool, without_volumes: bool, say: Callable[[str], None]
    ) -> list[str]:
        from haneul.backup import restore

        self._prepare(settings)
        with _alone(settings.data, "a backup is restored while haneul is down"):
            options = restore.Options(replace, without_volumes)
            return restore.restore(settings, _Server(settings), file, options, say)

    async def _end_machines(self, parts: RealParts, settings: Settings, purge: bool) -> None:
        if purge:
            await asyncio.gather(*(parts.machines.ensure_absent(one) for one in await parts.machines.observe()))
        else:
            await parts.machines.power_off(settings.stop_seconds)
        await parts.metadata.ensure_absent()
        await parts.networks.remove_all()
        shutil.rmtree(parts.runtime, ignore_errors=True)

    def identity(self, settings: Settings) -> Identity:
        from haneul import identity

        who = identity.load(settings.data)
        if who is None:
            raise SettingsError(f"haneul has not been started on {settings.data} yet: `haneul up --detach`")
        return who

    def control(self, settings: Settings) -> Path:
        return daemon.control_path(settings.data)

    def log(self, settings: Settings) -> Path:
        return daemon.log_path(settings.data)

    def console_socket(self, settings: Settings, instance_id: str) -> Path:
        return settings.data / "instances" / instance_id / "run" / "console.sock"

    def images(self, settings: Settings) -> ImageStore:
        return ImageStore(settings.image_directory)

    def image_users(self, settings: Settings, name: str) -> list[str]:
        """The volumes that are overlays on an image: they are worth nothing without it, or with another one."""
        from haneul.drivers.disks.qcow2 import backing_file

        base = str((settings.image_directory / name / "disk.qcow2").absolute())
        volumes = settings.data / "volumes"
        return [path.stem for path in volumes.glob("*.qcow2") if backing_file(path) == base]

    def templates(self, settings: Settings) -> list[TemplateReport]:
        return self._offline_templates(settings).observe()

    def make_template(
        self, settings: Settings, image: str, instance_type: str, say: Callable[[str], None]
    ) -> TemplateReport:
        from haneul import identity

        self._prepare(settings)
        with _alone(settings.data, "it makes its templates itself"):
            identity.ensure(settings.data)
            templates = self._offline_templates(settings)
            templates.say = say
            try:
                return asyncio.run(templates.make(image, instance_type))
            except (DriverError, subprocess.SubprocessError) as error:
                raise SettingsError(str(error)) from None

    def sweep_templates(self, settings: Settings) -> None:
        asyncio.run(self._offline_templates(settings).sweep())

    def _offline_templates(self, settings: Settings) -> Templates:
        """Without a running haneul: nothing of them is in memory."""
        from haneul import identity

        if settings.drivers == "fake":
            raise SettingsError('fake drivers boot nothing, and have no templates (drivers = "auto" has real ones)')
        who = identity.load(settings.data) or identity.Identity(settings.data / "identity", 0)
        return _templates(settings, who.first_uid, _server(settings, who.first_uid, lambda: None))

    def doctor(self, settings: Settings) -> list[Finding]:
        found = [_program(program, package) for program, package in PROGRAMS.items()]
        root = os.geteuid() == 0
        found.append(Finding("root", root, "this process's uid", "" if root else "run haneul with sudo"))
        images = ImageStore(settings.image_directory)
        default = bool(images.catalogue())
        found.append(
            Finding("an image", default, f"looked into {images.directory}", "" if default else "haneul image build")
        )
        return [*found, *asyncio.run(_generations(settings))]


class _Server:
    """What backups ask of this server's drivers (`haneul.backup.Server`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def _drivers(self) -> Machines | FakeMachines:
        from haneul import identity

        if self._settings.drivers == "fake":
            from haneul.drivers.fake import FakeMachines, World

            return FakeMachines(World(self._settings.data / "fake-world.db"))
        # What is asked here depends on no slot, and there may be no identity yet.
        who = identity.load(self._settings.data) or identity.Identity(self._settings.data / "identity", 0)
        return real_parts(self._settings, who, lambda: None).machines

    def machines(self) -> dict[str, Machine]:
        from haneul.backup import Machine

        found = asyncio.run(self._drivers().observe())
        return {name: Machine(one.power in ("running", "stopping"), one.boot_count) for name, one in found.items()}

    def remember(self, instance_id: str, boots: int, accelerator: str) -> None:
        self._drivers().remember(instance_id, boots, accelerator)

    def leave(self) -> None:
        from haneul import identity

        who = identity.load(self._settings.data)
        if self._settings.drivers != "fake" and who is not None:
            parts = real_parts(self._settings, who, lambda: None)

            async def leave() -> None:
                await parts.metadata.ensure_absent()
                await parts.networks.remove_all()

            asyncio.run(leave())
            shutil.rmtree(parts.runtime, ignore_errors=True)

    def backing(self, volume: Path) -> str:
        from haneul.drivers.disks.qcow2 import backing_file

        return backing_file(volume)

    def rebase(self, volume: Path, base: Path) -> None:
        from haneul.drivers.disks.qcow2 import set_backing_file

        set_backing_file(volume, str(base))


@contextlib.contextmanager
def _alone(data: Path, why: str) -> Iterator[None]:
    """With haneul's lock, for a command that must be alone. Raises `SettingsError`."""
    try:
        lock = daemon.be_the_only_one(data)
    except SettingsError:
        raise SettingsError(f"haneul runs on {data}, and {why}: `haneul down` first (instances go on)") from None
    try:
        yield
    finally:
        os.close(lock)


def _is_between(data: Path) -> bool:
    """Whether a restore was interrupted (haneul/backup/swap.py)."""
    return any((data / name).exists() for name in (".restore", ".restoring", ".restored"))


def _finish_restore(settings: Settings) -> None:
    """A restore that was interrupted; the caller holds the lock."""
    if _is_between(settings.data):
        from haneul.backup import swap

        swap.finish(settings.data, settings.database_url, _Server(settings).remember)


def _tune() -> None:
    """What suits a process of long life with many small objects and several threads."""
    # glibc would give each thread an arena of its own, and keep what each once needed.
    m_arena_max, libc = -8, ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(m_arena_max, 2)
    # Every connection is a descriptor, and so is much of what a machine has.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Most objects live as long as their instance; looking through all of them often finds nothing.
    gc.set_threshold(20000, 20, 50)


def _outlive_machines(settings: Settings) -> None:
    """When memory runs out, machines are to go first (`places.OOM_SCORE`), what serves all of them last."""
    if settings.drivers != "fake":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("-500")


def leave_keys() -> None:
    """A session keyring of our own, empty: what is in it can be read by all that we start, whatever its uid (keyrings(7))."""
    numbers, join_session_keyring = {"x86_64": 250, "aarch64": 219}, 1
    if platform.machine() in numbers:
        ctypes.CDLL(None).syscall(numbers[platform.machine()], join_session_keyring, None)


def _purging(data: Path) -> Path:
    return data.with_name(f".{data.name}.purging")


def _remove_all(data: Path) -> None:
    """The data directory. What is mounted in it (a disk for volumes, say) is emptied and stays mounted."""
    mounted = [path for path in data.iterdir() if path.is_mount()]
    for place in mounted:
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if mounted or data.is_mount():
        # The identity last: killed in between, the next purge still knows whose data this is.
        for path in sorted(data.iterdir(), key=lambda one: one.name == "identity"):
            if path not in mounted:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return
    # Renamed first: killed in the middle, the next purge finds what is left.
    gone = _purging(data)
    shutil.rmtree(gone, ignore_errors=True)
    data.rename(gone)
    shutil.rmtree(gone)


def _program(program: str, package: str) -> Finding:
    place = shutil.which(program)
    advice = "" if place else f"apt-get install {package}"
    return Finding(program, place is not None, place or "not in PATH", advice, program not in OPTIONAL)


async def _generations(settings: Settings) -> list[Finding]:
    """What this server offers, found out by booting a guest under each."""
    from haneul import identity
    from haneul.model import instance_types
    from haneul.model.generation import WAYS

    if settings.drivers == "fake":
        return [Finding(one.title, True, "fake drivers: nothing is booted", "") for one in WAYS.values()]
    who = identity.load(settings.data)
    uid = who.first_uid if who else identity.Identity(settings.data, 0).first_uid
    server = _server(settings, uid, lambda: None)
    asked: tuple[tuple[Generation, Callable[[], Awaitable[str]], str], ...] = (
        ("emulated", server.emulated, "apt-get install qemu-system-x86; haneul image build"),
        ("paravirtual", server.paravirtual, "apt-get install user-mode-linux qemu-utils bubblewrap; modprobe fuse"),
        ("hvm", server.kvm, "a CPU with VMX or SVM that this machine may use; HVM types run emulated until then"),
    )
    found = []
    for name, ask, advice in asked:
        began = time.monotonic()
        try:
            why = await ask()
        except (DriverError, OSError) as error:
            why = str(error)
        families = ", ".join(f"{one}.*" for one in instance_types.families(name))
        how = why or f"booted a tiny guest ({time.monotonic() - began:.1f} s)"
        found.append(Finding(f"{WAYS[name].title} ({families})", not why, how, why and advice, name == "emulated"))
    return found


def main() -> None:
    # A parent may have left SIGCHLD ignored: then exit codes of children would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.exit(cli.run(Lifecycle()))


if __name__ == "__main__":
    main()
