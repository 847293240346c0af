"""Transactions over the tables.

SQLite runs with WAL, and every write transaction begins IMMEDIATE: the second writer waits, it never
fails half-way. On PostgreSQL the same statements run under SERIALIZABLE-safe conditional updates
(capacity) and unique constraints (addresses, names, tokens).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table, event

from haneul.store import tables

Row = Mapping[str, Any]
IN_CHUNK = 500


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA busy_timeout=20000")


class Transaction:
    """One unit of work. Reads give mappings; writes raise the version of what they change.

    `wakes` says that the commit changes something that an agent has to act on.
    """

    def __init__(self, connection: Connection, writable: bool) -> None:
        self._connection = connection
        self.writable = writable
        self.wakes = False

    def execute(self, statement: Any) -> Any:
        return self._connection.execute(statement)

    def get(self, table: Table, key: str) -> Row | None:
        found = self._connection.execute(sa.select(table).where(table.c.id == key)).mappings().first()
        return dict(found) if found is not None else None

    def select(self, table: Table, *where: Any, **equal: Any) -> list[Row]:
        statement = sa.select(table).where(*where, *(table.c[name] == value for name, value in equal.items()))
        return [dict(row) for row in self._connection.execute(statement).mappings()]

    def among(self, table: Table, column: str, values: Sequence[str], **equal: Any) -> list[Row]:
        """Rows whose `column` is one of `values`, in pieces that every database accepts."""
        found: list[Row] = []
        unique = list(dict.fromkeys(values))
        for start in range(0, len(unique), IN_CHUNK):
            found += self.select(table, table.c[column].in_(unique[start : start + IN_CHUNK]), **equal)
        return found

    def insert(self, table: Table, **values: Any) -> None:
        self._connection.execute(sa.insert(table).values(**values))
        self.wakes = True

    def update(self, table: Table, key: str, **values: Any) -> None:
        statement = sa.update(table).where(table.c.id == key)
        self._connection.execute(statement.values(version=table.c.version + 1, **values))
        self.wakes = True

    def update_where(self, table: Table, condition: Any, **values: Any) -> int:
        """A conditional update; gives how many rows met the condition."""
        changed = self._connection.execute(sa.update(table).where(condition).values(**values)).rowcount
        self.wakes = True
        return int(changed)

    def delete(self, table: Table, *where: Any, **equal: Any) -> None:
        conditions = (*where, *(table.c[name] == value for name, value in equal.items()))
        self._connection.execute(sa.delete(table).where(*conditions))
        self.wakes = True

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


class Store:
    """`url` is a SQLAlchemy database URL. `on_commit` is called after each commit that wakes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._sqlite = url.startswith("sqlite")
        # More connections than the API has worker threads: none of them ever waits for one.
        self.engine = sa.create_engine(url, pool_size=16, max_overflow=64)
        if self._sqlite:
            self._only_for_us()
            _configure_sqlite(self.engine)
        self._listeners: list[Callable[[], None]] = []
        # SQLite has one writer; waiting on a lock of ours is fair and cheap, its busy handler polls.
        self._writer = threading.Lock()

    def _only_for_us(self) -> None:
        """The file holds secrets. SQLite gives its side files the mode of the database."""
        path = self.engine.url.database
        if path and path != ":memory:":
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            for one in Path(path).parent.glob(f"{Path(path).name}*"):
                one.chmod(0o600)

    @staticmethod
    def embedded(path: Path) -> Store:
        return Store(f"sqlite:///{path}")

    def on_commit(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view; nothing can be written."""
        with self.engine.connect() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN")
            try:
                yield Transaction(connection, writable=False)
            finally:
                connection.rollback()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Commits at the end of the block; any exception undoes everything."""
        with self._writer if self._sqlite else nullcontext(), self.engine.connect() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            tx = Transaction(connection, writable=True)
            try:
                yield tx
                if tx.wakes:
                    tx.raise_revision()
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
        if tx.wakes:
            for listener in self._listeners:
                listener()

    def migrate(self) -> None:
        """Bring the schema to this version of haneul (alembic; nothing to do costs one query)."""
        from haneul.store.migrations import upgrade

        upgrade(self.engine)

    def close(self) -> None:
        self.engine.dispose()
