"""Which server a store belongs to, who acts for it, and tombstones: orders to remove something from a server"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'


def upgrade() -> None:
    identity = op.create_table('store_identity',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('token', sa.String(length=64), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.bulk_insert(identity, [{'id': 1, 'token': secrets.token_hex(16)}])
    op.create_table('tombstones',
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('server_id', sa.String(length=32), nullable=False),
    sa.Column('created', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('kind', 'id', 'server_id')
    )
    op.create_index('ix_tombstones_server', 'tombstones', ['server_id'], unique=False)
    op.add_column('servers', sa.Column('token', sa.String(length=64), nullable=False, server_default=''))
    op.add_column('servers', sa.Column('holder', sa.Text(), nullable=False, server_default=''))
    op.add_column('servers', sa.Column('epoch', sa.Integer(), nullable=False, server_default='0'))
    op.add_column('servers', sa.Column('beat', sa.BigInteger(), nullable=False, server_default='0'))
    op.add_column('volumes', sa.Column('observed_made', sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index('ix_volumes_server', 'volumes', ['server_id'], unique=False)
    # What has been booted had its disks: if one of them is missing now, it is lost, and not one that is still to be made.
    volumes = sa.table('volumes', sa.column('observed_made', sa.Boolean()), sa.column('instance_id'))
    instances = sa.table('instances', sa.column('id'), sa.column('observed_boot_count'))
    booted = sa.select(instances.c.id).where(instances.c.observed_boot_count > 0)
    op.execute(volumes.update().where(volumes.c.instance_id.in_(booted)).values(observed_made=True))
