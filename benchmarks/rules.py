#!/usr/bin/env python
"""How soon a security group rule takes effect on a running guest.

    sudo .venv/bin/python benchmarks/rules.py [--changes 20] [--json]

From the moment AuthorizeSecurityGroupIngress (or Revoke) is sent until the loaded ruleset has (or has lost) it, seen by
asking nft in the VPC's namespace as fast as it answers; `nft_s` is what one such question takes. Beside it, from the
API's own answer. Medians in seconds; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    alone_on_this_network()
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
