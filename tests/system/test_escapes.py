"""Nobody escapes: neither a QEMU that was taken over nor a guest with root gets at what is not its own."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from haneul.drivers.machines import folder as places
from haneul.linux import locks
from tests.system.conftest import Haneul, eventually

Tally = Callable[[str], None]
PROBE = Path(__file__).with_name("probe.py")
#: The system's own, which any user may run.
PYTHON = shutil.which("python3", path="/usr/bin:/bin")


@dataclass
class Town:
    """A is the attacker, P another one, which is paravirtual. B lets in SSH from the host only."""

    haneul: Haneul
    a: str
    b: str
    p: str

    @property
    def run(self) -> Path:
        slot = int((self.haneul.data / "identity" / "slot").read_text())
        return Path(f"/run/haneul-{slot:02x}")

    def folder(self, instance: str) -> Path:
        return self.haneul.data / "instances" / instance

    def uid(self, instance: str) -> int:
        return int((self.folder(instance) / "uid").read_text())

    def disk(self, instance: str) -> Path:
        (mapping,) = self.haneul.instance(instance)["BlockDeviceMappings"]
        return self.haneul.data / "volumes" / f"{mapping['Ebs']['VolumeId']}.qcow2"

    def as_machine(self, instance: str, *command: str, stdin: str | None = None) -> str:
        """A command as QEMU of that machine would run it, but for the seccomp filter."""
        confined = places.confined(self.uid(instance), [], ["/bin/sh", "-c", 'ulimit -c 0; exec "$@"', "x", *command])
        done = subprocess.run(
            confined,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _templates_stay(haneul: Haneul) -> bool:
    """What is tried on must still be there when it is tried. Without warm launch there are none."""
    told = haneul.run("image", "templates", "--json", check=False)
    return told.returncode != 0 or all(one["state"] in ("loaded", "saved", "failed") for one in json.loads(told.stdout))


@pytest.fixture(scope="module")
def town(haneul: Haneul) -> Iterator[Town]:
    ec2 = haneul.client()
    group = ec2.create_security_group(GroupName="closed", Description="nothing but the host")["GroupId"]
    pool = haneul.status()["public_pool"].partition("/")[0]
    host = f"{pool.rsplit('.', 1)[0]}.{int(pool.rsplit('.', 1)[1]) + 1}/32"
    ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp=host)
    (a,) = haneul.launch()
    (b,) = haneul.launch(SecurityGroupIds=[group], UserData="SECRET-OF-B")
    (p,) = haneul.launch(InstanceType="t1.micro")
    for one in (a, b, p):
        haneul.until_ssh(one)
    eventually("no template is being made", lambda: _templates_stay(haneul), 300)
    yield Town(haneul, a, b, p)
    haneul.terminate(a, b, p)
    ec2.delete_security_group(GroupId=group)


# --- a QEMU that was taken over -------------------------------------------------------------------------


def _below(*directories: Path) -> list[Path]:
    return sorted(path for directory in directories for path in directory.rglob("*") if not path.is_symlink())


def _holder(path: Path) -> int:
    return locks.holders(path)[0]


def _targets(town: Town) -> dict[str, Any]:
    """Everything below haneul's directories but what is A's own, and what else a host has."""
    haneul, a, b = town.haneul, town.a, town.b
    own = {town.disk(a), *_below(town.folder(a) / "run")}
    found = [path for path in _below(haneul.data, town.run) if path not in own and "bin" not in path.parts]
    plain = [path for path in found if path.is_file() and "netns" not in path.parts]
    shown = {town.folder(a) / "events.log"}  # its own, which its group may read: nothing writes it but A
    public = {haneul.data / "identity" / name for name in ("ssh_key.pub", "identity.pem")}
    images = [path for path in _below(Path(haneul.environment["HANEUL_IMAGES"])) if path.is_file()]
    machine = {Path(os.readlink(f"/proc/{pid}/exe")).name: pid for pid in haneul.machine_pids(b)}
    (vpc,) = (path.name for path in (town.run / "netns").iterdir() if path.name.startswith("vpc-"))
    services = {
        "haneul": haneul.pids[0],
        "metadata": _holder(town.run / "metadata" / "lock"),
        "dnsmasq": _holder(town.run / "vpcs" / vpc / "dnsmasq.lock"),
        "init": 1,
        "this test": os.getpid(),
    }
    sockets = [path for path in found if path.is_socket()]
    belongs = (town.folder(a), town.folder(a) / "run")
    folders = [path for path in (haneul.data, town.run, *found) if path.is_dir() and path != belongs[1]]
    images_root = Path(haneul.environment["HANEUL_IMAGES"])
    return {
        "own_files": [str(town.disk(a)), str(town.folder(a) / "run" / "console.log")],
        "own_sockets": [str(town.folder(a) / "run" / "qmp.sock")],
        "files": [*map(str, (path for path in plain if path not in shown | public)), "/etc/shadow"],
        "write": [*map(str, [*images, *shown]), "/etc/passwd"],
        "folders": [str(path) for path in folders if path not in belongs],
        "make_in": [str(path) for path in (*folders, images_root, images_root / "tiny", Path("/run"), Path("/etc"))],
        "sockets": [str(path) for path in sockets],
        "pids": {f"B's {name}": pid for name, pid in machine.items()} | services,
        "namespaces": [str(path) for path in (town.run / "netns").iterdir()],
        "fixed": [str(town.folder(a) / name) for name in ("lock", "boot.json", "events.log", "uid", "run")],
    }


def test_a_qemu_that_was_taken_over_reaches_nothing(town: Town, record_tally: Tally) -> None:
    """With the uid of its machine but without seccomp, in a user namespace too."""
    assert PYTHON
    targets = _targets(town)
    found = json.loads(town.as_machine(town.a, PYTHON, "-I", "-", json.dumps(targets), stdin=PROBE.read_text()))
    assert set(found["own"].values()) == {"done"}, f"the probe itself works: {found['own']}"
    done = [name for name, outcome in found["tried"].items() if outcome == "done"]
    assert not done, "\n".join(done)
    missing = [
        name for name, outcome in found["tried"].items() if outcome == "ENOENT" and not name.startswith("through")
    ]
    assert not missing, "not there:\n" + "\n".join(missing)
    inside = sum(name.startswith("in a user namespace") for name in found["tried"])
    record_tally(
        f"attempts of a QEMU that was taken over: {len(found['tried'])}, {inside} of them as root of a user namespace; 0 done"
    )


#: Who starts haneul has a key; what haneul starts, as another user, looks for it.
_KEYS = """
import ctypes, subprocess, sys
from haneul.app.process import leave_keys
libc = ctypes.CDLL(None)
assert libc.syscall(250, 1, b"of who starts haneul") > 0
assert libc.syscall(248, b"user", b"secret", b"SECRET", 6, -3) > 0
if sys.argv[1] == "haneul":
    leave_keys()
sys.exit(subprocess.run(sys.argv[2:]).returncode)
"""
_LOOK = "import ctypes, sys; sys.exit(ctypes.CDLL(None).syscall(250, 10, -3, b'user', b'secret', 0) > 0)"


def test_no_machine_has_the_keys_of_who_started_haneul() -> None:
    """A session keyring is inherited with all that it gives, past every change of the uid."""
    look = places.confined(54321, [], [str(PYTHON), "-I", "-c", _LOOK])
    found = {
        who: subprocess.run([sys.executable, "-c", _KEYS, who, *look], check=False).returncode
        for who in ("it", "haneul")
    }
    assert found == {"it": 1, "haneul": 0}


# --- what a machine's processes are ---------------------------------------------------------------------


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _sockets_of(folder: Path) -> set[str]:
    """The inodes of unix sockets that are bound, or accepted on one that is bound, in this folder."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {line.split()[6] for line in lines if line.endswith((f"{folder}/qmp.sock", f"{folder}/console.sock"))}


def test_a_machines_processes_hold_only_what_is_theirs(town: Town, record_tally: Tally) -> None:
    haneul, descriptors = town.haneul, 0
    for instance in (town.a, town.b):
        pids = haneul.machine_pids(instance)
        names = {Path(os.readlink(f"/proc/{pid}/exe")).name for pid in pids}
        assert len(names) == 2 and "qemu-system-x86_64" in names, names
        for pid in pids:
            status = _status(pid)
            assert status["NoNewPrivs"] == "1"
            assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
            assert set(status["Uid"].split() + status["Gid"].split()) == {str(town.uid(instance))}
            assert status["Groups"] == ""
            assert status["Seccomp"] == ("2" if pid == haneul.qemu_pid(instance) else "0")
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits), limits
            descriptors += _check_descriptors(town, instance, pid)
        arguments = Path(f"/proc/{haneul.qemu_pid(instance)}/cmdline").read_bytes()
        assert b"dump-guest-core=off" in arguments
    record_tally(f"descriptors of machines' processes: {descriptors}; 0 that are not their own")


def _check_descriptors(town: Town, instance: str, pid: int) -> int:
    folder, images = town.folder(instance), town.haneul.environment["HANEUL_IMAGES"]
    known = _sockets_of(folder / "run")
    fine = (
        f"{folder}/",
        str(town.disk(instance)),
        f"{images}/",
        "pipe:[",
        "anon_inode:",
        "/dev/urandom",
        "/dev/net/tun",
    )
    # dash keeps none; QEMU has memory of its own without a name.
    fine += ("/dev/null", "/memfd:")
    links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        inode = re.fullmatch(r"socket:\[(\d+)\]", link)
        assert (inode and inode[1] in known) or link.startswith(fine), f"{instance}'s process {pid} has {link} open"
    return len(links)


# --- a guest with root ----------------------------------------------------------------------------------

#: Runs in the guest, apart from the connection that starts it: it takes the network away from itself.
_DISGUISES = """
exec >/tmp/tried 2>&1
mac=$(cat /sys/class/net/eth0/address); gateway=$(ip route | awk '/^default/ {print $3}')
try() { if "$@" >/dev/null 2>&1 </dev/null; then echo "IN $disguise: $*"; else echo "out $disguise: $*"; fi; }
all() {
  disguise=$1
  for one in TARGETS; do
    try nc -w 2 ${one%:*} ${one#*:} &
    try ping -c 1 -W 2 ${one%:*} &
  done
  wait
}
try_as() {
  disguise=$1; shift
  for one in PEOPLE; do try ping -c 1 -W 2 -I $1 $one & done
  wait
}
all itself
for one in HOSTS; do ip route add $one via $gateway; done; all routes
for one in HOSTS; do ip route del $one; ip route add $one dev eth0; done; all on-link
for one in HOSTS; do ip route del $one; done
ip addr add B_ADDRESS/32 dev eth0; ip addr del B_ADDRESS/32 dev eth0
ip addr add FREE/32 dev eth0; try_as its-free-address FREE; ip addr del FREE/32 dev eth0
ip link set eth0 address B_MAC; all anothers-mac
ip addr add B_ADDRESS/32 dev eth0; try_as anothers-mac-and-address B_ADDRESS; ip addr del B_ADDRESS/32 dev eth0
ip link set eth0 address $mac
disguise=undone
try ping -c 1 -W 2 $gateway
echo finished
"""


@pytest.mark.parametrize("kind", ["", "paravirtual"])
def test_a_guest_with_root_reaches_nothing_it_should_not(town: Town, kind: str, record_tally: Tally) -> None:
    haneul, attacker = town.haneul, town.p if kind else town.a
    b = haneul.instance(town.b)
    b_mac = b["NetworkInterfaces"][0]["MacAddress"]
    pool = haneul.status()["public_pool"].partition("/")[0].rsplit(".", 1)
    host, edge = (f"{pool[0]}.{int(pool[1]) + step}" for step in (1, 2))
    hosts = (host, edge, "192.0.2.1", "169.254.255.1", "169.254.1.1")
    ports = (haneul.port, 8099)
    targets = [
        f"{b['PrivateIpAddress']}:22",
        f"{b['PublicIpAddress']}:22",
        *(f"{one}:{port}" for one in hosts for port in ports),
    ]
    script = _DISGUISES
    for word, value in {
        "TARGETS": " ".join(targets), "HOSTS": " ".join(hosts), "PEOPLE": f"{host} 172.31.0.1",
        "B_ADDRESS": b["PrivateIpAddress"], "B_MAC": b_mac, "FREE": "172.31.9.9",
    }.items():  # fmt: skip
        script = script.replace(word, value)
    subprocess.run(["ip", "addr", "replace", "192.0.2.1/32", "dev", "lo"], check=True)
    with socket.create_server(("0.0.0.0", 8099)) as listener:
        listener.setblocking(False)
        coded = base64.b64encode(script.encode()).decode()
        haneul.ssh(attacker, f"echo {coded} | base64 -d > /tmp/try; (setsid sh /tmp/try >/dev/null 2>&1 </dev/null &)")
        told = eventually(
            "the guest has tried", lambda: _finished(haneul.ssh(attacker, "cat /tmp/tried", timeout=15)), 180
        )
        with pytest.raises(BlockingIOError):
            listener.accept()
    got_in = [line for line in told if line.startswith("IN")]
    assert [line.split(":")[0] for line in got_in] == ["IN undone"], got_in
    assert haneul.ssh(attacker, "imds meta-data/instance-id") == attacker
    assert haneul.ssh(town.b, "imds user-data") == "SECRET-OF-B", "B has its address and its metadata still"
    tried = sum(line.startswith("out") for line in told)
    record_tally(
        f"attempts of a{kind and ' '}{kind} guest with root: {tried}; 0 reached another guest, the host or the edge"
    )


def _finished(text: str) -> list[str]:
    lines = text.splitlines()
    return lines if lines and lines[-1] == "finished" else []


# --- links that it plants -------------------------------------------------------------------------------


def _plant(town: Town, name: str, target: str) -> None:
    """A's uid puts a link where haneul expects a file or socket of the machine."""
    place = town.folder(town.a) / "run" / name
    town.as_machine(town.a, "sh", "-c", f"mv {place} {place}.real 2>/dev/null; ln -s {target} {place}")


def _take_away(town: Town, name: str) -> None:
    place = town.folder(town.a) / "run" / name
    town.as_machine(town.a, "sh", "-c", f"rm -f {place}; mv {place}.real {place} 2>/dev/null || true")


def test_links_of_a_machine_are_not_followed(town: Town, tmp_path: Path, record_tally: Tally) -> None:
    """Console output, screenshot, the cutting of logs, stop and terminate: as root, in a folder of the machine's."""
    haneul, ec2, a = town.haneul, town.haneul.client(), town.a
    precious = haneul.data / "precious"
    precious.write_bytes(b"PRECIOUS" * (1 << 18))
    victims = [
        precious,
        haneul.data / "identity" / "credentials",
        town.folder(town.b) / "run" / "console.log",
        Path("/etc/shadow"),
    ]
    kept = {path: path.read_bytes() for path in victims[:2]}
    tried = 0
    for target in victims:
        _plant(town, "console.log", str(target))
        assert not ec2.get_console_output(InstanceId=a, Latest=True).get("Output")
        _take_away(town, "console.log")
        _plant(town, "screen.png", str(target))
        shown = base64.b64decode(ec2.get_console_screenshot(InstanceId=a)["ImageData"])
        assert shown[:3] == b"\xff\xd8\xff", "the link went, the picture is the machine's"
        tried += 2
    for target in (
        town.folder(town.b) / "run" / "qmp.sock",
        haneul.data / "control.sock",
        town.run / "none",
        Path("/etc/shadow"),
    ):
        _plant(town, "qmp.sock", str(target))
        with pytest.raises(ClientError):
            ec2.get_console_screenshot(InstanceId=a)
        _take_away(town, "qmp.sock")
        tried += 1
    _logs_are_cut_but_not_through_links(town, precious)
    for name in ("console.log", "qmp.sock", "console.sock", "screen.png"):
        _plant(town, name, str(precious))
    haneul.terminate(a)
    assert {path: path.read_bytes() for path in kept} == kept
    assert haneul.ssh(town.b, "echo well") == "well", "B never noticed"
    precious.unlink()
    record_tally(f"links that a machine planted: {tried + 5}; 0 followed")


def _logs_are_cut_but_not_through_links(town: Town, precious: Path) -> None:
    """The metadata process cuts what grows: the errors of A (which shows that it was there), not what A links to."""
    _plant(town, "console.log", str(precious))
    errors = town.folder(town.a) / "stderr.log"
    with open(errors, "ab") as file:
        file.write(b"x" * (2 << 20))
    eventually("the log of A is cut", lambda: errors.stat().st_size < 1 << 20, 30)
    assert precious.stat().st_size == 2 << 20
    _take_away(town, "console.log")
