"""QEMU's command line, without QEMU."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from haneul.drivers.machines.driver import how_it_ended
from haneul.drivers.machines.folder import Places
from haneul.drivers.machines.qemu.command import FUNCTIONS, Kernel, Warm, command, lives, plugged, too_many
from haneul.model.assignment import DiskSpec, MachineSpec, NicSpec
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
    assert ("-smp", "2") in found and ("-m", "524280K") in found
    assert ("-netdev", "tap,id=net0,fd=9") in found
    assert any("mac=06:00:00:00:00:01" in value for _, value in found)
    assert any(f"uuid={spec.uuid},serial={spec.uuid}" in value for _, value in found)
    assert any("file.filename=/data/volumes/a,,b.qcow2" in value for _, value in found), "a comma is doubled"
    assert any("serial=vol0123456789abcdef0" in value for _, value in found)
    assert ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny") in found


def _larger(volumes: int, cards: int) -> tuple[MachineSpec, dict[str, Path], dict[str, int]]:
    """With its files and its taps."""
    disks = tuple(DiskSpec(f"vol-{index}", "" if index else "tiny", 1, "", boot=not index) for index in range(volumes))
    nics = tuple(NicSpec(f"eni-{index}", "", "", f"06:00:00:00:00:{index:02x}", "") for index in range(cards))
    files = {disk.volume_id: Path(f"/{disk.volume_id}") for disk in disks}
    return replace(SPEC, disks=disks, nics=nics), files, {nic.interface_id: 10 + n for n, nic in enumerate(nics)}


def _devices(arguments: list[str]) -> list[str]:
    return [value for name, value in _pairs(arguments) if name == "-device"]


def test_what_a_template_has_not_is_plugged_in_later() -> None:
    """Its devices are those of any machine of one disk and one card, in the same places; the rest is only made ready."""
    small, files, taps = _larger(1, 1)
    template = command(small, PLACES, files, taps, "tcg", warm=Warm("/m", 5, shared=True))
    spec, files, taps = _larger(3, 2)
    clone = command(spec, PLACES, files, taps, "tcg", warm=Warm("/m", 5, shared=False))
    assert _devices(clone) == _devices(template)
    assert [name for name, _ in _pairs(clone)].count("-blockdev") == 3 and ("-netdev", "tap,id=net1,fd=11") in _pairs(
        clone
    )
    booted = command(spec, PLACES, files, taps, "tcg")
    assert sum("virtio-blk" in one for one in _devices(booted)) == 3 and not any("spare" in one for one in booted)
    ports = [one for one in _devices(clone) if "pcie-root-port" in one or "serial-pci" in one or "serialport" in one]
    assert _devices(clone)[-len(ports) :] == ports, "behind the others: no other device moves"
    serials = [(one["drive"], one["serial"]) for one in plugged(spec) if "drive" in one]
    assert serials == [("disk2", "vol2"), ("disk1", "vol1")]
    assert all(f"drive={node},id=blk{node[4:]},serial={serial}" in " ".join(booted) for node, serial in serials)


@pytest.mark.parametrize(("volumes", "cards"), [(1, 1), (2, 1), (1, 2), (9, 9)])
def test_the_guest_finds_what_is_plugged_in_its_order(volumes: int, cards: int) -> None:
    """A device's functions are found by number; with the first, which comes last, it is there."""
    found = plugged(_larger(volumes, cards)[0])
    for port, kind, count in (("spare-disks", "blk", volumes - 1), ("spare-nics", "nic", cards - 1)):
        mine = [one for one in found if one["bus"] == port]
        assert [one["addr"] for one in mine] == [f"0.{function}" for function in reversed(range(count))]
        assert [one["id"] for one in mine] == [f"{kind}{1 + function}" for function in reversed(range(count))]
        assert all(one["multifunction"] is (count > 1) for one in mine)
    assert len({one["id"] for one in found}) == volumes + cards - 2


def test_a_port_has_room_for_eight() -> None:
    assert FUNCTIONS == 8, "a function's number has three bits"
    assert too_many(_larger(9, 9)[0]) == ""
    assert "10 volumes" in too_many(_larger(10, 1)[0]) and "10 network interfaces" in too_many(_larger(1, 10)[0])


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
