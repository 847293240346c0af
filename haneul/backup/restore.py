"""A backup is checked, and a data directory prepared beside the one that is in force.

The caller holds haneul's lock. Until `swap.decide` nothing that is there is touched.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from haneul import identity
from haneul.backup import Machine, Server, archive, make, swap
from haneul.backup.archive import IDENTITY, STORE, Damaged, Manifest, volume_member, volume_of
from haneul.config import Settings
from haneul.errors import SettingsError
from haneul.identity import Identity
from haneul.store import dump, migrations, tables
from haneul.store.database import with_driver
from haneul.store.ownership import Binding

Say = Callable[[str], None]
DATABASE = "haneul.db"
SPARE_BYTES = 64 << 20
_SIDE_FILES = ("haneul.db-wal", "haneul.db-shm", "haneul.db-journal")


@dataclass(frozen=True)
class Options:
    replace: bool = False
    without_volumes: bool = False


@dataclass
class Changes:
    """What the restored rows need for this server. `boots` is `boot_count` by instance."""

    out: list[str] = field(default_factory=list)
    remember: dict[str, tuple[int, str]] = field(default_factory=dict)
    boots: dict[str, int] = field(default_factory=dict)
    afresh: list[str] = field(default_factory=list)
    #: Volumes that have a file here, or get one of the backup.
    #: Volumes to be made again from their images.
    anew: list[str] = field(default_factory=list)


def restore(settings: Settings, server: Server, path: Path, options: Options, say: Say) -> list[str]:
    """Put a backup in force; gives what to tell. Raises `SettingsError`, and then everything is as it was."""
    data = settings.data
    swap.finish(data, settings.database_url, server.remember)
    try:
        plan, told = _prepare(settings, server, path, options, say)
    except BaseException as error:
        if not swap.is_unfinished(data):
            shutil.rmtree(data / swap.PREPARING, ignore_errors=True)
        if isinstance(error, sa.exc.SQLAlchemyError):
            raise SettingsError(f"the database refused: {_words(error)}; `haneul up` clears up") from None
        raise
    swap.finish(data, settings.database_url, server.remember)
    if (data / plan.before).exists():
        told.append(f"what was here before is in {data / plan.before}")
    return told


def _prepare(settings: Settings, server: Server, path: Path, options: Options, say: Say) -> tuple[swap.Plan, list[str]]:
    data = settings.data
    _may_replace(settings, options)
    manifest = _unpack(settings, path, options, say)
    staged = data / swap.PREPARING / swap.NEW
    slot, told = _slot(settings, staged)
    _fit_volumes(settings, server, manifest, staged, slot)
    before = f"before-restore-{time.strftime('%Y%m%dT%H%M%S')}"
    while (data / before).exists():
        before += "x"
    token = secrets.token_hex(16) if settings.database_url.startswith("postgres") else ""
    say("the store")
    with _target(settings, staged) as connection, _explained(path):
        replaced = 0
        if token:
            replaced = _epoch(connection)
            _keep_old_rows(connection, data)
            dump.remove_tables(connection)
        _load(connection, manifest, data)
        _check_slot(data, server, slot)
        changes = _compare(connection, settings, server, manifest, options)
        _apply(connection, changes, slot)
        identity.write_secret(staged / "identity" / "server", _bind(connection, replaced).text().encode())
        plan = _plan(data, staged, before, changes, token)
        (data / swap.PREPARING / swap.PLAN).write_text(plan.text())
        (data / swap.PREPARING / STORE).unlink()
        if slot.leaves:
            server.leave()
        if token:
            old = data / swap.PREPARING / "old.jsonl"
            if old.exists():
                old.rename(data / swap.PREPARING / swap.REPLACED_ROWS)
            swap.mark(connection, token)
            swap.decide(data)
    if not token:
        swap.decide(data)
    return plan, _tell(manifest, changes, path) + told


def _may_replace(settings: Settings, options: Options) -> None:
    if settings.database and not settings.database.startswith("postgres"):
        raise SettingsError("a backup is restored into SQLite in the data directory, or into PostgreSQL")
    if options.replace:
        return
    if not settings.database:
        if (settings.data / DATABASE).exists():
            raise SettingsError(f"{settings.data} has a store already; --replace puts it aside")
        return
    engine = sa.create_engine(with_driver(settings.database_url))
    try:
        with engine.connect() as connection:
            if not dump.is_empty(connection):
                raise SettingsError("the database has a store already; --replace puts it aside")
    finally:
        engine.dispose()


# --- out of the archive ---------------------------------------------------------------------------------


def _unpack(settings: Settings, path: Path, options: Options, say: Say) -> Manifest:
    """Everything beside the store goes to where it will be moved from."""
    try:
        return _unpack_all(settings, path, options, say)
    except FileNotFoundError as error:
        if error.filename == str(path):
            raise SettingsError(f"there is no file {path}") from None
        raise


def _unpack_all(settings: Settings, path: Path, options: Options, say: Say) -> Manifest:
    preparing = settings.data / swap.PREPARING
    with archive.opened(path) as (manifest, members):
        _check_schema(manifest, path)
        _check_room(settings.data, manifest, options)
        _check_images(settings, manifest, options, say)
        (preparing / swap.NEW).mkdir(mode=0o700, parents=True)
        preparing.chmod(0o700)
        for name, content in members:
            say(name)
            volume = volume_of(name)
            if name == STORE:
                _write(preparing / STORE, content, 0o600)
            elif volume is None:
                _write(preparing / swap.NEW / name, content, IDENTITY[name.partition("/")[2]])
            elif not options.without_volumes:
                _write(preparing / swap.NEW / name, content, 0o600)
    return manifest


def _check_schema(manifest: Manifest, path: Path) -> None:
    known = migrations.versions()
    if manifest.schema not in known:
        raise Damaged(
            f"{path} was made by haneul {manifest.haneul[:20]} with the schema {manifest.schema[:20]!r}; this haneul "
            f"knows {known[0]} to {known[-1]}: restore it with a newer haneul"
        )


def _check_room(data: Path, manifest: Manifest, options: Options) -> None:
    taken = [one.size for name, one in manifest.members.items() if not (options.without_volumes and volume_of(name))]
    # The rows are there twice for a while: as lines, and in the database with its indices.
    needed = sum(taken) + 2 * manifest.members[STORE].size + SPARE_BYTES
    free = shutil.disk_usage(data).free
    if needed > free:
        raise SettingsError(f"{data} has {free >> 20} MiB free, and {needed >> 20} MiB are needed")


def _check_images(settings: Settings, manifest: Manifest, options: Options, say: Say) -> None:
    """An overlay is worth something on the very image that it was made of only."""
    for image, wanted in manifest.images.items() if not options.without_volumes else ():
        disk = settings.image_directory / image / "disk.qcow2"
        if not disk.is_file():
            raise SettingsError(f"the volumes need the image {image}, which is not at {disk}; copy it there")
        if make.file_member(disk, f"checksum of the image {image}", say).sha256 != wanted:
            raise SettingsError(
                f"{disk} is another image than the one that the volumes are made of; copy that one there"
            )


def _write(path: Path, content: Iterator[bytes], mode: int) -> None:
    """Blocks of zeros become holes."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        for piece in content:
            if len(piece) == archive.PIECE and not piece.strip(b"\0"):
                file.seek(len(piece), os.SEEK_CUR)
            else:
                file.write(piece)
        file.truncate()


# --- identity -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slots:
    """The slot that the backup had, and the one that it gets here. `moves`: public addresses follow it.

    `leaves`: the identity that is replaced has yet another one.
    """

    was: int
    now: int
    moves: bool
    leaves: bool

    @property
    def uid(self) -> int:
        """No machine's: a restored disk is not root's, so root never believes its header."""
        return Identity(Path(), self.now).first_uid


def _slot(settings: Settings, staged: Path) -> tuple[Slots, list[str]]:
    """The backup's slot, unless another haneul of this server has it; then another one."""
    data, moves = settings.data, settings.public_pool == "auto"
    try:
        was = int((staged / "identity" / "slot").read_text())
    except ValueError:
        was = -1
    if not 0 <= was <= 255:
        raise Damaged("its slot is no number from 0 to 255")
    mine = identity.load(data)
    now = (
        was
        if mine is not None and mine.slot == was
        else identity.free_slot(was, data if settings.drivers != "fake" else None)
    )
    leaves = mine is not None and mine.slot != now
    if now == was:
        return Slots(was, was, False, leaves), []
    identity.write_secret(staged / "identity" / "slot", str(now).encode())
    old, new = Identity(data, was), Identity(data, now)
    return Slots(was, now, moves, leaves), [
        f"another haneul here has {old.pool}: the public addresses move to {new.pool}"
    ]


def _check_slot(data: Path, server: Server, slots: Slots) -> None:
    """Uids and interfaces of machines are those of the slot."""
    if slots.leaves and any(machine.running for machine in server.machines().values()):
        raise SettingsError(
            f"machines of {data} run, and its slot will be another one: `haneul down --instances` first"
        )


# --- volumes --------------------------------------------------------------------------------------------


def _fit_volumes(settings: Settings, server: Server, manifest: Manifest, staged: Path, slots: Slots) -> None:
    """Overlays find their image where it is on this server."""
    for name, volume in manifest.volumes.items():
        file = staged / volume_member(name)
        if not file.exists():
            continue
        found = server.backing(file)
        if bool(found) != bool(volume.image):
            raise Damaged(f"{name} is not made of {volume.image or 'nothing'}, as the manifest says")
        base = settings.image_directory.absolute() / volume.image / "disk.qcow2"
        if found and found != str(base):
            try:
                server.rebase(file, base)
            except ValueError as error:
                raise Damaged(f"{name}: {error}") from None
        if os.geteuid() == 0:
            os.chown(file, slots.uid, slots.uid)


# --- the store ------------------------------------------------------------------------------------------


@contextmanager
def _target(settings: Settings, staged: Path) -> Iterator[Connection]:
    """An empty SQLite file beside the old one, or PostgreSQL; one transaction."""
    url = with_driver(settings.database_url)
    if not settings.database:
        file = staged / DATABASE
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        url = f"sqlite:///{file}"
    engine = sa.create_engine(url)
    try:
        with migrations.transaction(engine) as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (dump.Unfit, sa.exc.SQLAlchemyError, OverflowError, UnicodeError) as error:
        raise Damaged(f"{path}: its rows do not fit the schema: {_words(error)}") from None


def _words(error: Exception) -> str:
    """What a database said, in one line."""
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0][:300]


def _keep_old_rows(connection: Connection, data: Path) -> None:
    if dump.is_empty(connection):
        return
    with (data / swap.PREPARING / "old.jsonl").open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        make.dump_rows(connection, file)


def _load(connection: Connection, manifest: Manifest, data: Path) -> None:
    counts: dict[str, int] = {}

    def rows(connection: Connection) -> None:
        with (data / swap.PREPARING / STORE).open("rb") as file:
            counts.update(dump.load(connection, map(_row, dump.lines(file))))

    migrations.fill(connection, manifest.schema, rows)
    if {name: count for name, count in counts.items() if count} != {n: c for n, c in manifest.rows.items() if c}:
        raise dump.Unfit("there are more or fewer of them than the manifest says")


def _row(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        value = archive.parse_json(line)
    except ValueError as error:
        raise dump.Unfit(f"a line is no JSON: {error}") from None
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)):
        raise dump.Unfit("a line is no row")
    return value[0], value[1]


def _compare(
    connection: Connection, settings: Settings, server: Server, manifest: Manifest, options: Options
) -> Changes:
    """What the store says and this server has. What only one of them knows, the agent would destroy."""
    instances = [dict(row._mapping) for row in connection.execute(sa.select(tables.instances))]
    volumes = [dict(row._mapping) for row in connection.execute(sa.select(tables.volumes))]
    taken = set() if options.without_volumes else {name for name, one in manifest.volumes.items() if one.included}
    here = {path.stem for path in (settings.data / "volumes").glob("*.qcow2")}
    known = {row["id"] for row in volumes}
    machines = server.machines()
    missing = sorted((manifest.volumes.keys() & known) - taken - here)
    if missing and not options.without_volumes:
        raise SettingsError(
            f"the disks of these volumes are neither in the backup nor here: {_some(missing)}; put them into "
            f"{settings.data / 'volumes'}, or --without-volumes lets their instances start from their images again"
        )
    _check_running(machines, {row["id"] for row in instances}, taken)
    lost = {row["instance_id"] for row in volumes if row["id"] in missing}
    changes = Changes(afresh=sorted(lost - {""}), anew=missing)
    if settings.drivers == "fake":
        changes.anew = sorted(known)  # their disks are no files
    changes.out += [volume_member(name) for name in sorted(here - known)]
    unknown = machines.keys() - {row["id"] for row in instances}
    changes.out += [f"instances/{name}" for name in sorted(unknown)]
    for row in instances:
        if row["power"] != "terminated":
            _follow(changes, row, machines.get(row["id"]), row["id"] in lost)
    return changes


def _check_running(machines: Mapping[str, Machine], known: set[str], taken: set[str]) -> None:
    running = {name for name, machine in machines.items() if machine.running}
    if running - known:
        raise SettingsError(
            f"{_some(sorted(running - known))} run here and are not in the backup: `haneul down --instances` first"
        )
    if running and taken:
        raise SettingsError(
            f"{_some(sorted(running))} run, and disks would be replaced: `haneul down --instances` first"
        )


def _follow(changes: Changes, row: Mapping[str, Any], here: Machine | None, afresh: bool) -> None:
    """One instance of the backup on this server: how many boots its machine has behind it, and which one is ordered."""
    name, ordered = row["id"], max(row["boot_count"], row["observed_boot_count"])
    wanted = row["power"] == "running"
    if here is not None and here.running:
        changes.boots[name] = max(ordered, here.boots) if wanted else row["boot_count"]
    elif afresh:
        if here is not None:
            changes.out.append(f"instances/{name}")
    elif here is not None or row["observed_boot_count"]:
        boots = max(row["observed_boot_count"], here.boots if here is not None else 0)
        changes.remember[name] = (boots, row["observed_accelerator"])
        changes.boots[name] = max(ordered, boots) + 1 if wanted else row["boot_count"]


def _apply(connection: Connection, changes: Changes, slots: Slots) -> None:
    # Only what the options allow is made anew from its image: a volume that was lost before the backup stays lost.
    volumes = tables.volumes
    connection.execute(sa.update(volumes).where(volumes.c.id.in_(changes.anew)).values(observed_made=False))
    table = tables.instances
    for name, boots in changes.boots.items():
        connection.execute(sa.update(table).where(table.c.id == name).values(boot_count=boots))
    if slots.moves:
        _move_addresses(connection, Identity(Path(), slots.was).pool, Identity(Path(), slots.now).pool)


def _move_addresses(connection: Connection, was: str, now: str) -> None:
    """Each address to the same place of the other pool."""
    table = tables.interfaces
    old, new = ipaddress.IPv4Network(was), ipaddress.IPv4Network(now)
    found = connection.execute(sa.select(table.c.id, table.c.public_address).where(table.c.public_address.is_not(None)))
    for name, text in found.all():
        address = ipaddress.IPv4Address(text)
        if address in old:
            moved = str(new[int(address) - int(old.network_address)])
            connection.execute(sa.update(table).where(table.c.id == name).values(public_address=moved))


def _plan(data: Path, staged: Path, before: str, changes: Changes, token: str) -> swap.Plan:
    into = ["identity"]
    into += [f"volumes/{path.name}" for path in sorted((staged / "volumes").glob("*.qcow2"))]
    if token:
        return swap.Plan(before, changes.out, into, changes.remember, token)
    # The old database's log must not be applied to the new one: it goes where the old one goes.
    return swap.Plan(before, [*_SIDE_FILES, *changes.out], [*into, DATABASE], changes.remember)


def _epoch(connection: Connection) -> int:
    """The newest lease of a store that is to be replaced; 0 of one that is older than leases."""
    columns = sa.inspect(connection).get_columns("servers") if sa.inspect(connection).has_table("servers") else []
    if "epoch" not in {column["name"] for column in columns}:
        return 0
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(tables.servers.c.epoch), 0))).scalar_one())


def _bind(connection: Connection, replaced: int) -> Binding:
    """The restored store and this data directory know each other; nobody acts for its server yet.

    The lease is newer than those of the backup and of the store that is `replaced`: who held one is fenced.
    """
    table = tables.servers
    token = connection.execute(sa.select(tables.store_identity.c.token)).scalar_one()
    servers = connection.execute(sa.select(table.c.id).order_by(table.c.id)).scalars().all()
    epoch = sa.case((table.c.epoch > replaced, table.c.epoch), else_=replaced) + 1
    bound = Binding(token, servers[0] if servers else f"srv-0{secrets.token_hex(8)}", secrets.token_hex(16))
    mine = sa.update(table).where(table.c.id == bound.server)
    connection.execute(mine.values(token=bound.token, holder="", epoch=epoch))
    return bound


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")


def _tell(manifest: Manifest, changes: Changes, path: Path) -> list[str]:
    told = [
        f"{path} of {manifest.made} is restored: {manifest.rows.get('instances', 0)} instances, "
        f"{sum(manifest.rows.values())} rows; `haneul up` starts what ran then"
    ]
    if changes.afresh:
        told.append(f"without their disks, these start from their images again: {_some(changes.afresh)}")
    return told
