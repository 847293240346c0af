"""The only place that puts concrete parts together.

What a command does not need it does not import: the parts of the cloud are imported where they are put together.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from haneul.config import Settings
from haneul.errors import SettingsError

if TYPE_CHECKING:
    from haneul.agent.agent import Drivers
    from haneul.drivers.disks.qcow2 import Qcow2Disks
    from haneul.drivers.fake import World
    from haneul.drivers.host.linux import LinuxServer
    from haneul.drivers.machines.driver import Machines
    from haneul.drivers.machines.engine import Engine
    from haneul.drivers.machines.qemu.templates import Templates
    from haneul.drivers.metadata import MetadataProcess
    from haneul.drivers.networks.linux.driver import BridgeNetworks
    from haneul.identity import Identity
    from haneul.model.image import CatalogueImage

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
    server = linux_server(settings, who.first_uid, changed)
    disks = Qcow2Disks(data / "volumes", images)
    templates = make_templates(settings, who.first_uid, server) if settings.warm == "auto" else None
    qemu = QemuEngine(images, server.accelerator, templates, settings.tcg_buffer_mib)
    engines: dict[str, Engine] = {"emulated": qemu, "hvm": qemu, "paravirtual": UmlEngine(images)}
    machines = Machines(data / "instances", disks.file, who.first_uid, engines, changed)
    networks = BridgeNetworks(runtime, who.tag, pool, settings.uplink == "nat")
    metadata = MetadataProcess(runtime / "metadata", networks.namespace, lambda: [*machines.logs(), *networks.logs()])
    return RealParts(machines, disks, networks, metadata, server, templates, runtime)


def make_templates(settings: Settings, uid: int, server: LinuxServer) -> Templates:
    """`uid` is one that no machine has."""
    from haneul.drivers.host.linux import memory_mib
    from haneul.drivers.machines.qemu.templates import Server, Templates
    from haneul.drivers.networks.linux.taps import dangling_tap
    from haneul.images.resume import unit as resume

    vcpus = (os.cpu_count() or 1) * settings.vcpu_overcommit
    memory = memory_mib() - settings.memory_reserve_mib - settings.memory_overhead_mib
    has = Server(uid, vcpus, memory, dangling_tap, server.settled)
    return Templates(settings.data / "templates", settings.image_directory, has, settings.warm_max_mib, resume.PROTOCOL)


def linux_server(settings: Settings, uid: int, changed: Callable[[], None]) -> LinuxServer:
    """`uid` is one that no machine has: the probe of paravirtual machines runs as it."""
    from haneul.drivers.host.linux import LinuxServer
    from haneul.drivers.machines.uml import engine as uml

    file, images = settings.data / "probes.json", settings.image_directory
    return LinuxServer(file, images, settings.accelerator, changed, partial(uml.probe, settings.data, uid))


def drivers_of(settings: Settings, who: Identity) -> Callable[[Callable[[], None]], Drivers]:
    if settings.drivers == "fake":
        from haneul.drivers.fake import World

        world = World(settings.data / "fake-world.db")
        return lambda changed: fake_drivers(world)
    return lambda changed: real_parts(settings, who, changed).drivers


def catalogue_of(settings: Settings) -> Callable[[], list[CatalogueImage]]:
    """The images that everybody may launch: the built ones. Fake drivers need no build, and have AWS's public names too."""
    from haneul.images.store import ImageStore, recipe_images
    from haneul.model.public_images import PUBLIC_IMAGES

    store = ImageStore(settings.image_directory)
    if settings.drivers != "fake":
        return store.catalogue

    def all_images() -> list[CatalogueImage]:
        built = store.catalogue()
        return [*built, *(one for one in recipe_images() if one.disk not in {b.disk for b in built}), *PUBLIC_IMAGES]

    return all_images


def check_machine(settings: Settings) -> None:
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
