"""Machines that go on from a template with more than it has: volumes and cards are as a boot would show them."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from haneul.drivers.disks.qcow2 import Qcow2Disks
from haneul.drivers.machines.driver import Machines
from haneul.drivers.machines.folder import cold
from haneul.drivers.machines.qemu.command import Accelerator
from haneul.drivers.machines.qemu.engine import QemuEngine, shape
from haneul.drivers.machines.qemu.templates import Server, Templates
from haneul.drivers.networks.linux.taps import dangling_tap
from haneul.images.resume import unit as resume
from haneul.model.assignment import DiskSpec, GuestIdentity, MachineSpec, NicSpec

IMAGES = Path(os.environ.get("HANEUL_TEST_IMAGES", "/var/lib/haneul/images"))
INSTANCE = "i-0123456789abcdef0"
SERVER, GUEST = "10.77.0.1", "10.77.0.9"
#: Name, sectors and serial number of every disk; name and address of every card.
ASK = """for one in /sys/block/vd*; do echo "${one##*/} $(cat $one/size) $(cat $one/serial)"; done
for one in /sys/class/net/eth*; do echo "${one##*/} $(cat $one/address)"; done; cat /proc/sys/kernel/random/boot_id"""


class _Metadata(BaseHTTPRequestHandler):
    """As much of 169.254.169.254 as a boot of tiny asks for before its SSH server starts."""

    answers: ClassVar[dict[str, str]] = {}

    def do_PUT(self) -> None:
        self._say("token")

    def do_GET(self) -> None:
        self._say(self.answers.get(self.path.removeprefix("/latest/meta-data/"), ""))

    def _say(self, text: str) -> None:
        self.send_response(200 if text else 404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


def _tap(name: str) -> int:
    """A tap of this namespace; it goes with the last descriptor, and that of a machine that is ending at once."""
    subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    return tap


async def _tcg() -> Accelerator:
    return "tcg"


class Lab:
    """Machines of one server, without a cloud above them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disks = Qcow2Disks(directory / "volumes", IMAGES)
        server = Server(0x6E000001, vcpus=4, memory_mib=4096, tap=dangling_tap, accelerator=_tcg)
        self.templates = Templates(directory / "templates", IMAGES, server, 2048, resume.PROTOCOL)
        qemu = QemuEngine(IMAGES, lambda: "tcg", self.templates)
        self.machines = Machines(directory / "instances", self.disks.file, 0x6E000010, {"hvm": qemu}, lambda: None)
        self.key = directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)

    def spec(self, volumes: int, cards: int) -> MachineSpec:
        """Volumes of 1, 2, 3... GiB, the first being the root's."""
        disks = [
            DiskSpec(f"vol-{index:017x}", "" if index else "tiny", 1 + index, f"/dev/xvd{chr(97 + index)}", boot=not index)
            for index in range(volumes)
        ]  # fmt: skip
        nics = [
            NicSpec(f"eni-{index}", "vpc-1", "subnet-1", f"06:00:00:00:00:{0x10 + index:02x}", f"10.77.{index}.9")
            for index in range(cards)
        ]
        keys = (self.key.with_suffix(".pub").read_text().strip(),)
        return MachineSpec(
            instance_id=INSTANCE, power="running", boot_count=1, force=False, stop_seconds=60, vcpus=2,
            memory_mib=256, image="tiny", instance_type="t3.nano", generation="hvm", uuid="ec2f0f4f-6e0c-4c57-9a9f-0a7d2a3b6c11",
            disks=tuple(disks), nics=tuple(nics),
            identity=GuestIdentity("plugged", "ec2.internal", 24, SERVER, SERVER, keys),
        )  # fmt: skip

    async def start(self, spec: MachineSpec) -> str:
        """Its phase."""
        for disk in spec.disks:
            await self.disks.ensure(disk)
        taps = {nic.interface_id: _tap(f"plug{index}") for index, nic in enumerate(spec.nics)}
        for address in (f"{SERVER}/24", "169.254.169.254/32"):
            subprocess.run(["ip", "address", "replace", address, "dev", "plug0"], check=True)
        try:
            return (await self.machines.ensure_running(spec, taps)).phase
        finally:
            for tap in taps.values():
                os.close(tap)

    async def asked(self, seconds: float = 60) -> list[str]:
        """What the guest says by SSH, as soon as it is there."""
        command = ["ssh", "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        command += ["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5", f"root@{GUEST}", ASK]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline:
            ssh = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            try:
                said, _ = await asyncio.wait_for(ssh.communicate(), 20)
            except TimeoutError:
                ssh.kill()
                await ssh.wait()
            if ssh.returncode == 0:
                return said.decode().split("\n")[:-1]
            await asyncio.sleep(0.2)
        console = await self.machines.console_output(INSTANCE)
        raise AssertionError(
            f"the guest does not answer by SSH; its console:\n{console.decode(errors='replace')[-3000:]}"
        )

    async def gone(self, spec: MachineSpec) -> None:
        await self.machines.ensure_absent(spec.instance_id)
        for disk in spec.disks:
            await self.disks.ensure_absent(disk.volume_id)
        assert list((self.directory / "volumes").iterdir()) == []


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.environ.get("HANEUL_TEST_MOUNTS") != "own":
        pytest.skip("it needs a network namespace of its own: scripts/alone")
    directory = Path(tempfile.mkdtemp(prefix="haneul-plugged-", dir="/var/tmp"))
    directory.chmod(0o711)
    found = Lab(directory)
    if why := found.templates.why_not("tiny"):
        pytest.skip(f"{why}: haneul image build --again tiny")
    key = found.key.with_suffix(".pub").read_text().strip()
    _Metadata.answers = {"instance-id": INSTANCE, "public-keys/": "0=test", "public-keys/0/openssh-key": key}
    with ThreadingHTTPServer(("0.0.0.0", 80), _Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        leases = [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--bind-dynamic",
            "--interface=plug0",
        ]
        leases += [f"--dhcp-range={GUEST},{GUEST},255.255.255.0", f"--dhcp-leasefile={directory}/leases", "--user=root"]
        with subprocess.Popen(leases) as dhcp:
            yield found
            dhcp.terminate()
        server.shutdown()
    shutil.rmtree(directory)


def _expected(spec: MachineSpec) -> list[str]:
    disks = [
        f"vd{chr(97 + index)} {disk.size_gib << 21} {disk.volume_id.replace('-', '')}"
        for index, disk in enumerate(spec.disks)
    ]
    return disks + [f"eth{index} {nic.mac}" for index, nic in enumerate(spec.nics)]


def _with(lab: Lab, spec: MachineSpec, body: Callable[[], Awaitable[None]]) -> None:
    async def work() -> None:
        await lab.templates.ensure(shape(spec, "tcg"))
        try:
            await body()
        finally:
            await lab.gone(spec)

    asyncio.run(work())


async def _reboot(lab: Lab, spec: MachineSpec) -> MachineSpec:
    """By the power button, until it is off and on again."""
    again = replace(spec, boot_count=spec.boot_count + 1)
    async with asyncio.timeout(90):
        while not lab.machines.needs_taps(again):
            await lab.machines.ensure_running(again, {})
            await asyncio.sleep(0.2)
    assert await lab.start(again) == "on"
    return again


@pytest.mark.parametrize(("volumes", "cards"), [(3, 2), (9, 9)])
def test_volumes_and_cards_are_as_a_boot_shows_them(lab: Lab, volumes: int, cards: int) -> None:
    spec = lab.spec(volumes, cards)

    async def body() -> None:
        assert await lab.start(spec) == "on, from a template"
        *warm, boot = await lab.asked()
        assert warm == _expected(spec)
        await _reboot(lab, spec)
        *booted, second = await lab.asked()
        assert booted == warm and second != boot

    _with(lab, spec, body)


def test_more_than_fit_boot_cold(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    spec = lab.spec(10, 1)

    async def body() -> None:
        with caplog.at_level(logging.INFO):
            assert await lab.start(spec) == "on"
        assert "boots cold, though there is a template: 10 volumes" in caplog.text
        assert (await lab.asked())[:-1] == _expected(spec)

    _with(lab, spec, body)


def test_a_device_that_cannot_be_plugged_costs_a_cold_boot(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a guest may have written on its new volumes is not there."""
    spec = lab.spec(2, 1)
    real = QemuEngine.__dict__["_from_template"]

    def broken(self: QemuEngine, *arguments: object) -> object:
        launch = real(self, *arguments)
        file = lab.disks.file(spec.disks[1].volume_id)
        assert cold(file).exists()
        file.write_bytes(file.read_bytes() + bytes(65536))
        (device,) = launch.resume.plugged
        return replace(launch, resume=replace(launch.resume, plugged=(device | {"bus": "no-such-port"},)))

    monkeypatch.setattr(QemuEngine, "_from_template", broken)

    async def body() -> None:
        await lab.disks.ensure(spec.disks[1])
        made = lab.disks.file(spec.disks[1].volume_id).read_bytes()
        descriptors = len(os.listdir("/proc/self/fd"))
        assert await lab.start(spec) == "on"
        assert "its template does not do" in caplog.text and "no-such-port" in caplog.text
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 1, "the machine's pidfd"
        assert lab.disks.file(spec.disks[1].volume_id).read_bytes() == made
        assert (await lab.asked())[:-1] == _expected(spec)

    _with(lab, spec, body)


def test_a_machine_that_ends_while_it_is_loaded_costs_a_cold_boot(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That is seen at once, and the log has QEMU's own words."""
    spec = lab.spec(1, 1)
    (tmp_path / "state").write_bytes(b"no state of any machine")
    monkeypatch.setattr("haneul.drivers.machines.qemu.templates.Template.state", property(lambda _: tmp_path / "state"))

    async def body() -> None:
        began = asyncio.get_running_loop().time()
        assert await lab.start(spec) == "on"
        assert asyncio.get_running_loop().time() - began < 10
        assert "its template does not do" in caplog.text and "migration" in caplog.text
        assert (await lab.asked())[:-1] == _expected(spec)

    _with(lab, spec, body)
