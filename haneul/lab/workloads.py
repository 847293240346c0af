"""What is run in every guest and on the server itself, as data: the program, its arguments, and how its answer is read. Pure.

A word like `{fio}` of a command stands for a program, which is found differently in a guest and on the server; `{file}`,
`{address}` and `{port}` stand for what the place and the network are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from haneul.lab.statistics import Better

Group = Literal["computing", "memory", "kernel", "time", "disk", "network", "work"]
#: The columns of the table of axes: `kernel` is the CPU too, where programs ask their kernel for something.
Column = Literal["cpu", "kernel", "memory", "interrupts", "disk", "network"]
GROUPS: tuple[Group, ...] = ("computing", "memory", "kernel", "time", "disk", "network", "work")

BENCH_PORT, IPERF_PORT = 15201, 5201
#: The measured boot is no command: `haneul.lab.boot`.
BOOT = "boot"


class Unreadable(Exception):
    """A program ended well and said something else than expected."""


@dataclass(frozen=True)
class Reading:
    """The samples that one run of a program gave, and what it printed."""

    samples: tuple[float, ...]
    raw: Any


Read = Callable[[str], Reading]


@dataclass(frozen=True)
class Workload:
    """`on_server` is the command for the server where that has to differ; `serving` is the other end's command, in the guest.

    `tools` are the programs that must be there. `seconds` is when it is given up.
    """

    name: str
    group: Group
    column: Column | None
    unit: str
    better: Better
    tools: tuple[str, ...]
    words: tuple[str, ...]
    read: Read
    on_server: tuple[str, ...] = ()
    serving: tuple[str, ...] = ()
    port: int = 0
    seconds: float = field(default=120.0)

    @property
    def is_network(self) -> bool:
        return bool(self.serving)


def _object(text: str) -> dict[str, Any]:
    """The JSON object that a program printed, behind whatever it complained about before."""
    try:
        found = json.loads(text[text.index("{") :])
    except ValueError:
        raise Unreadable(f"no JSON: {text.strip()[:200]!r}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"no JSON object: {text.strip()[:200]!r}")
    return found


def read_bench(text: str) -> Reading:
    found = _object(text)
    try:
        samples = tuple(float(one) for one in found["samples"])
    except (KeyError, TypeError, ValueError):
        raise Unreadable(f"no samples: {text.strip()[:200]!r}") from None
    if not samples:
        raise Unreadable("no samples")
    return Reading(samples, found)


def _read_line(pattern: str) -> Read:
    def read(text: str) -> Reading:
        match = re.search(pattern, text)
        if match is None:
            raise Unreadable(f"no {pattern!r} in {text.strip()[:200]!r}")
        return Reading((float(match[1]),), text)

    return read


def _read_fio(direction: Literal["read", "write"], figure: Callable[[dict[str, Any]], float]) -> Read:
    def read(text: str) -> Reading:
        found = _object(text)
        try:
            job = found["jobs"][0][direction]
            value = figure(job)
        except (LookupError, TypeError, ZeroDivisionError):
            raise Unreadable(f"no figures of fio: {text.strip()[:200]!r}") from None
        kept = {name: job[name] for name in ("bw_bytes", "iops", "runtime", "total_ios", "io_bytes") if name in job}
        return Reading((value,), kept | {"version": found.get("fio version", "")})

    return read


def read_iperf(text: str) -> Reading:
    """A sample for each second, without those that it was told to omit; a short last one is left out."""
    found = _object(text)
    if "error" in found:
        raise Unreadable(f"iperf3: {found['error']}")
    try:
        sums = [one["sum"] for one in found["intervals"]]
        whole = [one["bits_per_second"] / 1e6 for one in sums if one["seconds"] > 0.5 and not one["omitted"]]
        end = found["end"]["sum_received"]["bits_per_second"] / 1e6
    except (LookupError, TypeError):
        raise Unreadable(f"no figures of iperf3: {text.strip()[:200]!r}") from None
    return Reading(tuple(whole) or (end,), {"intervals": whole, "received": end})


def _bench(name: str, group: Group, column: Column, unit: str, better: Better = "lower") -> Workload:
    return Workload(name, group, column, unit, better, ("bench",), ("{bench}", name, *_LENGTH), read_bench)


_LENGTH = ("--seconds", "1", "--samples", "5")
_FIO = (
    "{fio}", "--name=haneul", "--filename={file}", "--ioengine=psync", "--output-format=json",
    "--randrepeat=1", "--fallocate=none",
)  # fmt: skip
_READ = (*_FIO, "--rw=read", "--bs=1M", "--size=256M", "--runtime=3", "--time_based")
_IPERF = ("{iperf3}", "--client", "{address}", "--port", "{port}", "--time", "4", "--omit", "1", "--json")
_IPERF_SERVER = ("{iperf3}", "--server", "--one-off", "--port", "{port}")

WORKLOADS: dict[str, Workload] = {
    one.name: one
    for one in (
        _bench("registers", "computing", "cpu", "ns"),
        _bench("integer", "computing", "cpu", "ns"),
        _bench("floating", "computing", "cpu", "ns"),
        _bench("sha256", "computing", "cpu", "MB/s", "higher"),
        Workload(
            "primes", "computing", "cpu", "events/s", "higher", ("sysbench",),
            ("{sysbench}", "cpu", "--cpu-max-prime=10000", "--threads=1", "--time=3", "run"),
            _read_line(r"events per second:\s+([\d.]+)"),
        ),
        _bench("memory", "memory", "memory", "MB/s", "higher"),
        Workload(
            "memory-blocks", "memory", "memory", "MiB/s", "higher", ("sysbench",),
            ("{sysbench}", "memory", "--memory-block-size=1M", "--memory-total-size=1T", "--memory-oper=write",
             "--threads=1", "--time=3", "run"),
            _read_line(r"\(([\d.]+) MiB/sec\)"),
        ),
        _bench("page-fault", "memory", "memory", "us"),
        _bench("getppid", "kernel", "kernel", "us"),
        _bench("read", "kernel", "kernel", "us"),
        _bench("switch", "kernel", "kernel", "us"),
        _bench("pipe", "kernel", "kernel", "us"),
        _bench("fork", "kernel", "kernel", "us"),
        _bench("exec", "kernel", "kernel", "us"),
        _bench("timer", "time", "interrupts", "us"),
        # Each write has to be on the disk before the next one: the whole way down and back.
        Workload(
            "disk-sync", "disk", "disk", "us", "lower", ("fio",),
            (*_FIO, "--rw=randwrite", "--bs=4k", "--size=64M", "--fdatasync=1", "--runtime=3", "--time_based"),
            _read_fio("write", lambda job: 1e6 / job["iops"]),
        ),
        # With what the last fsync takes.
        Workload(
            "disk-write", "disk", "disk", "MB/s", "higher", ("fio",),
            (*_FIO, "--rw=write", "--bs=1M", "--size=256M", "--end_fsync=1"),
            _read_fio("write", lambda job: job["io_bytes"] / 1e3 / job["runtime"]),
        ),
        # What the server has in memory: a guest reads past its own cache, so that this is the way through the virtual disk.
        Workload(
            "disk-read", "disk", "disk", "MB/s", "higher", ("fio",), (*_READ, "--direct=1"),
            _read_fio("read", lambda job: job["bw_bytes"] / 1e6), (*_READ, "--direct=0", "--invalidate=0"),
        ),
        Workload(
            "net-latency", "network", "network", "us", "lower", ("bench",),
            ("{bench}", "tcp-latency", "{address}", "{port}", *_LENGTH), read_bench,
            serving=("{bench}", "tcp-echo", "{port}"), port=BENCH_PORT,
        ),
        Workload(
            "net-in", "network", "network", "Mbit/s", "higher", ("iperf3",), _IPERF, read_iperf,
            serving=_IPERF_SERVER, port=IPERF_PORT,
        ),
        Workload(
            "net-out", "network", "network", "Mbit/s", "higher", ("iperf3",), (*_IPERF, "--reverse"), read_iperf,
            serving=_IPERF_SERVER, port=IPERF_PORT,
        ),
        Workload(
            "compile", "work", None, "s", "lower", ("bench", "cc1", "source"),
            ("{bench}", "command", "--seconds", "5", "--samples", "5", "--", "{cc1}", "-O2", "-quiet", "{source}",
             "-o", "/dev/null"),
            read_bench, seconds=180,
        ),
    )
}  # fmt: skip

NAMES: tuple[str, ...] = (BOOT, *WORKLOADS)


def command(words: Sequence[str], tools: Mapping[str, Sequence[str]], values: Mapping[str, str]) -> list[str]:
    """The words with programs and values in their places. A program may be several words."""
    found: list[str] = []
    for word in words:
        name = word[1:-1] if word.startswith("{") and word.endswith("}") else ""
        if name in tools:
            found.extend(tools[name])
        else:
            found.append(re.sub(r"\{(\w+)\}", lambda match: values[match[1]], word))
    return found
