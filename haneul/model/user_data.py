"""What user data may change about who logs in. Pure.

Source: cloud-init, "User data formats" and its module reference.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache

#: Keys of cloud-config that leave alone users, their passwords and keys, host keys, and the data in which those could be hidden.
_HARMLESS = frozenset(
    [
        "apt",
        "byobu_by_default",
        "ca_certs",
        "ca-certs",
        "chef",
        "disk_setup",
        "device_aliases",
        "final_message",
        "fs_setup",
        "growpart",
        "hostname",
        "fqdn",
        "prefer_fqdn_over_hostname",
        "keyboard",
        "locale",
        "locale_configfile",
        "manage_etc_hosts",
        "manage_resolv_conf",
        "resolv_conf",
        "mounts",
        "mount_default_fields",
        "swap",
        "ntp",
        "output",
        "package_update",
        "package_upgrade",
        "package_reboot_if_required",
        "packages",
        "phone_home",
        "power_state",
        "preserve_hostname",
        "puppet",
        "resize_rootfs",
        "runcmd",
        "salt_minion",
        "timezone",
        "wireguard",
        "write_files",
        "yum_repos",
        "apt_update",
        "apt_upgrade",
        "apt_reboot_if_required",
    ]
)
_WAYS_IN = (
    "ssh",
    "/home",
    "/etc/skel",
    "/etc/pam",
    "/etc/security",
    "nologin",
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "sudoers",
)
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):(\s|$)")


@lru_cache(maxsize=256)
def decides_who_logs_in(data: str | None) -> bool:
    """Whether the image's own user must not be there before cloud-init has read `data` (base64).

    A script and a plain cloud-config without a word about users or keys let everything be as the image says. Of
    all that is not seen through here (archives, includes, templates, quoted keys) the answer is yes.
    """
    if not data:
        return False
    try:
        text = base64.b64decode(data).decode()
    except (binascii.Error, ValueError):
        return True
    low = text.lower()
    if text.startswith("#!"):
        return "mime-version:" in low[:4096]  # then cloud-init takes it for a message
    first, _, rest = text.partition("\n")
    lines = [line for line in rest.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    # Files are written and file systems mounted before the SSH server starts, and before users get their homes.
    if first.strip() != "#cloud-config" or "\\" in text or any(word in low for word in _WAYS_IN):
        return True
    # Where the first key is not indented, no indented one is of the same level.
    return bool(lines and not _KEY.match(lines[0])) or not all(_is_harmless(line) for line in lines)


def _is_harmless(line: str) -> bool:
    """A line of cloud-config: part of a value, or a key that changes nobody's way in."""
    if line[0] == " " or line.startswith("- "):
        return True
    found = _KEY.match(line)
    return found is not None and found[1] in _HARMLESS
