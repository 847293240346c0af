"""One machine: what the guest sees of it, and its life."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

from tests.system.conftest import Haneul, eventually

Launch = Callable[..., str]


def test_the_guest_has_what_its_type_promises(haneul: Haneul, launch: Launch) -> None:
    mapping = [
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 3}},
        {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 2}},
    ]
    instance = launch(InstanceType="t3.small", BlockDeviceMappings=mapping)
    found = haneul.instance(instance)
    volumes = {one["DeviceName"]: one["Ebs"]["VolumeId"] for one in found["BlockDeviceMappings"]}
    answer = haneul.ssh(
        instance,
        "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo; cat /sys/block/vda/size /sys/block/vda/serial; echo;"
        "cat /sys/block/vdb/size /sys/block/vdb/serial; echo; df -k / | awk 'END {print $2}';"
        "cd /sys/class/dmi/id; cat sys_vendor product_uuid product_serial product_name board_asset_tag chassis_asset_tag",
    ).split("\n")
    vcpus, memory, root_size, root_serial, more_size, more_serial, file_system, vendor, uuid, serial, *names = (
        line for line in answer if line
    )
    assert vcpus == "2"
    assert 2048 * 0.9 < int(memory) / 1024 <= 2048
    assert int(root_size) * 512 == 3 << 30
    assert root_serial == volumes["/dev/xvda"].replace("-", "")
    assert int(more_size) * 512 == 2 << 30
    assert more_serial == volumes["/dev/sdf"].replace("-", "")
    assert int(file_system) > 2.5 * (1 << 20), "the root file system grew with its disk"
    assert vendor == "Amazon EC2"
    assert uuid.startswith("ec2") and serial == uuid
    assert names == ["t3.small", instance, "Amazon EC2"]


def test_an_hvm_type_that_runs_emulated_says_so(haneul: Haneul, launch: Launch) -> None:
    instance = launch()
    tags = {tag["Key"]: tag["Value"] for tag in haneul.instance(instance)["Tags"]}
    assert tags["aws:haneul:virtualization"].startswith("emulated (TCG)")
    shown = next(one for one in haneul.status()["instances"] if one["instance"] == instance)
    assert shown["accelerator"] == "tcg"


def test_stop_and_start_keep_identity_disk_and_address(haneul: Haneul, launch: Launch) -> None:
    ec2 = haneul.client()
    instance = launch()
    before = haneul.instance(instance)
    haneul.ssh(instance, "echo kept > /root/file; sync")
    stopping = ec2.stop_instances(InstanceIds=[instance])["StoppingInstances"][0]
    assert (stopping["PreviousState"]["Name"], stopping["CurrentState"]["Name"]) == ("running", "stopping")
    stopped = haneul.until(instance, "stopped")
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert "PublicIpAddress" not in stopped
    assert not haneul.machine_pids(instance)
    ec2.start_instances(InstanceIds=[instance])
    haneul.until(instance, "running")
    haneul.until_ssh(instance)
    after = haneul.instance(instance)
    assert after["PrivateIpAddress"] == before["PrivateIpAddress"]
    assert after["NetworkInterfaces"][0]["MacAddress"] == before["NetworkInterfaces"][0]["MacAddress"]
    assert after["BlockDeviceMappings"] == before["BlockDeviceMappings"]
    assert haneul.ssh(instance, "cat /root/file; hostname") == f"kept\n{before['PrivateDnsName'].split('.')[0]}"


def test_a_reboot_uses_the_boot_loader_of_the_disk(haneul: Haneul, launch: Launch) -> None:
    """The kernel that haneul gives is for the first boot only: a guest may have installed another."""
    instance = launch()
    assert "haneul.test" not in haneul.ssh(instance, "cat /proc/cmdline")
    first = haneul.ssh(instance, "cat /proc/sys/kernel/random/boot_id")
    haneul.ssh(
        instance, "sed -i 's/root=/haneul.test=1 root=/' /boot/grub/grub.cfg; sync; (sleep 1; reboot) >/dev/null 2>&1 &"
    )

    def rebooted(since: str) -> str | None:
        found = haneul.ssh(instance, "cat /proc/sys/kernel/random/boot_id", timeout=20)
        return found if found != since else None

    second = eventually("the guest has rebooted by itself", lambda: rebooted(first), 240)
    assert "haneul.test=1" in haneul.ssh(instance, "cat /proc/cmdline")
    assert haneul.instance(instance)["State"]["Name"] == "running"
    haneul.client().reboot_instances(InstanceIds=[instance])
    third = eventually("the guest was rebooted by the API", lambda: rebooted(second), 240)
    assert third not in (first, second)
    assert "haneul.test=1" in haneul.ssh(instance, "cat /proc/cmdline")


def test_a_guest_that_powers_off_is_stopped(haneul: Haneul, launch: Launch) -> None:
    instance = launch()
    haneul.ssh(instance, "(sleep 1; poweroff) >/dev/null 2>&1 &")
    found = haneul.until(instance, "stopped")
    assert found["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


def test_a_guest_that_powers_off_is_terminated_if_it_asked_for_that(haneul: Haneul, launch: Launch) -> None:
    instance = launch(InstanceInitiatedShutdownBehavior="terminate")
    (volume,) = (one["Ebs"]["VolumeId"] for one in haneul.instance(instance)["BlockDeviceMappings"])
    haneul.ssh(instance, "(sleep 1; poweroff) >/dev/null 2>&1 &")
    found = haneul.until(instance, "terminated")
    assert found["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    eventually("its volume is gone", lambda: not (haneul.data / "volumes" / f"{volume}.qcow2").exists())
    assert not (haneul.data / "instances" / instance).exists()


def test_a_crash_is_seen_and_explained(haneul: Haneul, launch: Launch) -> None:
    instance = launch()
    os.kill(haneul.qemu_pid(instance), 9)
    found = haneul.until(instance, "stopped")
    assert found["StateReason"]["Code"] == "Server.InternalError"
    assert "ended unexpectedly" in found["StateReason"]["Message"]
    haneul.client().start_instances(InstanceIds=[instance])
    haneul.until_ssh(instance)


def test_force_cuts_the_power_of_a_deaf_guest(haneul: Haneul, launch: Launch) -> None:
    instance = launch()
    haneul.ssh(instance, "killall acpid; sync")
    ec2 = haneul.client()
    ec2.stop_instances(InstanceIds=[instance])
    assert haneul.instance(instance)["State"]["Name"] == "stopping"
    ec2.stop_instances(InstanceIds=[instance], Force=True)
    haneul.until(instance, "stopped", 40)


def test_console_output_and_screenshot(haneul: Haneul, launch: Launch) -> None:
    instance = launch()
    ec2 = haneul.client()
    text = eventually(
        "the guest's own words",
        lambda: f"ready {instance}" in ec2.get_console_output(InstanceId=instance, Latest=True)["Output"],
    )
    assert text
    picture = base64.b64decode(ec2.get_console_screenshot(InstanceId=instance)["ImageData"])
    assert picture[:3] == b"\xff\xd8\xff", "a JPEG, as EC2 gives"
    eventually("the instance passes its status checks", lambda: _status(ec2, instance) == ("ok", "ok"))


def _status(ec2: Any, instance: str) -> tuple[str, str]:
    (found,) = ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"]
    return found["InstanceStatus"]["Status"], found["SystemStatus"]["Status"]


def test_a_launch_that_cannot_be_says_why(haneul: Haneul) -> None:
    """The image's files are gone behind haneul's back: pending, then terminated with the reason."""
    ec2 = haneul.client()
    with_store = haneul.data / "haneul.db"
    assert with_store.exists()
    image = ec2.register_image(Name="broken image", RootDeviceName="/dev/xvda", ImageLocation="haneul/tiny")["ImageId"]
    import sqlite3

    with sqlite3.connect(with_store) as connection:
        connection.execute("UPDATE images SET disk = 'not-there' WHERE id = ?", (image,))
    instance = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="t3.nano")["Instances"][0][
        "InstanceId"
    ]
    found = haneul.until(instance, "terminated")
    assert found["StateReason"]["Code"] == "Server.InternalError"
    assert "not-there" in found["StateReason"]["Message"]
    ec2.deregister_image(ImageId=image)


def test_qemu_is_confined(haneul: Haneul, launch: Launch) -> None:
    """A uid of its own without capabilities, a seccomp filter, a folder that others cannot enter."""
    one, other = launch(), launch()
    uids = set()
    for instance in (one, other):
        pid = haneul.qemu_pid(instance)
        with open(f"/proc/{pid}/status") as lines:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)
        uids.add(status["Uid"].split()[0])
        assert status["Seccomp"] == "2"
        assert int(status["CapEff"], 16) == 0
        folder = haneul.data / "instances" / instance
        assert folder.stat().st_mode & 0o007 == 0
        assert (folder / "run").stat().st_mode & 0o077 == 0
    assert len(uids) == 2 and "0" not in uids
