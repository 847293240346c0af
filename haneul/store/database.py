"""Transactions over the tables.

SQLite runs with WAL, and every write transaction begins IMMEDIATE: the second writer waits, it never
fails half-way. On PostgreSQL an advisory lock gives the same order, among all that share the database, and readers
see a snapshot (REPEATABLE READ). So an operation is written once, for one writer at a time, and is never tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table, event

from haneul.errors import CloudError
from haneul.store import tables
from haneul.store.locks import WRITER_LOCK

log = logging.getLogger(__name__)
Row = Mapping[str, Any]
IN_CHUNK = 500
#: Page caches of SQLite, KiB for each connection.
WRITER_KIB, READER_KIB = 8000, 400


#: What the drivers raise when the database itself fails, not a statement.
_FAILURES = (sa.exc.OperationalError, sa.exc.InterfaceError)


def _refusal(error: sa.exc.DBAPIError) -> CloudError:
    """What a client is told when the database cannot work: to try again (SDKs do), and why, for the owner."""
    log.error("the database cannot work: %s", error.orig)
    why = "its disk is full" if "full" in str(error.orig) else "its database does not work"
    return CloudError("Unavailable", f"The server cannot do this now: {why}.")


def _use_wal(connection: Any) -> None:
    """The mode is the file's. Changing it needs the file for oneself, and does not wait for it (sqlite.org, "WAL")."""
    deadline = time.monotonic() + 20
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _configure_sqlite(engine: Engine, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute("PRAGMA busy_timeout=20000")
        _use_wal(connection)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        # A launch touches a page of every index: what does not fit is written twice.
        connection.execute(f"PRAGMA cache_size=-{WRITER_KIB}")


@cache
def _select(table: Table, names: tuple[str, ...], nulls: tuple[str, ...]) -> Any:
    """Statements are made once: making one costs more than SQLite takes to run it."""
    equal = [table.c[name] == sa.bindparam(name) for name in names]
    return sa.select(table).where(*equal, *(table.c[name].is_(None) for name in nulls))


@cache
def _select_among(table: Table, column: str, names: tuple[str, ...]) -> Any:
    among = table.c[column].in_(sa.bindparam("among", expanding=True))
    return sa.select(table).where(among, *(table.c[name] == sa.bindparam(name) for name in names))


@cache
def _update(table: Table, names: tuple[str, ...]) -> Any:
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    return sa.update(table).where(table.c.id == sa.bindparam("key")).values(version=table.c.version + 1, **values)


@cache
def _touch(table: Table) -> Any:
    return sa.update(table).where(table.c.id == sa.bindparam("key")).values(version=table.c.version + 1)


@cache
def _touch_owner_of(table: Table) -> Any:
    column, owner = tables.OWNERS[table]
    held_by = sa.select(table.c[column]).where(table.c.id == sa.bindparam("key")).scalar_subquery()
    return sa.update(owner).where(owner.c.id == held_by).values(version=owner.c.version + 1)


@cache
def _names(table: Table) -> tuple[str, ...]:
    return tuple(table.c.keys())


@cache
def _begin(sqlite: bool) -> Any:
    """What makes the transaction the only one that writes."""
    return sa.text("BEGIN IMMEDIATE") if sqlite else sa.select(sa.func.pg_advisory_xact_lock(WRITER_LOCK))


class Transaction:
    """One unit of work. Reads give mappings; writes raise the version of what they change and of its owner.

    `wakes` says that the commit changes something that an agent has to act on (`tables.ASSIGNED`).
    """

    def __init__(self, connection: Connection, writable: bool) -> None:
        self._connection = connection
        self.writable = writable
        self.wakes = False
        self._inserted: set[str] = set()  # nobody has seen a version of these yet

    @property
    def connection(self) -> Connection:
        """For what looks at the schema itself."""
        return self._connection

    def execute(self, statement: Any, parameters: Any = None) -> Any:
        return self._connection.execute(statement, parameters)

    def get(self, table: Table, key: str) -> Row | None:
        rows = self.select(table, id=key)
        return rows[0] if rows else None

    def select(self, table: Table, *where: Any, **equal: Any) -> list[Row]:
        nulls = tuple(name for name, value in equal.items() if value is None)
        given = {name: value for name, value in equal.items() if value is not None}
        statement = _select(table, tuple(given), nulls)
        if where:
            statement = statement.where(*where)
        return self._rows(table, statement, given)

    def among(self, table: Table, column: str, values: Sequence[str], **equal: Any) -> list[Row]:
        """Rows whose `column` is one of `values`, in pieces that every database accepts."""
        found: list[Row] = []
        unique = list(dict.fromkeys(values))
        if len(unique) == 1:
            return self.select(table, **(equal | {column: unique[0]}))
        statement = _select_among(table, column, tuple(equal))
        for start in range(0, len(unique), IN_CHUNK):
            found += self._rows(table, statement, equal | {"among": unique[start : start + IN_CHUNK]})
        return found

    def _rows(self, table: Table, statement: Any, parameters: Mapping[str, Any]) -> list[Row]:
        names = _names(table)
        return [dict(zip(names, row, strict=True)) for row in self._connection.execute(statement, parameters).all()]

    def insert(self, table: Table, **values: Any) -> None:
        self.insert_many(table, [values])

    def insert_many(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows that all have the same columns."""
        if not rows:
            return
        self._connection.execute(sa.insert(table), rows if len(rows) > 1 else rows[0])
        self.wakes |= table in tables.ASSIGNED
        self._inserted.update(row["id"] for row in rows if "id" in row)
        if table is tables.tags:
            self._touch_resources({row["resource_id"] for row in rows})
        elif table in tables.OWNERS:
            column, owner = tables.OWNERS[table]
            for one in {row.get(column, "") for row in rows}:
                self._touch(owner, one)

    def update(self, table: Table, key: str, **values: Any) -> None:
        given = {f"new_{name}": value for name, value in values.items()}
        if table in tables.OWNERS:
            self._connection.execute(_touch_owner_of(table), {"key": key})
            column, owner = tables.OWNERS[table]
            self._touch(owner, values.get(column, ""))
        self._connection.execute(_update(table, tuple(values)), given | {"key": key})
        self.wakes |= table in tables.ASSIGNED

    def update_where(self, table: Table, condition: Any, **values: Any) -> int:
        """A conditional update that raises no version; gives how many rows met the condition."""
        changed = self._connection.execute(sa.update(table).where(condition).values(**values)).rowcount
        self.wakes |= table in tables.ASSIGNED
        return int(changed)

    def delete(self, table: Table, *where: Any, **equal: Any) -> None:
        conditions = (*where, *(table.c[name] == value for name, value in equal.items()))
        if table is tables.tags:
            held = sa.select(table.c.resource_id).where(*conditions).distinct()
            self._touch_resources({row[0] for row in self._connection.execute(held)})
        elif table in tables.OWNERS:
            column, owner = tables.OWNERS[table]
            for row in self._connection.execute(sa.select(table.c[column]).where(*conditions).distinct()).all():
                self._touch(owner, row[0])
        if table in tables.HELD:
            held_here = sa.select(table.c.id, table.c.server_id).where(*conditions, table.c.server_id != "")
            for one, server in self._connection.execute(held_here).all():
                self.bury(tables.HELD[table], one, server)
        self._connection.execute(sa.delete(table).where(*conditions))
        self.wakes |= table in tables.ASSIGNED

    def bury(self, kind: str, one: str, server_id: str) -> None:
        """Write the tombstone of something that a server holds; it stays until the server has nothing of it left."""
        if not self.select(tables.tombstones, kind=kind, id=one, server_id=server_id):
            self.insert(tables.tombstones, kind=kind, id=one, server_id=server_id, created=time.time())

    def unbury(self, kind: str, one: str, server_id: str) -> None:
        """What a server was to remove is wanted there again."""
        self.delete(tables.tombstones, kind=kind, id=one, server_id=server_id)

    def _touch_resources(self, ids: Iterable[str]) -> None:
        for one in ids:
            table = tables.BY_PREFIX.get(one.rpartition("-")[0])
            if table is not None:
                self._touch(table, one)

    def _touch(self, table: Table, key: str) -> None:
        if key and key not in self._inserted:
            self._connection.execute(_touch(table), {"key": key})

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """An exception undoes this block only."""
        with self._connection.begin_nested():
            yield

    def revision(self) -> int:
        found = self._connection.execute(sa.select(tables.revision.c.value)).scalar()
        return int(found) if found is not None else 0

    def raise_revision(self) -> None:
        changed = self._connection.execute(sa.update(tables.revision).values(value=tables.revision.c.value + 1))
        if not changed.rowcount:
            self._connection.execute(sa.insert(tables.revision).values(id=1, value=1))


def with_driver(url: str) -> str:
    """A database URL as SQLAlchemy wants it, with the one driver for PostgreSQL that haneul brings along."""
    return re.sub("^postgres(ql)?://", "postgresql+pg8000://", url)


class Store:
    """`url` is a SQLAlchemy database URL. `on_commit` is called after each commit that wakes.

    `durable`: what was answered survives a power cut. Without it SQLite loses the last commits then (never a part of
    one), which a cloud of fake machines can bear. A killed process loses nothing in either case.
    """

    def __init__(self, url: str, durable: bool = True) -> None:
        url = with_driver(url)
        self.url = url
        self._sqlite = url.startswith("sqlite")
        # More connections than the API has worker threads: none of them ever waits for one.
        self.engine = sa.create_engine(url, pool_size=16, max_overflow=64, pool_pre_ping=not self._sqlite)
        if self._sqlite:
            self._only_for_us()
            _configure_sqlite(self.engine, "FULL" if durable else "NORMAL")
        self._snapshots = self.engine
        if not self._sqlite:
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            self._snapshots = self.engine.execution_options(**options)
        self._listeners: list[Callable[[], None]] = []
        # SQLite has one writer; waiting on a lock of ours is fair and cheap, its busy handler polls.
        self._writer = threading.Lock()
        self._readers = threading.local()

    def _only_for_us(self) -> None:
        """The file holds secrets. SQLite gives its side files the mode of the database."""
        path = self.engine.url.database
        if path and path != ":memory:":
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            for one in Path(path).parent.glob(f"{Path(path).name}*"):
                with contextlib.suppress(
                    FileNotFoundError
                ):  # another haneul that starts now has a journal for a moment
                    one.chmod(0o600)

    @property
    def reads_at_once(self) -> bool:
        """Whether a read waits for nothing: SQLite's file is here, and with WAL no writer holds a reader up."""
        return self._sqlite

    @staticmethod
    def embedded(path: Path) -> Store:
        return Store(f"sqlite:///{path}")

    def on_commit(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view; nothing can be written. SQLite's threads keep a connection each for reading."""
        if not self._sqlite:
            try:
                with self._snapshots.connect() as connection:
                    yield Transaction(connection, writable=False)
            except _FAILURES as error:
                raise _refusal(error) from error
            return
        connection, driver = self._reader()
        driver.execute("BEGIN")
        try:
            yield Transaction(connection, writable=False)
        finally:
            driver.execute("ROLLBACK")

    def _reader(self) -> tuple[Connection, Any]:
        """This thread's connection, as SQLAlchemy and as sqlite3 have it: opening one costs more than reading."""
        known: tuple[Connection, Any] | None = getattr(self._readers, "one", None)
        if known is None:
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            driver: Any = connection.connection.dbapi_connection
            # Every thread has one: the pages that the system keeps are enough for all of them.
            driver.execute(f"PRAGMA cache_size=-{READER_KIB}")
            known = self._readers.one = (connection, driver)
        return known

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Commits at the end of the block; any exception undoes everything."""
        try:
            with self._writer if self._sqlite else nullcontext(), self.engine.connect() as connection:
                tx = yield from self._written(connection)
        except _FAILURES as error:
            raise _refusal(error) from error
        if tx.wakes:
            for listener in self._listeners:
                listener()

    def _written(self, connection: Connection) -> Generator[Transaction, None, Transaction]:
        """The transaction, committed when the caller's block has ended well, and rolled back if not."""
        try:
            connection.execute(_begin(self._sqlite))
            tx = Transaction(connection, writable=True)
            yield tx
            if tx.wakes:
                tx.raise_revision()
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        return tx

    def migrate(self) -> None:
        """Bring the schema to this version of haneul (alembic; nothing to do costs one query)."""
        from haneul.store.migrations import upgrade

        upgrade(self.engine)

    def close(self) -> None:
        """Reading threads keep their connections as long as they live: one may be in the middle of it."""
        self.engine.dispose()
