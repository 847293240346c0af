"""QEMU's command line, without QEMU."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from haneul.drivers.qemu import how_it_ended
from haneul.drivers.qemu_command import CAPABILITIES, Kernel, Places, command, lives
from haneul.model.assignment import NicSpec
from tests.contract.test_machines import SPEC

PLACES = Places(Path("/data/instances/i-1"))
FILES = {"vol-0123456789abcdef0": Path("/data/volumes/a,b.qcow2")}


def _pairs(arguments: list[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(arguments))


def test_it_is_the_machine_of_the_spec() -> None:
    spec = replace(
        SPEC, vcpus=2, memory_mib=512, nics=(NicSpec("eni-1", "vpc-1", "subnet-1", "06:00:00:00:00:01", "10.0.0.4"),)
    )
    found = _pairs(command(spec, PLACES, FILES, {"eni-1": 9}, "tcg"))
    assert ("-smp", "2") in found and ("-m", "512M") in found
    assert ("-netdev", "tap,id=net0,fd=9") in found
    assert any("mac=06:00:00:00:00:01" in value for _, value in found)
    assert any(f"uuid={spec.uuid},serial={spec.uuid}" in value for _, value in found)
    assert any("file.filename=/data/volumes/a,,b.qcow2" in value for _, value in found), "a comma is doubled"
    assert any("serial=vol0123456789abcdef0" in value for _, value in found)
    assert ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny") in found


def test_a_given_kernel_is_of_the_first_boot_only(tmp_path: Path) -> None:
    kernel = Kernel(Path("/k"), Path("/i"), "root=UUID=1 rw")
    given = command(SPEC, PLACES, FILES, {}, "tcg", kernel)
    own = command(SPEC, PLACES, FILES, {}, "tcg")
    assert "-kernel" in given and "-kernel" not in own
    script = lives(own, given, PLACES, 7)[2]
    assert script.index("-kernel") < script.index("while") and "-kernel" not in script[script.index("while") :]


@pytest.mark.parametrize(
    ("reasons", "boots"), [(["guest-shutdown"], 1), (["guest-reset", "guest-reset", "guest-shutdown"], 3)]
)
def test_the_shell_boots_again_after_resets_only(tmp_path: Path, reasons: list[str], boots: int) -> None:
    """The shell itself, with a stand-in for QEMU that says on the event monitor how it ended."""
    places = Places(tmp_path)
    events = [json.dumps({"event": "SHUTDOWN", "data": {"reason": reason}}) for reason in reasons]
    (tmp_path / "todo").write_text("\n".join(events) + "\n")
    fake = [
        "sh",
        "-c",
        f"head -n 1 {tmp_path}/todo >> {places.events}; sed -i 1d {tmp_path}/todo; echo boot >> {tmp_path}/boots",
    ]
    feed = (tmp_path / "feed").open("w")
    subprocess.run(lives(fake, None, places, feed.fileno()), pass_fds=(feed.fileno(),), check=True, timeout=30)
    assert (tmp_path / "boots").read_text().split() == ["boot"] * boots
    assert (tmp_path / "feed").read_text() in ("", CAPABILITIES)


def test_how_a_machine_ended_is_read_from_its_events() -> None:
    reset = '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}'
    off = '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}'
    assert how_it_ended(f"{reset}\n{off}\n") == "guest-shutdown"
    assert how_it_ended('{"QMP": {}}\nnot json') == ""
