"""The schema that migrations lead to is the schema of the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from haneul.store import migrations, tables
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


@pytest.mark.parametrize("version", ["0001"])
def test_what_was_stored_before_stays(tmp_path: Path, version: str) -> None:
    engine = _engine(tmp_path / "db")
    migrations.walk(engine, version)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO accounts (id, name, created) VALUES ('123456789012', 'old', 1.0)"))
    store = Store.embedded(tmp_path / "db")
    store.migrate()
    with store.read() as tx:
        assert [row["name"] for row in tx.select(tables.accounts)] == ["old"]
    store.close()
