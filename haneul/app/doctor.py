"""`haneul doctor`: what this server can do, found out by trying it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from haneul.app.compose import OPTIONAL, linux_server
from haneul.cli.lifecycle import Finding
from haneul.config import Settings
from haneul.drivers.interface import DriverError

if TYPE_CHECKING:
    from haneul.model.generation import Generation


def program(program: str, package: str) -> Finding:
    place = shutil.which(program)
    advice = "" if place else f"apt-get install {package}"
    return Finding(program, place is not None, place or "not in PATH", advice, program not in OPTIONAL)


async def generations(settings: Settings) -> list[Finding]:
    """What this server offers, found out by booting a guest under each."""
    from haneul import identity
    from haneul.model import instance_types
    from haneul.model.generation import WAYS

    if settings.drivers == "fake":
        return [Finding(one.title, True, "fake drivers: nothing is booted", "") for one in WAYS.values()]
    who = identity.load(settings.data)
    uid = who.first_uid if who else identity.Identity(settings.data, 0).first_uid
    server = linux_server(settings, uid, lambda: None)
    asked: tuple[tuple[Generation, Callable[[], Awaitable[str]], str], ...] = (
        ("emulated", server.emulated, "apt-get install qemu-system-x86; haneul image build"),
        ("paravirtual", server.paravirtual, "apt-get install user-mode-linux qemu-utils bubblewrap; modprobe fuse"),
        ("hvm", server.kvm, "a CPU with VMX or SVM that this machine may use; HVM types run emulated until then"),
    )
    found = []
    for name, ask, advice in asked:
        began = time.monotonic()
        try:
            why = await ask()
        except (DriverError, OSError) as error:
            why = str(error)
        families = ", ".join(f"{one}.*" for one in instance_types.families(name))
        how = why or f"booted a tiny guest ({time.monotonic() - began:.1f} s)"
        found.append(Finding(f"{WAYS[name].title} ({families})", not why, how, why and advice, name == "emulated"))
    return found
