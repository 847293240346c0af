"""Can this server run a guest under KVM? Only a guest that ran says so.

/dev/kvm can open, answer and create a machine, and still hang with an unmodified kernel (seen). So: boot a kernel
with a tiny init under `-accel kvm`, wait for what that init prints, with a deadline; then end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from haneul.drivers.machines import probe_guest as guest
from haneul.drivers.machines.qemu import command as qemu_command

DEADLINE = 12.0


KILL_SECONDS = 3.0


#: What QEMU itself refuses, it refuses at once; nothing else begins so.
REFUSED = "QEMU ended"


async def boots(kernel: Path, accelerator: str, deadline: float = DEADLINE) -> str:
    """Empty text if a guest ran; else why not."""
    with tempfile.TemporaryDirectory(prefix="haneul-probe-") as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(guest.initramfs())
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
                while guest.MARKER not in seen:
                    data = await process.stdout.read(4096)
                    if not data:
                        said = " ".join((await process.stderr.read()).decode(errors="replace").split())
                        return f"{REFUSED}: {said[:120] or 'it said nothing'}"
                    seen = seen[-8192:] + data
                return ""
        except TimeoutError:
            return f"a guest hangs: nothing from its init within {deadline:.0f} s"
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it. One that the kernel does not let go of, as it may happen where KVM is broken, is not waited for."""
    if process.returncode is None:
        process.kill()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), KILL_SECONDS)
