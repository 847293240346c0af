"""Templates: what is verified, what cannot be written, which one is found, and what a clone is told."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from pathlib import Path

import pytest

from haneul.drivers import templates, warm
from haneul.drivers.interface import DriverError
from haneul.drivers.templates import Shape, Template, Templates
from haneul.model.assignment import DiskSpec, GuestIdentity, MachineSpec, NicSpec

SHAPE = Shape("tiny", 1, 4, "tcg")
IDENTITY = GuestIdentity("ip-10-0-0-9", "ec2.internal", 20, "10.0.0.1", "10.0.0.2", ("ssh-ed25519 AAAA me\nevil yes",))
SPEC = MachineSpec(
    instance_id="i-0123456789abcdef0", power="running", boot_count=1, force=False, stop_seconds=30, vcpus=1, memory_mib=4,
    image="tiny", instance_type="t3.nano", generation="hvm", uuid="ec2f0f4f-6e0c-4c57-9a9f-0a7d2a3b6c11",
    disks=(DiskSpec("vol-1", "tiny", 1, "/dev/xvda"),),
    nics=(NicSpec("eni-1", "vpc-1", "subnet-1", "06:00:00:00:00:09", "10.0.0.9"),), identity=IDENTITY,
)  # fmt: skip


def _tap() -> int:
    raise AssertionError("no machine is started here")


@pytest.fixture
def store(tmp_path: Path) -> Templates:
    image = tmp_path / "images" / "tiny"
    image.mkdir(parents=True)
    (image / "disk.qcow2").write_bytes(b"disk")
    (image / "image.json").write_text('{"resume": 1}')
    return Templates(tmp_path / "templates", tmp_path / "images", 1, 6, _tap)


def _saved(store: Templates, shape: Shape = SHAPE) -> Path:
    """A template's folder, as a machine that was saved leaves it."""
    directory = store.directory / store._key(shape)
    directory.mkdir(parents=True)
    with (directory / "memory").open("wb") as file:
        file.truncate(shape.memory_mib << 20)
        file.seek(2 << 20)
        file.write(b"guest" * 1000)
    (directory / "state").write_bytes(b"state")
    (directory / "disk.qcow2").write_bytes(b"overlay")
    digests = {name: templates._digest(directory / name) for name in ("state", "disk.qcow2")}
    digests["memory"] = templates._memory_digest(directory / "memory")
    (directory / "template.json").write_text(json.dumps({"digests": digests}))
    return directory


def test_the_memory_of_a_template_is_read_by_all_and_written_by_nobody(store: Templates) -> None:
    directory = _saved(store)
    found = store._load(SHAPE, directory)
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
    with pytest.raises(DriverError, match="damaged"):
        store._load(SHAPE, directory)
    assert not directory.exists()


def test_a_template_of_another_image_or_qemu_is_not_found(store: Templates, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {store._key(SHAPE), store._key(Shape("tiny", 2, 4, "tcg")), store._key(Shape("tiny", 1, 8, "tcg"))}
    assert len(keys) == 3
    before = store._key(SHAPE)
    store._loaded[SHAPE] = store._load(SHAPE, _saved(store))
    assert store.find(SHAPE) is not None
    monkeypatch.setattr(templates, "_qemu_version", lambda: "another")
    assert store._key(SHAPE) != before
    assert store.find(SHAPE) is None and not (store.directory / before).exists()


def test_the_least_recently_used_goes_first(store: Templates) -> None:
    made: list[Template] = []
    for index, vcpus in enumerate((1, 2, 3)):
        shape = Shape("tiny", vcpus, 4, "tcg")
        directory = _saved(store, shape)
        with (directory / "memory").open("r+b") as file:
            file.write(b"x" * (3 << 20))
        about = json.loads((directory / "template.json").read_text())
        about["digests"]["memory"] = templates._memory_digest(directory / "memory")
        (directory / "template.json").write_text(json.dumps(about))
        made.append(store._load(shape, directory))
        made[-1].used = float(index)
        store._loaded[shape] = made[-1]
        store._forget_least_used(made[-1])
    assert set(store._loaded) == {made[1].shape, made[2].shape}, "6 MiB hold two of 3"
    assert not made[0].directory.exists()


def test_an_image_without_a_resume_unit_has_no_templates(store: Templates, tmp_path: Path) -> None:
    assert store.supports("tiny") and not store.supports("none")
    (tmp_path / "images" / "tiny" / "image.json").write_text("{}")
    assert not store.supports("tiny")
    store.want(SHAPE)
    assert store._wanted == {}


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
