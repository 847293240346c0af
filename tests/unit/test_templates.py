"""Templates: what is verified, what cannot be written, which one is found, and what a clone is told."""

from __future__ import annotations

import asyncio
import fcntl
import json
import mmap
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from haneul.drivers.interface import DriverError
from haneul.drivers.machines.folder import Places
from haneul.drivers.machines.qemu import command as qemu_command
from haneul.drivers.machines.qemu import resume as warm
from haneul.drivers.machines.qemu import template_machine, templates
from haneul.drivers.machines.qemu.command import Accelerator
from haneul.drivers.machines.qemu.templates import DamagedError, Server, Shape, Templates
from haneul.images.resume import unit as resume
from haneul.images.store import RECIPES
from haneul.model import template as rules
from haneul.model.assignment import DiskSpec, GuestIdentity, MachineSpec, NicSpec

SHAPE = Shape("tiny", "t3.nano", 1, 4, "tcg")
IMAGE = {"resume": 1, "description": "", "created": 0}
MIB = 1 << 20
IDENTITY = GuestIdentity("ip-10-0-0-9", "ec2.internal", 20, "10.0.0.1", "10.0.0.2", ("ssh-ed25519 AAAA me\nevil yes",))
SPEC = MachineSpec(
    instance_id="i-0123456789abcdef0", power="running", boot_count=1, force=False, stop_seconds=30, vcpus=1, memory_mib=4,
    image="tiny", instance_type="t3.nano", generation="hvm", uuid="ec2f0f4f-6e0c-4c57-9a9f-0a7d2a3b6c11",
    disks=(DiskSpec("vol-1", "tiny", 1, "/dev/xvda"),),
    nics=(NicSpec("eni-1", "vpc-1", "subnet-1", "06:00:00:00:00:09", "10.0.0.9"),), identity=IDENTITY,
)  # fmt: skip


def _tap() -> int:
    raise AssertionError("no machine is started here")


async def _tcg() -> Accelerator:
    return "tcg"


def _templates(place: Path, most_mib: int = 6) -> Templates:
    """As a haneul that was started on this place has them."""
    server = Server(1, vcpus=32, memory_mib=4096, tap=_tap, accelerator=_tcg)
    return Templates(place / "templates", place / "images", server, most_mib, protocol=1)


def _image(place: Path, name: str = "tiny", **about: Any) -> None:
    image = place / "images" / name
    image.mkdir(parents=True)
    (image / "disk.qcow2").write_bytes(b"disk")
    (image / "image.json").write_text(json.dumps(IMAGE | about))


@pytest.fixture
def store(tmp_path: Path) -> Templates:
    _image(tmp_path)
    return _templates(tmp_path)


def _saved(store: Templates, shape: Shape = SHAPE, used: float = 0, mib: int = 0) -> Path:
    """A template's folder, as a machine that was saved leaves it, with `mib` MiB that are no holes."""
    directory = store.directory / store._key(shape)
    directory.mkdir(parents=True)
    with (directory / "memory").open("wb") as file:
        file.truncate(shape.memory_mib << 20)
        file.seek(2 << 20)
        file.write(b"guest" * 1000)
        file.seek(0)
        file.write(b"x" * (mib * MIB))
    (directory / "state").write_bytes(b"state")
    (directory / "disk.qcow2").write_bytes(b"overlay")
    digests = {name: templates._digest(directory / name) for name in ("state", "disk.qcow2")}
    digests["memory"] = templates._memory_digest(directory / "memory")
    about = {"digests": digests, "shape": asdict(shape), "made": 1.0, "seconds": 2.0}
    (directory / "template.json").write_text(json.dumps(about))
    os.utime(directory / "template.json", (used, used))
    return directory


def _load(store: Templates, shape: Shape = SHAPE) -> None:
    asyncio.run(store._load(shape, store.directory / store._key(shape)))


@pytest.mark.parametrize(
    ("launches", "state"),
    [
        (["late"] * 2, "loaded"),
        (["late", "late", "", "late"], "loaded"),
        (["late"] * 3, "failed"),
        (["late"] * 9, "failed"),
    ],
)
def test_a_template_that_fails_several_launches_in_a_row_goes(
    store: Templates, launches: list[str], state: str
) -> None:
    directory = _saved(store)
    _load(store)
    template = store._loaded[SHAPE]
    for why in launches:
        store.went_on(template, time.monotonic(), why)
    (report,) = store.observe()
    assert report.state == state and directory.exists() == (state == "loaded")
    if state == "failed":
        assert report.reason == "3 launches in a row could not go on from it: late"
        store.want(SHAPE)
        assert not store._wanted, "it is not made again at once"


def test_who_is_late_says_nothing_of_a_template_that_let_others_go_on(store: Templates) -> None:
    _saved(store)
    _load(store)
    template, began = store._loaded[SHAPE], time.monotonic()
    for why in ("", "late", "late", "late", "late"):
        store.went_on(template, began, why)
    assert _states(store) == {"t3.nano": "loaded"}


def test_misses_are_not_the_next_templates_and_its_pause_grows_until_it_works(store: Templates) -> None:
    for _ in range(2):
        _saved(store)
        _load(store)
        template = store._loaded[SHAPE]
        for _ in range(5):
            store.went_on(template, time.monotonic(), "late")
        assert _states(store) == {"t3.nano": "failed"}
    assert store._failures[SHAPE].pause == 2 * rules.FIRST_PAUSE
    _saved(store)
    _load(store)
    store.went_on(template, time.monotonic(), "late")
    assert store._loaded[SHAPE].misses == 0
    store.went_on(store._loaded[SHAPE], time.monotonic(), "")
    assert not store._failures


def _states(store: Templates) -> dict[str, str]:
    return {one.instance_type: one.state for one in store.observe()}


async def _taken_up(store: Templates) -> None:
    """What `run` does until it waits."""
    await store._take_up()
    while store._wanted:
        await store._fulfil(next(iter(store._wanted)))


def test_the_memory_of_a_template_is_read_by_all_and_written_by_nobody(store: Templates) -> None:
    directory = _saved(store)
    found = store._read(SHAPE, directory)
    path = f"/proc/self/fd/{found.memory}"
    with open(path, "rb") as file:
        file.seek(2 << 20)
        assert file.read(5) == b"guest"
    writable = os.open(path, os.O_RDWR)
    with pytest.raises(OSError):
        os.write(writable, b"x")
    with pytest.raises(OSError):
        os.ftruncate(writable, 1)
    with pytest.raises(OSError):
        mmap.mmap(writable, 4096, mmap.MAP_SHARED)
    private = mmap.mmap(writable, 4 << 20, mmap.MAP_PRIVATE)
    private[2 << 20 : (2 << 20) + 5] = b"clone"
    with open(path, "rb") as file:
        file.seek(2 << 20)
        assert file.read(5) == b"guest"
    assert fcntl.fcntl(found.memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
    private.close()
    os.close(writable)
    found.close()


@pytest.mark.parametrize("name", ["memory", "state", "disk.qcow2"])
def test_what_was_changed_is_not_used_and_goes(store: Templates, name: str) -> None:
    directory = _saved(store)
    with (directory / name).open("r+b") as file:
        file.write(b"evil")
    with pytest.raises(DamagedError):
        store._read(SHAPE, directory)
    assert not directory.exists()


def test_a_template_of_another_image_or_qemu_is_not_found(store: Templates, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{"vcpus": 2}, {"memory_mib": 8}, {"instance_type": "t3.micro"}, {"accelerator": "kvm"}]
    assert len({store._key(SHAPE), *(store._key(replace(SHAPE, **one)) for one in others)}) == 5
    before = store._key(SHAPE)
    _saved(store)
    _load(store)
    assert store.find(SHAPE) is not None
    monkeypatch.setattr(templates, "_qemu_version", lambda: "another")
    assert store._key(SHAPE) != before
    assert store.find(SHAPE) is None and not (store.directory / before).exists()


def test_under_kvm_a_template_is_of_this_servers_processor(store: Templates, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was put into another server, a virtual server that was moved: what is emulated does not notice."""
    emulated, own = SHAPE, replace(SHAPE, accelerator="kvm")
    before = store._key(emulated), store._key(own)
    assert templates._processor().startswith("vendor_id")
    monkeypatch.setattr(templates, "_processor", lambda: "another")
    assert store._key(emulated) == before[0] and store._key(own) != before[1]


def test_the_least_recently_used_goes_first_from_memory_and_later_from_disk(store: Templates) -> None:
    shapes = [replace(SHAPE, instance_type=f"t3.{size}") for size in ("nano", "micro", "small", "medium", "large")]
    for number, shape in enumerate(shapes):
        _saved(store, shape, used=number + 1, mib=3)
        _load(store, shape)
        store._bound_disk(store._key(shape))
    assert _states(store) == {"t3.small": "saved", "t3.medium": "loaded", "t3.large": "loaded"}, "6 MiB, and 12 on disk"
    assert store.find(shapes[3]) is not None
    _load(store, shapes[2])
    assert _states(store)["t3.large"] == "saved", "medium was used after it"


def test_what_has_no_room_says_so_and_takes_none(store: Templates) -> None:
    _saved(store, mib=4)
    big = replace(SHAPE, instance_type="t3.large", memory_mib=8)
    _saved(store, big, mib=8)
    _load(store)
    with pytest.raises(DriverError, match="warm_max_mib"):
        _load(store, big)
    assert _states(store) == {"t3.nano": "loaded", "t3.large": "saved"}


def test_they_make_way_for_machines(store: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used first, while the server is short of memory; then none is loaded, and the reason is told."""
    for used, size in ((1, "nano"), (2, "micro")):
        shape = replace(SHAPE, instance_type=f"t3.{size}")
        _saved(store, shape, used=used)
        _load(store, shape)
    monkeypatch.setattr(templates, "_available", lambda: templates.LEAST_AVAILABLE - 1)
    asyncio.run(store._look())
    assert _states(store) == {"t3.nano": "saved", "t3.micro": "loaded"}
    with pytest.raises(DriverError, match="too little memory"):
        _load(store)
    again = _templates(tmp_path)
    asyncio.run(_taken_up(again))
    assert set(_states(again).values()) == {"saved"}


def test_a_clone_keeps_what_it_has_mapped_when_its_template_goes(store: Templates) -> None:
    directory = _saved(store)
    _load(store)
    launched = store.find(SHAPE)
    assert launched is not None
    with open(f"/proc/self/fd/{os.dup(launched.memory)}", "r+b") as file:
        clone = mmap.mmap(file.fileno(), 4 * MIB, mmap.MAP_PRIVATE)
    store._drop(launched)
    assert not directory.exists() and store.find(SHAPE) is None
    assert clone[2 * MIB : 2 * MIB + 5] == b"guest"
    clone.close()


def test_the_descriptor_of_a_template_that_a_launch_still_has_is_no_other_files(store: Templates) -> None:
    """It is dropped while a launch, in another thread, is about to hand it on: its number must not be given away."""
    _saved(store)
    _load(store)
    launched = store.find(SHAPE)
    assert launched is not None
    number = launched.memory
    store._drop(launched)
    assert os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:haneul-template")
    del launched
    assert not os.path.exists(f"/proc/self/fd/{number}")


# --- after a start ------------------------------------------------------------------------------------------


def test_a_start_takes_up_what_was_used_last(store: Templates, tmp_path: Path) -> None:
    for used, size in ((10, "nano"), (30, "micro"), (20, "small")):
        _saved(store, replace(SHAPE, instance_type=f"t3.{size}"), used=used, mib=3)
    again = _templates(tmp_path)
    assert again.find(SHAPE) is None
    asyncio.run(_taken_up(again))
    assert _states(again) == {"t3.micro": "loaded", "t3.small": "loaded", "t3.nano": "saved"}
    assert {one.used for one in again.observe()} == {10, 20, 30}, "to look at one is not to use it"
    found = again.find(replace(SHAPE, instance_type="t3.micro"))
    assert found is not None and time.time() - (found.directory / "template.json").stat().st_mtime < 5


def _break_disk(place: Path) -> None:
    (place / "images" / "tiny" / "disk.qcow2").write_bytes(b"built again")


def _remove_image(place: Path) -> None:
    (place / "images" / "tiny" / "image.json").unlink()


def _change_image(place: Path) -> None:
    (place / "images" / "tiny" / "image.json").write_text(json.dumps(IMAGE | {"created": 1}))


def _damage(place: Path) -> None:
    for path in (place / "templates").glob("*/state"):
        path.write_bytes(b"evil")


def _older_haneul(place: Path) -> None:
    for path in (place / "templates").glob("*/template.json"):
        path.write_text('{"digests": {}, "layout": 1}')


def _another_qemu(place: Path) -> None:
    pass


@pytest.mark.parametrize("happened", [_break_disk, _remove_image, _change_image, _damage, _older_haneul, _another_qemu])
def test_what_nothing_uses_any_more_goes(
    store: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: Any
) -> None:
    directory = _saved(store)
    (store.directory / ".making-left").mkdir()
    happened(tmp_path)
    if happened is _another_qemu:
        monkeypatch.setattr(templates, "_qemu_version", lambda: "another")
    asyncio.run(_taken_up(_templates(tmp_path)))
    assert not directory.exists() and list(store.directory.iterdir()) == []


def test_a_loaded_one_goes_with_its_image_and_a_folder_that_is_gone_is_not_used(
    store: Templates, tmp_path: Path
) -> None:
    directory = _saved(store)
    _load(store)
    _change_image(tmp_path)
    asyncio.run(store.sweep())
    assert store.observe() == [] and not directory.exists()
    directory = _saved(store)
    _load(store)
    directory.rename(tmp_path / "away")
    assert store.find(SHAPE) is None


# --- failures -----------------------------------------------------------------------------------------------


def test_a_failure_is_tried_again_after_a_growing_time() -> None:
    one = rules.failed(None, "no", "key", 1000.0)
    two = rules.failed(one, "no", "key", 2000.0)
    assert (one.retry, two.retry) == (1600.0, 3200.0)
    for _ in range(20):
        two = rules.failed(two, "no", "key", 0.0)
    assert two.pause == rules.LONGEST_PAUSE
    assert rules.failed(two, "no", "another image", 0.0).pause == rules.FIRST_PAUSE


def test_a_failure_is_kept_with_its_reason_until_its_time_or_an_order(
    store: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def make(shape: Shape, directory: Path) -> None:
        tries.append(shape)
        raise DriverError("the guest never waited")

    monkeypatch.setattr(store, "_make", make)
    shape = asyncio.run(store.shape("tiny", "t3.nano"))
    for _ in range(2):
        store.want(shape)
        asyncio.run(_taken_up(store))
    (found,) = store.observe()
    assert len(tries) == 1, "a second launch has no second one made"
    assert (found.state, found.reason) == ("failed", "the guest never waited") and found.retry > time.time() + 500

    async def ordered() -> None:
        assert (await store.order("tiny", "t3.nano")).state == "waiting"
        await _taken_up(store)

    asyncio.run(ordered())
    assert len(tries) == 2
    monkeypatch.setattr(templates.time, "time", lambda: 1e10)
    store.want(shape)
    assert list(store._wanted) == [shape], "its time has come"
    store._wanted.clear()
    _change_image(tmp_path)
    asyncio.run(store.sweep())
    assert store.observe() == [], "another image is another chance"


# --- whose they are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({}, ""),
        ({"resume": 0}, "no resume unit"),
        ({"resume": 2}, "speaks protocol 2"),
        ({"resume": "yes"}, "speaks protocol yes"),
        ({"imported": {"format": "raw", "sha256": "", "source": "x"}}, "imported"),
    ],
)
def test_only_what_was_built_here_with_a_unit_that_is_understood_has_templates(
    tmp_path: Path, about: dict[str, Any], why: str
) -> None:
    _image(tmp_path, **about)
    store = _templates(tmp_path)
    assert why in store.why_not("tiny") and bool(why) == bool(store.why_not("tiny"))
    store.want(SHAPE)
    assert bool(store._wanted) == (not why)
    if why:
        with pytest.raises(DriverError, match=why):
            asyncio.run(store.order("tiny", "t3.nano"))
        with pytest.raises(DriverError, match=why):
            asyncio.run(store.ensure(SHAPE))
        _saved(store)
        assert not store._fits(SHAPE, store.directory / store._key(SHAPE)), "nor is one used that is there"


def test_the_recipes_speak_this_haneuls_protocol() -> None:
    assert {one.resume for one in RECIPES.values()} <= {0, resume.PROTOCOL}
    assert f'"waiting {resume.PROTOCOL}\\n"' in resume.source()


@pytest.mark.parametrize(
    ("image", "instance_type", "why"),
    [
        ("none", "t3.nano", "no such image"),
        ("tiny", "t9.nano", "no instance type"),
        ("tiny", "e1.nano", "emulated"),
        ("tiny", "t1.micro", "paravirtual"),
        ("tiny", "m1.small", "paravirtual"),
        ("tiny", "t3.large", "8192 MiB of memory, this server has 4096"),
        ("tiny", "c5.24xlarge", "MiB of memory"),
    ],
)
def test_what_can_have_no_template_is_told(store: Templates, image: str, instance_type: str, why: str) -> None:
    with pytest.raises(DriverError, match=why):
        asyncio.run(store.order(image, instance_type))
    assert store._wanted == {}


def test_an_image_of_the_same_content_and_another_name_has_templates_of_its_own(
    store: Templates, tmp_path: Path
) -> None:
    _image(tmp_path, "other")
    _saved(store)
    _load(store)
    assert store.find(SHAPE) is not None and store.find(replace(SHAPE, image="other")) is None


def test_a_templates_machine_is_of_its_type() -> None:
    spec = templates._spec(SHAPE)
    assert (spec.instance_type, spec.vcpus, spec.memory_mib) == ("t3.nano", 1, 4)
    assert any("product=t3.nano" in word for word in qemu_command._smbios(spec))


# --- what its machine may have left -------------------------------------------------------------------------


def _machine(tmp_path: Path) -> Places:
    places = Places(tmp_path / ".making-x")
    places.run.mkdir(parents=True)
    for name in ("memory", "disk.qcow2", "console.log"):
        (places.run / name).write_bytes(name.encode())
    return places


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")
def test_what_a_machine_leaves_is_roots_and_nothing_else_is_there(tmp_path: Path) -> None:
    places, precious = _machine(tmp_path), tmp_path / "precious"
    precious.write_bytes(b"precious")
    (places.run / "state").symlink_to(precious)
    (places.run / "folder" / "in").mkdir(parents=True)
    for path in (places.run, *places.run.iterdir()):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    template_machine._take_back(places, b"the devices")
    assert {path.name for path in places.run.iterdir()} == set(template_machine.FILES)
    assert (places.run / "state").read_bytes() == b"the devices" and precious.read_bytes() == b"precious"
    found = [path.lstat() for path in (places.run, *places.run.iterdir())]
    assert {(one.st_uid, one.st_gid, one.st_mode & 0o077) for one in found} == {(0, 0, 0)}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_a_machine_that_puts_something_else_in_place_is_no_template(tmp_path: Path, kind: str) -> None:
    places, precious, disk = _machine(tmp_path), tmp_path / "precious", tmp_path / ".making-x" / "run" / "disk.qcow2"
    precious.write_bytes(b"precious")
    os.chown(precious, 12345, 12345)
    disk.unlink()
    {"link": disk.symlink_to, "hard link": disk.hardlink_to, "pipe": lambda _: os.mkfifo(disk)}[kind](precious)
    with pytest.raises((DriverError, OSError)):
        template_machine._take_back(places, b"")
    assert precious.stat().st_uid == 12345


# --- what a clone is told -----------------------------------------------------------------------------------


def test_a_clone_is_told_who_it_is_in_lines() -> None:
    text = warm.told(SPEC, "m" * 32, "boot", b"\x01\x02")
    lines = dict(line.split(" ", 1) for line in text.splitlines())
    assert lines["hostname"] == "ip-10-0-0-9" and lines["address"] == "10.0.0.9" and lines["prefix"] == "20"
    assert lines["seed"] == "0102" and lines["mac"] == "06:00:00:00:00:09"
    assert lines["key"] == "ssh-ed25519 AAAA me evil yes", "no key makes lines of its own"


def test_what_the_guest_answers_is_read_and_failures_are_told() -> None:
    assert warm.answered("resumed hostname=a address=1.2.3.4")["address"] == "1.2.3.4"
    for line in ("failed the clock: Operation not permitted", "", "resume"):
        with pytest.raises(DriverError):
            warm.answered(line)
