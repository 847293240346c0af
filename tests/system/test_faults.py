"""The server fails under real guests: it reboots, its disk is full, its tools are killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haneul.linux import locks
from tests.system.conftest import Haneul, eventually

Make = Callable[..., Haneul]


def runtime(own: Haneul) -> Path:
    return Path(f"/run/haneul-{int((own.data / 'identity' / 'slot').read_text()):02x}")


@contextlib.contextmanager
def _up(found: Haneul) -> Iterator[Haneul]:
    found.up()
    try:
        yield found
    finally:
        found.run("down", "--purge")


def _reboot(own: Haneul) -> None:
    """What a reboot of the server leaves: the files of its disk, and nothing else."""
    own.kill()
    place = runtime(own)
    held = [*own.data.glob("instances/*/lock"), *place.glob("vpcs/*/dnsmasq.lock"), place / "metadata" / "lock"]
    for lock in held:
        for pid in locks.holders(lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
    eventually("every process has ended", lambda: not any(locks.held(lock) for lock in held), 20, 0.05)
    for namespace in (place / "netns").iterdir():
        subprocess.run(["umount", str(namespace)], check=True)
    shutil.rmtree(place)
    link = f"hn{place.name[-2:]}"
    there = lambda: link in {name for _, name in socket.if_nameindex()}  # noqa: E731
    eventually("the link has gone with its namespace", lambda: not there(), 20, 0.05)
    for path in own.data.glob("instances/*/boot.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"server_boot": "the one before"}))


def test_after_a_reboot_of_the_server_what_ran_runs_again(make_haneul: Make) -> None:
    with _up(make_haneul()) as own:
        running, stopped = own.launch(count=2)
        for one in (running, stopped):
            own.until_ssh(one)
        own.ssh(running, "echo kept > /root/file; sync")
        own.client().stop_instances(InstanceIds=[stopped], Force=True)
        own.until(stopped, "stopped")
        address = own.instance(running)["PublicIpAddress"]
        _reboot(own)
        own.up()
        eventually("it boots again", lambda: own.ssh(running, "cat /root/file") == "kept", 200)
        assert own.instance(running)["PublicIpAddress"] == address
        assert own.ssh(running, "imds meta-data/instance-id") == running
        assert own.instance(stopped)["State"]["Name"] == "stopped"
        told = own.run("events", running).stdout
        assert "running -> pending" in told and "the server was restarted" in told
        own.terminate(running, stopped)


@pytest.mark.slow
def test_a_reboot_may_leave_them_stopped(make_haneul: Make) -> None:
    with _up(make_haneul(HANEUL_AFTER_REBOOT="stop")) as own:
        (instance,) = own.launch()
        own.until(instance, "running")
        _reboot(own)
        own.up()
        reason = own.until(instance, "stopped")["StateReason"]
        assert (reason["Code"], "restarted" in reason["Message"]) == ("Server.ScheduledStop", True)
        own.client().start_instances(InstanceIds=[instance])
        own.until_ssh(instance)


@pytest.mark.skipif(os.environ.get("HANEUL_TEST_MOUNTS") != "own", reason="mounts a file system: run `make test`")
def test_a_full_disk_pauses_a_guest_and_room_lets_it_go_on(make_haneul: Make) -> None:
    own = make_haneul()
    volumes = own.data / "volumes"
    volumes.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m,mode=711", "tmpfs", str(volumes)], check=True)
    try:
        with _up(own):
            (instance,) = own.launch()
            own.until_ssh(instance)
            own.ssh(instance, "(dd if=/dev/zero of=/root/big bs=1M count=120; sync) >/dev/null 2>&1 </dev/null &")

            def shown() -> bool:
                (found,) = [one for one in own.status()["instances"] if one["instance"] == instance]
                return "disk is full" in found["phase"]

            eventually("it is said", shown, 120)
            assert own.instance(instance)["State"]["Name"] == "running", "nothing of it is lost"
            status = own.client().describe_instance_status(InstanceIds=[instance])["InstanceStatuses"][0]
            assert status["InstanceStatus"]["Status"] == "impaired"
            subprocess.run(["mount", "-o", "remount,size=1g", str(volumes)], check=True)
            size = lambda: int(own.ssh(instance, "wc -c < /root/big")) == 120 << 20  # noqa: E731
            eventually("it has written all of it", size, 180)
            own.terminate(instance)
    finally:
        subprocess.run(["umount", "-l", str(volumes)], check=False)


def test_an_nft_that_is_killed_and_one_that_is_slow(make_haneul: Make, tmp_path: Path) -> None:
    """The first is killed, the next ones take three seconds: the launch waits, nobody else does."""
    first, slow = tmp_path / "first", tmp_path / "slow"
    wrapper = tmp_path / "nft"
    wrapper.write_text(
        f"#!/bin/sh\nif [ -e {first} ]; then rm {first}; kill -9 $$; fi\n"
        f'if [ -e {slow} ]; then sleep 3; fi\nexec {shutil.which("nft")} "$@"\n'
    )
    wrapper.chmod(0o755)
    with _up(make_haneul(PATH=f"{tmp_path}:{os.environ['PATH']}")) as own:
        first.touch()
        slow.touch()
        asked = time.monotonic()
        (instance,) = own.launch()
        own.client().describe_instances()
        group = own.client().create_security_group(GroupName="meanwhile", Description="x")["GroupId"]
        assert own.instance(instance)["State"]["Name"] == "pending" or time.monotonic() - asked > 3
        own.until(instance, "running", 60)
        assert not first.exists(), "it was killed once"
        slow.unlink()
        own.until_ssh(instance)
        own.client().delete_security_group(GroupId=group)


def test_machines_are_the_first_to_go_when_memory_runs_out(haneul: Haneul, launch: Callable[..., str]) -> None:
    instance = launch()

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert {score(pid) for pid in haneul.machine_pids(instance)} == {500}
    own = {score(pid) for pid in haneul.pids}
    assert own == {-500} or own == {0}, "a container may not be allowed to have more than the rest"
    os.kill(haneul.qemu_pid(instance), 9)
    message = haneul.until(instance, "stopped")["StateReason"]["Message"]
    assert "out of memory" in message, "what the kernel's killer does is told as what it may be"
