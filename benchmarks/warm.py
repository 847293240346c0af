#!/usr/bin/env python
"""RunInstances → a guest that answers as itself, in pure emulation, beside a plain QEMU that boots the same image.

    sudo .venv/bin/python benchmarks/warm.py [--image debian-12] [--type t3.nano] [--launches 10] [--json]

With no part named: `--answer --raw --memory`, a few minutes. Each part can be asked for alone; docs/warm.md says what each measures.

    --answer          request → the guest's own answer, request → ping, request → SSH, and where the time goes (`--waterfall`)
    --raw             plain QEMU, kernel and initrd given, to the login prompt; in turns with the launches of --answer
    --memory          private memory of a clone: after its answer, its first SSH, and when its cloud-init is done
    --many N          one request for N instances
    --density [CAP]   idle instances until the server's memory is down to a reserve
    --uniqueness N    what N clones have in common, and traces of the template in them
    --endurance N     N launches and terminations; what is left of them

It runs in scripts/alone, by itself if need be. Moments are of the server's wall clock: the client is on the same server. Progress
goes to standard error; the last line of standard output is one JSON object: medians in seconds and MiB, samples beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import mmap
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import warm_figures as figures  # noqa: E402
from benchmarks import warm_guest as guest  # noqa: E402
from haneul.config import Settings  # noqa: E402
from haneul.drivers.networks.linux import nftables  # noqa: E402
from haneul.linux import netns  # noqa: E402
from haneul.model.instance_types import InstanceType, instance_types  # noqa: E402
from haneul.records import journal  # noqa: E402
from tests.system.conftest import Haneul, eventually  # noqa: E402

#: A Debian's first boot and cloud-init in emulation, with room for a noisy server.
COLD_SECONDS = 900.0
#: No wait for a network or for metadata that a plain QEMU has not got.
PLAIN_ARGUMENTS = "cloud-init=disabled systemd.mask=systemd-networkd-wait-online.service"
SSH_AT_ONCE = 4
#: Of all processors; above it the instances have still something to do. The ticks of many idle guests are work as well.
IDLE_SHARE = 0.75
SETTLING_SECONDS = 200.0
AFTER_LOGIN_SECONDS, IDLE_SECONDS = 30.0, 90.0
SSH = 22


QUIET = "--json" in sys.argv


def say(text: str) -> None:
    if not QUIET:
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def alone() -> None:
    """In namespaces of our own, where the network is nobody else's and all that is left running ends with us."""
    if {name for _, name in socket.if_nameindex()} - {"lo"}:
        os.execv(ROOT / "scripts" / "alone", ["alone", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


# --- haneul ------------------------------------------------------------------------------------------


@dataclass
class Started:
    """An instance that was asked for; moments in seconds since the epoch."""

    instance: str
    address: str
    public: str
    mac: str
    vpc: str
    subnet: str
    name: str
    sent: float
    responded: float


@dataclass
class Log:
    """What haneul has logged: followed, also into a new file."""

    path: Path
    answers: dict[str, figures.Answer] = field(default_factory=dict)
    templates: int = 0
    _position: int = 0
    _inode: int = 0
    _rest: bytes = b""

    def read(self) -> None:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._position, self._rest = inode, 0, b""
            file.seek(self._position)
            some = file.read()
            self._position += len(some)
            *lines, self._rest = (self._rest + some).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        self.templates += figures.says_ready(line)
        found = figures.answer(line)
        if found is not None:
            self.answers[found.instance] = found

    def answer(self, instance: str, seconds: float = 60.0) -> figures.Answer | None:
        """When the guest answered as itself; None if it went another way (it booted)."""
        deadline = time.monotonic() + seconds
        while instance not in self.answers and time.monotonic() < deadline:
            self.read()
            time.sleep(0.002)
        return self.answers.get(instance)


class Meminfo:
    """/proc/meminfo, also when another file has been put over it."""

    def __init__(self) -> None:
        self._descriptor = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)

    def text(self) -> str:
        return os.pread(self._descriptor, 65536, 0).decode()


@dataclass
class Bench:
    """A haneul of our own and all that the parts need of it."""

    haneul: Haneul
    image: str
    kind: str
    meminfo: Meminfo
    log: Log = field(init=False)
    user: str = field(init=False)
    ami: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        self.log = Log(self.haneul.data / "haneul.log")
        about = json.loads((self.images / self.image / "image.json").read_text())
        self.user = str(about.get("user", "root"))
        self.resumes = bool(about.get("resume"))

    @property
    def images(self) -> Path:
        return Path(self.haneul.environment["HANEUL_IMAGES"])

    @property
    def tiny(self) -> bool:
        return self.image.startswith("tiny")

    def up(self, warm: str) -> None:
        self.haneul.environment["HANEUL_WARM"] = warm
        self.haneul.up()
        self.ec2 = self.haneul.client()
        self.ami, self.group = self.haneul.image(self.image), self.haneul.open_group()

    def run_instances(self, count: int = 1) -> list[Started]:
        """The clock starts before botocore has so much as signed the request."""
        sent = time.time()
        answer = self.ec2.run_instances(
            ImageId=self.ami, InstanceType=self.kind, MinCount=count, MaxCount=count, SecurityGroupIds=[self.group]
        )
        responded = time.time()
        return [
            Started(
                one["InstanceId"], one["PrivateIpAddress"], one["PublicIpAddress"],
                one["NetworkInterfaces"][0]["MacAddress"], one["VpcId"], one["SubnetId"],
                one["PrivateDnsName"].partition(".")[0], sent, responded,
            )
            for one in answer["Instances"]
        ]  # fmt: skip

    def login(self, one: Started) -> guest.Login:
        return guest.Login(one.public, self.user, self.haneul.data / "identity" / "ssh_key")

    def observe(self, some: list[Started], seconds: float = 60.0, port: int = 0) -> guest.Observer:
        return guest.Observer(self.bridge(some[0]), {one.address: one.mac for one in some}, seconds, port)

    def until_ssh(self, one: Started, seconds: float = COLD_SECONDS) -> tuple[float, dict[str, float]]:
        """When SSH ran a command for the first time, and the moments on the way there."""
        observer = self.observe([one], seconds, SSH)
        observer.wait()
        done, steps = guest.until_true(self.login(one), seconds)
        seen = {"ping": observer.ping.get(one.address), "open": observer.open.get(one.address)}
        return done, steps | {name: at for name, at in seen.items() if at is not None}

    def bridge(self, one: Started) -> guest.Bridge:
        cidr = self.ec2.describe_subnets(SubnetIds=[one.subnet])["Subnets"][0]["CidrBlock"]
        gateway = str(ipaddress.ip_network(cidr)[1])
        return guest.Bridge(self.runtime / "netns" / one.vpc, nftables.bridge_name(one.subnet), gateway)

    @property
    def runtime(self) -> Path:
        slot = int((self.haneul.data / "identity" / "slot").read_text())
        return Path(f"/run/haneul-{slot:02x}")

    def terminate(self, some: list[Started]) -> None:
        if some:
            self.haneul.terminate(*(one.instance for one in some))

    def memory(self, one: Started) -> dict[str, float]:
        return figures.memory(Path(f"/proc/{self.haneul.qemu_pid(one.instance)}/smaps_rollup").read_text())

    # --- the template ---------------------------------------------------------------------------------

    def make_template(self) -> float:
        """The first launch boots, and has a template made; then one goes on from it, so that no measured one is the first."""
        if not self.resumes:
            raise SystemExit(f"{self.image} has no resume unit (image.json says no `resume`): build it again")
        (first,) = self.run_instances()
        began = time.monotonic()
        eventually("a template is ready", self._template_is_ready, COLD_SECONDS, 0.1)
        took = time.monotonic() - began
        self.terminate([first])
        (second,) = self.run_instances()
        if self.log.answer(second.instance) is None:
            raise SystemExit(f"with a template that is ready, {second.instance} did not go on from it: see haneul.log")
        self.terminate([second])
        say(f"a template of {self.image} for {self.kind} was ready {took:.1f} s after the first request")
        return took

    def _template_is_ready(self) -> bool:
        self.log.read()
        return self.log.templates > 0

    def template_identity(self) -> dict[str, list[str]]:
        """Who the template's guest was, by what its journal has left in the memory that was saved."""
        found: dict[str, list[str]] = {}
        for path in (self.haneul.data / "templates").glob("*/memory"):
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as saved:
                found = figures.template_identity(saved[at : at + (16 << 20)] for at in range(0, len(saved), 16 << 20))
        return found


# --- answer, ping, SSH, waterfall -----------------------------------------------------------------------


@dataclass
class Sample:
    answer: float
    ping: float
    ssh: float
    steps: list[figures.Step]


def warm_sample(bench: Bench) -> Sample:
    """One launch that goes on from a template; asked from outside as soon as there is somebody to ask."""
    (one,) = bench.run_instances()
    done, seen = bench.until_ssh(one)
    answered = bench.log.answer(one.instance)
    if answered is None or "ping" not in seen:
        raise SystemExit(f"{one.instance} did not go on from its template, or was not seen: {answered} {seen}")
    steps = figures.steps(moments(bench, one, answered) | seen | {"ssh": done}, one.sent)
    bench.terminate([one])
    return Sample(answered.at - one.sent, seen["ping"] - one.sent, done - one.sent, steps)


def moments(bench: Bench, one: Started, answered: figures.Answer) -> dict[str, float | None]:
    """When each step of a launch was over: by the audit, the trace of the boot, the log, QEMU's events and /proc."""
    data = bench.haneul.data
    boot = eventually(f"the trace of {one.instance}", lambda: find_boot(data, one.instance) or {}, 30, 0.02)
    spans = {span["name"]: span for span in boot["spans"]}
    found: dict[str, float | None] = {
        "agent": spans["disks"]["began"], "volume": spans["disks"]["ended"], "network": spans["network"]["ended"],
        "answer": answered.at, "cont": figures.goes_on_at((data / "instances" / one.instance / "events.log").read_text()),
    }  # fmt: skip
    if "answered" in answered.parts:
        loaded = found["state"] = answered.at - answered.parts["answered"]
        if "loaded" in answered.parts:
            found["qmp"] = loaded - answered.parts["loaded"]
    stat = Path(f"/proc/{bench.haneul.qemu_pid(one.instance)}/stat").read_text()
    now, since_boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    found["prepare"] = figures.started_at(stat, os.sysconf("SC_CLK_TCK"), now, since_boot)
    for call in journal.read(data / journal.AUDIT):
        if call.get("eventName") == "RunInstances" and one.instance in (call.get("resources") or []):
            called = found["request"] = figures.moment(call["eventTime"])
            found["api"] = called + call["durationMs"] / 1000
    return found


def find_boot(data: Path, instance: str) -> dict[str, Any] | None:
    for record in journal.read(data / journal.EVENTS):
        if record.get("event") == "boot" and record["instance"] == instance:
            return record
    return None


def cold_sample(bench: Bench) -> float:
    """The same launch without a template."""
    (one,) = bench.run_instances()
    done, _ = bench.until_ssh(one)
    bench.terminate([one])
    return done - one.sent


def answer_part(bench: Bench, options: argparse.Namespace, raw: bool) -> dict[str, Any]:
    """Warm launches, in turns with cold boots of a plain QEMU; one clone lives all the while."""
    (resident,) = bench.run_instances()
    bench.until_ssh(resident)
    if not bench.tiny:
        settle(bench, resident)
    samples: list[Sample] = []
    again: list[float] = []
    boots: list[float] = []
    words = machine_words(bench, resident)
    for number in range(max(options.launches if options.answer else 0, options.colds if raw else 0)):
        if options.answer and number < options.launches:
            sample = warm_sample(bench)
            samples.append(sample)
            began = time.time()
            again.append(guest.until_true(bench.login(resident))[0] - began)
            say(
                f"launch {number + 1}: answer {sample.answer:.3f} s, ping {sample.ping:.3f} s, ssh {sample.ssh:.3f} s;"
                f" ssh to a guest that has long been there {again[-1]:.3f} s"
            )
        if raw and number < options.colds:
            boots.append(raw_boot(bench, words))
            say(f"plain QEMU {number + 1}: {boots[-1]:.2f} s")
    bench.terminate([resident])
    return result_of(samples, again, boots)


def result_of(samples: list[Sample], again: list[float], boots: list[float]) -> dict[str, Any]:
    answers, pings, sshs = ([getattr(one, name) for one in samples] for name in ("answer", "ping", "ssh"))
    waterfall = figures.middle([one.steps for one in samples])
    for line in figures.drawn(waterfall):
        say(line)
    found: dict[str, Any] = {
        "answer_s": figures.median(answers), "ping_s": figures.median(pings), "ssh_s": figures.median(sshs),
        "ssh_again_s": figures.median(again), "raw_cold_boot_s": figures.median(boots, 3),
        "ratio_cold_over_warm": figures.ratio(figures.median(boots), figures.median(answers)),
        "waterfall_ms": {step.name: round((step.ended - step.began) * 1000, 1) for step in waterfall},
        "spread": {
            "answer_s": figures.spread(answers), "ping_s": figures.spread(pings), "ssh_s": figures.spread(sshs),
            "ssh_again_s": figures.spread(again), "raw_cold_boot_s": figures.spread(boots),
        },
        "samples": {
            "answer_s": rounded(answers), "ping_s": rounded(pings), "ssh_s": rounded(sshs),
            "ssh_again_s": rounded(again), "raw_cold_boot_s": rounded(boots),
        },
    }  # fmt: skip
    return found


def rounded(samples: list[float]) -> list[float]:
    return [round(one, 4) for one in samples]


# --- a plain QEMU ------------------------------------------------------------------------------------


def machine_words(bench: Bench, one: Started) -> list[str]:
    """Accelerator, processor, vCPUs and memory, as a clone of this very run has them."""
    command = Path(f"/proc/{bench.haneul.qemu_pid(one.instance)}/cmdline").read_bytes().decode().split("\0")
    return [
        word for option in ("-accel", "-cpu", "-smp", "-m") for word in (option, command[command.index(option) + 1])
    ]


def raw_boot(bench: Bench, words: list[str]) -> float:
    """Seconds from starting QEMU to the login prompt. Making the overlay is not counted."""
    image = bench.images / bench.image
    disk = bench.haneul.data / "plain.qcow2"
    disk.unlink(missing_ok=True)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image / "disk.qcow2"), "-F", "qcow2", str(disk)]
    subprocess.run(create, check=True, capture_output=True)
    arguments = (image / "cmdline").read_text().strip() + ("" if bench.tiny else f" {PLAIN_ARGUMENTS}")
    command = [
        "qemu-system-x86_64", "-nodefaults", "-machine", "q35", *words, "-display", "none", "-nic", "none", "-no-reboot",
        "-device", "virtio-rng-pci", "-drive", f"file={disk},if=virtio,format=qcow2", "-serial", "stdio",
        "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd"), "-append", arguments,
    ]  # fmt: skip
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        until_said(process.stdout.fileno(), figures.says_ready_to_log_in(bench.image), COLD_SECONDS)
        return time.monotonic() - began
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        disk.unlink(missing_ok=True)


def until_said(descriptor: int, wanted: bytes, seconds: float) -> None:
    said, deadline = b"", time.monotonic() + seconds
    while wanted not in said:
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"no {wanted!r} on the console within {seconds:.0f} s: {said[-300:]!r}")
        some = os.read(descriptor, 65536)
        if not some:
            raise AssertionError(f"QEMU ended before {wanted!r}: {said[-300:]!r}")
        said = (said + some)[-4096:]


# --- memory ------------------------------------------------------------------------------------------


def settle(bench: Bench, one: Started) -> None:
    """Until cloud-init has done all of its work; a guest without it is left alone for a moment."""
    if bench.tiny:
        time.sleep(5)
        return
    with contextlib.suppress(AssertionError):  # it ends with an error where something in it has failed
        guest.said(bench.login(one), "command -v cloud-init >/dev/null && cloud-init status --wait", COLD_SECONDS)


def idle_percent(bench: Bench, one: Started) -> float:
    """What a settled instance has of one processor that is left alone. The user's manager, which ends after a login, is not counted."""
    stat, ticks = Path(f"/proc/{bench.haneul.qemu_pid(one.instance)}/stat"), os.sysconf("SC_CLK_TCK")
    time.sleep(AFTER_LOGIN_SECONDS)
    before = figures.cpu_seconds(stat.read_text(), ticks)
    time.sleep(IDLE_SECONDS)
    return round((figures.cpu_seconds(stat.read_text(), ticks) - before) / IDLE_SECONDS * 100, 2)


def memory_part(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Beside another clone, so that what they share is seen as shared."""
    (resident,) = bench.run_instances()
    bench.until_ssh(resident)
    found: dict[str, list[dict[str, float]]] = {"answer": [], "ssh": [], "settled": []}
    idle: list[float] = []
    for number in range(options.memory_samples):
        (one,) = bench.run_instances()
        bench.observe([one]).wait()
        if bench.log.answer(one.instance) is None:
            raise SystemExit(f"{one.instance} did not go on from its template")
        found["answer"].append(bench.memory(one))
        bench.until_ssh(one)
        found["ssh"].append(bench.memory(one))
        if number < options.settled_samples:
            settle(bench, one)
            found["settled"].append(bench.memory(one))
            idle.append(idle_percent(bench, one))
            say(f"idle: {idle[-1]} % of a processor")
        bench.terminate([one])
        say(
            f"memory {number + 1}: "
            + ", ".join(f"{when} {all_[-1]}" for when, all_ in found.items() if len(all_) > number)
        )
    bench.terminate([resident])

    def middle(when: str, what: str) -> float | None:
        return figures.median([one[what] for one in found[when]], 1)

    return {
        "private_mb": middle("ssh", "private"), "private_mb_answer": middle("answer", "private"),
        "private_mb_settled": middle("settled", "private"), "private_dirty_mb": middle("ssh", "private_dirty"),
        "shared_mb": middle("ssh", "shared"), "pss_mb": middle("ssh", "pss"), "guest_memory_mb": type_of(bench).memory_mib,
        "memory_samples": found, "idle_cpu_percent": figures.median(idle, 2),
    }  # fmt: skip


def type_of(bench: Bench) -> InstanceType:
    return instance_types()[bench.kind]


# --- many at once, and as many as fit -------------------------------------------------------------------


def with_ssh(
    bench: Bench, some: list[Started], seconds: float = 300.0, all_seconds: float = 3600.0
) -> dict[str, float]:
    """Instance -> when its first SSH command returned; a few are asked at once, as many as there are processors twice."""
    end = time.monotonic() + all_seconds

    def ask(one: Started) -> tuple[str, float] | None:
        try:
            return one.instance, bench.until_ssh(one, max(1.0, min(seconds, end - time.monotonic())))[0]
        except AssertionError as error:
            say(f"{one.instance}: {error}")
            return None

    with ThreadPoolExecutor(SSH_AT_ONCE) as pool:
        return dict(found for found in pool.map(ask, some) if found is not None)


def pss_of(bench: Bench, some: list[Started]) -> list[dict[str, float]]:
    """Memory of each machine's QEMU."""
    named = {pid: name for pid, name in processes() if name.startswith("qemu-system")}
    found = []
    for pid in named:
        with contextlib.suppress(OSError, KeyError):
            about = figures.memory(Path(f"/proc/{pid}/smaps_rollup").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if any(one.instance in command for one in some):
                found.append(about)
    return found


def processes() -> list[tuple[int, str]]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.append((int(pid), Path(f"/proc/{pid}/comm").read_text().strip()))
    return found


@contextlib.contextmanager
def room_for(bench: Bench, count: int) -> Iterator[None]:
    """haneul promises no memory twice. Where more is to be tried, it is shown a server with more, in our own mount namespace."""
    wanted = count * type_of(bench).memory_mib + 4096
    if wanted <= figures.total_mib(bench.meminfo.text()):
        yield
        return
    say(f"this server has less than {wanted} MiB: haneul is shown so much, and the real memory is watched")
    shown = bench.haneul.data / "meminfo"
    shown.write_text(figures.with_total(bench.meminfo.text(), wanted))
    bench.haneul.run("down")
    subprocess.run(["mount", "--bind", str(shown), "/proc/meminfo"], check=True)
    try:
        bench.up("auto")
        yield
    finally:
        subprocess.run(["umount", "/proc/meminfo"], check=True)


class Reserve:
    """Whether the server still has its reserve; machines that were launched last are killed if it has not."""

    def __init__(self, bench: Bench, reserve_mib: int) -> None:
        self._bench, self._reserve = bench, reserve_mib

    def left(self) -> float:
        return figures.available_mib(self._bench.meminfo.text()) - self._reserve

    def keep(self, some: list[Started]) -> list[Started]:
        """Gives those that were ended."""
        ended: list[Started] = []
        while self.left() < 0 and some:
            last = some.pop()
            self._bench.ec2.terminate_instances(InstanceIds=[last.instance])
            ended.append(last)
            eventually(f"{last.instance} has ended", partial(self._has_ended, last.instance), 30)
        return ended

    def _has_ended(self, instance: str) -> bool:
        return not self._bench.haneul.machine_pids(instance)


def after_request(moments: list[float], sent: float) -> float | None:
    """How long it took until the last of them."""
    return round(max(moments) - sent, 3) if moments else None


def many_part(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    with room_for(bench, options.many):
        reserve = Reserve(bench, options.reserve_mib)
        before = figures.available_mib(bench.meminfo.text())
        some = bench.run_instances(options.many)
        sent, observer = some[0].sent, bench.observe(some, 300)
        pinged = sorted(observer.wait().values())
        answered = sorted(heard.at for one in some if (heard := bench.log.answer(one.instance, 120)))
        say(f"{len(answered)} of {options.many} have answered after {after_request(answered, sent)} s")
        ended = reserve.keep(some)
        memory, now = pss_of(bench, some), figures.available_mib(bench.meminfo.text())
        say(
            f"memory: {round(sum(one['pss'] for one in memory))} MiB of {len(memory)} machines, {before - now:.0f} MiB of the server"
        )
        logged_in = sorted(with_ssh(bench, some, options.ssh_seconds, options.ssh_seconds).values())
        say(f"{len(logged_in)} of {options.many} were logged in to")
        ended += reserve.keep(some)
        after = pss_of(bench, some)
        found = {
            "instances": options.many, "request_s": round(some[0].responded - sent, 3),
            "answered": len(answered), "first_answer_s": after_request(answered[:1], sent),
            "half_answered_s": after_request(answered[: (len(answered) + 1) // 2], sent), "all_answered_s": after_request(answered, sent),
            "pinged": len(pinged), "all_pinged_s": after_request(pinged, sent),
            "ssh": len(logged_in), "all_ssh_s": after_request(logged_in, sent),
            "pss_mb_each": figures.median([one["pss"] for one in memory], 1), "pss_mb_all": round(sum(one["pss"] for one in memory)),
            "available_mb_taken": round(before - now), "pss_mb_each_after_ssh": figures.median([one["pss"] for one in after], 1),
            "available_mb_taken_after_ssh": round(before - figures.available_mib(bench.meminfo.text())),
            "guest_memory_mb_all": options.many * type_of(bench).memory_mib, "ended_for_the_reserve": len(ended),
        }  # fmt: skip
        bench.terminate(some + ended)
    say(f"many: {found}")
    return {"many": found}


def until_idle(reserve: Reserve, deadline: float) -> bool:
    """What cloud-init does in each takes half a minute of a processor: before that no instance is idle. False at the
    deadline, or where the reserve is needed."""
    before, quiet = Path("/proc/stat").read_text(), 0
    while time.monotonic() < deadline and reserve.left() > 0:
        time.sleep(5)
        now = Path("/proc/stat").read_text()
        share, before = figures.busy_share(before, now), now
        quiet = quiet + 1 if share < IDLE_SHARE else 0
        if quiet == 3:  # not a moment between two steps
            return True
    return False


def density_part(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Waves of idle instances until the memory is down to the reserve, the cap is reached or the time is over."""
    cap = options.density
    with room_for(bench, cap):
        reserve = Reserve(bench, options.reserve_mib)
        began, before = time.monotonic(), figures.available_mib(bench.meminfo.text())
        alive: list[Started] = []
        why, unanswered, each, idle = "cap", 0, 0.0, True
        while len(alive) < cap:
            # Never more than fits, if each of the wave took twice what those before it take.
            wave = min(options.wave, cap - len(alive), int(reserve.left() / max(2 * each, 256)))
            if wave < 1 or time.monotonic() - began > options.seconds:
                why = "memory" if wave < 1 else "time"
                break
            some = bench.run_instances(wave)
            alive += some
            unanswered += wave - len(with_ssh(bench, some))
            idle = until_idle(reserve, began + options.seconds)
            each = (before - figures.available_mib(bench.meminfo.text())) / len(alive)
            say(
                f"density: {len(alive)} alive, {each:.0f} MiB each, {reserve.left():.0f} MiB above the reserve"
                + ("" if idle else ", not idle")
            )
            if reserve.keep(alive):
                why = "memory"
                break
        dead = len(alive) - len(with_ssh(bench, alive, 120))
        memory = pss_of(bench, alive)
        found = {
            "instances": len(alive), "ended_by": why, "seconds": round(time.monotonic() - began), "idle": idle,
            "available_mb_each": round((before - figures.available_mib(bench.meminfo.text())) / max(len(alive), 1), 1),
            "private_mb_each": figures.median([one["private"] for one in memory], 1),
            "pss_mb_each": figures.median([one["pss"] for one in memory], 1), "guest_memory_mb": type_of(bench).memory_mib,
            "without_ssh_at_once": unanswered, "without_ssh_at_the_end": dead, "reserve_mb": options.reserve_mib,
            "times_the_memory": round(len(alive) * type_of(bench).memory_mib / figures.total_mib(bench.meminfo.text()), 2),
        }  # fmt: skip
        bench.terminate(alive)
    say(f"density: {found}")
    return {"density": found}


# --- uniqueness --------------------------------------------------------------------------------------


def uniqueness_part(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    identity = bench.template_identity()
    say(f"the template's guest was {identity}")
    words = [*identity.get("machine_id", [])[:2], *identity.get("boot_id", [])[:2], "06:00:00:00:00:00"]
    words += [name for name in identity.get("hostname", [])[:2] if name not in ("localhost", "debian")]
    asked: list[dict[str, str]] = []
    clocks: list[tuple[float, float]] = []
    wrong: list[str] = []
    failed: list[str] = []
    failed_searches: list[str] = []
    found_traces: dict[str, int] = {}
    kernels: set[str] = set()
    searched, waves, began = 0, 0, time.monotonic()
    while len(asked) + len(failed) < options.uniqueness:
        some = bench.run_instances(min(options.wave, options.uniqueness - len(asked) - len(failed)))
        # The network's lease and cloud-init's id come a minute of an emulated processor later: they are waited for in some.
        settling = SETTLING_SECONDS if waves % options.search_every == 0 else 0.0
        to_search = options.traced if settling else 0
        waves += 1
        with ThreadPoolExecutor(SSH_AT_ONCE) as pool:
            wave = list(pool.map(partial(ask_clone, bench, settling=settling), some))
        for one, (about, error) in zip(some, wave, strict=True):
            if about is None:
                failed.append(f"{one.instance}: {error}")
                continue
            facts, ahead, at_most = about
            asked.append(facts)
            clocks.append((ahead, at_most))
            wrong += mistakes(one, facts)
            late = () if bench.tiny or not settling else ("lease_address", "cloud_init_id")
            wrong += [f"{one.instance} has no {name}" for name in late if name not in facts]
            wrong += [f"{one.instance} did not go on from the template"] * (bench.log.answer(one.instance, 1) is None)
        together = [about[0] for about, _ in wave if about is not None]
        wrong += [
            f"{name} in one wave"
            for name in ("address", "lease_address", "hostname", "hostname_file")
            if figures.tally(together).get(name, {}).get("repeated")
        ]
        facts_of = {one.instance: about[0] for one, (about, _) in zip(some, wave, strict=True) if about is not None}
        for one in [one for one in some if one.instance in facts_of][:to_search]:
            try:
                kernel, places = search(bench, one, words)
            except (AssertionError, subprocess.SubprocessError) as failure:
                failed_searches.append(f"{one.instance}: {failure}"[:300])
                continue
            kernels.add(kernel)
            searched += 1
            for place in places:
                place = figures.of_any(place, facts_of.get(one.instance, {}))
                found_traces[place] = found_traces.get(place, 0) + 1
        bench.terminate(some)
        say(
            f"uniqueness: {len(asked)} asked, {len(failed)} did not answer; wrong so far: {wrong[-3:]}; traces: {found_traces}"
        )
    counts = figures.tally(asked)
    repeated = {
        name: one["repeated"] for name, one in counts.items()
        if one["repeated"] and not name.startswith("shared_") and name not in ("address", "lease_address", "hostname", "hostname_file")
    }  # fmt: skip
    ahead_ms = [one * 1000 for one, _ in clocks]
    found = {
        "clones": len(asked), "without_answer": failed, "facts": counts, "repeated": repeated, "repeated_in_all": sum(repeated.values()),
        "wrong": sorted(set(wrong)), "clock_ahead_ms": figures.spread(ahead_ms, 2), "clock_off_ms": figures.spread([abs(one) for one in ahead_ms], 2),
        "clock_error_ms": figures.median([one * 1000 for _, one in clocks], 2),
        "searched_for_traces": searched, "failed_searches": failed_searches, "traces": found_traces, "searched_for": words,
        "kernel_boot_ids": len(kernels), "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    say(
        f"uniqueness: {len(asked)} clones, {sum(repeated.values())} repeated values, traces in {len(found_traces)} files"
    )
    return {"uniqueness": found}


Asked = tuple[dict[str, str], float, float]


def ask_clone(bench: Bench, one: Started, settling: float) -> tuple[Asked | None, str]:
    """As soon as somebody listens on its port; again, where that was not SSH for everybody yet."""
    bench.observe([one], COLD_SECONDS, SSH).wait()
    error = ""
    for _ in range(20):
        try:
            return guest.asked(bench.login(one), bench.tiny, settling), ""
        except (AssertionError, OSError, ValueError) as failure:
            error = str(failure)
            time.sleep(1)
    return None, error


def search(bench: Bench, one: Started, words: list[str]) -> tuple[str, list[str]]:
    """The traces in a clone; a guest that is busy with cloud-init may not let everybody in at once."""
    for _ in range(2):
        with contextlib.suppress(AssertionError):
            return guest.traces(bench.login(one), bench.tiny, words)
        time.sleep(5)
    return guest.traces(bench.login(one), bench.tiny, words)


def mistakes(one: Started, facts: dict[str, str]) -> list[str]:
    """Where the guest is not who EC2 says that it is."""
    wanted = {
        "instance_id": one.instance, "metadata_id": one.instance, "cloud_init_id": one.instance, "mac": one.mac,
        "address": one.address, "lease_address": one.address, "hostname": one.name, "hostname_file": one.name,
    }  # fmt: skip
    return [f"{one.instance}: {text}" for text in figures.differing(facts, wanted)]


# --- endurance ---------------------------------------------------------------------------------------


def census(bench: Bench) -> dict[str, float]:
    """All that could be left behind: processes, namespaces, taps, files, descriptors, memory."""
    names = [name for _, name in processes()]
    haneul = bench.haneul.pids
    namespaces = list((bench.runtime / "netns").iterdir())
    links = sum(len(netns.call(path, socket.if_nameindex)) for path in namespaces)
    files = [path for path in bench.haneul.data.rglob("*") if not re.search(r"\.(log|jsonl|db)[-.\w]*$", path.name)]
    return {
        "processes": len(names), "qemu": sum(name.startswith("qemu-system") for name in names), "namespaces": len(namespaces),
        "links": links, "files": len(files), "runtime_files": sum(1 for _ in bench.runtime.rglob("*")),
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in haneul),
        "threads": sum(len(os.listdir(f"/proc/{pid}/task")) for pid in haneul),
        "haneul_pss_mb": round(sum(figures.memory(Path(f"/proc/{pid}/smaps_rollup").read_text())["pss"] for pid in haneul), 1),
    }  # fmt: skip


def endurance_part(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    def wave(count: int) -> int:
        some = bench.run_instances(count)
        pinged = bench.observe(some, 120).wait()
        bench.terminate(some)
        bench.log.read()
        return len(pinged)

    def quiet() -> dict[str, float]:
        """When what was ordered is over too."""
        folder = bench.haneul.data / "instances"
        with contextlib.suppress(AssertionError):
            eventually("all machines have gone", lambda: not list(folder.iterdir()), 60)
        time.sleep(3)
        return census(bench)

    for _ in range(2):
        wave(options.wave)
    before, done, answered = quiet(), 0, 0
    earlier, began = len(bench.log.answers), time.monotonic()
    while done < options.endurance:
        count = min(options.wave, options.endurance - done)
        answered += wave(count)
        done += count
        if done % (10 * options.wave) < options.wave:
            say(
                f"endurance: {done} launched and ended, {answered} answered, {done / (time.monotonic() - began):.2f} a second"
            )
    took = time.monotonic() - began
    warm = len(bench.log.answers) - earlier
    after = quiet()
    found = {
        "launches": done, "answered": answered, "from_a_template": warm, "at_once": options.wave,
        "seconds": round(took, 1), "launches_per_s": round(done / took, 2), "before": before, "after": after,
        "more_than_before": figures.unequal(before, after),
    }  # fmt: skip
    say(f"endurance: {found}")
    return {"endurance": found}


# --- all of it ---------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="debian-12")
    parser.add_argument("--type", default="t3.nano", help="instance type (t3.nano: 2 vCPUs, 512 MiB)")
    parser.add_argument("--tcg-buffer-mib", type=int, default=Settings.tcg_buffer_mib, help="the setting of that name")
    parser.add_argument("--json", action="store_true", help="nothing but JSON")
    parser.add_argument("--answer", "--waterfall", action="store_true")
    parser.add_argument("--launches", type=int, default=10, help="warm launches of --answer")
    parser.add_argument("--cold-ssh", type=int, default=1, help="launches without a template beside them")
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--colds", type=int, default=3, help="boots of a plain QEMU")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-samples", type=int, default=3)
    parser.add_argument(
        "--settled-samples", type=int, default=1, help="so many of them are waited for until cloud-init is done"
    )
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument(
        "--ssh-seconds", type=float, default=1800.0, help="how long --many waits until SSH was in all of them"
    )
    parser.add_argument("--density", type=int, nargs="?", const=200, default=0, metavar="CAP")
    parser.add_argument("--reserve-mib", type=int, default=3072, help="memory of the server that is left alone")
    parser.add_argument("--seconds", type=float, default=900.0, help="how long --density may take")
    parser.add_argument("--uniqueness", type=int, default=0)
    parser.add_argument(
        "--traced", type=int, default=1, help="clones of each wave that are searched for traces of the template"
    )
    parser.add_argument(
        "--search-every",
        type=int,
        choices=range(1, 1001),
        metavar="WAVES",
        default=1,
        help="of waves, so many: one is searched, and asked for its lease and cloud-init's id",
    )
    parser.add_argument("--endurance", type=int, default=0)
    parser.add_argument("--wave", type=int, default=8, help="instances at a time: --density, --uniqueness, --endurance")
    options = parser.parse_args()
    if not any(
        (
            options.answer,
            options.raw,
            options.memory,
            options.many,
            options.density,
            options.uniqueness,
            options.endurance,
        )
    ):
        options.answer = options.raw = options.memory = True
    return options


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(
        ("answer_s", "ping_s", "ssh_s", "cold_ssh_s", "raw_cold_boot_s", "ratio_cold_over_warm", "private_mb")
    )
    cold: list[float] = []
    if options.answer and options.cold_ssh:
        bench.up("off")
        for number in range(options.cold_ssh):
            cold.append(cold_sample(bench))
            say(f"without a template {number + 1}: ssh {cold[-1]:.2f} s")
        bench.haneul.run("down")
    bench.up("auto")
    found["template_s"] = round(bench.make_template(), 2)
    parts: list[tuple[object, Callable[[], dict[str, Any]]]] = [
        (options.answer or options.raw, lambda: answer_part(bench, options, options.raw)),
        (options.memory, lambda: memory_part(bench, options)),
        (options.uniqueness, lambda: uniqueness_part(bench, options)),
        (options.endurance, lambda: endurance_part(bench, options)),
        (options.many, lambda: many_part(bench, options)),
        (options.density, lambda: density_part(bench, options)),
    ]
    for wanted, part in parts:
        try:
            found |= part() if wanted else {}
        except (AssertionError, LookupError, OSError, subprocess.SubprocessError) as error:
            # What the other parts have found is worth something.
            traceback.print_exc()
            found["failed"] = [*found.get("failed", []), f"{type(error).__name__}: {error}"[:500]]
    if cold and "samples" in found:
        found["cold_ssh_s"] = figures.median(cold, 3)
        found["samples"]["cold_ssh_s"], found["spread"]["cold_ssh_s"] = rounded(cold), figures.spread(cold)
    return found


def server(meminfo: Meminfo) -> dict[str, Any]:
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpus": os.cpu_count(), "memory_mb": round(figures.total_mib(meminfo.text())), "load": round(os.getloadavg()[0], 2),
        "qemu": version.split("version ")[-1].split()[0], "accelerator": "tcg",
    }  # fmt: skip


def main() -> None:
    options = arguments()
    alone()
    meminfo = Meminfo()
    about = server(meminfo)
    data = Path(tempfile.mkdtemp(prefix="haneul-benchmark-", dir="/var/tmp"))
    data.chmod(0o711)
    haneul = Haneul(
        data, Path(os.environ.get("HANEUL_IMAGES", "/var/lib/haneul/images")), HANEUL_UPLINK="none", PYTHONPATH=os.environ.get("PYTHONPATH", str(ROOT)),
        HANEUL_LOG_FORMAT="json", HANEUL_VCPU_OVERCOMMIT="10000", HANEUL_MEMORY_OVERHEAD_MIB="0", HANEUL_TERMINATED_SECONDS="120",
        HANEUL_TCG_BUFFER_MIB=str(options.tcg_buffer_mib),
    )  # fmt: skip
    bench = Bench(haneul, options.image, options.type, meminfo)
    try:
        found = measure(bench, options)
    finally:
        haneul.run("down", "--purge", check=False)
        shutil.rmtree(data, ignore_errors=True)
    about["load_after"] = round(os.getloadavg()[0], 2)
    print(
        json.dumps(
            {"image": options.image, "type": options.type, "tcg_buffer_mib": options.tcg_buffer_mib, "server": about}
            | found
        )
    )
    if "failed" in found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
