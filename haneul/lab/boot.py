"""A launch as a timeline, from RunInstances to the first command by SSH. Pure.

The server's half comes from haneul's own trace of the launch, the guest's from its own clock: it says how long it has been up,
and its init when it began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from haneul.lab.results import Phase

#: In this order. `firmware` is what comes before the guest's kernel: firmware and boot loader, or an image that is unpacked.
#: `guest` are several parts of a guest's boot that could not be told apart.
PHASES = ("api", "server", "firmware", "kernel", "services", "login")


@dataclass(frozen=True)
class Moments:
    """Seconds since the epoch, by the server's clock; None is not known.

    RunInstances was sent, it answered, the machine's process ran, the guest's kernel began, its init began, its SSH server
    greeted, the first command was done.
    """

    asked: float
    answered: float
    machine: float | None
    kernel: float | None
    init: float | None
    greeted: float
    done: float


def phases(moments: Moments) -> tuple[Phase, ...]:
    """The parts that are known, each from the end of the one before. An unknown moment joins its part to the next one."""
    ends = zip(
        PHASES,
        (moments.answered, moments.machine, moments.kernel, moments.init, moments.greeted, moments.done),
        strict=True,
    )
    found: list[Phase] = []
    began, joined = 0.0, False
    for name, moment in ends:
        if moment is None:
            joined = True
            continue
        # Two clocks are never quite the same.
        ended = max(moment - moments.asked, began)
        found.append(Phase("guest" if joined else name, began, ended))
        began, joined = ended, False
    return tuple(found)


#: What a guest says of itself; a line each, `name=value`.
ASK = """\
echo "kernel=$(uname -r)"
echo "virtualized=$(systemd-detect-virt 2>/dev/null)"
echo "processor=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)"
echo "processors=$(grep -c '^processor' /proc/cpuinfo)"
echo "memory_kib=$(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)"
while read -r _ _ number _ place _; do
    [ "$place" = / ] && disk=$(readlink -f "/sys/dev/block/$number")
done </proc/self/mountinfo
[ -e "$disk/partition" ] && disk=${disk%/*}
driver=$(readlink -f "$disk/device/driver")
# Behind a SCSI disk stands the driver of its controller.
[ "${driver##*/}" = sd ] && driver=$(readlink -f "${disk%/ata*}/driver")
echo "disk=${driver##*/} (${disk##*/})"
for path in /sys/class/net/[ev]*; do
    echo "network=$(basename "$(readlink -f "$path/device/driver")") (${path##*/})"
    break
done
. /etc/os-release 2>/dev/null
echo "system=$PRETTY_NAME"
systemctl show -p UserspaceTimestampMonotonic 2>/dev/null
echo "uptime=$(cut -d ' ' -f 1 /proc/uptime)"
"""


def told(text: str) -> dict[str, str]:
    """What a guest said, by name. It is the guest's own word, and shortened."""
    pairs = [line.partition("=") for line in text.splitlines()]
    return {name: value.strip()[:120] for name, equals, value in pairs if equals and value.strip()}


def kernel_began(guest: Mapping[str, str], asked: float) -> float | None:
    """When the guest's kernel began, as it was up so long when it was asked."""
    try:
        return asked - float(guest["uptime"])
    except (KeyError, ValueError):
        return None


def init_began(guest: Mapping[str, str], kernel: float | None) -> float | None:
    try:
        micro = int(guest["UserspaceTimestampMonotonic"])
    except (KeyError, ValueError):
        return None
    return kernel + micro / 1e6 if kernel is not None and micro > 0 else None
