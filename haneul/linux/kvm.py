"""/dev/kvm: is it there, and who may open it?"""

from __future__ import annotations

import os

KVM = "/dev/kvm"


def opening_groups(mode: int, group: int) -> list[int] | None:
    """The groups with which any user opens a device of such a mode; None if there are none. Nobody is put into root's."""
    if mode & 0o006 == 0o006:
        return []
    return [group] if mode & 0o060 == 0o060 and group != 0 else None


def kvm_groups() -> list[int] | None:
    """The groups that a machine, which runs as a user of its own, needs for /dev/kvm; None if it cannot open it."""
    try:
        found = os.stat(KVM)
    except OSError:
        return None
    return opening_groups(found.st_mode, found.st_gid)


def kvm_device() -> str:
    """Empty text if /dev/kvm is there, for us and for machines to open."""
    if not os.path.exists(KVM):
        return "there is no /dev/kvm (no hardware virtualization, or its module is not loaded)"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "no permission to open /dev/kvm"
    if kvm_groups() is None:
        return "only root may open /dev/kvm, and no machine runs as root: give it a group (chgrp kvm; chmod 660), as udev does"
    return ""
