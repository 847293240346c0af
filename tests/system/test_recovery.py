"""haneul dies; its guests do not notice."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.system.conftest import Haneul, eventually


@pytest.fixture
def own(make_haneul: Callable[..., Haneul]) -> Iterator[Haneul]:
    found = make_haneul()
    found.up()
    yield found
    found.run("down", "--purge")


def test_guests_go_on_while_haneul_is_down_and_are_adopted(own: Haneul) -> None:
    running, booting = own.launch()[0], ""
    own.until_ssh(running)
    pid = own.qemu_pid(running)
    (booting,) = own.launch()
    own.until(booting, "running", 30)
    address = own.instance(running)["PublicIpAddress"]
    other = own.instance(booting)["PublicIpAddress"]
    own.kill()
    assert own.run("status", check=False).returncode == 1

    def inside(where: str, command: str) -> str:
        key = own.data / "identity" / "ssh_key"
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        done = subprocess.run(
            ["ssh", "-i", str(key), *options, f"root@{where}", command],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout.strip()

    assert inside(address, "imds meta-data/instance-id") == running
    assert inside(address, "udhcpc -i eth0 -n -q -t 3 -s /bin/true >/dev/null 2>&1 && echo leased") == "leased"
    eventually(
        "a guest that was booting has come up meanwhile", lambda: inside(other, "imds meta-data/instance-id") == booting
    )
    own.up()
    assert own.qemu_pid(running) == pid
    assert own.instance(running)["State"]["Name"] == "running"
    own.client().stop_instances(InstanceIds=[running])
    own.until(running, "stopped")
    own.terminate(running, booting)


def test_a_guest_that_ended_while_haneul_was_down_is_found_so(own: Haneul) -> None:
    quiet, crashed = own.launch(count=2)
    for one in (quiet, crashed):
        own.until_ssh(one)
    pid = own.qemu_pid(crashed)
    own.ssh(quiet, "(sleep 2; poweroff) >/dev/null 2>&1 &")
    own.kill()
    os.kill(pid, 9)
    eventually("both machines have ended", lambda: not own.machine_pids(quiet) and not own.machine_pids(crashed))
    own.up()
    assert own.until(quiet, "stopped")["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert own.until(crashed, "stopped")["StateReason"]["Code"] == "Server.InternalError"


def _kill_in_the_middle_of_launches(own: Haneul, rounds: int, moments: random.Random) -> None:
    """At several moments of a launch; what was promised is there after the restart, and nothing beside it."""
    promised: list[str] = []
    for _ in range(rounds):
        killer = threading.Timer(moments.uniform(0.0, 0.25), own.kill)
        promised += own.launch()
        killer.start()
        killer.join()
        own.up()
    for one in promised:
        own.until(one, "running")
        own.until_ssh(one)
        assert own.ssh(one, "imds meta-data/instance-id") == one
    assert {path.name for path in (own.data / "instances").iterdir()} == set(promised)
    assert len(list((own.data / "volumes").iterdir())) == len(promised)
    own.terminate(*promised)
    eventually("nothing of them is left", lambda: not list((own.data / "volumes").iterdir()))


def test_killed_in_the_middle_of_launches_it_completes_them(own: Haneul) -> None:
    _kill_in_the_middle_of_launches(own, 4, random.Random(int(os.environ.get("HANEUL_TEST_SEED", "1"))))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_the_middle_of_many_launches(own: Haneul) -> None:
    for seed in range(6):
        _kill_in_the_middle_of_launches(own, 4, random.Random(seed))


def test_dnsmasq_and_the_metadata_process_come_back(own: Haneul) -> None:
    (instance,) = own.launch()
    own.until_ssh(instance)
    tag = own.data / "identity" / "slot"
    runtime = f"/run/haneul-{int(tag.read_text()):02x}"
    for name in ("dnsmasq", "haneul.metadata_service.server"):
        found = subprocess.run(["pgrep", "-f", f"{name}.*{runtime}"], capture_output=True, text=True, check=True)
        for pid in found.stdout.split():
            os.kill(int(pid), 9)
    eventually("metadata answers", lambda: own.ssh(instance, "imds meta-data/instance-id") == instance)
    eventually(
        "DNS answers", lambda: "172.31" in own.ssh(instance, "nslookup -type=a $(hostname).ec2.internal 2>&1 || true")
    )
    own.terminate(instance)


def test_a_second_haneul_on_the_same_data_is_refused(own: Haneul) -> None:
    second = own.run("up", "--detach", check=False)
    assert second.returncode == 3
    assert "another haneul runs" in second.stderr
    assert own.status()["running"], "the first one goes on"
