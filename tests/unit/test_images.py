"""Recipes and the store: what is pure of them, and how the store leaves a folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from haneul.images import store
from haneul.images.build import initrd
from haneul.images.recipes import debian, tiny
from haneul.images.resume import unit as resume
from haneul.model import generation

#: As depmod writes it of Debian's full kernel, in small.
MODULES = {
    "modules.dep": """\
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/lib/crc16.ko:
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/one.ko:
kernel/other.ko:
""",
    "modules.softdep": """\
# Soft dependencies extracted from modules themselves.
softdep ext4 pre: crypto-crc32c
softdep jbd2 pre: crypto-crc32c
softdep one pre: other nothing post: virtio_blk
softdep other pre: one
""",
    "modules.alias": """\
# Aliases extracted from modules themselves.
alias crypto-crc32c crc32c_intel
alias crypto-crc32c crc32c_generic
alias cpu:type:x86,ven*fam*mod*:feature:*0094* crc32c_intel
""",
}


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def order(modules: Path, *names: str) -> list[str]:
    return [path.stem for path in initrd.with_dependencies(modules, names)]


def test_a_module_comes_behind_what_it_needs(modules: Path) -> None:
    assert order(modules, "virtio_blk") == ["virtio_ring", "virtio", "virtio_blk"]


def test_what_a_module_asks_for_while_it_works_comes_before_it(modules: Path) -> None:
    """By its other name, which several modules may have: all of them are loaded, as modprobe would."""
    assert order(modules, "ext4") == ["crc32c-intel", "crc32c_generic", "jbd2", "crc16", "ext4"]


def test_modules_come_once_and_names_without_a_file_are_built_in(modules: Path) -> None:
    assert order(modules, "virtio", "nvme", "virtio_blk", "virtio") == ["virtio_ring", "virtio", "virtio_blk"]


def test_modules_that_ask_for_each_other_have_an_end(modules: Path) -> None:
    assert sorted(order(modules, "one")) == ["one", "other"]


def test_recipes_say_what_their_images_boot_under() -> None:
    for recipe in store.RECIPES.values():
        assert recipe.generations and generation.parse(recipe.generations) == recipe.generations
    named = {name: recipe.generations for name, recipe in store.RECIPES.items()}
    assert named["tiny"] == named["debian-12"] == ("paravirtual", "hvm")
    for name in ("tiny-generic", "debian-12-generic", "debian-12-lab"):
        assert named[name] == generation.GENERATIONS


def test_what_a_recipe_says_is_in_the_catalogue(tmp_path: Path) -> None:
    def build(work: Path, output: Path, say: store.Say) -> None:
        (output / "disk.qcow2").write_bytes(b"disk")

    recipe = store.Recipe("some", "some image", 1, "root", build, ("paravirtual",))
    images = store.ImageStore(tmp_path)
    images.add("some", lambda work, output: store._by_recipe(recipe, work, output, print), print)
    assert json.loads((tmp_path / "some" / "image.json").read_text())["generations"] == ["paravirtual"]
    assert images.catalogue()[0].generations == ("paravirtual",)


def test_a_folder_beside_the_disk_keeps_its_programs(tmp_path: Path) -> None:
    def fill(work: Path, output: Path) -> dict[str, Any]:
        (output / "disk.qcow2").write_bytes(b"disk")
        (output / "tools" / "bin").mkdir(parents=True, mode=0o700)
        for name, mode in (("program", 0o700), ("data", 0o600)):
            (output / "tools" / "bin" / name).write_text(name)
            (output / "tools" / "bin" / name).chmod(mode)
        return {"description": "", "size_gib": 1, "user": "root"}

    store.ImageStore(tmp_path).add("some", fill, print)
    found = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert found == {
        "some": 0o755, "some/disk.qcow2": 0o644, "some/image.json": 0o644, "some/tools": 0o755, "some/tools/bin": 0o755,
        "some/tools/bin/program": 0o755, "some/tools/bin/data": 0o644,
    }  # fmt: skip


def test_scripts_of_images_are_shell() -> None:
    scripts = tiny.TINY_SCRIPTS | debian.DEBIAN_SCRIPTS | {"init": initrd.INITRD_INIT}
    for name, text in scripts.items():
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
        assert not done.returncode, f"{name}: {done.stderr}"


@pytest.mark.parametrize(
    ("instance", "kept"), [("i-1", True), ("i-2", False), (None, True)], ids=["the clone", "of its image", "not known"]
)
def test_host_keys_are_kept_by_the_clone_that_was_given_them_alone(
    tmp_path: Path, instance: str | None, kept: bool
) -> None:
    """What the unit runs before cloud-init looks at the keys, with files of this test."""
    keep, known = tmp_path / "keep.cfg", tmp_path / "instance-id"
    keep.write_text("# i-1\nssh_deletekeys: false\n")
    if instance is not None:
        known.write_text(f"{instance}\n")
    unit = resume.DEBIAN_FILES["etc/systemd/system/cloud-init.service.d/haneul-resumed.conf"]
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStartPre=")]
    script = line.partition(" -c ")[2].strip("'").replace("$$", "$")
    for path, own in ((resume._KEEP_KEYS, keep), (resume._INSTANCE, known)):
        assert path in script
        script = script.replace(path, str(own))
    subprocess.run(["/bin/sh", "-c", script], check=True)
    assert keep.exists() == kept
