"""QEMU's command line, without QEMU."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from haneul.drivers.machines import how_it_ended
from haneul.drivers.places import Places
from haneul.drivers.qemu_command import Kernel, command, lives
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


CRASH = "exit 1"


@pytest.mark.parametrize(
    ("ends", "boots", "code"),
    [
        (["guest-shutdown"], 1, 0),
        (["guest-reset", "guest-reset", "guest-shutdown"], 3, 0),
        (["guest-reset", CRASH], 2, 1),
        (["guest-reset", ""], 2, 0),
    ],
)
def test_the_shell_boots_again_after_resets_only(tmp_path: Path, ends: list[str], boots: int, code: int) -> None:
    """The shell itself, with a stand-in for QEMU that says on its output, or does not, how it ended."""
    places = Places(tmp_path)
    said = [json.dumps({"event": "SHUTDOWN", "data": {"reason": end}}) for end in ends]
    lines = [end if end == CRASH else (f"echo '{one}'" if end else "true") for end, one in zip(ends, said, strict=True)]
    (tmp_path / "todo").write_text("\n".join(lines) + "\n")
    stand_in = (
        f'echo boot >> {tmp_path}/boots; todo=$(head -n 1 {tmp_path}/todo); sed -i 1d {tmp_path}/todo; eval "$todo"'
    )
    with (tmp_path / "feed").open("w") as feed, places.events.open("a") as events:
        done = subprocess.run(
            lives(["sh", "-c", stand_in], None, places, feed.fileno()),
            pass_fds=(feed.fileno(),), stdout=events, check=False, timeout=30,
        )  # fmt: skip
    assert done.returncode == code
    assert (tmp_path / "boots").read_text().split() == ["boot"] * boots
    assert how_it_ended(places.events.read_text()) == ("" if ends[-1] in ("", CRASH) else ends[-1])


def test_how_a_machine_ended_is_read_from_its_events() -> None:
    reset = '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}'
    off = '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}'
    assert how_it_ended(f"{reset}\n{off}\n") == "guest-shutdown"
    assert how_it_ended('{"QMP": {}}\nnot json') == ""


@pytest.mark.parametrize("line", [
    "[]", "1", "null", '"SHUTDOWN"', '{"event": "SHUTDOWN"}', '{"event": "SHUTDOWN", "data": 1}', '{"event": "SHUTDOWN", "data": []}',
    '{"event": "SHUTDOWN", "data": {}}', "[" * 60000, '{"event": {}, "data": null}', "\x00\xff", '{"event": 1e999}',
])  # fmt: skip
def test_events_that_no_qemu_would_write_are_passed_over(line: str) -> None:
    """One machine's log must not keep haneul from looking at the others."""
    assert how_it_ended(line) == ""
    assert how_it_ended('{"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}\n' + line) == "guest-reset"
