"""Every row of a store as lines of JSON, the same for every database.

A line is `["table", {"column": value, …}]`. The schema is looked up in the database itself, so that a store of an older
haneul can be written and read, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Table

from haneul.store import migrations, tables

#: No row comes near (user data has 16 KiB, a remembered answer some MiB).
LINE_BYTES = 64 << 20
AT_ONCE = 500
VERSION_TABLE = "alembic_version"

# Names become parts of paths, of command lines and of rulesets: what a row says there has no other characters.
_NAME = re.compile(r"([A-Za-z0-9-][A-Za-z0-9._:-]*)?\*?")
_NETWORK = re.compile(r"[0-9A-Fa-f:./]*")
_NAMES = {
    "id", "image_name", "disk", "instance_type", "mac", "protocol", "direction", "zone", "region", "account", "power",
}  # fmt: skip
_NETWORKS = {"cidr", "cidr6", "address", "public_address"}


class Unfit(ValueError):
    """A line that the schema has no place for."""


def schema(connection: Connection) -> dict[str, Table]:
    """The tables that there are."""
    found = sa.MetaData()
    found.reflect(connection, only=lambda name, _: name != VERSION_TABLE)
    return dict(found.tables)


def is_empty(connection: Connection) -> bool:
    """Whether no table of haneul's is there, or none has a row."""
    names = set(sa.inspect(connection).get_table_names()) & tables.metadata.tables.keys()
    return not any(
        connection.execute(sa.select(sa.literal(1)).select_from(sa.table(name)).limit(1)).first() for name in names
    )


def remove_tables(connection: Connection) -> None:
    """Every table of haneul's, whatever its schema."""
    for name in set(sa.inspect(connection).get_table_names()) & {*tables.metadata.tables, VERSION_TABLE}:
        sa.Table(name, sa.MetaData()).drop(connection)


def write(connection: Connection, file: IO[bytes]) -> dict[str, int]:
    """Rows by table. The connection shows one moment (`Store.read`)."""
    counts: dict[str, int] = {}
    known = schema(connection)
    for name in sorted(known.keys() & tables.metadata.tables.keys()):
        table = known[name]
        columns = table.c.keys()
        counts[name] = 0
        for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns)):
            line = json.dumps([name, dict(zip(columns, row, strict=True))], ensure_ascii=False, separators=(",", ":"))
            file.write(line.encode() + b"\n")
            counts[name] += 1
    return counts


def version(connection: Connection) -> str:
    found = migrations.current(connection)
    if found is None:
        raise Unfit("the database has no store of haneul's")
    return found


def load(connection: Connection, lines: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, int]:
    """Insert rows into empty tables; gives how many by table. Raises `Unfit` and SQLAlchemy's errors."""
    known = schema(connection)
    counts = dict.fromkeys(known, 0)
    waiting: list[dict[str, Any]] = []
    current = ""
    for name, row in lines:
        if name not in known:
            raise Unfit(f"there is no table {name[:64]!r} in this schema")
        check(known[name], row)
        if waiting and (name != current or len(waiting) >= AT_ONCE):
            connection.execute(sa.insert(known[current]), waiting)
            waiting = []
        current = name
        waiting.append(row)
        counts[name] += 1
    if waiting:
        connection.execute(sa.insert(known[current]), waiting)
    return counts


def check(table: Table, row: dict[str, Any]) -> None:
    """Raises `Unfit` if a value is missing, unknown or of another kind than its column."""
    names = set(table.c.keys())
    if names != row.keys():
        raise Unfit(f"{table.name}: columns are missing or unknown: {', '.join(sorted(names ^ row.keys()))[:200]}")
    for column in table.c:
        value = row[column.name]
        if value is None and column.nullable:
            continue
        if not _fits(column, value) or not _looks_right(column.name, value):
            raise Unfit(f"{table.name}.{column.name}: {str(value)[:60]!r} does not fit")


def _fits(column: Column[Any], value: Any) -> bool:
    kind = column.type
    if isinstance(kind, sa.JSON):
        return value is not None
    if isinstance(kind, sa.Boolean):
        return type(value) is bool
    if isinstance(kind, sa.Integer):
        bits = 63 if isinstance(kind, sa.BigInteger) else 31
        return type(value) is int and -(1 << bits) <= value < 1 << bits
    if isinstance(kind, sa.Float | sa.Numeric):
        return type(value) in (int, float) and abs(value) < 1e300
    if isinstance(kind, sa.String):
        return type(value) is str and len(value) <= (kind.length or LINE_BYTES) and "\0" not in value
    return False


def _looks_right(name: str, value: Any) -> bool:
    if not isinstance(value, str):
        return True
    if name in _NETWORKS:
        return _NETWORK.fullmatch(value) is not None
    if name in _NAMES or name.endswith("_id"):
        return _NAME.fullmatch(value) is not None
    return True


def lines(file: IO[bytes]) -> Iterator[bytes]:
    """Raises `Unfit` for a line that is too long to be one."""
    while line := file.readline(LINE_BYTES):
        if not line.endswith(b"\n"):
            raise Unfit("a line is too long, or cut off")
        yield line
