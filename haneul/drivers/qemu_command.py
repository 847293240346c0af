"""QEMU's command line for a machine. Pure: values in, arguments out (qemu(1), QEMU 7.2)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from haneul.drivers.places import OOM_SCORE, Places
from haneul.model.assignment import DiskSpec, MachineSpec

Accelerator = Literal["tcg", "kvm"]
BINARY = "qemu-system-x86_64"
#: TCG's translation buffer (MiB). It counts to the process, not to the guest.
TB_SIZE = 128
CAPABILITIES = '{"execute":"qmp_capabilities"}'
#: What the shell writes into the event log when the next boot of the same machine begins.
BOOT = '{"event": "BOOT"}'
#: Memory of the guest is no part of a core dump, wherever the server sends those.
MACHINE, EMULATED_MACHINE = "q35,dump-guest-core=off", "pc,dump-guest-core=off"
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

    `memory` is the file of its memory, `resume` an inherited descriptor: the second serial port.
    """

    memory: str
    resume: int
    shared: bool


def _warm(warm: Warm, memory_mib: int) -> list[str]:
    share = "on" if warm.shared else "off"
    out = ["-object", f"memory-backend-file,id=mem,size={memory_mib}M,mem-path={warm.memory},share={share}"]
    out += ["-chardev", f"socket,id=resume,fd={warm.resume}", "-serial", "chardev:resume"]
    return out if warm.shared else [*out, "-incoming", "defer"]


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


def _disk(index: int, disk: DiskSpec, file: Path, emulated: bool) -> list[str]:
    node = f"disk{index}"
    boot = ",bootindex=1" if disk.boot else ""
    device = f"ide-hd,bus=ide.{index // 2},unit={index % 2}" if emulated else "virtio-blk-pci"
    return [
        "-blockdev", f"driver=qcow2,node-name={node},discard=unmap,file.driver=file,file.filename={_comma(file)}",
        "-device", f"{device},drive={node},id=blk{index},serial={_serial_number(disk.volume_id)}{boot}",
    ]  # fmt: skip


def _comma(path: Path) -> str:
    """QEMU takes a doubled comma for one inside a value."""
    return str(path).replace(",", ",,")


def _engine(accelerator: Accelerator) -> list[str]:
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={TB_SIZE}", "-cpu", "max"]


def command(
    spec: MachineSpec,
    places: Places,
    files: dict[str, Path],
    taps: dict[str, int],
    accelerator: Accelerator,
    kernel: Kernel | None = None,
    warm: Warm | None = None,
) -> list[str]:
    """The machine `spec`. `files` maps volume ids to disk files, `taps` interface ids to inherited descriptors.

    A machine of the emulated generation has the parts of a PC of its time, each emulated whole: i440fx, IDE, e1000, VGA.

    Standard input and output are the event monitor: it says on `events.log` how the machine ended, even if
    nobody was there to see it.
    """
    emulated = spec.generation == "emulated"
    out = [BINARY, "-nodefaults", "-no-user-config", "-name", f"guest={spec.instance_id}", "-machine"]
    out += [(EMULATED_MACHINE if emulated else MACHINE) + (",memory-backend=mem" if warm else "")]
    out += [*_engine(accelerator), "-smp", str(spec.vcpus), "-m", f"{spec.memory_mib}M", "-rtc", "base=utc"]
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
        out += _disk(index, disk, files[disk.volume_id], emulated)
    for index, nic in enumerate(spec.nics):
        out += ["-netdev", f"tap,id=net{index},fd={taps[nic.interface_id]}"]
        card = "e1000" if emulated else "virtio-net-pci"
        out += ["-device", f"{card},netdev=net{index},id=nic{index},mac={nic.mac},romfile="]
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
        out += _warm(warm, spec.memory_mib)
    if kernel is not None:
        out += ["-kernel", str(kernel.kernel), "-initrd", str(kernel.initrd), "-append", kernel.arguments]
    return out


def lives(boots: list[str], given: list[str] | None, places: Places, feed: int) -> list[str]:
    """A shell that runs the machine from boot to boot: `given` first if there is one, then always `boots`.

    A guest's reset ends QEMU, and a fresh one boots the disk's own boot loader: QEMU would start a given kernel
    again though the guest may have installed another, and TCG is several times slower after a reset in the same
    process. The shell makes this independent of haneul; `feed` is the writing end of the event monitor's input.
    """
    events = shlex.quote(str(places.events))
    # Each boot begins with a line of its own: an older boot's end is not taken for this one's.
    # A crash writes no core file: it would hold the guest's memory.
    # When the server runs out of memory, a machine goes before what serves all of them.
    script = f"""ulimit -c 0
echo {OOM_SCORE} > /proc/self/oom_score_adj
{shlex.join(given or boots)}
code=$?
while [ $code -eq 0 ]; do
  case "$(grep -e '"BOOT"' -e '"SHUTDOWN"' {events} | tail -n 1)" in *'"guest-reset"'*) ;; *) break ;; esac
  echo {shlex.quote(BOOT)}
  printf '%s\\n' {shlex.quote(CAPABILITIES)} > /proc/self/fd/{feed}
  {shlex.join(boots)}
  code=$?
done
printf '{{"event": "EXIT", "data": {{"code": %d}}}}\\n' $code
exit $code"""
    return ["/bin/sh", "-c", script]
