#!/usr/bin/env python
"""RunInstances → SSH answers, beside haneul's exact QEMU command line started by hand.

    sudo .venv/bin/python benchmarks/launch.py [--image debian-12] [--pairs 5] [--json]

Both sides use the same network, metadata and fresh overlays, and are interleaved pair by pair. By hand, the clock
starts when QEMU does; with haneul, before the request is sent. The last line is one JSON object: medians in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from haneul import identity  # noqa: E402
from haneul.app.compose import RealParts, real_parts  # noqa: E402
from haneul.config import load  # noqa: E402
from haneul.drivers.machines import driver as machines  # noqa: E402
from haneul.model.assignment import NicSpec  # noqa: E402
from tests.system.conftest import Haneul, eventually  # noqa: E402

SECONDS = 600.0


def alone_on_this_network() -> None:
    """Run in a network namespace of its own, which plays the host."""
    if {name for _, name in socket.if_nameindex()} - {"lo"}:
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def until_ssh(haneul: Haneul, address: str, user: str) -> None:
    """Until `ssh … true` returns: a port that is open, or a greeting, is not an answer yet."""
    key = haneul.data / "identity" / "ssh_key"
    options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "ConnectTimeout=5",
        "IdentitiesOnly=yes",
    ]
    command = ["ssh", "-i", str(key), *(part for one in options for part in ("-o", one)), f"{user}@{address}", "true"]

    def ask() -> bool:
        with socket.create_connection((address, 22), timeout=1) as connection:
            connection.settimeout(10)
            if connection.recv(4) != b"SSH-":
                return False
        return (
            subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode
            == 0
        )

    eventually("SSH answers", ask, SECONDS, 0.02)


def with_haneul(haneul: Haneul, image: str, kind: str, user: str) -> tuple[str, float, float]:
    """(instance, seconds to `running`, seconds to SSH), from before the request."""
    ec2, group = haneul.client(), haneul.open_group()
    ami = haneul.image(image)
    began = time.monotonic()
    answer = ec2.run_instances(ImageId=ami, InstanceType=kind, MinCount=1, MaxCount=1, SecurityGroupIds=[group])
    instance = answer["Instances"][0]["InstanceId"]

    def running() -> dict[str, Any] | None:
        found = haneul.instance(instance)
        return found if found["State"]["Name"] == "running" else None

    found = eventually("running", running, 60, 0.01)
    seen_running = time.monotonic() - began
    until_ssh(haneul, found["PublicIpAddress"], user)
    return instance, seen_running, time.monotonic() - began


def by_hand(haneul: Haneul, parts: RealParts, instance: str, image: str, user: str) -> float:
    """The same command line on a fresh overlay, with haneul stopped; then haneul again."""
    found = haneul.instance(instance)
    pid = haneul.qemu_pid(instance)
    command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    nic = found["NetworkInterfaces"][0]
    spec = NicSpec(nic["NetworkInterfaceId"], nic["VpcId"], nic["SubnetId"], nic["MacAddress"], nic["PrivateIpAddress"])
    haneul.run("down")
    for one in haneul.machine_pids(instance):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, 9)
    eventually("the machine has ended", lambda: not haneul.machine_pids(instance), 20, 0.02)
    volume = parts.disks.file(found["BlockDeviceMappings"][0]["Ebs"]["VolumeId"])
    owner = volume.stat().st_uid
    base = parts.disks.images / image / "disk.qcow2"
    size = str(qcow2_size(volume))
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(volume), size]
    # The kernel closes a killed QEMU's files one after another: its lock on the disk may go last.
    eventually(
        "a fresh overlay", lambda: subprocess.run(create, check=True, capture_output=True).returncode == 0, 10, 0.02
    )
    os.chown(volume, owner, owner)
    tap = open_tap(parts, spec)
    fields = [
        part.replace(part.rpartition("fd=")[2], str(tap)) if part.startswith("tap,") else part for part in command
    ]
    reading, feed = os.pipe()
    os.write(feed, machines.CAPABILITIES)
    began = time.monotonic()
    machine = subprocess.Popen(
        fields,
        stdin=reading,
        stdout=subprocess.DEVNULL,
        pass_fds=(tap, feed),
        user=owner,
        group=owner,
        extra_groups=[],
        cwd="/",
    )
    os.close(tap)
    try:
        until_ssh(haneul, found["PublicIpAddress"], user)
        return time.monotonic() - began
    finally:
        machine.kill()
        machine.wait()
        os.close(reading)
        os.close(feed)
        haneul.up()


def qcow2_size(volume: Path) -> int:
    from haneul.drivers.disks.qcow2 import virtual_size

    size = virtual_size(volume)
    assert size is not None
    return size


def open_tap(parts: RealParts, spec: NicSpec) -> int:
    from haneul.drivers.networks.linux import driver as bridge
    from haneul.linux import netns

    place = parts.networks.namespace(spec.vpc_id)
    return asyncio.run(netns.inside(place, lambda: bridge.open_tap(spec)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="debian-12")
    parser.add_argument("--type", default="t3.micro")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    alone_on_this_network()
    images = Path(os.environ.get("HANEUL_IMAGES", "/var/lib/haneul/images"))
    data = Path(tempfile.mkdtemp(prefix="haneul-benchmark-", dir="/var/tmp"))
    data.chmod(0o711)
    haneul = Haneul(data, images)
    user = {"debian-12": "admin"}.get(options.image, "root")
    pairs: list[tuple[float, float, float]] = []
    haneul.up()
    try:
        who = identity.load(data)
        assert who is not None
        parts = real_parts(load(haneul.environment), who, lambda: None)
        for number in range(options.pairs):
            instance, running, ssh = with_haneul(haneul, options.image, options.type, user)
            raw = by_hand(haneul, parts, instance, options.image, user)
            pairs.append((running, ssh, raw))
            haneul.terminate(instance)
            if not options.json:
                print(f"pair {number + 1}: running {running:.2f} s, ssh {ssh:.2f} s, by hand {raw:.2f} s", flush=True)
    finally:
        haneul.run("down", "--purge", check=False)
    running, ssh, raw = (statistics.median(column) for column in zip(*pairs, strict=True))
    result = {
        "image": options.image,
        "pairs": len(pairs),
        "running_s": round(running, 3),
        "ssh_s": round(ssh, 3),
        "raw_ssh_s": round(raw, 3),
        "overhead_s": round(ssh - raw, 3),
        "overhead_ratio": round(ssh / raw, 4),
        "all": [[round(value, 3) for value in pair] for pair in pairs],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
