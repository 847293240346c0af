#!/usr/bin/env python
"""How soon a security group rule takes effect on a running guest.

    sudo .venv/bin/python benchmarks/rules.py [--changes 20] [--json]

From the moment AuthorizeSecurityGroupIngress (or Revoke) is sent until the loaded ruleset has (or has lost) it, seen by
asking nft in the VPC's namespace as fast as it answers; `nft_s` is what one such question takes. Beside it, from the
API's own answer. Medians in seconds; the last line is one JSON object.

    sudo .venv/bin/python benchmarks/rules.py --scale [--groups 1000] [--rules 60] [--interfaces 200]

What one changed rule costs in a large VPC, without a guest: from the committed row to the kernel's ruleset, beside the same
assembled and loaded from nothing in the same run. Medians in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.launch import alone_on_this_network  # noqa: E402
from haneul.drivers.networks.linux import nftables  # noqa: E402
from tests.system.conftest import Haneul  # noqa: E402


def loaded(place: Path, chain: str, port: int) -> bool:
    command = ["nsenter", f"--net={place}", "nft", "list", "chain", "ip", "vpc", chain]
    return f"dport {port} accept" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def change(haneul: Haneul, place: Path, group: str, port: int, wanted: bool) -> tuple[float, float]:
    """Seconds to the effect, from the request and from its answer."""
    ec2 = haneul.client()
    ec2.describe_regions(RegionNames=["us-east-1"])  # the connection is there
    act = ec2.authorize_security_group_ingress if wanted else ec2.revoke_security_group_ingress
    chain = f"g_{nftables.short(group)}_ingress"
    began = time.monotonic()
    act(GroupId=group, IpProtocol="tcp", FromPort=port, ToPort=port, CidrIp="0.0.0.0/0")
    answered = time.monotonic()
    while loaded(place, chain, port) != wanted:
        pass
    return time.monotonic() - began, time.monotonic() - answered


def large(store: Any, groups: int, rules: int, interfaces: int) -> list[str]:
    """The rows of a VPC of that size, all of it on one server; gives the ids of the groups."""
    from haneul.services import defaults
    from haneul.store import tables

    scope = {"account": "000000000000", "region": "us-east-1", "created": 1.0}
    names = itertools.count(1)
    with store.write() as tx:
        defaults.ensure(tx, "000000000000", "us-east-1", 1.0, lambda prefix: f"{prefix}-{next(names):017x}")
        (vpc,), subnet = tx.select(tables.vpcs), tx.select(tables.subnets)[0]
        ids = [f"sg-1{number:016x}" for number in range(groups)]
        rows = [scope | {"id": one, "vpc_id": vpc["id"], "name": one[3:], "description": "d"} for one in ids]
        tx.insert_many(tables.security_groups, rows)
        rule = scope | {"protocol": "tcp", "direction": "ingress", "cidr6": "", "peer_group": "", "description": ""}
        every = [
            rule
            | {
                "id": f"sgr-1{group:08x}{n:08x}",
                "group_id": one,
                "from_port": n + 1,
                "to_port": n + 1,
                "cidr": f"10.{n}.0.0/16",
            }
            for group, one in enumerate(ids)
            for n in range(rules)
        ]
        for start in range(0, len(every), 5000):
            tx.insert_many(tables.security_group_rules, every[start : start + 5000])
        options = {
            "HttpTokens": "optional",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": 1,
            "InstanceMetadataTags": "disabled",
        }
        base = ipaddress.IPv4Network(subnet["cidr"])
        for number in range(interfaces):
            instance, of = f"i-{number:017x}", [ids[(number * 5 + n) % groups] for n in range(5)]
            tx.insert(
                tables.instances, id=instance, launched=1.0, instance_type="t3.nano", zone=subnet["zone"], vpc_id=vpc["id"],
                server_id="server-1", metadata_options=options, more={}, image_id="ami-1", **scope,
            )  # fmt: skip
            tx.insert(
                tables.interfaces, id=f"eni-{number:017x}", vpc_id=vpc["id"], subnet_id=subnet["id"], zone=subnet["zone"],
                mac=f"06:00:00:00:{number >> 8:02x}:{number & 255:02x}", address=str(base[10 + number]), groups=of,
                instance_id=instance, **scope,
            )  # fmt: skip
    return ids


def scale(options: argparse.Namespace) -> dict[str, Any]:
    from haneul.config import Settings
    from haneul.drivers.networks.linux.driver import BridgeNetworks
    from haneul.reconcile.assign import Assigner, Signer
    from haneul.store import tables
    from haneul.store.database import Store

    data = Path(tempfile.mkdtemp(prefix="haneul-benchmark-", dir="/var/tmp"))
    store = Store.embedded(data / "haneul.db")
    store.migrate()
    ids = large(store, options.groups, options.rules, options.interfaces)
    driver = BridgeNetworks(Path("/run/haneul-benchmark"), "bm", "198.18.8.0/23", uplink=False)
    used = ids[3]

    def assembled(assigner: Assigner) -> tuple[float, Any]:
        began = time.perf_counter()
        with store.read() as tx:
            found = assigner.build(tx)
        return (time.perf_counter() - began) * 1e3, found

    async def applied(found: Any) -> float:
        began = time.perf_counter()
        await driver.apply(found.networks[0], found.revision)
        return (time.perf_counter() - began) * 1e3

    def new() -> Assigner:
        return Assigner("server-1", Settings(data=data), Signer(None, "ssh-ed25519 AAAA"))

    async def measure() -> dict[str, Any]:
        assigner = new()
        built_ms, found = assembled(assigner)
        loaded_ms = await applied(found)
        changes = []
        for number in range(options.changes):
            with store.write() as tx:
                (row,) = tx.select(tables.security_group_rules, group_id=used, from_port=5)
                tx.update(tables.security_group_rules, row["id"], cidr=f"10.{200 + number % 50}.0.0/16")
            one, found = assembled(assigner)
            changes.append((one, await applied(found)))
        nothing_ms, _ = assembled(new())
        each = [statistics.median(column) for column in zip(*changes, strict=True)]
        return {
            "groups": options.groups, "rules": options.rules, "interfaces": options.interfaces, "changes": options.changes,
            "assembled_from_nothing_ms": round(max(built_ms, nothing_ms), 1), "loaded_from_nothing_ms": round(loaded_ms, 1),
            "assembled_ms": round(each[0], 2), "applied_ms": round(each[1], 2), "change_ms": round(sum(each), 2),
            "worst_change_ms": round(max(map(sum, changes)), 2), "ratio": round((nothing_ms + loaded_ms) / sum(each), 1),
        }  # fmt: skip

    try:
        return asyncio.run(measure())
    finally:
        asyncio.run(driver.remove_all())
        store.close()
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree("/run/haneul-benchmark", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--scale", action="store_true", help="one changed rule in a large VPC, without a guest")
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--rules", type=int, default=60)
    parser.add_argument("--interfaces", type=int, default=200)
    options = parser.parse_args()
    alone_on_this_network()
    if options.scale:
        print(json.dumps(scale(options)))
        return
    data = Path(tempfile.mkdtemp(prefix="haneul-benchmark-", dir="/var/tmp"))
    data.chmod(0o711)
    haneul = Haneul(data, Path(os.environ.get("HANEUL_IMAGES", "/var/lib/haneul/images")))
    haneul.up()
    try:
        (instance,) = haneul.launch()
        haneul.until_ssh(instance)
        found = haneul.instance(instance)
        group = found["SecurityGroups"][0]["GroupId"]
        slot = int((data / "identity" / "slot").read_text())
        place = Path(f"/run/haneul-{slot:02x}/netns/{found['VpcId']}")
        began = time.monotonic()
        loaded(place, f"g_{nftables.short(group)}_ingress", 1)
        question = time.monotonic() - began
        times = [change(haneul, place, group, 7000 + n // 2, n % 2 == 0) for n in range(options.changes)]
    finally:
        haneul.run("down", "--purge", check=False)
    request, answer = (statistics.median(column) for column in zip(*times, strict=True))
    result = {
        "changes": len(times),
        "effect_after_request_s": round(request, 4),
        "effect_after_answer_s": round(answer, 4),
        "worst_after_answer_s": round(max(one for _, one in times), 4),
        "nft_s": round(question, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
