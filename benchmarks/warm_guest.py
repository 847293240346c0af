"""How `benchmarks/warm.py` looks at guests: from the VPC's bridge, by SSH, and from inside."""

from __future__ import annotations

import contextlib
import select
import shlex
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import warm_figures as figures
from haneul.linux import netns

_ARP, _IP, _ALL = 0x0806, 0x0800, 3
#: How often a guest that has not answered is asked (seconds).
PERIOD = 0.004


# --- from the VPC's bridge ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bridge:
    """A subnet's bridge in its VPC's namespace, where an observer stands who is no part of haneul."""

    namespace: Path
    name: str
    gateway: str


@dataclass
class Observer:
    """Asks `guests` (address -> MAC) until each has answered: ARP, then ICMP, and with `port` whether that one is open.

    What answers must have the guest's own MAC and address. A port is asked by the first packet of a connection that never
    comes about: the server behind it sees nothing, while a client that tries again and again would cost what it measures.
    """

    bridge: Bridge
    guests: dict[str, str]
    seconds: float = 60.0
    port: int = 0
    arp: dict[str, float] = field(default_factory=dict)
    ping: dict[str, float] = field(default_factory=dict)
    open: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> dict[str, float]:
        """Address -> moment of its first echo, of those that have answered; later, if a port is asked for."""
        self._thread.join()
        return self.ping

    def _run(self) -> None:
        """Again where the namespace or its bridge is not there yet: the last instance's end takes them away."""
        while not self._all() and time.monotonic() < self._deadline:
            try:
                netns.call(self.bridge.namespace, self._watch)
            except OSError:
                time.sleep(PERIOD)

    def _all(self) -> bool:
        return len(self.open if self.port else self.ping) == len(self.guests)

    def _watch(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as door:
            door.bind((self.bridge.name, _ALL))
            door.setblocking(False)
            own = door.getsockname()[4]
            while not self._all() and time.monotonic() < self._deadline:
                self._check_namespace()
                for address, mac in self.guests.items():
                    self._ask(door, own, address, mac)
                # A port may take long: it is not asked so often.
                often = PERIOD if len(self.ping) < len(self.guests) else 4 * PERIOD
                self._listen(door, often * max(1.0, len(self.guests) / 10))

    def _check_namespace(self) -> None:
        """Raises `OSError` in one that was taken away: as long as somebody is in it, it lives on without a name."""
        if self.bridge.namespace.stat().st_ino != Path("/proc/thread-self/ns/net").stat().st_ino:
            raise FileNotFoundError(self.bridge.namespace)

    def _ask(self, door: socket.socket, own: bytes, address: str, mac: str) -> None:
        with contextlib.suppress(BlockingIOError):  # a full queue: the next round asks again
            if address not in self.arp:
                door.send(_who_has(own, self.bridge.gateway, address))
            elif address not in self.ping:
                door.send(_echo(own, hardware(mac), self.bridge.gateway, address))
            elif self.port and address not in self.open:
                door.send(_knock(own, hardware(mac), self.bridge.gateway, address, self.port))

    def _listen(self, door: socket.socket, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([door], [], [], left)[0]:
                return
            frame = door.recv(2048)
            now = time.time()
            heard = (
                (self.arp, _arp_answer(frame)),
                (self.ping, _echo_answer(frame)),
                (self.open, _open_answer(frame, self.port)),
            )
            for known, found in heard:
                if found is not None and hardware(self.guests.get(found[0], "")) == found[1]:
                    known.setdefault(found[0], now)
            if self._all():
                return


def hardware(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _who_has(own: bytes, source: str, target: str) -> bytes:
    head = b"\xff" * 6 + own + struct.pack("!HHHBBH", _ARP, 1, _IP, 6, 4, 1)
    return head + own + socket.inet_aton(source) + bytes(6) + socket.inet_aton(target)


def _echo(own: bytes, mac: bytes, source: str, target: str) -> bytes:
    message = struct.pack("!BBHHH", 8, 0, 0, 0x4861, 1) + b"haneul--"
    message = message[:2] + struct.pack("!H", _checksum(message)) + message[4:]
    return mac + own + struct.pack("!H", _IP) + _packet(1, source, target, message)


def _knock(own: bytes, mac: bytes, source: str, target: str, port: int) -> bytes:
    """TCP's first packet (SYN). The namespace's kernel, which knows nothing of it, refuses what comes back."""
    segment = struct.pack("!HHIIBBHHH", 47123, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HH", 6, len(segment))
    segment = segment[:16] + struct.pack("!H", _checksum(pseudo + segment)) + segment[18:]
    return mac + own + struct.pack("!H", _IP) + _packet(6, source, target, segment)


def _packet(protocol: int, source: str, target: str, content: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 1, 0, 64, protocol, 0)
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    return head[:10] + struct.pack("!H", _checksum(head + addresses)) + addresses + content


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _arp_answer(frame: bytes) -> tuple[str, bytes] | None:
    """(address, MAC) that an ARP answer tells."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x06" or frame[20:22] != b"\0\2":
        return None
    return socket.inet_ntoa(frame[28:32]), frame[22:28]


def _echo_answer(frame: bytes) -> tuple[str, bytes] | None:
    """(address, MAC) that an ICMP echo came from."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x00" or frame[14] != 0x45 or frame[23] != 1 or frame[34] != 0:
        return None
    return socket.inet_ntoa(frame[26:30]), frame[6:12]


def _open_answer(frame: bytes, port: int) -> tuple[str, bytes] | None:
    """(address, MAC) that accepts a connection to the port (SYN and ACK)."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[14] != 0x45 or frame[23] != 6:
        return None
    if struct.unpack("!H", frame[34:36])[0] != port or frame[47] & 0x17 != 0x12:
        return None
    return socket.inet_ntoa(frame[26:30]), frame[6:12]


# --- by SSH ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Login:
    """How to get into a guest."""

    address: str
    user: str
    key: Path

    def command(self, *words: str, verbose: bool = False) -> list[str]:
        options = (
            "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes", "ConnectTimeout=120",
            "BatchMode=yes",
        )  # fmt: skip
        given = [part for option in options for part in ("-o", option)]
        level = ["-v"] if verbose else ["-o", "LogLevel=ERROR"]
        return ["ssh", "-F", "none", "-i", str(self.key), *given, *level, f"{self.user}@{self.address}", *words]

    def root(self, command: str) -> str:
        """`command` as root of the guest."""
        return command if self.user == "root" else f"sudo -n sh -c {shlex.quote(command)}"


def until_true(login: Login, seconds: float = 300.0, pause: float = 0.1) -> tuple[float, dict[str, float]]:
    """(when `ssh … true` first returned 0, when each step of that attempt was over). Refused attempts are made again at once."""
    deadline = time.monotonic() + seconds
    said: list[tuple[float, str]] = []
    while time.monotonic() < deadline:
        said = []
        process = subprocess.Popen(
            login.command("true", verbose=True), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        assert process.stderr is not None
        with process.stderr, _killed_after(process, 60):
            said.extend((time.time(), line) for line in process.stderr)
            code = process.wait()
        if code == 0:
            return time.time(), figures.ssh_steps(said)
        time.sleep(pause)
    raise AssertionError(
        f"no SSH to {login.address} within {seconds:.0f} s; it said last: {[line for _, line in said[-3:]]}"
    )


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def said(login: Login, command: str, seconds: float = 120.0, given: str = "") -> str:
    """What a command prints. Raises `AssertionError` or `TimeoutExpired`."""
    done = subprocess.run(
        login.command(command), input=given, capture_output=True, text=True, errors="replace",
        timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{login.address}: a command ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    )
    return done.stdout


# --- from inside -------------------------------------------------------------------------------------

#: Whatever Debian has that a clone might share with others; then its clock, whenever it is asked.
PYTHON = r"""
import glob, os, random, subprocess, sys, time
def read(path):
    try:
        with open(path) as file: return " ".join(file.read().split())
    except OSError: return ""
def run(*words):
    try: return " ".join(subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.split())
    except OSError: return ""
def own():
    for path in sorted(glob.glob("/sys/class/net/*/device")): return path.split("/")[4]
    return "eth0"
say = lambda name, value: print(name, value)
say("random_urandom", open("/dev/urandom", "rb").read(16).hex())
say("random_getrandom", os.getrandom(16).hex())
say("random_python", "%032x" % random.getrandbits(128))
say("random_openssl", run("openssl", "rand", "-hex", "16"))
say("machine_id", read("/etc/machine-id"))
say("boot_id", read("/proc/sys/kernel/random/boot_id"))
say("hostname", os.uname().nodename)
say("hostname_file", read("/etc/hostname"))
say("mac", read("/sys/class/net/%s/address" % own()))
address = run("ip", "-4", "-o", "address", "show", "dev", own()).split()
say("address", address[3].split("/")[0] if len(address) > 3 else "")
for path in sorted(glob.glob("/etc/ssh/ssh_host_*_key.pub")):
    say("ssh_" + path.split("_")[2], " ".join(read(path).split()[1:2]))
# Its network and cloud-init come after the first login.
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until and not (read("/var/lib/cloud/data/instance-id") and glob.glob("/run/systemd/netif/leases/*")): time.sleep(0.2)
for path in glob.glob("/run/systemd/netif/leases/*"):
    for line in open(path):
        if line.startswith(("CLIENTID=", "ADDRESS=")): say("lease_" + line.split("=")[0].lower(), line.split("=", 1)[1].strip())
say("cloud_init_id", read("/var/lib/cloud/data/instance-id"))
say("instance_id", read("/run/haneul/instance-id"))
say("random_seed_file", run("md5sum", "/var/lib/systemd/random-seed").split(" ")[0])
say("shared_dmi_uuid", read("/sys/class/dmi/id/product_uuid"))
say("end", "")
sys.stdout.flush()
for line in sys.stdin: print(repr(time.time()), flush=True)
"""
#: The same of busybox and dropbear. Its date(1) knows no fractions of a second, its adjtimex(8) does.
SHELL = r"""
echo "random_urandom $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' ')"
echo "random_uuid $(cat /proc/sys/kernel/random/uuid)"
echo "machine_id $(cat /etc/machine-id)"
echo "boot_id $(cat /proc/sys/kernel/random/boot_id)"
echo "hostname $(hostname)"
echo "hostname_file $(cat /etc/hostname)"
echo "mac $(cat /sys/class/net/eth0/address)"
echo "address $(ip -4 -o address show dev eth0 | awk '{ sub("/.*", "", $4); print $4; exit }')"
echo "ssh_ed25519 $(dropbearkey -y -f /etc/dropbear/dropbear_ed25519_host_key | awk '/^ssh-/ { print $2 }')"
echo "instance_id $(cat /run/haneul/instance-id)"
echo "metadata_id $(imds meta-data/instance-id)"
echo "shared_dmi_uuid $(cat /sys/class/dmi/id/product_uuid)"
echo end
while read -r line; do
    adjtimex | awk '/tv_sec/ { s = $2 } /tv_usec/ { u = $2 } END { printf "%d.%06d\n", s, u }'
done
"""


def asked(
    login: Login, tiny: bool, settling: float = 0.0, rounds: int = 8, seconds: float = 120.0
) -> tuple[dict[str, str], float, float]:
    """(facts, how much the guest's clock is ahead of this server's, at most so wrong), over one connection.

    `settling`: so long (seconds) the guest's network and cloud-init are waited for.
    """
    command = SHELL if tiny else login.root(f"exec python3 -c {shlex.quote(PYTHON)} {settling}")
    process = subprocess.Popen(
        login.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, errors="replace", bufsize=1,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    with process.stdin as to, process.stdout as back, _killed_after(process, seconds + settling):
        found = figures.facts(iter(back.readline, ""))
        measured = []
        for _ in range(rounds):
            sent = time.time()
            to.write("now\n")
            to.flush()
            line = back.readline()
            if not line:
                break
            measured.append((sent, float(line), time.time()))
    process.wait()
    if not found or not measured:
        raise AssertionError(f"{login.address} did not answer; ssh ended with {process.returncode}")
    return found, *figures.offset(measured)


#: The boot id of the kernel itself, which is the template's; and the files in which one of the given words occurs.
TRACES_PYTHON = r"""
import os, subprocess, sys
os.makedirs("/run/haneul-below", exist_ok=True)
subprocess.run(["mount", "-t", "proc", "proc", "/run/haneul-below"], check=True)
kernel = open("/run/haneul-below/sys/kernel/random/boot_id").read().strip()
subprocess.run(["umount", "/run/haneul-below"]); os.rmdir("/run/haneul-below")
print("kernel_boot_id", kernel)
control = open("/etc/machine-id").read().strip().encode()
own = {open("/etc/machine-id").read().strip(), open("/proc/sys/kernel/random/boot_id").read().strip().replace("-", "")}
words = set(sys.stdin.read().split())
if kernel.replace("-", "") not in own: words.add(kernel)
patterns = {}
for word in words:
    plain = word.replace("-", "").replace(":", "")
    patterns |= {word.encode(): word, plain.encode(): word}
    if len(plain) == 32: patterns[bytes.fromhex(plain)] = word + " in bytes"
for top in ("/etc", "/var/log", "/var/lib", "/var/spool", "/run", "/root", "/home", "/tmp"):
    for folder, names, files in os.walk(top):
        names[:] = [one for one in names if folder + "/" + one not in ("/var/lib/dpkg", "/var/lib/apt")]
        for name in files:
            path = folder + "/" + name
            try:
                if os.path.islink(path) or not os.path.isfile(path): continue
                data = open(path, "rb").read()
            except OSError: continue
            for word in sorted({word for pattern, word in patterns.items() if pattern in data}): print("trace", path + ": " + word)
            if control and control in data: print("control", path)
for field in ("_MACHINE_ID", "_BOOT_ID"):
    done = subprocess.run(["journalctl", "--no-pager", "-F", field], capture_output=True, text=True)
    for value in done.stdout.split():
        if value not in own: print("trace journal: " + field + "=" + value)
print("end")
"""
TRACES_SHELL = r"""
mkdir -p /tmp/below && mount -t proc proc /tmp/below
kernel=$(cat /tmp/below/sys/kernel/random/boot_id)
umount /tmp/below; rmdir /tmp/below
echo "kernel_boot_id $kernel"
find /etc /var /root /run /tmp -type f | while read -r path; do
    grep -qF "$(cat /etc/machine-id)" "$path" 2>/dev/null && echo "control $path"
    grep -qF -e "$kernel" WORDS "$path" 2>/dev/null && echo "trace $path"
done
echo end
"""


def traces(login: Login, tiny: bool, words: list[str], seconds: float = 300.0) -> tuple[str, list[str]]:
    """(boot id of the guest's kernel, where in the guest something of the template's identity is)."""
    if tiny:
        command = TRACES_SHELL.replace("WORDS", " ".join(f"-e {shlex.quote(word)}" for word in words))
    else:
        # Not as arguments: sudo writes those into the guest's journal, where they would be found.
        command = login.root(f"exec python3 -c {shlex.quote(TRACES_PYTHON)}")
    lines = said(login, command, seconds, "" if tiny else "\n".join(words)).splitlines()
    assert "end" in lines, f"the search in {login.address} ended early: {lines[-3:]}"
    assert "control /etc/machine-id" in lines, f"the search in {login.address} does not find what is there"
    kernel = next(line.partition(" ")[2] for line in lines if line.startswith("kernel_boot_id "))
    return kernel, [line.partition(" ")[2] for line in lines if line.startswith("trace ")]
