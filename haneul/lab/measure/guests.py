"""Launches what is compared, through the public EC2 API, and leaves nothing behind.

Instances and their security group have a tag, by which what an interrupted comparison left is found and ended.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from haneul.errors import SettingsError
from haneul.lab import boot
from haneul.lab.measure.places import Guest, PlaceError, connection
from haneul.lab.results import Found, Phase
from haneul.lab.workloads import BENCH_PORT, IPERF_PORT
from haneul.model.generation import Generation, Way

Say = Callable[[str], None]
Instance = dict[str, Any]

NAME = "haneul-compare"
TAG = "haneul:compare"
#: Of about the same memory, and of one vCPU each, which is all that User-mode Linux has.
TYPES: dict[Generation, str] = {"emulated": "e1.small", "paravirtual": "m1.small", "hvm": "t2.small"}
BOOT_SECONDS = 900.0
#: Where the API tells how an instance is run, if that is more than its type says.
VIRTUALIZATION_TAG = "aws:haneul:virtualization"

#: Refusals that are about the server or the image: another generation may do.
_NOT_HERE = {
    "InsufficientInstanceCapacity", "InvalidParameterCombination", "InvalidParameterValue", "Unsupported",
    "UnsupportedOperation", "VcpuLimitExceeded", "InstanceLimitExceeded",
}  # fmt: skip


class NotHere(Exception):
    """A generation that cannot be had, or did not come up: why."""


@dataclass(frozen=True)
class Session:
    """How to reach the cloud: an EC2 client, the SSH command for an instance (destination last), a launch's trace.

    `trace` gives the time at which the machine's process ran, in seconds since the epoch, once that is known.
    """

    ec2: Any
    ssh: Callable[[Instance], Sequence[str]]
    trace: Callable[[str], float | None]


@dataclass(frozen=True)
class Launched:
    """A guest that answers, what is known of it, and how its boot went."""

    guest: Guest
    found: Found
    phases: tuple[Phase, ...]


class Cloud:
    def __init__(self, session: Session, image_id: str, bench: Path | None) -> None:
        """`bench` is the server's copy of our program, for guests without one."""
        self._session = session
        self._ec2 = session.ec2
        self._image_id = image_id
        self._bench = bench

    # --- what is left -----------------------------------------------------------------------------------

    def clean(self, say: Say) -> None:
        """End what comparisons launched, and remove their group. There may be none."""
        alive = {
            "Name": "instance-state-name",
            "Values": ["pending", "running", "stopping", "stopped", "shutting-down"],
        }
        answer = self._ec2.describe_instances(Filters=[{"Name": "tag-key", "Values": [TAG]}, alive])
        ids = [one["InstanceId"] for reservation in answer["Reservations"] for one in reservation["Instances"]]
        if ids:
            say(f"terminating {', '.join(ids)}")
            self._terminate(ids)
        groups = self._ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [NAME]}])
        for group in groups["SecurityGroups"]:
            self._ec2.delete_security_group(GroupId=group["GroupId"])

    def _terminate(self, ids: list[str]) -> None:
        self._ec2.terminate_instances(InstanceIds=ids)
        waiter = self._ec2.get_waiter("instance_terminated")
        waiter.wait(InstanceIds=ids, WaiterConfig={"Delay": 1, "MaxAttempts": 300})

    def others(self) -> int:
        """Instances that run beside the comparison, and disturb it."""
        answer = self._ec2.describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        )
        return sum(len(reservation["Instances"]) for reservation in answer["Reservations"])

    def _group(self) -> str:
        """A group for SSH and for the network workloads."""
        found = self._ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [NAME]}])["SecurityGroups"]
        if found:
            return str(found[0]["GroupId"])
        group = str(self._ec2.create_security_group(GroupName=NAME, Description="haneul compare")["GroupId"])
        for port in (22, BENCH_PORT, IPERF_PORT):
            self._ec2.authorize_security_group_ingress(
                GroupId=group, IpProtocol="tcp", FromPort=port, ToPort=port, CidrIp="0.0.0.0/0"
            )
        return group

    # --- launching --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def launch(self, generation: Generation, say: Say) -> Iterator[Launched]:
        """A guest of a generation, for a while. Raises `NotHere`."""
        instance_type = TYPES[generation]
        group = self._group()
        asked = time.time()
        try:
            instance_id = self._run(instance_type, group)
        except ClientError as error:
            told = error.response["Error"]
            if told["Code"] in _NOT_HERE:
                raise NotHere(f"{told['Code']}: {told['Message']}") from None
            raise
        answered = time.time()
        try:
            with self._connected(instance_id, say) as (guest, instance, greeted):
                done = time.time()
                yield self._launched(generation, guest, instance, (asked, answered, greeted, done))
        finally:
            say(f"terminating {instance_id}")
            self._terminate([instance_id])

    def _run(self, instance_type: str, group: str) -> str:
        tags = [{"Key": "Name", "Value": NAME}, {"Key": TAG, "Value": "1"}]
        answer = self._ec2.run_instances(
            ImageId=self._image_id,
            InstanceType=instance_type,
            MinCount=1,
            MaxCount=1,
            SecurityGroupIds=[group],
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
        return str(answer["Instances"][0]["InstanceId"])

    @contextlib.contextmanager
    def _connected(self, instance_id: str, say: Say) -> Iterator[tuple[Guest, Instance, float]]:
        """The guest, once a command has run in it, and when its SSH server greeted."""
        instance, greeted = self._until_greeted(instance_id, say)
        ssh = self._session.ssh(instance)
        with connection(ssh) as control:
            guest = Guest(ssh, instance["PublicIpAddress"], control)
            self._until_in(guest, instance_id, say)
            yield guest, instance, greeted

    def _until_greeted(self, instance_id: str, say: Say) -> tuple[Instance, float]:
        began = time.monotonic()
        while True:
            instance = self._describe(instance_id)
            state = instance["State"]["Name"]
            if state not in ("pending", "running"):
                why = instance.get("StateReason", {}).get("Message", "no reason given")
                raise NotHere(f"{instance_id} is {state}: {why}")
            if state == "running" and greets(instance.get("PublicIpAddress", "")):
                return instance, time.time()
            elapsed = time.monotonic() - began
            if elapsed > BOOT_SECONDS:
                raise NotHere(f"no SSH after {elapsed:.0f} s; its console ends with: {self._last_line(instance_id)}")
            say(f"{instance_id} is {state}, {elapsed:.0f} s")
            time.sleep(0.1)

    def _until_in(self, guest: Guest, instance_id: str, say: Say) -> None:
        """sshd greets a little before the key is in its place."""
        deadline = time.monotonic() + 180
        while True:
            try:
                guest.run(["true"], 60)
            except PlaceError as error:
                if time.monotonic() > deadline:
                    raise NotHere(f"{instance_id} does not let haneul in: {error}") from None
                time.sleep(0.2)
            else:
                return

    def _describe(self, instance_id: str) -> Instance:
        answer = self._ec2.describe_instances(InstanceIds=[instance_id])
        instance: Instance = answer["Reservations"][0]["Instances"][0]
        return instance

    def _last_line(self, instance_id: str) -> str:
        text = self._ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", "")
        lines = ["".join(one for one in line if one.isprintable()).strip() for line in text.splitlines()]
        return next((line for line in reversed(lines) if line), "nothing")[:200]

    def _launched(
        self, generation: Generation, guest: Guest, instance: Instance, at: tuple[float, float, float, float]
    ) -> Launched:
        asked, answered, greeted, done = at
        says = boot.told(guest.script(boot.ASK))
        kernel = boot.kernel_began(says, time.time())
        guest.find_tools(self._bench)
        # What an init still starts behind its SSH server is not to run beside the workloads.
        with contextlib.suppress(PlaceError):
            guest.script(_SETTLE, 330)
        machine = self._machine(instance["InstanceId"])
        init = boot.init_began(says, kernel)
        phases = boot.phases(boot.Moments(asked, answered, machine, kernel, init, greeted, done))
        tags = {tag["Key"]: tag["Value"] for tag in self._describe(instance["InstanceId"]).get("Tags", [])}
        note = tags.get(VIRTUALIZATION_TAG, "")
        found = Found(
            generation, instance["InstanceType"], way_of(generation, note, says.get("processor", "")), "", note, says
        )
        return Launched(guest, found, phases)

    def _machine(self, instance_id: str) -> float | None:
        """When the machine's process ran. haneul tells of a boot when it is over, which may be a little later."""
        deadline = time.monotonic() + 15
        while True:
            found = self._session.trace(instance_id)
            if found is not None or time.monotonic() > deadline:
                return found
            time.sleep(0.3)


_SETTLE = "command -v systemctl >/dev/null && timeout 300 systemctl is-system-running --wait; exit 0"


def way_of(generation: Generation, note: str, processor: str) -> Way:
    """An HVM type that does not run under KVM has a tag that says so, and a processor of QEMU's; the others are what they ask for."""
    emulated = bool(note) or processor.startswith("QEMU TCG")
    return "emulated-fast" if generation == "hvm" and emulated else generation


def greets(address: str) -> bool:
    """Whether an SSH server greets there."""
    if not address:
        return False
    try:
        with socket.create_connection((address, 22), timeout=2) as there:
            there.settimeout(5)
            return there.recv(4) == b"SSH-"
    except OSError:
        return False


def image_id(ec2: Any, name: str) -> str:
    """Raises SettingsError that says which command makes the image."""
    found = ec2.describe_images(Filters=[{"Name": "name", "Values": [name]}])["Images"]
    if not found:
        raise SettingsError(f"there is no image {name!r} here; `haneul image build {name}` builds it")
    return str(found[0]["ImageId"])
