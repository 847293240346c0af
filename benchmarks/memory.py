#!/usr/bin/env python
"""Memory that haneul adds to an instance, and its own.

    sudo .venv/bin/python benchmarks/memory.py [--instances 4] [--json]

PSS (a process's share of memory, shared pages divided) by /proc/PID/smaps_rollup, in MiB. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.launch import alone_on_this_network  # noqa: E402
from haneul.linux import locks  # noqa: E402
from tests.system.conftest import Haneul  # noqa: E402


def pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def total(pids: list[int]) -> float:
    return round(sum(pss(pid) for pid in pids), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    alone_on_this_network()
    data = Path(tempfile.mkdtemp(prefix="haneul-benchmark-", dir="/var/tmp"))
    data.chmod(0o711)
    haneul = Haneul(data, Path(os.environ.get("HANEUL_IMAGES", "/var/lib/haneul/images")))
    haneul.up()
    try:
        own = total(haneul.pids)
        ids = haneul.launch(count=options.instances)
        for one in ids:
            haneul.until_ssh(one)
        slot = int((data / "identity" / "slot").read_text())
        runtime = Path(f"/run/haneul-{slot:02x}")
        shells, machines = [], []
        for one in ids:
            for pid in haneul.machine_pids(one):
                (machines if "qemu" in os.readlink(f"/proc/{pid}/exe") else shells).append(pid)
        result = {
            "instances": options.instances,
            "haneul_mib": own,
            "haneul_with_instances_mib": total(haneul.pids),
            "metadata_mib": total(locks.holders(runtime / "metadata" / "lock")),
            "dnsmasq_per_vpc_mib": total(locks.holders(next((runtime / "vpcs").iterdir()) / "dnsmasq.lock")),
            "shell_per_instance_mib": round(total(shells) / options.instances, 2),
            "qemu_per_instance_mib": round(total(machines) / options.instances, 2),
            "guest_memory_mib": 512,
        }
    finally:
        haneul.run("down", "--purge", check=False)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
