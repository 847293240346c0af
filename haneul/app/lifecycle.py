"""What commands need of this server beyond the public API (`haneul.cli.lifecycle`)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from haneul.app import backups, daemon, doctor, process, removal
from haneul.app.compose import (
    PROGRAMS,
    RealParts,
    catalogue_of,
    check_machine,
    drivers_of,
    linux_server,
    make_templates,
    real_parts,
)
from haneul.cli.lifecycle import Finding
from haneul.cli.lifecycle import Lifecycle as Commands
from haneul.config import Settings
from haneul.drivers.interface import DriverError
from haneul.errors import SettingsError
from haneul.images.store import ImageStore

if TYPE_CHECKING:
    from haneul.drivers.machines.qemu.templates import Templates
    from haneul.identity import Identity
    from haneul.model.template import TemplateReport

log = logging.getLogger(__name__)


class Lifecycle(Commands):
    """What the commands need beyond the public API."""

    def up(self, settings: Settings, ready_fd: int | None, accept_store: bool) -> None:
        """Serve until SIGTERM or SIGINT."""
        import uvloop

        from haneul import identity
        from haneul.api.app import REQUEST

        self._prepare(settings)
        process.outlive_machines(settings)
        lock = daemon.be_the_only_one(settings.data)
        daemon.log_to_file(settings.data, settings.log_format, REQUEST.get)
        backups.finish_restore(settings)
        who = identity.ensure(settings.data, real=settings.drivers != "fake")
        process.tune()
        with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(settings, who, ready_fd, accept_store))
        os.close(lock)

    async def _serve(self, settings: Settings, who: Identity, ready_fd: int | None, accept_store: bool) -> None:
        from haneul.app import control_plane

        catalogue = catalogue_of(settings)
        drivers = drivers_of(settings, who)
        socket = daemon.control_path(settings.data)
        async with control_plane.start(settings, who, drivers, catalogue, socket, accept_store=accept_store) as running:
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
            await control_plane.until_told_to_stop(running)
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

            drivers = drivers_of(settings, identity.ensure(settings.data))(wake)
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
        process.leave_keys()
        settings.data.mkdir(mode=0o711, parents=True, exist_ok=True)
        check_machine(settings)

    def start_detached(self, settings: Settings, accept_store: bool = False) -> None:
        self._prepare(settings)
        if daemon.is_running(settings.data):
            raise SettingsError(
                f"another haneul runs on {settings.data}; `haneul status` shows it, `haneul down` stops it"
            )
        daemon.start_detached(settings.data, accept_store)

    def is_running(self, settings: Settings) -> bool:
        return daemon.is_running(settings.data)

    def down(self, settings: Settings, instances: bool, purge: bool) -> bool:
        from haneul import identity

        was_running = daemon.stop(settings.data)
        if backups.is_between(settings.data):
            with backups.alone(settings.data, "a restore was interrupted"):
                backups.finish_restore(settings)
        who = identity.load(settings.data)
        if who is None:
            if purge:
                shutil.rmtree(removal.leftover(settings.data), ignore_errors=True)
            return was_running
        if (instances or purge) and settings.drivers != "fake":
            asyncio.run(self._end_machines(real_parts(settings, who, lambda: None), settings, purge))
        if purge:
            removal.remove_all(settings.data)
            identity.release_slot(settings.data, who.slot)
        return was_running

    def backup(
        self, settings: Settings, file: Path, volumes: bool, force: bool, say: Callable[[str], None]
    ) -> list[str]:
        from haneul.backup import make, swap

        alone = (
            backups.alone(settings.data, "disks are copied while haneul is down")
            if volumes
            else contextlib.nullcontext()
        )
        with alone:
            if swap.is_unfinished(settings.data):
                raise SettingsError("a restore was interrupted; `haneul up` finishes it")
            made = make.make(settings, backups.ThisServer(settings), file, volumes, force, say)
        return make.summary(made, file)

    def restore(
        self, settings: Settings, file: Path, replace: bool, without_volumes: bool, say: Callable[[str], None]
    ) -> list[str]:
        from haneul.backup import restore

        self._prepare(settings)
        with backups.alone(settings.data, "a backup is restored while haneul is down"):
            options = restore.Options(replace, without_volumes)
            return restore.restore(settings, backups.ThisServer(settings), file, options, say)

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
        with backups.alone(settings.data, "it makes its templates itself"):
            identity.ensure(settings.data, real=True)
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
        return make_templates(settings, who.first_uid, linux_server(settings, who.first_uid, lambda: None))

    def doctor(self, settings: Settings) -> list[Finding]:
        found = [doctor.program(program, package) for program, package in PROGRAMS.items()]
        root = os.geteuid() == 0
        found.append(Finding("root", root, "this process's uid", "" if root else "run haneul with sudo"))
        images = ImageStore(settings.image_directory)
        default = bool(images.catalogue())
        found.append(
            Finding("an image", default, f"looked into {images.directory}", "" if default else "haneul image build")
        )
        return [*found, *asyncio.run(doctor.generations(settings))]
