"""t1.micro: the whole life of a paravirtual instance, through the death of haneul, and with a hostile root inside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haneul.drivers.machines.uml import engine as uml
from haneul.linux import locks
from tests.contract.test_machines import _processes
from tests.system.conftest import Haneul, eventually

Tally = Callable[[str], None]
USER_DATA = "#!/bin/sh\necho user-data-ran on $(cat /etc/hostname)\n"


@pytest.fixture(scope="module")
def own(make_haneul: Callable[..., Haneul]) -> Iterator[Haneul]:
    if uml.missing():
        pytest.skip(f"no paravirtual machines: {uml.missing()}")
    found = make_haneul()
    found.up()
    yield found
    found.run("down", "--purge")


@pytest.fixture(scope="module")
def micro(own: Haneul) -> Iterator[str]:
    (instance,) = own.launch(InstanceType="t1.micro", UserData=USER_DATA)
    yield instance
    own.terminate(instance)
    folders = (own.data / "volumes", own.data / "instances")
    eventually("nothing of it is left", lambda: not [path for folder in folders for path in folder.iterdir()], 20)


def _uid(own: Haneul, instance: str) -> int:
    return int((own.data / "instances" / instance / "uid").read_text())


def _living(own: Haneul, instance: str) -> list[int]:
    return [pid for pid in _processes(_uid(own, instance)) if not locks._is_zombie(pid)]


def _volume(own: Haneul, instance: str) -> Path:
    (mapping,) = own.instance(instance)["BlockDeviceMappings"]
    return own.data / "volumes" / f"{mapping['Ebs']['VolumeId']}.qcow2"


def _kernel(own: Haneul, instance: str) -> int:
    """The guest's kernel, not a process of the guest."""
    linux = [pid for pid in _living(own, instance) if Path(f"/proc/{pid}/comm").read_text() == "linux\n"]
    return min(linux)


def _boot_id(own: Haneul, instance: str) -> str:
    return own.ssh(instance, "cat /proc/sys/kernel/random/boot_id", timeout=10)


def _up(own: Haneul, instance: str) -> None:
    if own.instance(instance)["State"]["Name"] in ("stopping", "stopped"):
        own.until(instance, "stopped")
        own.client().start_instances(InstanceIds=[instance])
    own.until_ssh(instance)


def _apart(own: Haneul, instance: str, command: str) -> None:
    """Runs in the guest after the connection that starts it has ended."""
    own.ssh(instance, f"(setsid sh -c 'sleep 0.3; {command}' >/root/said 2>&1 </dev/null &)")


def test_it_lives_as_any_instance_does(own: Haneul, micro: str) -> None:
    own.until_ssh(micro)
    assert own.ssh(micro, "imds meta-data/instance-id; echo; imds meta-data/instance-type").split() == [
        micro,
        "t1.micro",
    ]
    assert own.instance(micro)["VirtualizationType"] == "paravirtual"

    def output() -> str:
        return str(own.client().get_console_output(InstanceId=micro, Latest=True).get("Output"))

    eventually("user data has run", lambda: "user-data-ran" in output() and "haneul-tiny: ready" in output())
    first = _boot_id(own, micro)
    own.ssh(micro, "echo kept >/root/kept; sync")
    own.client().reboot_instances(InstanceIds=[micro])
    eventually("it has rebooted", lambda: _boot_id(own, micro) != first)
    own.client().stop_instances(InstanceIds=[micro])
    own.until(micro, "stopped")
    eventually("nothing of it runs", lambda: not _living(own, micro), 10)
    own.client().start_instances(InstanceIds=[micro])
    own.until_ssh(micro)
    assert own.ssh(micro, "cat /root/kept; imds meta-data/instance-id") == f"kept\n{micro}"
    assert "user-data-ran" not in output(), "once for an instance, not at every boot"


def test_it_reboots_itself_again_and_again(own: Haneul, micro: str) -> None:
    _up(own, micro)
    pids = own.machine_pids(micro)
    for command in ("reboot", "reboot -f", "echo b >/proc/sysrq-trigger"):
        before = _boot_id(own, micro)
        _apart(own, micro, command)
        eventually("it has rebooted", lambda before=before: _boot_id(own, micro) != before)  # type: ignore[misc]
        assert own.ssh(micro, "imds meta-data/instance-id") == micro
    assert own.machine_pids(micro) == pids and own.instance(micro)["State"]["Name"] == "running"


def test_it_goes_on_while_haneul_is_down_and_is_adopted(own: Haneul, micro: str) -> None:
    """haneul is killed while one machine runs, one boots; and again while one stops, and one ends by itself."""
    _up(own, micro)
    pids, address, ec2 = own.machine_pids(micro), own.instance(micro)["PublicIpAddress"], own.client()
    (booting,) = own.launch(InstanceType="t1.micro")
    own.until(booting, "running", 30)
    own.kill()
    key = own.data / "identity" / "ssh_key"
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    asked = ["ssh", "-i", str(key), *options, f"root@{address}", "imds meta-data/instance-id"]
    assert subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout == micro
    own.up()
    own.until_ssh(booting)
    assert own.machine_pids(micro) == pids and own.instance(micro)["State"]["Name"] == "running"
    _apart(own, booting, "sleep 1; poweroff")
    ec2.stop_instances(InstanceIds=[micro])
    own.kill()
    eventually("the guest has ended", lambda: not _living(own, booting), 30)
    own.up()
    assert own.until(booting, "stopped")["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert own.until(micro, "stopped")["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    own.terminate(booting)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("kill the kernel", "Server.InternalError"),
        ("echo c >/proc/sysrq-trigger", "Server.InternalError"),
        ("halt -f", "Client.InstanceInitiatedShutdown"),
        ("poweroff -f", "Client.InstanceInitiatedShutdown"),
    ],
)
def test_how_it_ended_is_told(own: Haneul, micro: str, end: str, code: str) -> None:
    _up(own, micro)
    if end == "kill the kernel":
        os.kill(_kernel(own, micro), signal.SIGKILL)
    else:
        _apart(own, micro, end)
    found = own.until(micro, "stopped", 30)
    assert found["StateReason"]["Code"] == code, found["StateReason"]
    eventually("nothing of it runs", lambda: not _living(own, micro), 10)
    if "sysrq" in end:
        output = own.client().get_console_output(InstanceId=micro, Latest=True)["Output"]
        assert "sysrq triggered crash" in output, "its last words are kept"


def test_what_a_guest_has_flushed_outlives_a_power_cut(own: Haneul, micro: str, record_tally: Tally) -> None:
    """Every process of the machine is killed while the guest writes, and tells what it has written."""
    _up(own, micro)
    told: list[int] = []
    address = own.instance(micro)["PublicIpAddress"]
    script = "n=0; while :; do n=$((n+1)); echo $n >>/root/numbers; sync /root/numbers; echo $n; done"
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ServerAliveInterval=1"]
    words = ["ssh", "-i", str(own.data / "identity" / "ssh_key"), *options, f"root@{address}", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:

        def hear() -> None:
            assert writer.stdout is not None
            told.extend(int(line) for line in writer.stdout)

        hearer = threading.Thread(target=hear)
        hearer.start()
        eventually("it writes", lambda: len(told) > 50, 30, 0.01)
        for pid in _living(own, micro):
            with contextlib.suppress(ProcessLookupError):  # with the supervisor go all that it started
                os.kill(pid, signal.SIGKILL)
        writer.terminate()
        hearer.join()
    assert own.until(micro, "stopped", 30)["StateReason"]["Code"] == "Server.InternalError"
    checked = subprocess.run(["qemu-img", "check", str(_volume(own, micro))], capture_output=True, check=False)
    assert checked.returncode in (0, 3), checked
    _up(own, micro)
    assert int(own.ssh(micro, "tail -n 1 /root/numbers")) >= told[-1]
    assert own.ssh(micro, "wc -l </root/numbers; dmesg | grep -c 'EXT4-fs error' || true").split()[1] == "0"
    record_tally(f"numbers that a guest had flushed when its machine was killed: {told[-1]}; 0 lost")


# --- a hostile root ---------------------------------------------------------------------------------------

#: Through hostfs, which follows `..`, a guest's root sees the root of its kernel's sandbox.
_INTO_THE_SANDBOX = """
mkdir -p /s; mount -t hostfs none -o /../../.. /s
for place in /s/uml /s/exports /s /s/dev /s/lib /s/modules /s/proc; do
  dd if=/dev/zero of=$place/filled bs=64k count=200 2>/dev/null
  echo "$place $(wc -c <$place/filled 2>/dev/null || echo 0)"; rm -f $place/filled
done
n=0; mkdir /s/uml/many; while [ $n -lt 200 ] && touch /s/uml/many/$n; do n=$((n+1)); done 2>/dev/null
echo "files $n"; rm -r /s/uml/many
truncate -s 5G /s/exports/0 && echo "grown by truncate"
dd if=/dev/zero of=/s/exports/0 bs=64k count=1 seek=20000 conv=notrunc 2>/dev/null && echo "grown by write"
echo x >/s/linux && echo "kernel written"
echo x >/s/proc/cpuinfo && echo "proc written"
umount /s
"""


def test_a_hostile_root_takes_neither_memory_nor_disk_of_the_server(
    own: Haneul, micro: str, record_tally: Tally
) -> None:
    _up(own, micro)
    said = own.ssh(micro, f"{{ {_INTO_THE_SANDBOX} }} 2>/dev/null")
    written = {place: int(size) for place, size in re.findall(r"^(/\S+) (\d+)$", said, re.M)}
    assert written.keys() == {f"/s{one}" for one in ("", "/uml", "/exports", "/dev", "/lib", "/modules", "/proc")}
    assert {place for place, size in written.items() if size} == {"/s/uml"} and written["/s/uml"] <= 1 << 20, said
    assert 0 < int(re.findall(r"files (\d+)", said)[0]) < 64
    assert "grown" not in said and "written" not in said, said
    info = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(_volume(own, micro))], capture_output=True, check=True
    )
    assert json.loads(info.stdout)["virtual-size"] == 1 << 30
    record_tally(f"places of its kernel's sandbox that a guest's root tried to fill: {len(written)}; 1 MiB taken")


def test_a_flood_of_the_console_is_cut_and_holds_nobody_up(own: Haneul, micro: str, record_tally: Tally) -> None:
    _up(own, micro)
    log, most = own.data / "instances" / micro / "run" / "console.log", 0
    _apart(own, micro, f"timeout 6 yes {'flood' * 20} >/dev/console")
    until = time.monotonic() + 7
    while time.monotonic() < until:
        most = max(most, log.stat().st_size)
        assert own.ssh(micro, "imds meta-data/instance-id", timeout=10) == micro
    assert 1 << 18 < most < 6 << 20
    eventually("it is cut", lambda: log.stat().st_size < 1 << 20, 10)
    record_tally(f"a flood of a paravirtual guest's console: at most {most >> 10} KiB kept, SSH answered all along")


def test_a_network_that_is_taken_down_and_up_comes_back(own: Haneul, micro: str) -> None:
    _up(own, micro)
    gateway = own.ssh(micro, "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")
    loop = "n=0; while [ $n -lt 200 ]; do ip link set eth0 down; ip link set eth0 up || exit; n=$((n+1)); done"
    _apart(own, micro, f"{loop}; ip route replace default via {gateway}; echo all")
    eventually("it answers", lambda: own.ssh(micro, "cat /root/said", timeout=5) == "all", 60)
    assert own.ssh(micro, "imds meta-data/instance-id") == micro
