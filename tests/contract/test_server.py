"""The contracts of `ServerDriver` and `MetadataDriver`, and the probe behind the first."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from haneul.drivers.fake import FakeMetadata, FakeServer, World
from haneul.drivers.host import linux, probe
from haneul.drivers.host.linux import LinuxServer, find_kernel
from haneul.drivers.interface import MetadataDriver, ServerDriver
from haneul.drivers.machines.uml import engine as uml
from haneul.drivers.metadata import MetadataProcess
from haneul.linux import kvm, locks, netns
from haneul.model.assignment import MetadataSpec
from tests.contract.test_machines import IMAGES


@pytest.fixture(params=["fake", "linux"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> ServerDriver:
    if request.param == "fake":
        return FakeServer()
    return LinuxServer(tmp_path / "probes.json", tmp_path / "no-images", "auto", lambda: None, _nothing)


async def _nothing() -> str:
    return "there is no User-mode Linux here"


def test_facts_are_there_at_once(server: ServerDriver) -> None:
    """Slow probes run behind them."""
    began = time.monotonic()
    facts = asyncio.run(server.facts())
    assert time.monotonic() - began < 5
    assert facts.vcpus > 0 and facts.memory_mib > 0 and set(facts.accelerators) == {"tcg", "kvm"}


def test_the_verdict_is_kept_for_this_boot_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = tmp_path / "probes.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    monkeypatch.setattr(linux, "kvm_device", lambda: "")
    verdict.write_text(json.dumps({"boot_id": boot, "kvm": "it hangs"}))
    assert asyncio.run(LinuxServer(verdict, tmp_path, "auto", lambda: None, _nothing).kvm()) == "it hangs"
    verdict.write_text(json.dumps({"boot_id": "another", "kvm": "it hangs"}))
    assert "no image" in asyncio.run(LinuxServer(verdict, tmp_path, "auto", lambda: None, _nothing).kvm())


def test_the_paravirtual_verdict_is_kept_and_told(tmp_path: Path) -> None:
    asked: list[int] = []

    async def ask() -> str:
        asked.append(1)
        return "user namespaces are forbidden"

    async def facts(server: LinuxServer) -> dict[str, str]:
        assert (await server.facts()).generations["paravirtual"] == "", "tried, until the probe says otherwise"
        await server.paravirtual()
        while not (found := (await server.facts()).generations)["paravirtual"]:
            await asyncio.sleep(0.01)
        return found

    def make() -> LinuxServer:
        return LinuxServer(tmp_path / "probes.json", tmp_path, "tcg", lambda: None, ask)

    found = asyncio.run(facts(make()))
    assert found == {"emulated": "", "paravirtual": "user namespaces are forbidden", "hvm": ""}
    before = len(asked)
    assert asyncio.run(make().paravirtual()) == "user namespaces are forbidden"
    assert len(asked) == before


def test_only_a_paravirtual_guest_that_ran_says_usable() -> None:
    if os.geteuid() != 0 or uml.missing():
        pytest.skip(uml.missing() or "paravirtual machines need root")
    with tempfile.TemporaryDirectory(prefix="haneul-contract-", dir="/var/tmp") as directory:
        data = Path(directory)
        data.chmod(0o711)
        uid = 0x6F000000 + os.getpid() % 4096 * 16
        assert asyncio.run(uml.probe(data, uid, 60)) == ""
        assert "within" in asyncio.run(uml.probe(data, uid, 0))
        assert list(data.iterdir()) == []


def test_only_a_guest_that_ran_says_usable() -> None:
    kernel = find_kernel(IMAGES)
    if kernel is None or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("the probe needs QEMU and a built image: run `make test`")
    assert asyncio.run(probe.boots(kernel, "tcg", 60)) == ""
    assert "hangs" in asyncio.run(probe.boots(kernel, "tcg", 0.2))
    assert "QEMU ended" in asyncio.run(probe.boots(Path("/dev/null"), "tcg", 20))


def test_a_kvm_without_hardware_is_refused_in_time() -> None:
    """/dev/kvm opens, answers and makes a machine also where the processor has neither VMX nor SVM; a guest hangs there."""
    kernel = find_kernel(IMAGES)
    if kernel is None or shutil.which("qemu-system-x86_64") is None or kvm.kvm_device().startswith(("there is", "no ")):
        pytest.skip("it needs a /dev/kvm, QEMU and a built image")
    if {"vmx", "svm"} & set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip("this processor has hardware virtualization")
    began = time.monotonic()
    assert asyncio.run(probe.boots(kernel, "kvm", 5)) != ""
    assert time.monotonic() - began < 5 + probe.KILL_SECONDS + 2


@pytest.mark.parametrize(("found", "kept"), [("", True), ("a guest hangs", True), (f"{probe.REFUSED}: busy", False)])
def test_what_is_had_again_at_once_is_not_kept(
    found: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A QEMU that was not installed or a KVM that another program holds is no verdict for the whole boot."""

    async def boots(*_: object) -> str:
        return found

    monkeypatch.setattr(linux, "kvm_device", lambda: "")
    monkeypatch.setattr(probe, "boots", boots)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "vmlinuz").touch()
    verdict = tmp_path / "kvm.json"
    assert asyncio.run(LinuxServer(verdict, tmp_path, "auto", lambda: None, _nothing).kvm()) == found
    assert verdict.exists() == kept


Make = Callable[[], MetadataDriver]
VPC = "vpc-0123456789abcdef0"
SPEC = MetadataSpec(
    "i-0123456789abcdef0", VPC, ("127.0.0.1",), "optional", "enabled", 1, {"meta-data/instance-id": "i-0123456789abcdef0"}, (), {}, None
)  # fmt: skip


@pytest.fixture(params=["fake", "process"])
def metadata(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Make, Path | None]]:
    if request.param == "fake":
        yield lambda: FakeMetadata(World(tmp_path / "world.db")), None
        return
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    directory = Path(tempfile.mkdtemp(prefix="haneul-contract-", dir="/run"))
    place = directory / "netns" / VPC
    netns.create(place)

    def addresses() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as routes:
            (lo,) = routes.link_lookup(ifname="lo")
            routes.link("set", index=lo, state="up")
            routes.addr("add", index=lo, address="169.254.169.254", prefixlen=32)

    netns.call(place, addresses)
    yield lambda: MetadataProcess(directory / "metadata", lambda vpc: directory / "netns" / vpc, list), place
    asyncio.run(MetadataProcess(directory / "metadata", lambda vpc: place, list).ensure_absent())
    netns.remove(place)
    shutil.rmtree(directory)


def _ask(place: Path, path: str) -> str:
    def ask() -> str:
        with socket.create_connection(
            ("169.254.169.254", 80), timeout=5, source_address=("127.0.0.1", 0)
        ) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            text = b""
            while data := connection.recv(4096):
                text += data
            return text.decode()

    deadline = time.monotonic() + 20
    while True:
        try:
            return netns.call(place, ask)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_metadata_may_be_applied_again_and_comes_back(metadata: tuple[Make, Path | None]) -> None:
    make, place = metadata

    async def apply(*specs: MetadataSpec) -> None:
        driver = make()
        for _ in range(2):
            await driver.apply(specs)

    asyncio.run(apply(SPEC))
    if place is not None:
        assert "i-0123456789abcdef0" in _ask(place, "/latest/meta-data/instance-id")
        lock = place.parents[1] / "metadata" / "lock"
        asyncio.run(locks.kill(lock))
        asyncio.run(apply(SPEC))
        assert "i-0123456789abcdef0" in _ask(place, "/latest/meta-data/instance-id"), "killed, it is started again"
        asyncio.run(apply())
        assert "404" in _ask(place, "/latest/meta-data/instance-id").split("\r\n")[0]
    for _ in range(2):
        asyncio.run(make().ensure_absent())
