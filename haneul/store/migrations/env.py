"""alembic's entry: always online, on the connection that `upgrade` hands in."""

from alembic import context

from haneul.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
