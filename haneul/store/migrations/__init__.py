"""Schema migrations, run by alembic. A version is a file in `versions/`; none is ever changed after a release."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Engine

from haneul.store.tables import metadata

HEAD = "0002"


def upgrade(engine: Engine) -> None:
    """To `HEAD`, in one transaction where the database can. An empty database gets the tables as they are now."""
    current = _current(engine)
    if current == HEAD:
        return
    if current is None:
        with engine.begin() as connection:
            metadata.create_all(connection)
            connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
            connection.execute(sa.text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})
        return
    walk(engine)


def walk(engine: Engine, to: str = "head") -> None:
    """Migration by migration, from whatever version there is."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, to)


def _current(engine: Engine) -> str | None:
    if not sa.inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
