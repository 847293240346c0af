"""A prepared state is put in force, whatever interrupts it.

`DATA/.restore/` is being prepared and counts for nothing. One rename makes it `.restoring/`: from there on it is finished
by whoever comes next (`finish`), step by step, each of which may be done again. On PostgreSQL the rows are not in a file:
there the database's commit decides, which leaves a mark; without the mark nothing has happened. `.restored/` is rubbish.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import sqlalchemy as sa

from haneul.errors import SettingsError
from haneul.linux.files import sync_directory
from haneul.store.database import with_driver
from haneul.store.locks import WRITER_LOCK

log = logging.getLogger(__name__)

PREPARING, DECIDED, DONE = ".restore", ".restoring", ".restored"
NEW, PLAN, REPLACED_ROWS = "new", "plan.json", "store.jsonl"
#: The table that says which restore has been committed.
MARK = "haneul_restored"
_MARKS = sa.Table(MARK, sa.MetaData(), sa.Column("token", sa.String(64)))

Remember = Callable[[str, int, str], None]


@dataclass(frozen=True)
class Plan:
    """`out` goes to the folder `before`; then `into` (prepared below `new/`) comes in. Paths below the data directory."""

    before: str
    out: list[str] = field(default_factory=list)
    into: list[str] = field(default_factory=list)
    remember: dict[str, tuple[int, str]] = field(default_factory=dict)
    token: str = ""

    def text(self) -> str:
        return json.dumps(asdict(self))


def is_unfinished(data: Path) -> bool:
    return (data / DECIDED).exists()


def decide(data: Path) -> None:
    """From here on the new state is in force (on PostgreSQL: as soon as the commit is there)."""
    sync_tree(data / PREPARING)
    (data / PREPARING).rename(data / DECIDED)
    sync_directory(data)


def sync_tree(directory: Path) -> None:
    for where, _, names in os.walk(directory):
        for name in names:
            descriptor = os.open(Path(where) / name, os.O_RDONLY | os.O_NOFOLLOW)
            os.fsync(descriptor)
            os.close(descriptor)
        sync_directory(Path(where))


def finish(data: Path, database: str, remember: Remember) -> None:
    """Finish what was decided, remove what was not. The caller holds haneul's lock; nobody has the store open."""
    shutil.rmtree(data / PREPARING, ignore_errors=True)
    decided = data / DECIDED
    if decided.exists():
        plan = read_plan(decided)
        if plan.token and not is_marked(database, plan.token):
            decided.rename(data / PREPARING)
            shutil.rmtree(data / PREPARING)
            return
        _go_on(data, plan, remember)
        decided.rename(data / DONE)
        sync_directory(data)
        log.info("a restore is finished; what it replaced is in %s", plan.before)
    if (data / DONE).exists():
        plan_left = (data / DONE / PLAN).exists()
        if plan_left and read_plan(data / DONE).token:
            unmark(database)
        shutil.rmtree(data / DONE)


def read_plan(directory: Path) -> Plan:
    value = json.loads((directory / PLAN).read_text())
    value["remember"] = {name: (one[0], one[1]) for name, one in value["remember"].items()}
    return Plan(**value)


def _go_on(data: Path, plan: Plan, remember: Remember) -> None:
    before, new = data / plan.before, data / DECIDED / NEW
    before.mkdir(mode=0o700, exist_ok=True)
    for name in plan.out:
        _move(data / name, before / name)
    for name in plan.into:
        if _is_there(new / name):
            _move(data / name, before / name)
            _move(new / name, data / name)
    _move(data / DECIDED / REPLACED_ROWS, before / REPLACED_ROWS)
    for directory in {(data / name).parent for name in (*plan.out, *plan.into)} | {before, data}:
        if directory.is_dir():
            sync_directory(directory)
    for name, (boots, accelerator) in plan.remember.items():
        remember(name, boots, accelerator)
    if not any(before.iterdir()):
        before.rmdir()


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _move(path: Path, to: Path) -> None:
    if _is_there(path):
        to.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.rename(to)


# --- PostgreSQL -----------------------------------------------------------------------------------------


def mark(connection: sa.Connection, token: str) -> None:
    """In the transaction that brings the rows."""
    _MARKS.drop(connection, checkfirst=True)
    _MARKS.create(connection)
    connection.execute(sa.insert(_MARKS).values(token=token))


def is_marked(database: str, token: str) -> bool:
    if not database.startswith("postgres"):
        raise SettingsError(
            "a restore into PostgreSQL is not finished: the setting `database` must be what it was then"
        )
    engine = sa.create_engine(with_driver(database))
    try:
        with engine.begin() as connection:
            # Behind a transaction whose process was killed a moment ago and that is still being carried out.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITER_LOCK)))
            if not sa.inspect(connection).has_table(MARK):
                return False
            found = connection.execute(sa.select(_MARKS.c.token)).scalar()
            return bool(found == token)
    finally:
        engine.dispose()


def unmark(database: str) -> None:
    engine = sa.create_engine(with_driver(database))
    with engine.begin() as connection:
        _MARKS.drop(connection, checkfirst=True)
    engine.dispose()
