"""Launch templates, placement groups, fleets, shared images; indexes in the order in which a Describe gives rows"""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'

RESOURCES = (
    'dhcp_options',
    'images',
    'instances',
    'interfaces',
    'internet_gateways',
    'key_pairs',
    'network_acls',
    'route_tables',
    'security_group_rules',
    'security_groups',
    'subnets',
    'volumes',
    'vpcs',
)


def upgrade() -> None:
    op.create_table('fleets',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('account', sa.String(length=12), nullable=False),
    sa.Column('region', sa.String(length=32), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('created', sa.Float(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('request', sa.Text(), nullable=False),
    sa.Column('answer', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('ix_fleets_scope', 'fleets', ['account', 'region', 'created', 'id'], unique=False)
    op.create_table('image_permissions',
    sa.Column('image_id', sa.String(length=32), nullable=False),
    sa.Column('account', sa.String(length=12), nullable=False),
    sa.PrimaryKeyConstraint('image_id', 'account')
    )
    op.create_index('ix_image_permissions_account', 'image_permissions', ['account'], unique=False)
    op.create_table('launch_template_versions',
    sa.Column('template_id', sa.String(length=32), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('created', sa.Float(), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('description', sa.Text(), nullable=False),
    sa.Column('data', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('template_id', 'number')
    )
    op.create_table('launch_templates',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('account', sa.String(length=12), nullable=False),
    sa.Column('region', sa.String(length=32), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('created', sa.Float(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('default_version', sa.Integer(), nullable=False),
    sa.Column('latest_version', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('account', 'region', 'name', name='uq_launch_templates_name')
    )
    op.create_index('ix_launch_templates_scope', 'launch_templates', ['account', 'region', 'created', 'id'], unique=False)
    op.create_table('placement_groups',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('account', sa.String(length=12), nullable=False),
    sa.Column('region', sa.String(length=32), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('created', sa.Float(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('strategy', sa.Text(), nullable=False),
    sa.Column('spread_level', sa.Text(), nullable=False),
    sa.Column('partitions', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('account', 'region', 'name', name='uq_placement_groups_name')
    )
    op.create_index('ix_placement_groups_scope', 'placement_groups', ['account', 'region', 'created', 'id'], unique=False)
    op.add_column('instances', sa.Column('placement_group', sa.Text(), nullable=False, server_default=''))
    op.add_column('instances', sa.Column('partition_number', sa.Integer(), nullable=False, server_default='0'))
    op.create_index('ix_interfaces_address', 'interfaces', ['address'], unique=False)
    op.create_index('ix_interfaces_vpc', 'interfaces', ['vpc_id'], unique=False)
    op.create_index('ix_instances_image', 'instances', ['account', 'region', 'image_id'], unique=False)
    op.create_index('ix_instances_reservation', 'instances', ['account', 'region', 'reservation_id'], unique=False)
    op.create_index('ix_tags_value', 'tags', ['account', 'region', 'key', 'value'], unique=False)
    op.create_table('usage',
    sa.Column('account', sa.String(length=12), nullable=False),
    sa.Column('region', sa.String(length=32), nullable=False),
    sa.Column('instances', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('account', 'region')
    )
    for name in RESOURCES:
        op.drop_index(f'ix_{name}_scope', table_name=name)
        op.create_index(f'ix_{name}_scope', name, ['account', 'region', 'created', 'id'], unique=False)
