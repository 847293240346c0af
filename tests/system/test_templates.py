"""The life of templates: made when asked for, there again after a restart, gone with their image, closed to every machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from haneul.drivers.machines import folder as places
from tests.system.conftest import Haneul, eventually

Tally = Callable[[str], None]
PROBE = Path(__file__).with_name("probe.py")
PYTHON = str(shutil.which("python3", path="/usr/bin:/bin"))


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    """An image store of our own, because what is in it is changed."""
    source = Path(os.environ.get("HANEUL_TEST_IMAGES", "/var/lib/haneul/images")) / "tiny"
    if not json.loads((source / "image.json").read_text()).get("resume"):
        pytest.skip("this tiny was built before there were resume units: haneul image build --again tiny")
    place = Path(tempfile.mkdtemp(prefix="haneul-images-", dir="/var/tmp"))
    place.chmod(0o755)
    for name in ("tiny", "broken"):
        shutil.copytree(source, place / name)
    (place / "broken" / "vmlinuz").write_bytes(b"no kernel")
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def haneul(make_haneul: Callable[..., Haneul], images: Path) -> Haneul:
    return make_haneul(HANEUL_WARM="auto", HANEUL_IMAGES=str(images))


def _templates(haneul: Haneul) -> dict[str, dict[str, Any]]:
    """Those of tiny, by type."""
    found = json.loads(haneul.run("image", "templates", "--json").stdout)
    return {one["instance_type"]: one for one in found if one["image"] == "tiny"}


def _launched(haneul: Haneul, instance_type: str) -> tuple[str, str]:
    """(instance, what `haneul status` says of it)."""
    (instance,) = haneul.launch(InstanceType=instance_type)
    haneul.until_ssh(instance)
    phase = next(str(one["phase"]) for one in haneul.status()["instances"] if one["instance"] == instance)
    return instance, phase


def _is_loaded(haneul: Haneul, instance_type: str) -> Callable[[], bool]:
    return lambda: _templates(haneul).get(instance_type, {}).get("state") == "loaded"


def test_one_that_was_made_before_haneul_ran_is_there_when_it_does(haneul: Haneul) -> None:
    said = haneul.run("image", "warm", "tiny", "--type", "t3.nano", timeout=300).stdout
    assert "booting a machine" in said and "`haneul up` loads it" in said
    assert _templates(haneul)["t3.nano"]["state"] == "saved"
    haneul.up()
    eventually("it is loaded", _is_loaded(haneul, "t3.nano"), 60)
    instance, phase = _launched(haneul, "t3.nano")
    assert phase == "on, from a template"
    assert haneul.ssh(instance, "cat /sys/class/dmi/id/product_name") == "t3.nano"
    haneul.terminate(instance)


def test_one_that_is_ordered_serves_the_very_next_launch(haneul: Haneul, record_tally: Tally) -> None:
    haneul.run("image", "warm", "tiny", "--type", "t3.micro", timeout=300)
    found = _templates(haneul)
    assert found["t3.micro"]["state"] == "loaded" and found["t3.micro"]["memory_bytes"] > 1 << 20
    instance, phase = _launched(haneul, "t3.micro")
    assert phase == "on, from a template"
    assert haneul.ssh(instance, "cat /sys/class/dmi/id/product_name") == "t3.micro", "not that of another template"
    assert _templates(haneul)["t3.micro"]["used"] > found["t3.micro"]["used"]
    again = json.loads(haneul.run("image", "warm", "tiny", "--type", "t3.micro", "--json").stdout)
    assert [one["made"] for one in again] == [found["t3.micro"]["made"]], "it is there already"
    haneul.terminate(instance)
    record_tally(f"a template of tiny was made in {found['t3.micro']['seconds']:.0f} s, and the next launch was warm")


def test_what_cannot_be_is_told(haneul: Haneul) -> None:
    for arguments, code, words in (
        (["nothing"], 3, "there is no image 'nothing'"),
        (["tiny", "--type", "t9.nano"], 2, "there is no instance type 't9.nano'"),
        (["tiny", "--type", "t1.micro"], 2, "the generation paravirtual has no templates"),
        (["tiny", "--type", "r5.24xlarge"], 3, "this server has"),
        (["broken"], 1, "QEMU ended before the guest's resume unit waited: qemu"),
    ):
        done = haneul.run("image", "warm", *arguments, check=False, timeout=120)
        assert done.returncode == code and words in done.stderr.replace("\n", " "), done
    (broken,) = [
        one for one in json.loads(haneul.run("image", "templates", "--json").stdout) if one["image"] == "broken"
    ]
    assert broken["state"] == "failed" and broken["retry"] > broken["made"] and "QEMU ended" in broken["reason"]


# --- no machine gets at them ----------------------------------------------------------------------------

#: What a machine could try with the memory that it was given. Prints what it could do.
_WITH_MEMORY = """
import ctypes, mmap, os, sys
directory = f"/proc/{sys.argv[1]}/fd"
found = [one for one in os.listdir(directory) if "memfd:haneul-template" in os.readlink(f"{directory}/{one}")]
assert found
for one in found:
    number = os.open(f"{directory}/{one}", os.O_RDWR)
    size = os.fstat(number).st_size
    assert len(os.pread(number, 4096, 0)) == 4096
    def shared(): mmap.mmap(number, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    def upgraded():
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        place = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, number, ctypes.c_long(0))
        if place in (None, ctypes.c_void_p(-1).value) or libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(4096), 3):
            raise OSError(ctypes.get_errno(), "")
    def seals():
        import fcntl
        fcntl.fcntl(number, 1033, 0x10)
    def punched():
        if ctypes.CDLL(None, use_errno=True).fallocate(number, 3, ctypes.c_long(0), ctypes.c_long(4096)):
            raise OSError(ctypes.get_errno(), "")
    tries = {
        "written": lambda: os.pwrite(number, b"x", 0), "shrunk": lambda: os.ftruncate(number, 4096),
        "grown": lambda: os.ftruncate(number, size + 4096), "extended": lambda: os.posix_fallocate(number, size, 4096),
        "mapped shared and writable": shared, "a shared mapping made writable": upgraded, "sealed": seals, "punched": punched,
    }
    for name, act in tries.items():
        try:
            act()
        except OSError:
            print("refused", name)
        else:
            print("DONE", name)
"""


def _as_machine(uid: int, script: str, *arguments: str) -> str:
    confined = places.confined(uid, [], [PYTHON, "-I", "-", *arguments])
    done = subprocess.run(
        confined, input=script, capture_output=True, text=True, check=False, timeout=120, cwd="/", env={"PATH": "/usr/bin:/bin"}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_machine_reads_a_template_and_none_writes_the_memory_that_it_has(
    haneul: Haneul, record_tally: Tally
) -> None:
    """With the uid of a machine that went on from one, and without QEMU's seccomp filter."""
    instance, phase = _launched(haneul, "t3.nano")
    assert phase == "on, from a template"
    uid = int((haneul.data / "instances" / instance / "uid").read_text())
    directory = haneul.data / "templates"
    below = sorted(directory.rglob("*"))
    assert {path.name for path in below if path.is_file()} == {"memory", "state", "disk.qcow2", "template.json"}
    assert {path.stat().st_mode & 0o777 for path in below if path.is_dir()} == {0o700}
    folders = [str(path) for path in (directory, *below) if path.is_dir()]
    own = str(haneul.data / "instances" / instance / "run" / "console.log")
    targets: dict[str, Any] = {
        "own_files": [own], "own_sockets": [], "files": [str(path) for path in below if path.is_file()], "write": [],
        "folders": folders, "make_in": folders, "sockets": [], "namespaces": [], "fixed": folders,
        "pids": {"haneul": haneul.pids[0]},
    }  # fmt: skip
    found = json.loads(_as_machine(uid, PROBE.read_text(), json.dumps(targets)))
    assert set(found["own"].values()) == {"done"}, "the probe itself works"
    tried = {name: outcome for name, outcome in found["tried"].items() if "haneul" in name}
    assert [name for name, outcome in tried.items() if outcome == "done"] == []
    told = _as_machine(uid, _WITH_MEMORY, str(haneul.qemu_pid(instance))).splitlines()
    assert len(told) >= 8 and [line for line in told if not line.startswith("refused")] == []
    record_tally(
        f"attempts of a machine's uid on templates: {len(tried)}, and {len(told)} to change the memory it has of one; 0 done"
    )
    haneul.terminate(instance)


# --- they go --------------------------------------------------------------------------------------------


def test_they_survive_a_kill_and_a_clone_survives_them(haneul: Haneul, images: Path) -> None:
    haneul.kill()
    haneul.up()
    eventually("they are loaded again", _is_loaded(haneul, "t3.nano"), 60)
    clone, phase = _launched(haneul, "t3.nano")
    assert phase == "on, from a template"
    before = {path.name for path in (haneul.data / "templates").iterdir()}
    os.utime(images / "tiny" / "disk.qcow2")  # as a build in its place would
    cold, phase = _launched(haneul, "t3.nano")
    assert phase == "on", "a template of another image is not used"
    assert "t3.micro" not in _templates(haneul), "what nothing can go on from is not shown"
    haneul.kill()
    haneul.up()
    eventually(
        "the old ones are gone", lambda: not before & {one.name for one in (haneul.data / "templates").iterdir()}, 60
    )
    assert haneul.ssh(clone, "find / -xdev -type f -exec cat {} + >/dev/null 2>&1; echo fine", timeout=120) == "fine"
    haneul.terminate(clone, cold)


def test_they_go_with_their_image(haneul: Haneul) -> None:
    haneul.run("image", "warm", "tiny", "--type", "t3.nano", timeout=300)
    haneul.run("image", "rm", "tiny")
    assert _templates(haneul) == {}
    assert [one.name for one in (haneul.data / "templates").iterdir() if not one.name.startswith(".")] == []
