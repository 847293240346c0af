"""The tables. Ids are global keys; account and region are columns.

Every row of a resource has a `version` that each change raises. Columns named `observed_*` are written
from agents' reports only, all others by the EC2 operations and the reconciler.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

#: Account and region of what everybody may see (haneul's own images).
EVERYONE = "*"


def _resource(name: str, *columns: Column[object] | UniqueConstraint | Index) -> Table:
    return Table(
        name,
        metadata,
        Column("id", String(32), primary_key=True),
        Column("account", String(12), nullable=False),
        Column("region", String(32), nullable=False),
        Column("version", Integer, nullable=False, default=1),
        Column("created", Float, nullable=False),
        *columns,
        # The order in which a Describe gives them, so that a page is one range of this index.
        Index(f"ix_{name}_scope", "account", "region", "created", "id"),
    )


def _text(name: str, default: str = "") -> Column[object]:
    return Column(name, Text, nullable=False, default=default)


def _json(name: str) -> Column[object]:
    return Column(name, JSON, nullable=False)


def _flag(name: str, default: bool = False) -> Column[object]:
    return Column(name, Boolean, nullable=False, default=default)


accounts = Table(
    "accounts",
    metadata,
    Column("id", String(12), primary_key=True),
    _text("name"),
    Column("created", Float, nullable=False),
)

access_keys = Table(
    "access_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account", String(12), nullable=False),
    _text("secret"),
    Column("created", Float, nullable=False),
)

#: One row: what tells this store from every other one, also from a copy that was restored elsewhere.
store_identity = Table(
    "store_identity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token", String(64), nullable=False),
)

#: `token` is the server's own secret, which its data directory has too. `holder` (JSON) says which haneul acts for the
#: server, in which `epoch`; it raises `beat` as long as it does. See `store/ownership.py`.
servers = Table(
    "servers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("version", Integer, nullable=False, default=1),
    Column("token", String(64), nullable=False, default=""),
    _text("holder"),
    Column("epoch", Integer, nullable=False, default=0),
    Column("beat", BigInteger, nullable=False, default=0),
    _json("zones"),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("reserved_vcpus", Integer, nullable=False, default=0),
    Column("reserved_memory_mib", Integer, nullable=False, default=0),
    _json("observed_facts"),
    Column("observed_at", Float, nullable=False),
)

#: Orders to remove something from a server: the only ones there are (`model.assignment.Holding`).
tombstones = Table(
    "tombstones",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("server_id", String(32), primary_key=True),
    Column("created", Float, nullable=False),
    Index("ix_tombstones_server", "server_id"),
)

#: One row: `revision` is raised by every commit that an agent may have to act on.
revision = Table(
    "revision", metadata, Column("id", Integer, primary_key=True), Column("value", BigInteger, nullable=False)
)

#: At least as many as an account has: counting thousands of rows for every launch would take longer than the launch.
usage = Table(
    "usage",
    metadata,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("instances", Integer, nullable=False),
)

client_tokens = Table(
    "client_tokens",
    metadata,
    Column("account", String(12), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("operation", String(128), primary_key=True),
    Column("token", String(64), primary_key=True),
    _text("parameters"),
    _text("result"),
    Column("created", Float, nullable=False),
)

tags = Table(
    "tags",
    metadata,
    Column("resource_id", String(32), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("value", String(256), nullable=False),
    Column("account", String(12), nullable=False),
    Column("region", String(32), nullable=False),
    Column("resource_type", String(64), nullable=False),
    Index("ix_tags_scope", "account", "region"),
    Index("ix_tags_value", "account", "region", "key", "value"),
)

instances = _resource(
    "instances",
    _text("zone"),
    _text("reservation_id"),
    Column("launch_index", Integer, nullable=False, default=0),
    Column("launched", Float, nullable=False),
    _text("image_id"),
    _text("image_name"),
    _text("instance_type"),
    _text("key_name"),
    _text("public_key"),
    _text("vpc_id"),
    _text("subnet_id"),
    _text("client_token"),
    _text("placement_group"),
    Column("partition_number", Integer, nullable=False, default=0),
    Column("user_data", Text, nullable=True),
    _text("shutdown_behavior", "stop"),
    _flag("disable_api_termination"),
    _flag("disable_api_stop"),
    _flag("ebs_optimized"),
    _flag("monitoring"),
    _flag("stands_in"),
    _json("metadata_options"),
    _json("more"),
    _text("root_device"),
    # desired
    _text("power", "running"),
    Column("boot_count", Integer, nullable=False, default=1),
    Column("started_at_boot", Integer, nullable=False, default=1),
    _flag("force"),
    _text("server_id"),
    Column("reserved_vcpus", Integer, nullable=False, default=0),
    Column("reserved_memory_mib", Integer, nullable=False, default=0),
    _text("reason_code"),
    _text("reason_message"),
    _text("transition_reason"),
    Column("ended", Float, nullable=True),
    # observed
    Column("observed_power", String(16), nullable=True),
    Column("observed_boot_count", Integer, nullable=False, default=0),
    _text("observed_cause"),
    _text("observed_detail"),
    _text("observed_phase"),
    _text("observed_accelerator"),
    Column("observed_reachable", Boolean, nullable=True),
    Column("observed_reachable_since", Float, nullable=True),
    Index("ix_instances_server", "server_id"),
    # With the scope in front: without statistics SQLite prefers two columns that are equal to one.
    Index("ix_instances_reservation", "account", "region", "reservation_id"),
    Index("ix_instances_image", "account", "region", "image_id"),
)

volumes = _resource(
    "volumes",
    _text("zone"),
    _text("snapshot_id"),
    _text("image_name"),
    Column("size_gib", Integer, nullable=False),
    _text("server_id"),
    _text("kind", "gp3"),
    Column("iops", Integer, nullable=False, default=3000),
    Column("throughput", Integer, nullable=False, default=125),
    _flag("encrypted"),
    _text("instance_id"),
    _text("device"),
    _flag("delete_on_termination", True),
    Column("attached", Float, nullable=True),
    # observed
    _flag("observed_made"),
    Index("ix_volumes_instance", "instance_id"),
    Index("ix_volumes_server", "server_id"),
)

interfaces = _resource(
    "interfaces",
    _text("vpc_id"),
    _text("subnet_id"),
    _text("zone"),
    _text("description"),
    _text("mac"),
    _text("address"),
    Column("public_address", String(15), nullable=True, unique=True),
    _flag("wants_public"),
    _json("groups"),
    _text("instance_id"),
    _text("attachment_id"),
    Column("device_index", Integer, nullable=False, default=0),
    _flag("delete_on_termination", True),
    _flag("source_dest_check", True),
    Column("attached", Float, nullable=True),
    UniqueConstraint("subnet_id", "address", name="uq_interfaces_address"),
    Index("ix_interfaces_instance", "instance_id"),
    Index("ix_interfaces_address", "address"),
    Index("ix_interfaces_vpc", "vpc_id"),
)

images = _resource(
    "images",
    _text("name"),
    _text("description"),
    _text("architecture", "x86_64"),
    _text("disk"),
    _text("snapshot_id"),
    _text("root_device", "/dev/xvda"),
    Column("size_gib", Integer, nullable=False, default=8),
    _flag("public"),
    _flag("available", True),
    _json("block_devices"),
    _json("more"),
)

key_pairs = _resource(
    "key_pairs",
    _text("name"),
    _text("kind"),
    _text("fingerprint"),
    _text("public_key"),
    UniqueConstraint("account", "region", "name", name="uq_key_pairs_name"),
)

vpcs = _resource(
    "vpcs",
    _text("cidr"),
    _text("dhcp_options_id"),
    _flag("is_default"),
    _flag("dns_support", True),
    _flag("dns_hostnames", True),
)
subnets = _resource(
    "subnets",
    _text("vpc_id"),
    _text("zone"),
    _text("cidr"),
    _flag("is_default"),
    _flag("map_public"),
)
security_groups = _resource(
    "security_groups",
    _text("vpc_id"),
    _text("name"),
    _text("description"),
    UniqueConstraint("vpc_id", "name", name="uq_security_groups_name"),
)
security_group_rules = _resource(
    "security_group_rules",
    _text("group_id"),
    _text("direction"),
    _text("protocol"),
    Column("from_port", Integer, nullable=False),
    Column("to_port", Integer, nullable=False),
    _text("cidr"),
    _text("cidr6"),
    _text("peer_group"),
    _text("description"),
    Index("ix_rules_group", "group_id"),
)
route_tables = _resource("route_tables", _text("vpc_id"), _flag("main"), _json("routes"), _json("associations"))
internet_gateways = _resource("internet_gateways", _text("vpc_id"))
network_acls = _resource("network_acls", _text("vpc_id"), _flag("is_default"), _json("entries"), _json("associations"))
dhcp_options = _resource("dhcp_options", _json("options"))

#: Who may launch an image beside its owner. What everybody may launch has `images.public`.
image_permissions = Table(
    "image_permissions",
    metadata,
    Column("image_id", String(32), primary_key=True),
    Column("account", String(12), primary_key=True),
    Index("ix_image_permissions_account", "account"),
)

launch_templates = _resource(
    "launch_templates",
    _text("name"),
    _text("created_by"),
    Column("default_version", Integer, nullable=False, default=1),
    Column("latest_version", Integer, nullable=False, default=1),
    UniqueConstraint("account", "region", "name", name="uq_launch_templates_name"),
)
launch_template_versions = Table(
    "launch_template_versions",
    metadata,
    Column("template_id", String(32), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("created", Float, nullable=False),
    _text("created_by"),
    _text("description"),
    _text("data"),
)
placement_groups = _resource(
    "placement_groups",
    _text("name"),
    _text("strategy"),
    _text("spread_level"),
    Column("partitions", Integer, nullable=False, default=0),
    UniqueConstraint("account", "region", "name", name="uq_placement_groups_name"),
)
fleets = _resource("fleets", _text("kind"), _text("request"), _text("answer"))


def whole(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it will be read: `values`, and the defaults of the columns that they leave out."""
    return {**_defaults(table), **values}


@cache
def _defaults(table: Table) -> dict[str, Any]:
    return {column.name: getattr(column.default, "arg", None) for column in table.columns}


#: Parts of a resource -> (the column that names the resource, its table): what changes a part changes what a
#: Describe shows of the resource, and so raises its version.
OWNERS: dict[Table, tuple[str, Table]] = {
    interfaces: ("instance_id", instances),
    volumes: ("instance_id", instances),
    security_group_rules: ("group_id", security_groups),
}

#: What assignments are made of: a change of anything else is no agent's business.
ASSIGNED = frozenset(
    {instances, volumes, interfaces, vpcs, subnets, security_groups, security_group_rules, tags, tombstones}
)

#: Resources that leave something on a server -> what that is. Deleting such a row writes the tombstone.
HELD: dict[Table, str] = {instances: "machine", volumes: "volume"}

#: Prefix of an id -> the table of what has it. Tags are a part of any of these.
BY_PREFIX: dict[str, Table] = {
    "i": instances,
    "ami": images,
    "vol": volumes,
    "eni": interfaces,
    "vpc": vpcs,
    "subnet": subnets,
    "sg": security_groups,
    "sgr": security_group_rules,
    "rtb": route_tables,
    "igw": internet_gateways,
    "acl": network_acls,
    "dopt": dhcp_options,
    "key": key_pairs,
    "lt": launch_templates,
    "pg": placement_groups,
    "fleet": fleets,
}
