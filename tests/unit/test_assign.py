"""The store read as what a server should be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from haneul.config import Settings
from haneul.drivers.networks.linux import nftables
from haneul.reconcile.assign import Signer, build
from haneul.services import defaults
from haneul.store import tables
from haneul.store.database import Store


def test_groups_that_are_only_named_bring_members_but_no_rules(tmp_path: Path) -> None:
    """`db` lets `app` in, `app` lets `web` in, only `db` has an instance here: no rule may name what is not loaded."""
    store = Store.embedded(tmp_path / "db")
    store.migrate()
    number = iter(range(1, 1000))
    scope: dict[str, Any] = {"account": "000000000000", "region": "us-east-1", "created": 1.0}
    with store.write() as tx:
        defaults.ensure(tx, "000000000000", "us-east-1", 1.0, lambda prefix: f"{prefix}-{next(number):017x}")
        (vpc,) = tx.select(tables.vpcs)
        subnet = tx.select(tables.subnets)[0]
        for name, peer in (("a", "b"), ("b", "c"), ("c", "")):
            group = f"sg-{name * 17}"
            tx.insert(tables.security_groups, id=group, vpc_id=vpc["id"], name=name, description="d", **scope)
            if peer:
                rule = {
                    "protocol": "tcp",
                    "from_port": 1,
                    "to_port": 1,
                    "direction": "ingress",
                    "peer_group": f"sg-{peer * 17}",
                }
                tx.insert(tables.security_group_rules, id=f"sgr-{name * 17}", group_id=group, **rule, **scope)
        tx.insert(
            tables.instances, id="i-" + "1" * 17, launched=1.0, instance_type="t3.nano", zone="us-east-1a", vpc_id=vpc["id"],
            server_id="server-1", metadata_options={"HttpTokens": "optional", "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": 1, "InstanceMetadataTags": "disabled"}, more={}, image_id="ami-1", **scope,
        )  # fmt: skip
        tx.insert(
            tables.interfaces, id="eni-" + "1" * 17, vpc_id=vpc["id"], subnet_id=subnet["id"], zone="us-east-1a",
            mac="06:00:00:00:00:01", address="172.31.0.10", groups=["sg-" + "a" * 17], instance_id="i-" + "1" * 17, **scope,
        )  # fmt: skip
    with store.read() as tx:
        found = build(tx, "server-1", Settings(data=tmp_path), Signer(lambda document: {}, "key"))
    (network,) = found.networks
    assert {group.group_id[-1]: len(group.rules) for group in network.groups} == {"a": 1, "b": 0}
    script = nftables.whole(nftables.ruleset(network))
    named = set(re.findall(r"@(m_\w+)", script))
    assert named <= set(re.findall(r"add set ip vpc (m_\w+)", script))


def test_the_database_is_for_its_owner_only(tmp_path: Path) -> None:
    store = Store.embedded(tmp_path / "db")
    store.migrate()
    with store.write() as tx:
        tx.insert(tables.accounts, id="1", name="x", created=1.0)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}, modes
