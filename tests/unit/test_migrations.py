"""The schema that migrations lead to is the schema of the tables."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from haneul.config import Settings
from haneul.errors import SettingsError
from haneul.services import ec2  # noqa: F401 - fills the table of operations
from haneul.services.context import Caller
from haneul.services.dispatch import Cloud
from haneul.store import migrations, ownership, tables
from haneul.store.database import Store


def _engine(path: Path) -> sa.Engine:
    return sa.create_engine(f"sqlite:///{path}")


def _differences(engine: sa.Engine) -> list[object]:
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), tables.metadata))


def test_walking_up_gives_the_tables_as_they_are(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "db")
    migrations.walk(engine, "0001")
    assert _differences(engine), "the first schema is another one"
    migrations.upgrade(engine)
    assert _differences(engine) == []


def test_an_empty_database_gets_the_same(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "db")
    migrations.upgrade(engine)
    assert _differences(engine) == []
    migrations.upgrade(engine)


@pytest.mark.parametrize("begin", [None, "0001"])
def test_a_migration_that_is_cut_off_has_not_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: str | None
) -> None:
    """Also with the store's own connections, which begin no transaction by themselves."""
    if begin:
        migrations.walk(_engine(tmp_path / "db"), begin)
    store = Store.embedded(tmp_path / "db")

    def cut(connection: sa.Connection, *_: object) -> None:
        connection.execute(sa.text("CREATE TABLE half (x INTEGER)"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "_walk", cut)
        patch.setattr(tables.metadata, "create_all", cut)
        with pytest.raises(KeyboardInterrupt):
            store.migrate()
    store.migrate()
    assert _differences(store.engine) == []
    store.close()


RELEASED = sorted(path.stem for path in (Path(__file__).parent / "released").glob("*.sql"))


def _released(path: Path, version: str) -> None:
    """A database that haneul wrote when `version` was its schema: a cloud in use, as sqlite3's dump."""
    text = (Path(__file__).parent / "released" / f"{version}.sql").read_text()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(text)


def test_there_is_a_database_of_every_version() -> None:
    versions = Path(migrations.__file__).parent / "versions"
    assert sorted(path.stem.partition("_")[0] for path in versions.glob("0*.py")) == RELEASED


@pytest.mark.parametrize("version", RELEASED)
def test_a_cloud_of_every_released_version_lives_on(tmp_path: Path, version: str) -> None:
    """Walked up, it has the schema of now, and the operations find in it what was there and work with it."""
    _released(tmp_path / "db", version)
    store = Store.embedded(tmp_path / "db")
    store.migrate()
    assert _differences(store.engine) == []
    caller = Caller("000000000000", "us-east-1", "")
    cloud = Cloud(
        store, Settings(data=tmp_path, drivers="fake", public_pool="198.18.0.0/23", auth="open"), None, time.time
    )  # type: ignore[arg-type]

    def call(name: str, **params: object) -> dict[str, Any]:
        return cloud.call("ec2", name, caller, params)

    found = [one for r in call("DescribeInstances")["Reservations"] for one in r["Instances"]]
    named = [one for one in found if {"Key": "Name", "Value": "web 한"} in one.get("Tags", [])]
    assert sorted(one["State"]["Name"] for one in named) == ["running", "stopped", "terminated"]
    (group,) = call("DescribeSecurityGroups", Filters=[{"Name": "group-name", "Values": ["web"]}])["SecurityGroups"]
    assert len(group["IpPermissions"]) == 2
    assert call("DescribeKeyPairs")["KeyPairs"][0]["KeyName"] == "old"
    (stopped,) = [one["InstanceId"] for one in named if one["State"]["Name"] == "stopped"]
    call("StartInstances", InstanceIds=[stopped])
    again = {
        "ImageId": "ami-0123456789abcdef0",
        "MinCount": 1,
        "MaxCount": 1,
        "KeyName": "old",
        "SecurityGroupIds": [group["GroupId"]],
    }
    call("RunInstances", **again)
    call("TerminateInstances", InstanceIds=[one["InstanceId"] for one in found])
    store.close()


def test_a_store_of_before_is_looked_at_before_it_is_changed(tmp_path: Path) -> None:
    """Only its own data directory raises its schema; what has been booted there counts as made."""
    _released(tmp_path / "db", "0002")
    store, here = Store.embedded(tmp_path / "db"), ownership.Holder("host", "boot", "/data", "1:1")
    with store.engine.connect() as connection:
        found = sa.text(
            "SELECT id FROM volumes WHERE instance_id IN (SELECT id FROM instances WHERE observed_boot_count > 0)"
        )
        booted = set(connection.execute(found).scalars())
    assert booted
    for present in (ownership.Present(), ownership.Present(volumes=frozenset({"vol-9"}))):
        with pytest.raises(SettingsError, match="does not know"):
            ownership.check_older(store, here, present)
    ownership.check_older(store, here, ownership.Present(volumes=frozenset(booted)))
    with store.engine.connect() as connection:
        assert migrations.current(connection) == "0002"
    store.migrate()
    ownership.check_older(store, here, ownership.Present())
    with store.read() as tx:
        assert booted == {row["id"] for row in tx.select(tables.volumes, observed_made=True)}
    store.close()
