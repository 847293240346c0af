"""How a machine goes on from a template, and becomes itself (the other half is images/resume.c)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
import uuid
from pathlib import Path

from haneul.drivers.interface import DriverError
from haneul.drivers.machines import qmp
from haneul.drivers.machines.engine import Resume
from haneul.drivers.machines.qemu import host_keys
from haneul.model.assignment import MachineSpec

log = logging.getLogger(__name__)

#: From the start of the program to the guest's answer, at most (seconds): half a second alone, half a minute when fifty start at once.
ALONE_SECONDS, EACH_SECONDS = 20.0, 2.0
#: So often a guest asks for the time, at most; and so much it says in a line (bytes). It may be anybody's.
MOST_QUESTIONS, MOST_LINE = 16, 4096
#: Bytes for the guest's random pool.
SEED = 128


def told(spec: MachineSpec, machine_id: str, boot_id: str, seed: bytes) -> str:
    """Who the guest is, but for the time, which comes last (the protocol is in images/resume.c)."""
    assert spec.identity is not None
    who, (nic, *_) = spec.identity, spec.nics
    lines = [
        ("instance", spec.instance_id), ("hostname", who.hostname), ("domain", who.domain), ("machine-id", machine_id),
        ("boot-id", boot_id), ("mac", nic.mac), ("address", nic.address), ("prefix", str(who.prefix)),
        ("gateway", who.gateway), ("dns", who.resolver), ("mtu", "1500"), ("seed", seed.hex()), ("user-data", str(int(who.user_data))),
        *(("key", " ".join(key.split())) for key in who.keys), *([] if who.user_data else host_keys.lines()),
    ]  # fmt: skip
    return "".join(f"{key} {value}\n" for key, value in lines)


def answered(line: str) -> dict[str, str]:
    """What the guest says of itself. Raises `DriverError` if it could not become what it was told."""
    word, _, rest = line.strip().partition(" ")
    if word != "resumed":
        raise DriverError(f"the guest's resume unit: {line.strip()[:200]}")
    return dict(part.partition("=")[::2] for part in rest.split(" "))


async def go_on(spec: MachineSpec, resume: Resume, seconds: float = ALONE_SECONDS) -> None:
    """From QEMU's first word: the devices' state in, the guest told who it is and heard. Raises `DriverError`."""
    began = time.monotonic()
    machine_id, boot_id = secrets.token_hex(16), str(uuid.uuid4())
    port = resume.port
    port.setblocking(False)
    # What was copied is on its way to the disk while QEMU starts: the resizing has to wait for that.
    flushed = asyncio.get_running_loop().run_in_executor(None, _flush, resume.disk)
    async with asyncio.timeout(seconds), qmp.connected(resume.monitor) as client:
        started = time.monotonic()
        await client.execute("migrate-set-capabilities", qmp.IGNORE_SHARED)
        await client.execute("migrate-incoming", {"uri": f"fd:{resume.state}"})
        await qmp.until_migrated(client)
        await flushed
        await client.execute("block_resize", {"node-name": "disk0", "size": resume.size})
        loaded = time.monotonic()
        await _send(port, told(spec, machine_id, boot_id, secrets.token_bytes(SEED)))
        await client.execute("cont")
        await _send(port, _time() + "end\n")
        for _ in range(MOST_QUESTIONS):
            if (line := await _line(port)) != "time?":
                break
            await _send(port, _time())
        found = answered(line)
        _check(found, spec, machine_id, boot_id)
        done = time.monotonic()
        # Not before: a guest's kernel that looks for devices takes the time that the answer needs, and would call the first eth0.
        for device in resume.plugged:
            await client.execute("device_add", device)
    log.info(
        "%s goes on from a template: started %.3f s, loaded %.3f s, answered %.3f s, of these in the guest (us) %s",
        spec.instance_id, started - began, loaded - started, done - loaded, _spent(found),
    )  # fmt: skip


def _spent(found: dict[str, str]) -> str:
    """Where the guest says that its time went: words of a guest, which go into a log."""
    return "".join(one for one in found.get("spent", "?") if one.isalnum() or one in ":,?")[:200]


def _check(found: dict[str, str], spec: MachineSpec, machine_id: str, boot_id: str) -> None:
    """Raises `DriverError` if the guest is not what it was told."""
    assert spec.identity is not None
    wanted = {
        "hostname": spec.identity.hostname,
        "machine-id": machine_id,
        "boot-id": boot_id,
        "address": spec.nics[0].address,
    }
    wrong = [name for name, value in wanted.items() if found.get(name) != value]
    if wrong:
        raise DriverError(f"the guest is not what it was told: {', '.join(wrong)}")


def _flush(disk: Path) -> None:
    """A failure is QEMU's to tell."""
    with contextlib.suppress(OSError):
        descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _time() -> str:
    now = time.time_ns()
    return f"time {now // 10**9}.{now % 10**9:09d}\n"


async def _send(port: socket.socket, text: str) -> None:
    await asyncio.get_running_loop().sock_sendall(port, text.encode())


async def _line(port: socket.socket) -> str:
    said = b""
    while b"\n" not in said:
        some = await asyncio.get_running_loop().sock_recv(port, 4096)
        if not some:
            raise DriverError("the machine ended before its guest answered")
        said += some
        if len(said) > MOST_LINE:
            raise DriverError("the guest's answer is too long")
    return said.partition(b"\n")[0].decode(errors="replace").replace("\r", "")
