"""Looking at hundreds of machines: one look through /proc for all of them, and nothing that waits runs on the event loop."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from haneul.drivers.machines.driver import Machines
from haneul.linux import locks

NUMBER = 120


def _folders(directory: Path, number: int) -> list[Path]:
    made = []
    for one in range(number):
        place = directory / f"i-{one:017x}"
        place.mkdir(parents=True)
        about = {"boot_count": 1, "accelerator": "tcg", "begun": True, "server_boot": "this boot"}
        (place / "boot.json").write_text(json.dumps(about))
        (place / "lock").touch()
        made.append(place / "lock")
    return made


#: Holds every lock that it is given, until its standard input ends: what machines of an earlier haneul look like.
_HOLDER = """
import fcntl, sys
held = [open(path) for path in sys.argv[1:]]
for one in held:
    fcntl.flock(one, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    paths = _folders(tmp_path / "instances", NUMBER)
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield tmp_path / "instances"
    process.communicate(timeout=20)


def _machines(directory: Path, goes_down: bool = False, asked: list[str] | None = None) -> Machines:
    def going_down() -> bool:
        if asked is not None:
            asked.append(threading.current_thread().name)
        return goes_down

    return Machines(directory, lambda one: directory / one, 1, {}, lambda: None, lambda: "this boot", going_down)


def test_adoption_looks_through_proc_once(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was once for each machine: 2.3 s of processor for 240."""
    looks: list[str] = []
    listed = os.listdir

    def counting(path: str | os.PathLike[str] = ".") -> list[str]:
        if str(path) == "/proc":
            looks.append(threading.current_thread().name)
        return listed(path)

    monkeypatch.setattr(locks.os, "listdir", counting)

    async def main() -> None:
        driver = _machines(held)
        for _ in range(3):
            found = await driver.observe()
            assert len(found) == NUMBER and {one.power for one in found.values()} == {"running"}

    asyncio.run(main())
    assert len(looks) == 1 and looks[0] != threading.main_thread().name, "in a thread, and once"


def test_whoever_ends_is_noticed_at_once(held: Path) -> None:
    """By a pidfd, not at the next period."""
    noticed = threading.Event()

    async def main() -> None:
        driver = Machines(held, lambda one: held / one, 1, {}, noticed.set, lambda: "this boot", lambda: False)
        await driver.observe()
        (holder,) = {pid for pids in locks.all_holders(list(held.glob("*/lock"))).values() for pid in pids}
        os.kill(holder, 9)
        async with asyncio.timeout(20):
            while not noticed.is_set():
                await asyncio.sleep(0.01)
        assert {one.power for one in (await driver.observe()).values()} == {"off"}

    asyncio.run(main())


def test_files_that_did_not_change_are_not_read_again(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from haneul.drivers.machines import driver as module

    read: list[Path] = []
    inner = module._read_json

    def counting(path: Path) -> dict[str, object] | None:
        if path.name == "boot.json":
            read.append(path)
        return inner(path)

    monkeypatch.setattr(module, "_read_json", counting)

    async def main() -> None:
        driver = _machines(held)
        for _ in range(3):
            await driver.observe()
        assert len(read) == NUMBER
        changed = held / f"i-{7:017x}" / "boot.json"
        changed.with_name("new").write_text(changed.read_text().replace('"boot_count": 1', '"boot_count": 2'))
        changed.with_name("new").replace(changed)
        found = await driver.observe()
        assert found[f"i-{7:017x}"].boot_count == 2 and len(read) == NUMBER + 1

    asyncio.run(main())


def test_whether_the_server_goes_down_is_asked_in_a_thread_and_once(tmp_path: Path) -> None:
    """It is a program that is run: of a hundred machines that end together, not on the loop and not a hundred times."""
    for lock in _folders(tmp_path, 100):
        ended = {"event": "SHUTDOWN", "data": {"guest": False, "reason": "host-signal"}}
        (lock.parent / "events.log").write_text(json.dumps(ended) + "\n")
    asked: list[str] = []

    async def main() -> None:
        driver = _machines(tmp_path, goes_down=False, asked=asked)
        found = await driver.observe()
        assert {(one.power, one.cause) for one in found.values()} == {("off", "crash")}
        await driver.observe()

    asyncio.run(main())
    assert len(asked) == 1 and asked[0] != threading.main_thread().name


def test_nothing_is_decided_before_it_was_asked(tmp_path: Path) -> None:
    (lock,) = _folders(tmp_path, 1)
    ended = {"event": "SHUTDOWN", "data": {"guest": False, "reason": "host-signal"}}
    (lock.parent / "events.log").write_text(json.dumps(ended) + "\n")
    driver = _machines(tmp_path)
    assert driver._look(lock.parent.name).power == "stopping"
