"""HVM without special hardware: an emulated server (QEMU's AMD SVM), in it haneul's own probe and driver, in that a guest under KVM.

What runs in the server is tests/nested/inside.py; its system is made by tests/nested/recipe.py (`make test-slow` does).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_machines import IMAGES
from tests.nested import inside, recipe

ROOT = Path(__file__).parents[2]
#: Quiet it takes little more than a minute; beside other guests several.
SECONDS = 900.0
#: The least that has SVM. What more capable processors have costs the guest's kernel time, and KVM reports it not quite as it is.
PROCESSOR = "qemu64,+svm,+npt,+rdrand"
#: The kernel's word that it found KVM is of a level that the image does not show. All of them cost some ten seconds.
ARGUMENTS = "loglevel=7"


def _project(work: Path) -> Path:
    """A disk with haneul as it is here, what of other packages its drivers import, the script and the image."""
    tree, disk = work / "project", work / "project.raw"
    unread = shutil.ignore_patterns("__pycache__")
    for package in ("haneul", "tests/nested"):
        shutil.copytree(ROOT / package, tree / package, ignore=unread)
    (tree / "tests/__init__.py").touch()
    shutil.copytree(_package("qemu.qmp"), tree / "qemu/qmp", ignore=unread)
    image = tree / "images/tiny"
    shutil.copytree(IMAGES / "tiny", image)
    (image / "cmdline").write_text(f"{(image / 'cmdline').read_text().strip()} {ARGUMENTS}\n")
    compiled = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(tree)]
    subprocess.run(compiled, check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(disk), "128m"], check=True, capture_output=True)
    return disk


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _command(system: recipe.System, project: Path) -> list[str]:
    command = [
        "setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35",
        "-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-m", "1024M", "-display", "none", "-nic", "none",
        "-serial", "stdio", "-no-reboot", "-kernel", str(system.kernel),
        "-append", "console=ttyS0 loglevel=3 panic=-1 root=/dev/nvme0n1 rw init=/init",
    ]  # fmt: skip
    for number, disk in enumerate((system.disk, project)):
        command += ["-drive", f"if=none,id=disk{number},format=raw,snapshot=on,file={disk}"]
        command += ["-device", f"nvme,drive=disk{number},serial=disk{number}"]
    return command


def _serial(command: list[str], seconds: float) -> list[str]:
    """What the server says until it is off, each line with the second in which it came."""
    began, lines = time.monotonic(), []
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    deadline = threading.Timer(seconds, server.kill)
    deadline.start()
    try:
        assert server.stdout is not None
        for line in server.stdout:
            lines.append(f"{time.monotonic() - began:6.1f} {line.rstrip()}")
    finally:
        deadline.cancel()
        server.kill()
        server.wait()
    lines.append(f"{time.monotonic() - began:6.1f} the server is off")
    return lines


def _result(lines: list[str]) -> dict[str, Any]:
    said = [line.partition(inside.RESULT)[2] for line in lines if inside.RESULT in line]
    assert said, f"the server told no result (it has {SECONDS:.0f} s)"
    found: dict[str, Any] = json.loads(said[0])
    return found


def _times(lines: list[str], result: dict[str, Any]) -> dict[str, float]:
    up = next(float(line.split()[0]) for line in lines if "nested: the server is up" in line)
    return {"server up": up, **result["seconds"], "all": float(lines[-1].split()[0])}


@pytest.fixture
def system() -> recipe.System:
    found = recipe.built()
    if found is None:
        pytest.skip("the emulated server's system is not built: `make test-slow`, or python -m tests.nested.recipe")
    if shutil.which("qemu-system-x86_64") is None or not (IMAGES / "tiny").is_dir():
        pytest.skip("it needs QEMU and the tiny image: run `make test-slow`")
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_hvm_in_an_emulated_server(system: recipe.System, tmp_path: Path, record_tally: Callable[[str], None]) -> None:
    """Probed, launched, looked at, stopped in an orderly way, booted again by its own boot loader, gone on from a template, refused."""
    lines = _serial(_command(system, _project(tmp_path)), SECONDS)
    print("\n".join(lines))  # pytest shows it of a test that fails
    result = _result(lines)
    assert not result["failure"], f"{result['failure']}\nthe guest's console:\n{result['console']}"
    times = _times(lines, result)
    record_tally("HVM in an emulated server: " + ", ".join(f"{name} {seconds} s" for name, seconds in times.items()))
    record_tally(json.dumps({"hvm in an emulated server, seconds": times}))
