"""A backup is made: of one moment of the store, also while haneul runs."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from haneul import __version__
from haneul.backup import Server, archive
from haneul.backup.archive import IDENTITY, MANIFEST, STORE, Manifest, Member, Volume, volume_member
from haneul.config import Settings
from haneul.errors import SettingsError
from haneul.linux import files
from haneul.store import dump
from haneul.store.database import Store

Say = Callable[[str], None]
#: A new key is in the store a moment before it is in the identity: then both are read again.
TRIES, PAUSE = 10, 0.2


@dataclass(frozen=True)
class Moment:
    """What the store said at one moment beside its rows."""

    schema: str
    rows: dict[str, int]
    volumes: list[dict[str, Any]]
    access_keys: frozenset[str]


def make(settings: Settings, server: Server, path: Path, volumes: bool, force: bool, say: Say) -> Manifest:
    """Write the backup, whole or not at all. With `volumes` the caller holds haneul's lock. Raises `SettingsError`."""
    _may_write(path, force)
    if not settings.database and not (settings.data / "haneul.db").exists():
        raise SettingsError(f"there is nothing to back up: {settings.data} has no store")
    with tempfile.TemporaryFile(dir=path.parent) as rows, _new_file(path, force) as file:
        say("the store")
        moment, identity = _read(settings, rows)
        known = _volumes(settings.data, server, moment, volumes)
        manifest = _describe(settings, moment, identity, rows, known, say)
        archive.read_manifest(manifest.text())  # what no restore would take is not made
        _write(file, path.suffix in (".gz", ".tgz"), manifest, identity, rows, settings.data, say)
    return manifest


def _may_write(path: Path, force: bool) -> None:
    if path.is_dir() or (path.exists() and not (force and path.is_file())):
        raise SettingsError(f"{path} is there already; choose another name" + ("" if path.is_dir() else ", or --force"))
    if not path.parent.is_dir():
        raise SettingsError(f"there is no directory {path.parent}")


@contextmanager
def _new_file(path: Path, force: bool) -> Iterator[IO[bytes]]:
    """A file that only its owner reads and that gets its name when it is whole."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _may_write(path, force)
        os.replace(name, path)
        files.sync_directory(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(settings: Settings, rows: IO[bytes]) -> tuple[Moment, dict[str, bytes]]:
    """The store, and the identity that belongs to it."""
    for left in reversed(range(TRIES)):
        rows.seek(0)
        rows.truncate()
        before = _identity(settings.data)
        moment = dump_store(settings.database_url, rows)
        whole = before == _identity(settings.data)
        mine = before["credentials"].decode().split()[0]
        if whole and (mine in moment.access_keys or not moment.access_keys or not left):
            return moment, before
        time.sleep(PAUSE)
    raise SettingsError("the keys of this haneul change all the time; try again")


def _identity(data: Path) -> dict[str, bytes]:
    """The directory may belong to the user who called sudo: no link is followed."""
    found = {}
    for name in IDENTITY:
        path = data / "identity" / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise SettingsError(f"{path} is missing: `haneul up` makes what is missing") from None
        with os.fdopen(descriptor, "rb") as file:
            found[name] = file.read(archive.IDENTITY_BYTES)
    return found


def dump_store(url: str, rows: IO[bytes]) -> Moment:
    """Every row, as of one moment. Raises `SettingsError` if there is no store."""
    store = Store(url)
    try:
        with store.read() as tx:
            return dump_rows(tx.connection, rows)
    except dump.Unfit as error:
        raise SettingsError(f"there is nothing to back up: {error}") from None
    finally:
        store.close()


def dump_rows(connection: sa.Connection, rows: IO[bytes]) -> Moment:
    version = dump.version(connection)
    counts = dump.write(connection, rows)
    known = dump.schema(connection)
    table = known["volumes"]
    wanted = (table.c.id, table.c.image_name)
    volumes = [dict(zip(("id", "image"), row, strict=True)) for row in connection.execute(sa.select(*wanted))]
    keys = connection.execute(sa.select(known["access_keys"].c.id)).scalars()
    return Moment(version, counts, volumes, frozenset(keys))


def _volumes(data: Path, server: Server, moment: Moment, included: bool) -> dict[str, Volume]:
    """The store's volumes that have a file. Raises `SettingsError` if they are wanted and a machine writes to one."""
    # Only asked when haneul is down: looking at machines is the agent's business.
    running = sorted(name for name, machine in server.machines().items() if machine.running) if included else []
    if running:
        names = ", ".join(running[:10]) + (f" and {len(running) - 10} more" if running[10:] else "")
        raise SettingsError(f"{names} run: stop them, or `haneul down --instances`; a disk in use cannot be copied")
    found = {}
    for row in moment.volumes:
        file = data / volume_member(row["id"])
        if file.is_file() and not file.is_symlink():
            found[row["id"]] = Volume(file.stat().st_size, row["image"], server.backing(file), included)
    return found


def _describe(
    settings: Settings,
    moment: Moment,
    identity: dict[str, bytes],
    rows: IO[bytes],
    volumes: dict[str, Volume],
    say: Say,
) -> Manifest:
    rows.seek(0)
    members = {STORE: archive.member(rows)}
    for name, content in identity.items():
        members[f"identity/{name}"] = _of_bytes(content)
    included = {name: one for name, one in volumes.items() if one.included}
    for name in included:
        members[volume_member(name)] = file_member(settings.data / volume_member(name), f"checksum of {name}", say)
    images = {}
    for image in sorted({one.image for one in included.values() if one.image}):
        disk = settings.image_directory / image / "disk.qcow2"
        if not disk.is_file():
            raise SettingsError(f"volumes are made of the image {image}, which is not at {disk}")
        images[image] = file_member(disk, f"checksum of the image {image}", say).sha256
    return Manifest(
        __version__,
        moment.schema,
        dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "postgresql" if settings.database_url.startswith("postgres") else "sqlite",
        str(settings.data),
        moment.rows,
        members,
        volumes,
        images,
    )


def _of_bytes(content: bytes) -> Member:
    return archive.member(io.BytesIO(content))


def file_member(path: Path, what: str, say: Say) -> Member:
    total = max(path.stat().st_size, 1)
    with path.open("rb") as file:
        return archive.member(file, lambda done: say(f"{what}: {100 * done // total} %"))


class _Told:
    """A file that tells how far it has been read."""

    def __init__(self, file: IO[bytes], what: str, size: int, say: Say) -> None:
        self._file, self._what, self._size, self._say, self._done = file, what, max(size, 1), say, 0

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._done += len(piece)
        self._say(f"{self._what}: {100 * self._done // self._size} % of {self._size >> 20} MiB")
        return piece


def _write(
    file: IO[bytes],
    zipped: bool,
    manifest: Manifest,
    identity: dict[str, bytes],
    rows: IO[bytes],
    data: Path,
    say: Say,
) -> None:
    made = dt.datetime.fromisoformat(manifest.made).timestamp()
    try:
        with archive.writing(file, zipped) as tar:
            archive.add_bytes(tar, MANIFEST, manifest.text(), made)
            for name, content in identity.items():
                archive.add_bytes(tar, f"identity/{name}", content, made)
            rows.seek(0)
            archive.add(tar, STORE, rows, manifest.members[STORE].size, made)
            for name in (name for name, one in manifest.volumes.items() if one.included):
                size = manifest.members[volume_member(name)].size
                with (data / volume_member(name)).open("rb") as content_file:
                    told: Any = _Told(content_file, name, size, say)
                    archive.add(tar, volume_member(name), told, size, made)
    except (tarfile.TarError, gzip.BadGzipFile) as error:
        raise SettingsError(f"the backup could not be written: {error}") from None


def summary(manifest: Manifest, path: Path) -> list[str]:
    """What to tell about a backup that was made."""
    included = [one for one in manifest.volumes.values() if one.included]
    told = [
        f"{path}: {manifest.rows.get('instances', 0)} instances, {sum(manifest.rows.values())} rows of one moment, "
        f"identity and keys; {path.stat().st_size / (1 << 20):.1f} MiB; it holds secrets (mode 0600)"
    ]
    if included:
        size = sum(one.size for one in included) / (1 << 20)
        told.append(
            f"disks: {len(included)} volumes, {size:.1f} MiB; their images are not in it: {', '.join(sorted(manifest.images)) or 'none'}"
        )
    elif manifest.volumes:
        told.append("disks are not in it (`haneul down --instances`, then --volumes takes them too)")
    else:
        told.append("disks are not in it: there are none")
    return told
