"""What is believed of a backup: headers, manifests, rows; and the header of a volume."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from haneul.backup import Machine, archive, restore, swap
from haneul.drivers.disks.qcow2 import backing_file, set_backing_file
from haneul.errors import SettingsError
from haneul.store import dump, migrations, tables


def _manifest(**more: Any) -> archive.Manifest:
    members = {
        name: archive.Member(1, "0" * 64) for name in ("store.jsonl", *(f"identity/{n}" for n in archive.IDENTITY))
    }
    values = {"haneul": "1", "schema": "0001", "made": "2026-01-01T00:00:00+00:00", "database": "sqlite", "data": "/d"}
    return archive.Manifest(**(values | {"rows": {}, "members": members} | more))


def test_a_manifest_is_read_as_it_was_written() -> None:
    volumes = {"vol-01": archive.Volume(5, "tiny", "/images/tiny/disk.qcow2", False)}
    written = _manifest(volumes=volumes)
    assert archive.read_manifest(written.text()) == written


@pytest.mark.parametrize(
    "change",
    [
        {"volumes": {"vol-01": {"size": 1, "image": "../x", "backing": "", "included": False}}},
        {"volumes": {"vol-01": {"size": 1, "image": "", "backing": "", "included": True}}},
        {"members": {"store.jsonl": {"size": 1, "sha256": "0" * 64}}},
        {"rows": []},
        {"made": "then"},
    ],
)
def test_a_manifest_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(archive.Damaged):
        archive.read_manifest(json.dumps(json.loads(_manifest().text()) | change).encode())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1 << 20])
def test_members_are_read_as_they_were_written(tmp_path: Path, zipped: bool, size: int) -> None:
    contents = {name: bytes([number]) * size for number, name in enumerate(_manifest().members)}
    members = {name: archive.member(io.BytesIO(content)) for name, content in contents.items()}
    path = tmp_path / "b"
    with path.open("wb") as file, archive.writing(file, zipped) as tar:
        archive.add_bytes(tar, "manifest.json", _manifest(members=members).text(), 0.0)
        for name, content in contents.items():
            archive.add_bytes(tar, name, content, 0.0)
    with archive.opened(path) as (manifest, found):
        assert manifest.members == members
        assert {name: b"".join(content) for name, content in found} == contents


def test_rows_fit_or_are_refused() -> None:
    row = tables.whole(tables.key_pairs, {"id": "key-1", "account": "1", "region": "r", "created": 1.0, "name": "k"})
    dump.check(tables.key_pairs, row)
    for name, value in (("id", "../x"), ("created", "1"), ("version", 1 << 40), ("name", None), ("account", "1" * 13)):
        with pytest.raises(dump.Unfit):
            dump.check(tables.key_pairs, row | {name: value})
    with pytest.raises(dump.Unfit):
        dump.check(tables.key_pairs, {"id": "key-1"})


RELEASED = sorted((Path(__file__).parent / "released").glob("*.sql"))


@pytest.mark.parametrize("sql", RELEASED, ids=lambda path: path.stem)
def test_rows_of_every_released_schema_are_written_and_loaded(tmp_path: Path, sql: Path) -> None:
    old, new = sa.create_engine(f"sqlite:///{tmp_path / 'old'}"), sa.create_engine(f"sqlite:///{tmp_path / 'new'}")
    with old.begin() as connection:
        driver: Any = connection.connection.dbapi_connection
        driver.executescript(sql.read_text())
    first, second = io.BytesIO(), io.BytesIO()
    with old.connect() as connection:
        version = dump.version(connection)
        counts = dump.write(connection, first)
    assert version == sql.stem and counts["instances"]
    first.seek(0)
    with migrations.transaction(new) as connection:
        migrations.fill(
            connection,
            version,
            lambda one: dump.load(one, (tuple(json.loads(line)) for line in first)) and None,  # type: ignore[misc]
        )
        assert dump.version(connection) == migrations.HEAD
    migrations.upgrade(old)
    first = io.BytesIO()
    with old.connect() as was, new.connect() as now:
        assert dump.write(was, first) == dump.write(now, second)
    assert _identity(old) != _identity(new), "a copy is a store of its own"
    assert _sorted(first) == _sorted(second)


def _identity(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        return str(connection.execute(sa.select(tables.store_identity.c.token)).scalar_one())


def _sorted(rows: io.BytesIO) -> list[str]:
    """A migrated table has its columns in another order."""
    found = (json.loads(line) for line in rows.getvalue().splitlines())
    return [json.dumps(row, sort_keys=True) for row in found if row[0] != "store_identity"]


def test_zeros_become_holes(tmp_path: Path) -> None:
    pieces = [b"a" * 100, bytes(archive.PIECE), b"b", bytes(archive.PIECE)]
    restore._write(tmp_path / "file", iter(pieces), 0o600)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert (tmp_path / "file").stat().st_blocks * 512 < archive.PIECE


def _row(**more: Any) -> dict[str, Any]:
    return {
        "id": "i-1",
        "power": "running",
        "boot_count": 3,
        "observed_boot_count": 3,
        "observed_accelerator": "kvm",
    } | more


@pytest.mark.parametrize(
    ("row", "here", "boots", "remembered"),
    [
        (_row(), None, 4, 3),  # a machine that is not here yet: one more boot of a disk that was booted
        (_row(), Machine(True, 3), 3, None),  # it runs on
        (_row(), Machine(True, 7), 7, None),  # it has been started since
        (_row(), Machine(False, 7), 8, 7),
        (_row(power="stopped"), Machine(False, 7), 3, 7),
        (_row(power="stopped"), None, 3, 3),
        (_row(observed_boot_count=0), None, None, None),  # it was never booted
    ],
)
def test_how_a_machine_goes_on(
    row: dict[str, Any], here: Machine | None, boots: int | None, remembered: int | None
) -> None:
    changes = restore.Changes()
    restore._follow(changes, row, here, afresh=False)
    assert changes.boots.get("i-1") == boots
    assert changes.remember.get("i-1", (None,))[0] == remembered


def test_without_its_disk_a_machine_begins_anew() -> None:
    changes = restore.Changes()
    restore._follow(changes, _row(), Machine(False, 3), afresh=True)
    assert changes.out == ["instances/i-1"] and not changes.boots and not changes.remember


def test_machines_that_run_are_not_lost() -> None:
    with pytest.raises(SettingsError, match="i-2"):
        restore._check_running({"i-2": Machine(True, 1)}, {"i-1"}, set())
    with pytest.raises(SettingsError, match="i-1"):
        restore._check_running({"i-1": Machine(True, 1)}, {"i-1"}, {"vol-1"})
    restore._check_running({"i-1": Machine(True, 1), "i-2": Machine(False, 1)}, {"i-1"}, set())


def test_what_was_decided_is_finished_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "slot").write_text("old")
    (tmp_path / "haneul.db-wal").write_text("old")
    new = tmp_path / swap.PREPARING / swap.NEW
    (new / "identity").mkdir(parents=True)
    (new / "identity" / "slot").write_text("new")
    plan = swap.Plan("before", ["haneul.db-wal", "volumes/gone"], ["identity", "haneul.db"], {"i-1": (3, "kvm")})
    (tmp_path / swap.PREPARING / swap.PLAN).write_text(plan.text())
    swap.decide(tmp_path)
    remembered: list[tuple[str, int, str]] = []
    for _ in range(2):
        swap.finish(tmp_path, "sqlite:///", lambda *one: remembered.append(one))
        assert (tmp_path / "identity" / "slot").read_text() == "new"
        assert (tmp_path / "before" / "identity" / "slot").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "identity"]
    assert remembered == [("i-1", 3, "kvm")]


def test_what_was_not_decided_is_removed(tmp_path: Path) -> None:
    (tmp_path / swap.PREPARING / swap.NEW).mkdir(parents=True)
    swap.finish(tmp_path, "sqlite:///", lambda *_: None)
    assert not list(tmp_path.iterdir())


def _overlay(path: Path, name: bytes, behind: bytes = b"\0" * 2000) -> None:
    header = struct.pack(">4sIQII", b"QFI\xfb", 3, 512, len(name), 16)
    path.write_bytes(header.ljust(512, b"\0") + name + behind)


def test_the_backing_file_gets_another_name(tmp_path: Path) -> None:
    path = tmp_path / "v"
    for name in ("/short", "/a/much/longer/name/than/it/was"):
        _overlay(path, b"/images/tiny/disk")
        set_backing_file(path, name)
        assert backing_file(path) == name
    _overlay(path, b"/x", b"something")
    for name in ("/longer", "/" * 1024):
        with pytest.raises(ValueError, match="name"):
            set_backing_file(path, name)
    assert backing_file(path) == "/x"
    path.write_bytes(b"raw")
    with pytest.raises(ValueError, match="qcow2"):
        set_backing_file(path, "/x")
