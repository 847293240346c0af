"""Families choose the generation, images say what they boot under, and a launch that cannot be is refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from haneul.config import Settings
from haneul.errors import CloudError
from haneul.model.assignment import MachineReport, Report, ServerFacts
from haneul.model.generation import GENERATIONS
from haneul.model.image import CatalogueImage
from haneul.reconcile.assign import Signer
from haneul.reconcile.catalogue import sync_catalogue
from haneul.reconcile.control import Control
from haneul.services.context import Caller
from haneul.services.dispatch import Cloud
from haneul.store import tables
from haneul.store.database import Store
from tests.conformance.conftest import FakeCloud
from tests.conformance.test_instances import AMI, get, refused, run, wait

#: An HVM image, one that boots under everything, and one of a haneul that did not know generations.
DEBIAN = CatalogueImage("debian-12", "Debian", "x86_64", 8, 1.0, "admin", generations=("paravirtual", "hvm"))
GENERIC = CatalogueImage("debian-12-generic", "Debian", "x86_64", 8, 1.0, "admin", generations=GENERATIONS)
OLDER = "ami-0000000000000001d"


@pytest.fixture(scope="module")
def cloud(start_cloud: Callable[..., FakeCloud]) -> FakeCloud:
    found = start_cloud()
    with found.running.store.write() as tx:
        sync_catalogue(tx, [DEBIAN, GENERIC])
    found.put_image(OLDER, name="older", disk="older", snapshot_id="snap-0000000000000001d", more={"user": "admin"})
    return found


@pytest.fixture
def ec2(cloud: FakeCloud) -> Any:
    return cloud.client()


def message(call: Callable[[], Any], code: str) -> str:
    with refused(code) as found:
        call()
    return str(found.value.response["Error"]["Message"])


def names(answer: dict[str, Any]) -> set[str]:
    return {one["InstanceType"] for one in answer["InstanceTypes"]}


def tags(one: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])}


# --- types ------------------------------------------------------------------------------------------


def test_the_first_types_are_as_aws_describes_them(ec2: Any) -> None:
    wanted = ["t1.micro", "m1.small", "m1.medium", "e1.small", "t2.micro", "t3.micro"]
    found = {one["InstanceType"]: one for one in ec2.describe_instance_types(InstanceTypes=wanted)["InstanceTypes"]}
    micro = found["t1.micro"]
    assert micro["SupportedVirtualizationTypes"] == ["paravirtual"] and micro["Hypervisor"] == "xen"
    assert micro["MemoryInfo"] == {"SizeInMiB": 627} and micro["SupportedBootModes"] == ["legacy-bios"]
    assert "SustainedClockSpeedInGhz" not in micro["ProcessorInfo"], "AWS does not say it of the first types"
    assert not any(micro[name] for name in ("FreeTierEligible", "BurstablePerformanceSupported", "BareMetal"))
    networks = {
        name: (one["MaximumNetworkInterfaces"], one["Ipv4AddressesPerInterface"], one["NetworkPerformance"])
        for name, one in ((name, one["NetworkInfo"]) for name, one in found.items())
    }
    assert networks["t1.micro"] == (2, 2, "Very Low")
    assert networks["m1.small"] == (2, 4, "Low")
    assert networks["m1.medium"] == (2, 6, "Moderate")
    assert networks["e1.small"] == (3, 4, "Low")
    assert {name: one["CurrentGeneration"] for name, one in found.items()} == {
        name: name in ("t2.micro", "t3.micro") for name in wanted
    }
    emulated = found["e1.small"]
    assert emulated["SupportedVirtualizationTypes"] == ["hvm"] and emulated["Hypervisor"] == "xen"
    volumes = {name: one["EbsInfo"].get("MaximumEbsAttachments") for name, one in found.items()}
    assert (volumes["t1.micro"], volumes["e1.small"], volumes["t3.micro"]) == (8, 4, None)


@pytest.mark.parametrize(
    ("name", "value", "families"),
    [
        ("supported-virtualization-type", "paravirtual", {"t1", "m1"}),
        ("hypervisor", "xen", {"e1", "t1", "m1", "t2"}),
        ("current-generation", "false", {"e1", "t1", "m1"}),
        ("network-info.network-performance", "Very Low", {"t1"}),
        ("ebs-info.maximum-ebs-attachments", "4", {"e1"}),
    ],
)
def test_types_are_found_by_what_they_are(ec2: Any, name: str, value: str, families: set[str]) -> None:
    found = names(ec2.describe_instance_types(Filters=[{"Name": name, "Values": [value]}]))
    assert {one.partition(".")[0] for one in found} == families


# --- images -----------------------------------------------------------------------------------------


def test_images_show_what_they_boot_under(ec2: Any) -> None:
    found = {one["Name"]: one for one in ec2.describe_images(Owners=["haneul"])["Images"]}
    assert {name: tags(one)["aws:haneul:generations"] for name, one in found.items()} == {
        "debian-12": "paravirtual hvm",
        "debian-12-generic": "emulated paravirtual hvm",
        "older": "hvm",
    }
    assert {one["VirtualizationType"] for one in found.values()} == {"hvm"}
    wanted = [{"Name": "tag:aws:haneul:generations", "Values": ["*emulated*"]}]
    assert [one["Name"] for one in ec2.describe_images(Filters=wanted)["Images"]] == ["debian-12-generic"]


def test_the_catalogue_tells_the_store_once(cloud: FakeCloud) -> None:
    """What an image boots under is compared as what it is: rows that are right are not written again."""
    with cloud.running.store.write() as tx:
        before = {row["id"]: row["version"] for row in tx.select(tables.images, account=tables.EVERYONE)}
        assert tx.get(tables.images, DEBIAN.image_id)["more"]["generations"] == ["paravirtual", "hvm"]  # type: ignore[index]
        older = tx.select(tables.images, id=OLDER)[0]
        sync_catalogue(tx, [DEBIAN, GENERIC])
        tx.insert(tables.images, **older)
        after = {row["id"]: row["version"] for row in tx.select(tables.images, account=tables.EVERYONE)}
    assert after == before


def register(ec2: Any, name: str, snapshot: str, **more: Any) -> dict[str, Any]:
    root = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot}}
    image = ec2.register_image(Name=name, RootDeviceName="/dev/xvda", BlockDeviceMappings=[root], **more)["ImageId"]
    found: dict[str, Any] = ec2.describe_images(ImageIds=[image])["Images"][0]
    return found


def test_a_registered_image_boots_under_what_its_snapshot_does(ec2: Any) -> None:
    mine = register(ec2, "mine", DEBIAN.snapshot_id)
    assert (tags(mine)["aws:haneul:generations"], mine["VirtualizationType"]) == ("paravirtual hvm", "hvm")
    run(ec2, ImageId=mine["ImageId"], InstanceType="t1.micro")
    run(ec2, ImageId=mine["ImageId"], InstanceType="t3.micro")
    text = message(lambda: run(ec2, ImageId=mine["ImageId"], InstanceType="e1.small"), "InvalidParameterCombination")
    assert f"The image {mine['ImageId']} (mine) does not boot under the instance type e1.small" in text
    of_older = register(ec2, "of-older", "snap-0000000000000001d")
    assert tags(of_older)["aws:haneul:generations"] == "hvm"


def test_an_image_may_be_registered_as_paravirtual_alone(ec2: Any) -> None:
    one = register(ec2, "pv-only", DEBIAN.snapshot_id, VirtualizationType="paravirtual")
    assert (tags(one)["aws:haneul:generations"], one["VirtualizationType"]) == ("paravirtual", "paravirtual")
    assert "BootMode" not in one, "its kernel is given"
    wanted = [{"Name": "virtualization-type", "Values": ["paravirtual"]}]
    assert [image["ImageId"] for image in ec2.describe_images(Filters=wanted)["Images"]] == [one["ImageId"]]
    run(ec2, ImageId=one["ImageId"], InstanceType="m1.small")
    with refused("InvalidParameterCombination"):
        run(ec2, ImageId=one["ImageId"], InstanceType="t3.micro")
    # Others of the same snapshot keep what that boots under.
    again = register(ec2, "not-pv", DEBIAN.snapshot_id)
    assert tags(again)["aws:haneul:generations"] == "paravirtual hvm"
    for kind, code in (("paravirtual", "InvalidParameterCombination"), ("xenolith", "InvalidParameterValue")):
        with refused(code):
            register(ec2, "not-this", "snap-0000000000000001d", VirtualizationType=kind)


# --- launches ---------------------------------------------------------------------------------------


def test_a_launch_that_cannot_boot_says_what_would(ec2: Any) -> None:
    text = message(
        lambda: run(ec2, ImageId=DEBIAN.image_id, InstanceType="e1.small", DryRun=True), "InvalidParameterCombination"
    )
    assert text.startswith(
        f"The image {DEBIAN.image_id} (debian-12) does not boot under the instance type e1.small "
        "(emulated: every device emulated, from the disk's own boot record). Families that would do: t1, m1 (paravirtual), t2, t3, "
    )
    assert text.endswith("r7i (HVM); images that boot under e1: debian-12-generic.")
    for kind in ("t1.micro", "e1.small"):
        text = message(lambda kind=kind: run(ec2, ImageId=OLDER, InstanceType=kind), "InvalidParameterCombination")  # type: ignore[misc]
        assert "Families that would do: t2, t3" in text and "paravirtual)," not in text
    run(ec2, ImageId=OLDER, InstanceType="t3.micro")
    for kind in ("e1.nano", "t1.micro", "m5.large"):
        run(ec2, ImageId=GENERIC.image_id, InstanceType=kind)
        run(ec2, ImageId=AMI, InstanceType=kind)


def test_what_stands_in_for_an_image_is_asked(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud(unknown_image="debian-12")
    with cloud.running.store.write() as tx:
        sync_catalogue(tx, [DEBIAN])
    text = message(lambda: run(cloud.client(), InstanceType="e1.small"), "InvalidParameterCombination")
    assert f"The image {AMI} (debian-12) does not boot" in text and text.endswith("that boot under e1: none here.")


def test_templates_and_fleets_are_refused_alike(ec2: Any) -> None:
    data = {"ImageId": OLDER, "InstanceType": "t1.micro"}
    template = ec2.create_launch_template(LaunchTemplateName="pv-of-older", LaunchTemplateData=data)["LaunchTemplate"]
    named = {"LaunchTemplateId": template["LaunchTemplateId"], "Version": "$Latest"}
    with refused("InvalidParameterCombination"):
        ec2.run_instances(LaunchTemplate=named, MinCount=1, MaxCount=1)
    fleet = ec2.create_fleet(
        Type="instant",
        LaunchTemplateConfigs=[
            {
                "LaunchTemplateSpecification": named,
                "Overrides": [{"InstanceType": "e1.nano"}, {"InstanceType": "t3.nano"}],
            }
        ],
        TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "on-demand"},
    )
    assert [one["InstanceType"] for one in fleet["Instances"]] == ["t3.nano"]
    (error,) = fleet["Errors"]
    assert error["ErrorCode"] == "InvalidParameterCombination" and "does not boot under" in error["ErrorMessage"]


def test_instances_show_their_virtualization(ec2: Any) -> None:
    kinds = {"t1.micro": "paravirtual", "m1.medium": "paravirtual", "e1.nano": "hvm", "t3.nano": "hvm"}
    ids = {kind: run(ec2, ImageId=GENERIC.image_id, InstanceType=kind)[0] for kind in kinds}
    for kind, virtualization in kinds.items():
        one = get(ec2, ids[kind])
        assert (one["VirtualizationType"], one["Hypervisor"]) == (virtualization, "xen"), "xen stands for Nitro too"
        assert ("CurrentInstanceBootMode" in one) == (virtualization == "hvm")
        assert "KernelId" not in one
        assert one["CpuOptions"]["CoreCount"] == 1
        mine = {"Name": "instance-id", "Values": list(ids.values())}
        same = {"Name": "virtualization-type", "Values": [virtualization]}
        answer = ec2.describe_instances(Filters=[mine, same])
        found = {one["InstanceId"] for reservation in answer["Reservations"] for one in reservation["Instances"]}
        assert found == {ids[other] for other in kinds if kinds[other] == virtualization}
    xen = {"Name": "hypervisor", "Values": ["xen"]}
    assert len(ec2.describe_instances(Filters=[mine, xen])["Reservations"]) == len(kinds)


def stopped(ec2: Any, **parameters: Any) -> str:
    (one,) = run(ec2, **parameters)
    wait(ec2, "instance_running", one)
    ec2.stop_instances(InstanceIds=[one])
    wait(ec2, "instance_stopped", one)
    return one


def test_a_type_of_another_generation(ec2: Any) -> None:
    """A stopped instance may change it, where its image boots; the image may be gone by then."""
    mine = register(ec2, "short-lived", DEBIAN.snapshot_id)["ImageId"]
    one = stopped(ec2, ImageId=mine)
    ec2.deregister_image(ImageId=mine)
    text = message(
        lambda: ec2.modify_instance_attribute(InstanceId=one, InstanceType={"Value": "e1.small"}),
        "InvalidParameterCombination",
    )
    assert "(debian-12) does not boot under the instance type e1.small" in text
    ec2.modify_instance_attribute(InstanceId=one, InstanceType={"Value": "t1.micro"})
    assert get(ec2, one)["VirtualizationType"] == "paravirtual"
    ec2.start_instances(InstanceIds=[one])
    wait(ec2, "instance_running", one)
    older = stopped(ec2, ImageId=OLDER)
    with refused("InvalidParameterCombination"):
        ec2.modify_instance_attribute(InstanceId=older, Attribute="instanceType", Value="t1.micro")


def test_a_start_asks_again(cloud: FakeCloud, ec2: Any) -> None:
    """Whatever the row says: an instance of a haneul that did not know generations boots as an HVM one."""
    one = stopped(ec2, ImageId=DEBIAN.image_id)
    with cloud.running.store.write() as tx:
        tx.update(tables.instances, one, more={})
    ec2.start_instances(InstanceIds=[one])
    wait(ec2, "instance_running", one)
    ec2.stop_instances(InstanceIds=[one])
    wait(ec2, "instance_stopped", one)
    with cloud.running.store.write() as tx:
        tx.update(tables.instances, one, instance_type="t1.micro")
    with refused("InvalidParameterCombination"):
        ec2.start_instances(InstanceIds=[one])


# --- what a paravirtual guest cannot do -------------------------------------------------------------


def test_a_paravirtual_guest_cannot_ask_by_token(ec2: Any) -> None:
    required = {"HttpTokens": "required"}
    text = message(lambda: run(ec2, InstanceType="t1.micro", MetadataOptions=required), "InvalidParameterCombination")
    assert "Specify HttpTokens=optional" in text
    data = {"ImageId": GENERIC.image_id, "InstanceType": "m1.small", "MetadataOptions": required}
    template = ec2.create_launch_template(LaunchTemplateName="imdsv2", LaunchTemplateData=data)["LaunchTemplate"]
    named = {"LaunchTemplateId": template["LaunchTemplateId"]}
    with refused("InvalidParameterCombination"):
        ec2.run_instances(LaunchTemplate=named, MinCount=1, MaxCount=1)
    ec2.run_instances(LaunchTemplate=named, MinCount=1, MaxCount=1, InstanceType="e1.small")
    (one,) = run(ec2, InstanceType="t1.micro")
    with refused("UnsupportedOperation"):
        ec2.modify_instance_metadata_options(InstanceId=one, HttpTokens="required")
    ec2.modify_instance_metadata_options(InstanceId=one, HttpPutResponseHopLimit=3)
    assert get(ec2, one)["MetadataOptions"]["HttpTokens"] == "optional"
    other = stopped(ec2, MetadataOptions=required)
    with refused("InvalidParameterCombination"):
        ec2.modify_instance_attribute(InstanceId=other, InstanceType={"Value": "t1.micro"})
    ec2.modify_instance_metadata_options(InstanceId=other, HttpTokens="optional")
    ec2.modify_instance_attribute(InstanceId=other, InstanceType={"Value": "t1.micro"})


@pytest.mark.parametrize(("kind", "most"), [("t1.micro", 8), ("e1.small", 4)])
def test_volumes_are_bounded_by_the_generation(ec2: Any, kind: str, most: int) -> None:
    more = [{"DeviceName": f"/dev/sd{letter}", "Ebs": {"VolumeSize": 1}} for letter in "fghijklm"[:most]]
    text = message(lambda: run(ec2, InstanceType=kind, BlockDeviceMappings=more), "AttachmentLimitExceeded")
    assert f"at most {most} volumes with the root volume, not {most + 1}" in text
    run(ec2, InstanceType=kind, BlockDeviceMappings=more[1:])
    many = stopped(ec2, InstanceType="t3.micro", BlockDeviceMappings=more)
    with refused("AttachmentLimitExceeded"):
        ec2.modify_instance_attribute(InstanceId=many, InstanceType={"Value": kind})


def test_a_paravirtual_guest_has_a_console_and_no_display(ec2: Any) -> None:
    (one,) = run(ec2, InstanceType="t1.micro")
    wait(ec2, "instance_running", one)
    text = message(lambda: ec2.get_console_screenshot(InstanceId=one), "UnsupportedOperation")
    assert "has no display" in text
    assert one in ec2.get_console_output(InstanceId=one)["Output"]
    (other,) = run(ec2, InstanceType="e1.nano")
    wait(ec2, "instance_running", other)
    assert ec2.get_console_screenshot(InstanceId=other)["ImageData"]


def test_the_aws_cli(cloud: FakeCloud) -> None:
    """The unmodified command: choose a paravirtual type, be refused by an image, launch another one."""

    def aws(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("aws")), "ec2", *arguments]
        return subprocess.run(command, env=cloud.environment(), capture_output=True, text=True, check=False)

    wanted = [
        "--filters",
        "Name=supported-virtualization-type,Values=paravirtual",
        "--query",
        "InstanceTypes[].InstanceType",
    ]
    assert json.loads(aws("describe-instance-types", *wanted).stdout) == ["m1.medium", "m1.small", "t1.micro"]
    no = aws("run-instances", "--image-id", OLDER, "--instance-type", "t1.micro")
    assert no.returncode != 0 and "InvalidParameterCombination" in no.stderr and "debian-12-generic" in no.stderr
    yes = aws("run-instances", "--image-id", GENERIC.image_id, "--instance-type", "t1.micro")
    (one,) = json.loads(yes.stdout)["Instances"]
    assert (one["VirtualizationType"], one["Hypervisor"]) == ("paravirtual", "xen")


# --- servers ----------------------------------------------------------------------------------------


class Bench:
    """The control plane alone: the test is the server's agent."""

    CALLER = Caller("000000000000", "us-east-1", "")

    def __init__(self, directory: Path) -> None:
        self.store = Store.embedded(directory / "db")
        self.store.migrate()
        settings = Settings(data=directory, drivers="auto", public_pool="198.18.0.0/23")
        self.control = Control(self.store, settings, Signer(None, "key"), lambda: 1.0, list)
        self._cloud = Cloud(self.store, settings, None, lambda: 1.0)  # type: ignore[arg-type]
        with self.store.write() as tx:
            sync_catalogue(tx, [GENERIC])

    def call(self, name: str, **parameters: Any) -> dict[str, Any]:
        return self._cloud.call("ec2", name, self.CALLER, parameters)

    def report(self, *machines: MachineReport, kvm: str = "no KVM", **generations: str) -> None:
        facts = ServerFacts(8, 65536, "host", "real", {"tcg": "", "kvm": kvm}, generations)
        self.control.report(Report(1, "server-1", facts, machines))

    def launch(self, kind: str) -> str:
        answer = self.call("RunInstances", ImageId=GENERIC.image_id, InstanceType=kind, MinCount=1, MaxCount=1)
        return str(answer["Instances"][0]["InstanceId"])

    def tag(self, one: str) -> str | None:
        found = self.call("DescribeInstances", InstanceIds=[one])["Reservations"][0]["Instances"][0]
        return tags(found).get("aws:haneul:virtualization")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.store.close()


def test_a_server_refuses_the_generation_that_it_cannot_run(bench: Bench) -> None:
    bench.report(emulated="", paravirtual="User-mode Linux is not there")
    with pytest.raises(
        CloudError, match="server-1 cannot run paravirtual guests: User-mode Linux is not there"
    ) as found:
        bench.launch("t1.micro")
    assert (found.value.code, found.value.status) == ("InsufficientInstanceCapacity", 500)
    one = bench.launch("e1.small")
    bench.report(
        MachineReport(one, "running", 1, accelerator="tcg"), emulated="", paravirtual="User-mode Linux is not there"
    )
    bench.call("StopInstances", InstanceIds=[one])
    bench.report(
        MachineReport(one, "off", 1, "ordered", accelerator="tcg"),
        emulated="",
        paravirtual="User-mode Linux is not there",
    )
    bench.call("ModifyInstanceAttribute", InstanceId=one, InstanceType={"Value": "t1.micro"})
    with pytest.raises(CloudError, match="User-mode Linux is not there"):
        bench.call("StartInstances", InstanceIds=[one])
    bench.report(emulated="", paravirtual="")
    bench.call("StartInstances", InstanceIds=[one])


def test_a_server_of_an_older_version(bench: Bench) -> None:
    bench.report()
    with pytest.raises(CloudError, match="has not said whether it runs paravirtual guests"):
        bench.launch("t1.micro")
    bench.launch("e1.small")
    bench.launch("t3.micro")


def test_instances_say_how_they_are_run(bench: Bench) -> None:
    able = {"emulated": "", "paravirtual": ""}
    bench.report(**able)
    engines = {"e1.nano": "tcg", "t1.micro": "uml", "t3.nano": "tcg", "t3.micro": "kvm"}
    ids = {kind: bench.launch(kind) for kind in engines}

    def machines(power: Any, boots: int = 1) -> list[MachineReport]:
        return [MachineReport(ids[kind], power, boots, accelerator=engine) for kind, engine in engines.items()]

    bench.report(*machines("running"), **able)
    assert {kind: bench.tag(one) for kind, one in ids.items()} == {
        "e1.nano": "emulated (every device emulated)",
        "t1.micro": "paravirtual (User-mode Linux)",
        "t3.nano": "emulated (TCG) with virtio devices: no KVM",
        "t3.micro": None,
    }
    # Another type, and what the server reported of the last one says nothing of it.
    changed = ids["t1.micro"]
    bench.call("StopInstances", InstanceIds=[changed])
    bench.report(MachineReport(changed, "off", 1, "ordered", accelerator="uml"), **able)
    bench.call("ModifyInstanceAttribute", InstanceId=changed, InstanceType={"Value": "t3.small"})
    bench.call("StartInstances", InstanceIds=[changed])
    bench.report(MachineReport(changed, "off", 1, "ordered", "beginning", accelerator="uml"), **able)
    assert bench.tag(changed) == "paravirtual (User-mode Linux)"
    bench.report(MachineReport(changed, "running", 2, accelerator="kvm"), kvm="", **able)
    assert bench.tag(changed) is None


def test_the_status_shows_generations(cloud: FakeCloud, ec2: Any) -> None:
    (one,) = run(ec2, InstanceType="t1.micro")
    wait(ec2, "instance_running", one)
    status = cloud.running.status()
    assert status["servers"][0]["generations"] == dict.fromkeys(GENERATIONS, "")
    (shown,) = [row for row in status["instances"] if row["instance"] == one]
    assert shown["virtualized"] == "fake"
