"""QEMU's command line for a machine. Pure: values in, arguments out (qemu(1), QEMU 7.2)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from haneul.drivers.machines.folder import OOM_SCORE, Places
from haneul.model.assignment import DiskSpec, MachineSpec, NicSpec

Accelerator = Literal["tcg", "kvm"]
BINARY = "qemu-system-x86_64"
#: TCG's translation buffer (MiB). It counts to the process, not to the guest.
TB_SIZE = 128
CAPABILITIES = '{"execute":"qmp_capabilities"}'
#: What the shell writes into the event log when the next boot of the same machine begins.
BOOT = '{"event": "BOOT"}'
#: Memory of the guest is no part of a core dump, wherever the server sends those.
MACHINE, EMULATED_MACHINE = "q35,dump-guest-core=off", "pc,dump-guest-core=off"
#: Where a machine that goes on from a template gets what its template has not: a port for its volumes, one for its cards. Each takes
#: one device of eight functions, which the guest finds in one look and in their order, so that no names are swapped.
SPARE_PORTS = ("spare-disks", "spare-nics")
FUNCTIONS = 8
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class Kernel:
    """A kernel given on the command line: the fast path of a first boot."""

    kernel: Path
    initrd: Path
    arguments: str


@dataclass(frozen=True)
class Warm:
    """What makes a machine one that is saved as a template (`shared`), or that goes on from one.

    `memory` is the file of its memory. `resume` and `monitor` are inherited descriptors: a port to the guest (virtio-serial), and a monitor that
    is there before its path could be connected to.
    """

    memory: str
    resume: int
    shared: bool
    monitor: int | None = None


def guest_memory(memory_mib: int, accelerator: Accelerator) -> int:
    """The guest's memory in bytes, as long as the machine lives: 8 KiB less than promised where QEMU emulates the processor.

    Live migration of QEMU before 9.0 loses writes of emulated guests whose memory is a multiple of 256 KiB: the fast path of its
    dirty bitmap forgets the emulator's own cache of page tables ("Fix migration dirty bitmap coherency with TCG"). A machine's size cannot change later.
    """
    return (memory_mib << 20) - (8 << 10 if accelerator == "tcg" else 0)


def _warm(warm: Warm, memory: int) -> list[str]:
    share = "on" if warm.shared else "off"
    out = ["-object", f"memory-backend-file,id=mem,size={memory >> 10}K,mem-path={warm.memory},share={share}"]
    out += ["-chardev", f"socket,id=resume,fd={warm.resume}", "-device", "virtio-serial-pci,id=ports"]
    out += ["-device", "virtserialport,bus=ports.0,chardev=resume,name=haneul.resume"]
    if warm.monitor is not None:
        out += ["-chardev", f"socket,id=launch,fd={warm.monitor}", "-mon", "chardev=launch,mode=control"]
    return out if warm.shared else [*out, "-incoming", "defer"]


def _spare_ports() -> list[str]:
    out = []
    for index, name in enumerate(SPARE_PORTS):
        out += ["-device", f"pcie-root-port,id={name},chassis={index + 1}"]
    return out


def too_many(spec: MachineSpec) -> str:
    """What a machine has more of than can be plugged into one that goes on from a template; empty if it can."""
    for name, count in (("volumes", len(spec.disks)), ("network interfaces", len(spec.nics))):
        if count > 1 + FUNCTIONS:
            return f"{count} {name}, {1 + FUNCTIONS} at most"
    return ""


def plugged(spec: MachineSpec) -> tuple[dict[str, Any], ...]:
    """QMP's device_add, in this order, of what `spec` has beside a template's one disk and one card.

    A device's first function comes last: the guest is told of it then, and looks for all of them.
    """
    disks_port, nics_port = SPARE_PORTS
    disks: list[dict[str, Any]] = [
        {"driver": "virtio-blk-pci", "bus": disks_port, "drive": f"disk{index}", "id": f"blk{index}",
         "serial": _serial_number(disk.volume_id)}
        for index, disk in enumerate(spec.disks) if index
    ]  # fmt: skip
    nics: list[dict[str, Any]] = [
        {"driver": "virtio-net-pci", "bus": nics_port, "netdev": f"net{index}", "id": f"nic{index}", "mac": nic.mac, "romfile": ""}
        for index, nic in enumerate(spec.nics) if index
    ]  # fmt: skip
    return tuple(
        one | {"addr": f"0.{function}", "multifunction": len(devices) > 1}
        for devices in (disks, nics)
        for function, one in reversed(list(enumerate(devices)))
    )


def _serial_number(volume_id: str) -> str:
    """Twenty characters, which is what virtio-blk has room for and how EC2 shows it in the guest."""
    return volume_id.replace("-", "")[:20]


def _smbios(spec: MachineSpec) -> list[str]:
    """DMI as on EC2 (the uuid begins with `ec2`; cloud-init wants the serial to equal it)."""
    return [
        "-smbios", "type=0,vendor=Amazon EC2,version=1.0",
        "-smbios", f"type=1,manufacturer=Amazon EC2,product={spec.instance_type},uuid={spec.uuid},serial={spec.uuid}",
        "-smbios", f"type=2,manufacturer=Amazon EC2,asset={spec.instance_id}",
        "-smbios", "type=3,manufacturer=Amazon EC2,asset=Amazon EC2",
    ]  # fmt: skip


def _disk(index: int, disk: DiskSpec, file: Path, emulated: bool, plugged: bool) -> list[str]:
    node = f"disk{index}"
    out = ["-blockdev", f"driver=qcow2,node-name={node},discard=unmap,file.driver=file,file.filename={_comma(file)}"]
    if plugged:
        return out
    boot = ",bootindex=1" if disk.boot else ""
    device = f"ide-hd,bus=ide.{index // 2},unit={index % 2}" if emulated else "virtio-blk-pci"
    return [*out, "-device", f"{device},drive={node},id=blk{index},serial={_serial_number(disk.volume_id)}{boot}"]


def _nic(index: int, nic: NicSpec, tap: int, emulated: bool, plugged: bool) -> list[str]:
    out = ["-netdev", f"tap,id=net{index},fd={tap}"]
    if plugged:
        return out
    card = "e1000" if emulated else "virtio-net-pci"
    return [*out, "-device", f"{card},netdev=net{index},id=nic{index},mac={nic.mac},romfile="]


def _comma(path: Path) -> str:
    """QEMU takes a doubled comma for one inside a value."""
    return str(path).replace(",", ",,")


def _engine(accelerator: Accelerator, tb_mib: int) -> list[str]:
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={tb_mib}", "-cpu", "max"]


def command(
    spec: MachineSpec,
    places: Places,
    files: dict[str, Path],
    taps: dict[str, int],
    accelerator: Accelerator,
    kernel: Kernel | None = None,
    warm: Warm | None = None,
    tb_mib: int = TB_SIZE,
) -> list[str]:
    """The machine `spec`. `files` maps volume ids to disk files, `taps` interface ids to inherited descriptors.

    One that goes on from a template has the devices of a template: what else it has is only made ready here (`plugged`).
    `tb_mib` is TCG's translation buffer: one that is too small is emptied again and again.
    A machine of the emulated generation has the parts of a PC of its time, each emulated whole: i440fx, IDE, e1000, VGA.

    Standard input and output are the event monitor: it says on `events.log` how the machine ended, even if
    nobody was there to see it.
    """
    emulated = spec.generation == "emulated"
    memory = guest_memory(spec.memory_mib, accelerator)
    out = [BINARY, "-nodefaults", "-no-user-config", "-name", f"guest={spec.instance_id}", "-machine"]
    out += [(EMULATED_MACHINE if emulated else MACHINE) + (",memory-backend=mem" if warm else "")]
    out += [*_engine(accelerator, tb_mib), "-smp", str(spec.vcpus), "-m", f"{memory >> 10}K", "-rtc", "base=utc"]
    out += [
        "-action",
        "reboot=shutdown",
        "-display",
        "none",
        "-device",
        "VGA",
        "-boot",
        "strict=on",
        "-sandbox",
        SANDBOX,
    ]
    out += _smbios(spec)
    if not emulated:
        out += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
    for index, disk in enumerate(spec.disks):
        out += _disk(index, disk, files[disk.volume_id], emulated, plugged=warm is not None and index > 0)
    for index, nic in enumerate(spec.nics):
        out += _nic(index, nic, taps[nic.interface_id], emulated, plugged=warm is not None and index > 0)
    out += ["-chardev", "stdio,id=events,signal=off", "-mon", "chardev=events,mode=control"]
    out += [
        "-chardev",
        f"socket,id=qmp,path={_comma(places.qmp)},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
    ]
    log = f"logfile={_comma(places.console_log)},logappend=on"
    out += ["-chardev", f"socket,id=console,path={_comma(places.console)},server=on,wait=off,{log}"]
    out += ["-serial", "chardev:console"]
    if warm is not None:
        out += [*_spare_ports(), *_warm(warm, memory)]
    if kernel is not None:
        out += ["-kernel", str(kernel.kernel), "-initrd", str(kernel.initrd), "-append", kernel.arguments]
    return out


def lives(
    boots: list[str], given: list[str] | None, places: Places, feed: int, lent: tuple[int, ...] = ()
) -> list[str]:
    """A shell that runs the machine from boot to boot: `given` first if there is one, then always `boots`.

    A guest's reset ends QEMU, and a fresh one boots the disk's own boot loader: QEMU would start a given kernel
    again though the guest may have installed another, and TCG is several times slower after a reset in the same
    process. The shell makes this independent of haneul; `feed` is the writing end of the event monitor's input. `lent` are
    descriptors for the first of them alone: a template's memory is not kept for longer, and who listens hears its end.
    """
    events = shlex.quote(str(places.events))
    # Each boot begins with a line of its own: an older boot's end is not taken for this one's.
    # A crash writes no core file: it would hold the guest's memory.
    # When the server runs out of memory, a machine goes before what serves all of them.
    script = f"""ulimit -c 0
echo {OOM_SCORE} > /proc/self/oom_score_adj
{shlex.join(given or boots)}
code=$?
{"exec " + " ".join(f"{one}>&-" for one in lent) if lent else ":"}
while [ $code -eq 0 ]; do
  case "$(grep -e '"BOOT"' -e '"SHUTDOWN"' {events} | tail -n 1)" in *'"guest-reset"'*) ;; *) break ;; esac
  echo {shlex.quote(BOOT)}
  printf '%s\\n' {shlex.quote(CAPABILITIES)} > /proc/self/fd/{feed}
  {shlex.join(boots)}
  code=$?
done
printf '{{"event": "EXIT", "data": {{"code": %d}}}}\\n' $code
exit $code"""
    # dash closes no descriptor of two digits.
    return ["/bin/bash" if lent else "/bin/sh", "-c", script]
