"""What all of it is measured on: the server's hardware and the versions of what takes part."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from haneul import __version__
from haneul.lab.measure.places import Server


def describe(server: Server, image: str, image_id: str) -> dict[str, Any]:
    """`machine` is what must be the same for figures to stand beside each other; `image` and `bench` too."""
    processor = _processor(_text("/proc/cpuinfo"))
    memory = _first(r"MemTotal:\s+(\d+)", _text("/proc/meminfo"))
    return {
        "machine": f"{platform.node()}: {os.cpu_count()} × {processor['model']}",
        "image": image,
        "image_id": image_id,
        "bench": _digest(server),
        "hostname": platform.node(),
        "processor": processor["model"],
        "processors": os.cpu_count(),
        "memory_mib": int(memory) // 1024 if memory else None,
        "kernel": platform.release(),
        "system": _first(r'PRETTY_NAME="?([^"\n]*)', _text("/etc/os-release")),
        "virtualized": virtualized(_said("systemd-detect-virt", "--vm"), processor["is_guest"] == "yes"),
        "container": _said("systemd-detect-virt", "--container").replace("none", ""),
        "haneul": __version__,
        "qemu": _first(r"version (\S+)", _said("qemu-system-x86_64", "--version")),
        "sysbench": _first(r"sysbench (\S+)", _tool(server, "sysbench")),
        "fio": _first(r"fio-(\S+)", _tool(server, "fio")),
        "iperf3": _first(r"iperf (\S+)", _tool(server, "iperf3")),
    }


def virtualized(detected: str, has_flag: bool) -> str:
    """Under what the server itself runs, empty if on nothing: the name that systemd knows, or `unknown` by the CPU's flag."""
    if detected and detected != "none":
        return detected
    return "unknown hypervisor" if has_flag else ""


def _processor(text: str) -> dict[str, str]:
    flags = _first(r"^flags\s*:(.*)$", text).split()
    return {"model": _first(r"^model name\s*:\s*(.*)$", text), "is_guest": "yes" if "hypervisor" in flags else ""}


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _said(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _tool(server: Server, name: str) -> str:
    return _said(*server.tools[name], "--version") if name in server.tools else ""


def _digest(server: Server) -> str:
    """Of the very program: figures of two of them are not compared."""
    import hashlib

    words = server.tools.get("bench")
    return hashlib.sha256(Path(words[0]).read_bytes()).hexdigest()[:16] if words else ""
