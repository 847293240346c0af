"""Schema migrations, run by alembic. A version is a file in `versions/`; none is ever changed after a release."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from haneul.store.locks import WRITER_LOCK
from haneul.store.tables import metadata, store_identity

HEAD = "0003"


def upgrade(engine: Engine) -> None:
    """To `HEAD`. An empty database gets the tables as they are now. Killed in between, nothing has happened."""
    with transaction(engine) as connection:
        version = current(connection)
        if version == HEAD:
            return
        if version is None:
            metadata.create_all(connection)
            connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
            connection.execute(sa.text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})
            _new_token(connection)
        else:
            _walk(connection, "head")


def walk(engine: Engine, to: str) -> None:
    """Migration by migration, from whatever version there is."""
    with transaction(engine) as connection:
        _walk(connection, to)


def versions() -> list[str]:
    """Every version of the schema that this haneul knows, in order."""
    return sorted(path.stem.partition("_")[0] for path in (Path(__file__).parent / "versions").glob("[0-9]*.py"))


def fill(connection: Connection, version: str, rows: Callable[[Connection], None]) -> None:
    """An empty database gets the schema of `version`, its `rows`, and is then brought to `HEAD`.

    Its identity is a new one: the store that the rows are from may live on.
    """
    _walk(connection, version)
    if sa.inspect(connection).has_table(store_identity.name):
        connection.execute(sa.delete(store_identity))
    rows(connection)
    _walk(connection, "head")
    _new_token(connection)


def _new_token(connection: Connection) -> None:
    connection.execute(sa.delete(store_identity))
    connection.execute(sa.insert(store_identity).values(id=1, token=secrets.token_hex(16)))


def _walk(connection: Connection, to: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, to)


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Also for DDL: sqlite3 begins no transaction for that by itself, and the store's connections begin none at all."""
    with engine.begin() as connection:
        driver = connection.connection.dbapi_connection
        if engine.dialect.name == "sqlite" and driver is not None and not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif engine.dialect.name == "postgresql":
            # Two haneuls that start at once must not both make the tables.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITER_LOCK)))
        yield connection


def current(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
