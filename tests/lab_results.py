"""Made-up results of a comparison, as a whole one gives them: for tests of what is made of results, and to look at a report.

.venv/bin/python -m tests.lab_results DIRECTORY     writes report.html and report.png of them
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from haneul.lab.results import Found, Measurement, Phase, Results, Subject
from haneul.lab.workloads import BOOT, WORKLOADS
from haneul.model.generation import Way

#: What bare metal gives, in the workload's unit.
METAL = {
    "registers": 2.8, "integer": 19.6, "floating": 1.9, "sha256": 236.0, "primes": 980.0, "memory": 11800.0, "memory-blocks": 14200.0,
    "page-fault": 0.61, "getppid": 0.19, "read": 0.25, "switch": 2.9, "pipe": 6.2, "fork": 102.0, "exec": 358.0,
    "timer": 10.5, "disk-sync": 880.0, "disk-write": 610.0, "disk-read": 5200.0, "net-latency": 18.7, "net-in": 31000.0,
    "net-out": 30500.0, "compile": 0.21,
}  # fmt: skip
#: How many times slower the others are.
FACTORS: dict[Way, dict[str, float]] = {
    "emulated": {
        "registers": 0.98, "integer": 4.4, "floating": 13.8, "sha256": 5.9, "primes": 8.7, "memory": 12.1, "memory-blocks": 9.4,
        "page-fault": 9.8, "getppid": 6.9, "read": 8.1, "switch": 10.4, "pipe": 12.7, "fork": 19.1, "exec": 21.4,
        "timer": 14.8, "disk-sync": 3.4, "disk-write": 11.9, "disk-read": 61.0, "net-latency": 71.0, "net-in": 244.0,
        "net-out": 131.0, "compile": 17.3,
    },
    "emulated-fast": {
        "registers": 1.01, "integer": 4.3, "floating": 13.9, "sha256": 5.8, "primes": 8.6, "memory": 12.0, "memory-blocks": 9.3,
        "page-fault": 9.6, "getppid": 6.8, "read": 8.2, "switch": 10.1, "pipe": 12.4, "fork": 18.8, "exec": 21.0,
        "timer": 13.2, "disk-sync": 1.9, "disk-write": 2.6, "disk-read": 7.4, "net-latency": 24.0, "net-in": 15.2,
        "net-out": 11.9, "compile": 17.0,
    },
    "paravirtual": {
        "registers": 1.0, "integer": 1.01, "floating": 1.0, "sha256": 1.02, "primes": 1.04, "memory": 1.06, "memory-blocks": 1.12,
        "page-fault": 16.2, "getppid": 58.4, "read": 46.7, "switch": 9.7, "pipe": 17.9, "fork": 42.5, "exec": 25.4,
        "timer": 6.1, "disk-sync": 1.4, "disk-write": 2.1, "disk-read": 3.9, "net-latency": 9.6, "net-in": 21.0,
        "net-out": 26.0, "compile": 1.31,
    },
    "hvm": {
        "registers": 1.0, "integer": 1.0, "floating": 1.0, "sha256": 1.01, "primes": 1.0, "memory": 1.03, "memory-blocks": 1.05,
        "page-fault": 1.9, "getppid": 1.02, "read": 1.04, "switch": 1.4, "pipe": 1.5, "fork": 1.3, "exec": 1.6,
        "timer": 3.4, "disk-sync": 1.3, "disk-write": 1.2, "disk-read": 1.8, "net-latency": 4.1, "net-in": 1.9,
        "net-out": 2.2, "compile": 1.04,
    },
}  # fmt: skip
BOOTS: dict[Way, tuple[float, ...]] = {
    "emulated": (0.03, 1.6, 8.9, 17.4, 51.3, 55.2),
    "emulated-fast": (0.03, 0.9, 1.4, 6.2, 24.3, 27.1),
    "paravirtual": (0.03, 0.8, 0.85, 2.5, 20.7, 22.2),
    "hvm": (0.03, 0.7, 0.9, 1.9, 5.4, 5.7),
}
NAMES = ("api", "server", "firmware", "kernel", "services", "login")
#: A run's samples are so far from its middle.
WOBBLE = (0.98, 0.995, 1.0, 1.01, 1.03)
NO_KVM = "emulated (TCG) with virtio devices: the guest hangs: no marker within 12 s"
SUBJECTS: dict[Way, Subject] = {
    "metal": "metal", "emulated": "emulated", "emulated-fast": "hvm", "paravirtual": "paravirtual", "hvm": "hvm",
}  # fmt: skip
TYPES: dict[Way, str] = {
    "emulated": "e1.small",
    "emulated-fast": "t2.small",
    "paravirtual": "m1.small",
    "hvm": "t2.small",
}

ABOUT = {
    "machine": "server-1: 2 × AMD EPYC", "image": "debian-12-lab", "image_id": "ami-00123456789abcdef", "bench": "00ff00ff00ff00ff",
    "hostname": "server-1", "processor": "AMD EPYC 7B13", "processors": 2, "memory_mib": 24000, "kernel": "6.18.5",
    "system": "Debian GNU/Linux 12 (bookworm)", "virtualized": "kvm", "container": "", "haneul": "0.1.0", "qemu": "7.2.22",
    "sysbench": "1.0.20", "fio": "3.33", "iperf3": "3.12", "started": "2026-07-04T10:12:33+00:00",
}  # fmt: skip


def results(ways: Sequence[Way] = ("metal", "emulated", "emulated-fast", "paravirtual"), runs: int = 3) -> Results:
    """Of these ways, as if all went well; one measurement on a server that was not quiet."""
    whole = Results(dict(ABOUT))
    for way in ways:
        whole = whole.with_found(_found(way))
        for run in range(1, runs + 1):
            if way != "metal":
                whole = whole.with_measurement(_boot(way, run))
            for name in WORKLOADS:
                whole = whole.with_measurement(_measurement(way, name, run))
    return whole


def _found(way: Way) -> Found:
    if way == "metal":
        return Found("metal", way="metal")
    guest = {
        "kernel": "6.1.0-56-amd64", "virtualized": {"paravirtual": "uml", "hvm": "kvm"}.get(way, "qemu"),
        "processor": "QEMU TCG CPU version 2.5+", "processors": "1", "memory_kib": "2014180",
        "disk": {"emulated": "ata_piix (sda1)", "paravirtual": "uml-blkdev (ubda1)"}.get(way, "virtio_blk (vda1)"),
        "network": {"emulated": "e1000 (ens3)", "paravirtual": "uml-vector (vec0)"}.get(way, "virtio_net (ens3)"),
        "system": "Debian GNU/Linux 12 (bookworm)",
    }  # fmt: skip
    note = NO_KVM if way == "emulated-fast" else ""
    return Found(SUBJECTS[way], TYPES[way], way, "", note, guest)


def _boot(way: Way, run: int) -> Measurement:
    ends = [end * (1 + 0.02 * (run - 2)) for end in BOOTS[way]]
    phases = tuple(Phase(name, began, end) for name, began, end in zip(NAMES, [0.0, *ends], ends, strict=False))
    return Measurement(SUBJECTS[way], way, BOOT, run, ABOUT["started"], (ends[-1],), phases=phases)  # type: ignore[arg-type]


def _measurement(way: Way, name: str, run: int) -> Measurement:
    factor = 1.0 if way == "metal" else FACTORS[way][name]
    value = METAL[name] * factor if WORKLOADS[name].better == "lower" else METAL[name] / factor
    samples = tuple(value * wobble * (1 + 0.004 * run) for wobble in WOBBLE)
    after = 3.4 if (way, name, run) == ("emulated", "pipe", 2) else 2.82
    return Measurement(
        SUBJECTS[way], way, name, run, str(ABOUT["started"]), samples, "", 2.8, after, ("haneul-bench", name), (), {"name": name}
    )  # fmt: skip


def main() -> None:
    from haneul.lab.report import page as report

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    whole = results(("metal", "emulated", "emulated-fast", "paravirtual"))
    (folder / "report.html").write_text(report.page(whole))
    (folder / "report.png").write_bytes(report.picture(whole))


if __name__ == "__main__":
    main()
