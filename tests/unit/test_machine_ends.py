"""How a machine ended, by what its folder says: the server's reboot, its disk, a QEMU that lies."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from haneul.agent.agent import Agent
from haneul.drivers.interface import DriverError
from haneul.drivers.machines.driver import Machines, exit_code, how_it_ended, why_paused
from haneul.model.assignment import MachineReport, MachineSpec


def _machines(directory: Path, goes_down: bool = False) -> Machines:
    nowhere = directory / "volumes"
    return Machines(directory, lambda one: nowhere / one, 1, {}, lambda: None,
                        lambda: "this boot", lambda: goes_down)  # fmt: skip


def _folder(directory: Path, boot: str | None, *events: dict[str, Any]) -> None:
    place = directory / "i-1"
    place.mkdir()
    about = {"boot_count": 3, "accelerator": "tcg", "begun": True} | ({"server_boot": boot} if boot else {})
    (place / "boot.json").write_text(json.dumps(about))
    (place / "events.log").write_text("".join(json.dumps(event) + "\n" for event in events))


def _shutdown(reason: str) -> dict[str, Any]:
    return {"event": "SHUTDOWN", "data": {"guest": False, "reason": reason}}


def _look(machines: Machines) -> MachineReport:
    return asyncio.run(machines.observe())["i-1"]


@pytest.mark.parametrize("events", [[], [_shutdown("host-signal")], [{"event": "EXIT", "data": {"code": 143}}]])
def test_what_the_server_took_with_it(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """A power cut says nothing; an orderly reboot of the server ends QEMU by a signal."""
    _folder(tmp_path, "the one before", *events)
    found = _look(_machines(tmp_path))
    assert (found.power, found.boot_count, found.cause) == ("off", 3, "server-reboot")


def test_a_guest_that_had_shut_down_before_stays_so(tmp_path: Path) -> None:
    _folder(tmp_path, "the one before", _shutdown("guest-shutdown"))
    assert _look(_machines(tmp_path)).cause == "guest-shutdown"


def test_while_the_server_goes_down_nothing_is_decided(tmp_path: Path) -> None:
    _folder(tmp_path, "this boot", _shutdown("host-signal"))
    assert _look(_machines(tmp_path, goes_down=True)).power == "stopping"
    assert _look(_machines(tmp_path)).cause == "crash"


def test_the_server_is_asked_only_soon_after_the_end(tmp_path: Path) -> None:
    """Each question is a program that is run: not at every look at a machine that ended long ago."""
    _folder(tmp_path, "this boot", _shutdown("host-signal"))
    os.utime(tmp_path / "i-1" / "events.log", (1, 1))
    assert _look(_machines(tmp_path, goes_down=True)).cause == "crash"


def test_a_killed_machine_tells_the_signal(tmp_path: Path) -> None:
    _folder(tmp_path, "this boot", {"event": "EXIT", "data": {"code": 137}})
    found = _look(_machines(tmp_path))
    assert (found.cause, "out of memory" in found.detail) == ("crash", True)


def test_a_full_disk_pauses_until_it_goes_on() -> None:
    full = '{"event": "BLOCK_IO_ERROR", "data": {"action": "stop", "nospace": true}}\n'
    assert why_paused(full) == "the server's disk is full"
    assert why_paused(full + '{"event": "RESUME"}\n') == ""
    assert why_paused(full.replace("stop", "report")) == ""


def test_a_qemu_that_was_taken_over_writes_no_text_of_its_choice() -> None:
    """It would go into the database, to the API's clients and onto the owner's terminal."""
    evil = "\ud800\0\x1b]0;x\x07" + "A" * 70000
    for text in (
        how_it_ended(json.dumps({"event": "SHUTDOWN", "data": {"reason": evil}})),
        why_paused(json.dumps({"event": "BLOCK_IO_ERROR", "data": {"action": "stop", "reason": evil}})),
    ):
        assert text.isprintable() and text.isascii() and len(text) < 300
    assert exit_code('{"event": "EXIT", "data": {"code": "x"}}') == 0


def test_a_living_machine_is_no_failed_launch() -> None:
    """Whatever cannot be done to it: the report would end it, and its disks with it."""
    agent = Agent(None, None, "server-1")  # type: ignore[arg-type]
    spec = MachineSpec("i-1", "running", 1, False, 60, 1, 128, "tiny", "t3.nano", "hvm", "u", (), ())
    seen = MachineReport("i-1", "running", 1)
    for _ in range(10):
        report = agent._failed(spec, DriverError("QMP cont: it hangs"), seen)
        assert (report.power, report.boot_count, report.cause) == ("running", 1, "")
