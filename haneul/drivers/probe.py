"""Can this server run a guest under KVM? Only a guest that ran says so.

/dev/kvm can open, answer and create a machine, and still hang with an unmodified kernel (seen). So: boot a kernel
with a tiny init under `-accel kvm`, wait for what that init prints, with a deadline; then end it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from haneul.drivers import qemu_command

DEADLINE = 12.0
MARKER = b"haneul: a guest ran"


def _init() -> bytes:
    """A static x86-64 ELF: write(1, MARKER), reboot(RB_POWER_OFF), pause(). Written by hand, 64 + 56 + code."""
    text = MARKER + b"\n"
    code = bytes.fromhex(
        "b801000000"  # mov eax, 1 (write)
        "bf01000000"  # mov edi, 1
        "488d3524000000"  # lea rsi, [rip + 0x24]
    )
    code += b"\xba" + len(text).to_bytes(4, "little") + b"\x0f\x05"  # mov edx, len; syscall
    code += bytes.fromhex(
        "b8a9000000"  # mov eax, 169 (reboot)
        "bfaddee1fe"  # mov edi, LINUX_REBOOT_MAGIC1
        "be69191228"  # mov esi, LINUX_REBOOT_MAGIC2
        "bafedc2143"  # mov edx, LINUX_REBOOT_CMD_POWER_OFF
        "0f05"
        "b822000000"  # mov eax, 34 (pause)
        "0f05"
    )
    assert len(code) == 17 + 0x24, "the displacement of lea is the distance to the text"
    base, start = 0x400000, 64 + 56
    size = (start + len(code) + len(text)).to_bytes(8, "little")
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + bytes.fromhex("02003e0001000000")
    header += (base + start).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(8) + bytes(4)
    header += bytes.fromhex("400038000100400000000000")
    segment = bytes.fromhex("0100000005000000") + bytes(8) + base.to_bytes(8, "little") * 2 + size * 2
    return header + segment + (0x1000).to_bytes(8, "little") + code + text


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member of a cpio archive in the `newc` format (Linux, initramfs buffer format)."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


def initramfs() -> bytes:
    members = [
        _entry("dev", 0o040755),
        _entry("dev/console", 0o020600, device=(5, 1)),
        _entry("init", 0o100755, _init()),
        _entry("TRAILER!!!", 0),
    ]
    return b"".join(members)


async def boots(kernel: Path, accelerator: str, deadline: float = DEADLINE) -> str:
    """Empty text if a guest ran; else why not."""
    with tempfile.TemporaryDirectory(prefix="haneul-probe-") as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(initramfs())
        cpu = "host" if accelerator == "kvm" else "max"
        command = [
            "setpriv", "--pdeathsig", "KILL", "--", qemu_command.BINARY, "-nodefaults", "-no-user-config", "-machine", "q35", "-accel", accelerator,
            "-cpu", cpu, "-m", "192M", "-display", "none", "-serial", "stdio", "-no-reboot", "-nic", "none",
            "-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1",
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            async with asyncio.timeout(deadline):
                seen = b""
                while MARKER not in seen:
                    data = await process.stdout.read(4096)
                    if not data:
                        said = " ".join((await process.stderr.read()).decode(errors="replace").split())
                        return f"QEMU ended: {said[:120] or 'it said nothing'}"
                    seen = seen[-8192:] + data
                return ""
        except TimeoutError:
            return f"a guest hangs: nothing from its init within {deadline:.0f} s"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def kvm_device() -> str:
    """Empty text if /dev/kvm is there for us to open."""
    if not os.path.exists("/dev/kvm"):
        return "there is no /dev/kvm (no hardware virtualization, or its module is not loaded)"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "no permission to open /dev/kvm"
    return ""
