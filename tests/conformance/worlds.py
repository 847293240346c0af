"""Something of everything for one account, and requests for every operation that name what another account has."""

from __future__ import annotations

import base64
import copy
import re
import secrets
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from haneul.api import protocol
from haneul.services.context import Caller
from haneul.services.describe import documented_filters
from tests.conformance.conftest import FakeCloud

Params = dict[str, Any]
#: The catalogue's image: everybody's, and so no secret.
PUBLIC_IMAGE, PUBLIC_SNAPSHOT = "ami-0000000000000ba5e", "snap-0000000000000ba5e"
#: The beginning of an Ed25519 key in OpenSSH's form; any 32 bytes follow.
_ED25519 = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
#: A key that is nobody's: whoever sends a victim's may have it.
ANY_KEY = b"ssh-ed25519 " + base64.b64encode(_ED25519 + bytes(range(32)))
ID = re.compile(r"\b(?:[a-z]+|eni-attach)-0[0-9a-f]{16}\b")


@dataclass
class World:
    """What an account has in a region: `values` by what they are. Texts that it could choose begin with `mark`."""

    account: str
    region: str
    access_key: str = ""
    secret: str = "x"
    mark: str = field(default_factory=lambda: f"mk{secrets.token_hex(4)}")
    values: dict[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> str:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def ids(self) -> list[str]:
        """Of what can be tagged."""
        return [value for name, value in self.values.items() if name in _TAGGABLE]


_TAGGABLE = (
    "instance", "stopped", "volume", "interface", "vpc", "subnet", "group", "group2", "rule", "route_table", "gateway", "acl",
    "dhcp", "key_id", "template", "placement_id", "image", "image2", "fleet",
)  # fmt: skip


def ghost(world: World, *real: str, taken: Container[str] = ()) -> World:
    """The same names of nothing: each value another one of its form, equal ones equal. `real` ones stay.

    `taken` are addresses that somebody has: they are few, so another of the same network can be a world's own.
    """
    made: dict[str, str] = {value: value for name, value in world.values.items() if name in real}
    mark = f"mk{secrets.token_hex(4)}"
    account = made.setdefault(world.account, _like(world.account, world.mark, mark))
    for value in world.values.values():
        made.setdefault(value, _like(value, world.mark, mark, taken).replace(world.account, account))
    return World(account, world.region, mark=mark, values={n: made[v] for n, v in world.values.items()})


def _like(value: str, mark: str, other: str, taken: Container[str] = ()) -> str:
    if ID.fullmatch(value):
        return f"{value.rpartition('-')[0]}-0{secrets.token_hex(8)}"
    if mark in value:
        return value.replace(mark, other)
    if value.isdigit():
        return f"{secrets.randbelow(9 * 10**11) + 10**11:012d}"
    if re.fullmatch(r"[0-9.]+", value):
        head, _, last = value.rpartition(".")
        others = (f"{head}.{(int(last) + 97 + n) % 250 + 2}" for n in range(250))
        return next(one for one in others if one != value and one not in taken)
    if value.startswith(("ip-", "ec2-")):
        return re.sub(r"^((?:\w+-){4})\d+", r"\g<1>254", value)
    if re.fullmatch(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", value):
        return value[:-5] + "fe:fe"
    # Tokens and base64: of the same length, with another end.
    return value[:-6] + ("AAAA" + value[-2:] if value[-6:-2] != "AAAA" else "BBBB" + value[-2:])


# --- making one -------------------------------------------------------------------------------------


class Builder:
    """Makes worlds by the services themselves: the fastest way that is the users' own."""

    def __init__(self, cloud: FakeCloud) -> None:
        self._cloud = cloud
        # Without kept forms an answer is made of values.
        self._services = replace(cloud.running.cloud, forms=None)

    def call(self, world: World, name: str, **params: Any) -> dict[str, Any]:
        return self._services.call("ec2", name, Caller(world.account, world.region, ""), params)

    def network(self, world: World, victim: bool) -> None:
        """The ids of the default VPC."""
        for name, what, member in (
            ("vpc", "Vpcs", "VpcId"), ("route_table", "RouteTables", "RouteTableId"), ("dhcp", "DhcpOptions", "DhcpOptionsId"),
            ("gateway", "InternetGateways", "InternetGatewayId"), ("acl", "NetworkAcls", "NetworkAclId"),
        ):  # fmt: skip
            world.values[name] = self.call(world, f"Describe{what}")[what][0][member]
        subnets = sorted(self.call(world, "DescribeSubnets")["Subnets"], key=lambda one: one["AvailabilityZone"])
        # Victims live in the last zone, so that their addresses are nobody else's by chance.
        world.values["subnet"] = subnets[-1 if victim else 0]["SubnetId"]

    def fill(self, world: World, *, victim: bool = False) -> None:
        mark, values = world.mark, world.values
        self.network(world, victim)
        values |= {
            "account": world.account,
            "text": f"{mark} text",
            "tag_key": f"{mark}-key",
            "tag_value": f"{mark}-value",
        }
        values |= {
            "key": f"{mark}-pair",
            "group_name": f"{mark}-sg",
            "group2_name": f"{mark}-sg2",
            "fresh": f"{mark}-new",
        }
        values |= {
            "placement": f"{mark}-pg",
            "placement2": f"{mark}-pg2",
            "template_name": f"{mark}-lt",
            "image_name": f"{mark}-ami",
        }
        values |= {"user_data": base64.b64encode(f"{mark} data".encode()).decode(), "token": f"{mark}-token"}
        values["material"] = base64.b64encode(_ED25519 + secrets.token_bytes(32)).decode()
        values["key_id"] = self.call(world, "ImportKeyPair", KeyName=world.key, PublicKeyMaterial=public_key(world))[
            "KeyPairId"
        ]
        for name in ("group", "group2", "group3"):
            chosen = values.get(f"{name}_name", f"{mark}-{name}")
            values[name] = self.call(world, "CreateSecurityGroup", GroupName=chosen, Description=world.text)["GroupId"]
        rules = self.call(world, "AuthorizeSecurityGroupIngress", GroupId=world.group, IpPermissions=rule(world))
        values["rule"] = rules["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        made = self.call(
            world, "CreatePlacementGroup", GroupName=world.placement, Strategy="partition", PartitionCount=2
        )["PlacementGroup"]
        values |= {"placement_id": made["GroupId"], "placement_arn": made["GroupArn"]}
        self.call(world, "CreatePlacementGroup", GroupName=world.placement2, Strategy="spread")
        values["image"] = self.call(world, "RegisterImage", **register(world), ImageLocation="haneul/base")["ImageId"]
        # And one with a disk and a snapshot of its own, as if it had been made of an instance.
        values |= {
            "image2": f"ami-0{secrets.token_hex(8)}",
            "snapshot": f"snap-0{secrets.token_hex(8)}",
            "disk": f"{mark}-disk",
        }
        own = {"name": f"{mark}-ami2", "description": world.text, "disk": world.disk, "snapshot_id": world.snapshot}
        self._cloud.put_image(world.image2, world.account, region=world.region, **own)
        data = template_data(world)
        made = self.call(world, "CreateLaunchTemplate", LaunchTemplateName=world.template_name, LaunchTemplateData=data)
        values["template"] = made["LaunchTemplate"]["LaunchTemplateId"]
        self.call(
            world, "CreateLaunchTemplateVersion", LaunchTemplateId=world.template, LaunchTemplateData=data, VersionDescription=world.text
        )  # fmt: skip
        self._instances(world, victim)
        self.call(world, "CreateTags", Resources=world.ids(), Tags=[{"Key": world.tag_key, "Value": world.tag_value}])

    def _instances(self, world: World, victim: bool) -> None:
        values, home = world.values, {"SubnetId": world.subnet, "KeyName": world.key}
        reservation = self.call(world, "RunInstances", MinCount=1, MaxCount=1, ClientToken=world.token, **launch(world))
        (one,) = reservation["Instances"]
        values |= {
            "instance": one["InstanceId"],
            "reservation": reservation["ReservationId"],
            "address": one["PrivateIpAddress"],
        }
        values |= {"private_dns": one["PrivateDnsName"]}
        (nic,) = one["NetworkInterfaces"]
        values |= {
            "interface": nic["NetworkInterfaceId"],
            "mac": nic["MacAddress"],
            "public": nic["Association"]["PublicIp"],
        }
        values |= {"attachment": nic["Attachment"]["AttachmentId"], "public_dns": nic["Association"]["PublicDnsName"]}
        root = [{"Name": "attachment.device", "Values": ["/dev/xvda"]}]
        mine = [{"Name": "attachment.instance-id", "Values": [world.instance]}]
        found = self.call(world, "DescribeVolumes", Filters=[*root, *mine])
        values["volume"] = found["Volumes"][0]["VolumeId"]
        stopped = self.call(world, "RunInstances", ImageId=PUBLIC_IMAGE, MinCount=1, MaxCount=1, **home)
        values["stopped"] = stopped["Instances"][0]["InstanceId"]
        values["fleet"] = self.call(world, "CreateFleet", **fleet(world))["FleetId"]
        if victim:
            # Enough of everything for a second page.
            self.call(world, "RunInstances", ImageId=PUBLIC_IMAGE, MinCount=6, MaxCount=6, **home)
            for n in range(4):
                self.call(world, "CreateSecurityGroup", GroupName=f"{world.mark}-more-{n}", Description=world.text)
                self.call(
                    world,
                    "CreatePlacementGroup",
                    GroupName=f"{world.mark}-more-{n}",
                    Strategy="partition",
                    PartitionCount=2,
                )
                self.call(world, "ImportKeyPair", KeyName=f"{world.mark}-more-{n}", PublicKeyMaterial=public_key(world))
                self.call(
                    world,
                    "CreateLaunchTemplate",
                    LaunchTemplateName=f"{world.mark}-more-{n}",
                    LaunchTemplateData={"KernelId": world.text},
                )

    def settle(self, worlds: list[World]) -> None:
        """Until all are as they should be, and the ones that should be stopped are."""
        self._until(worlds, "pending", lambda: None)
        for world in worlds:
            self.call(world, "StopInstances", InstanceIds=[world.stopped])
        self._until(worlds, "stopping", lambda: None)

    def _until(self, worlds: list[World], state: str, act: Callable[[], None]) -> None:
        deadline = time.monotonic() + 60
        filters = [{"Name": "instance-state-name", "Values": [state]}]
        while any(self.call(world, "DescribeInstances", Filters=filters)["Reservations"] for world in worlds):
            assert time.monotonic() < deadline, f"still {state}"
            time.sleep(0.05)


# --- valid requests ---------------------------------------------------------------------------------


def public_key(w: World) -> bytes:
    return f"ssh-ed25519 {w.material}".encode()


def rule(w: World, port: int = 22) -> list[Params]:
    pair = {"GroupId": w.group2, "UserId": w.account, "Description": w.text}
    ranges = [{"CidrIp": "10.0.0.0/8", "Description": w.text}]
    return [{"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "UserIdGroupPairs": [pair], "IpRanges": ranges}]


def tagged(w: World, *kinds: str) -> list[Params]:
    return [{"ResourceType": kind, "Tags": [{"Key": w.tag_key, "Value": w.tag_value}]} for kind in kinds]


def launch(w: World) -> Params:
    """RunInstances with all that names something, but for counts."""
    return {
        "ImageId": w.image, "InstanceType": "t3.micro", "KeyName": w.key, "SecurityGroupIds": [w.group, w.group2],
        "SubnetId": w.subnet, "UserData": w.user_data, "Placement": {"GroupName": w.placement},
        "TagSpecifications": tagged(w, "instance", "volume", "network-interface"),
        "BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1}}],
    }  # fmt: skip


def register(w: World) -> Params:
    return {"Name": w.image_name, "Description": w.text, "TagSpecifications": tagged(w, "image")}


def fleet(w: World) -> Params:
    specification = {"LaunchTemplateId": w.template, "Version": "2"}
    overrides = [{"InstanceType": "t3.nano", "SubnetId": w.subnet}]
    return {
        "Type": "instant", "TargetCapacitySpecification": {"TotalTargetCapacity": 1}, "TagSpecifications": tagged(w, "fleet"),
        "LaunchTemplateConfigs": [{"LaunchTemplateSpecification": specification, "Overrides": overrides}],
    }  # fmt: skip


def template_data(w: World) -> Params:
    return {name: value for name, value in launch(w).items() if name != "SubnetId"}


def _describe(parameter: str, *names: str) -> Callable[[World], list[Params]]:
    return lambda w: [{parameter: [w.values[name]]} for name in names]


def _each(parameter: str, values: str, **more: str) -> Callable[[World], list[Params]]:
    """A request for each of some attributes, of a thing that `more` names."""
    return lambda w: [
        {name: w.values[key] for name, key in more.items()} | {parameter: value} for value in values.split()
    ]


def _template(w: World, **more: Any) -> list[Params]:
    return [{"LaunchTemplateId": w.template} | more, {"LaunchTemplateName": w.template_name} | more]


def _authorize(w: World, port: int) -> list[Params]:
    by_name = [
        {"IpProtocol": "udp", "UserIdGroupPairs": [{"GroupName": w.group2_name}], "FromPort": port, "ToPort": port}
    ]
    return [{"GroupId": w.group, "IpPermissions": rule(w, port)}, {"GroupId": w.group, "IpPermissions": by_name}]


def _ingress(w: World, port: int) -> list[Params]:
    named = {"GroupName": w.group_name}
    other = {"SourceSecurityGroupName": w.group2_name, "SourceSecurityGroupOwnerId": w.account}
    plain = {"IpProtocol": "tcp", "FromPort": port + 1, "ToPort": port + 1, "CidrIp": "10.0.0.0/8"}
    return [*_authorize(w, port), named | other, named | plain]


_ATTRIBUTES = """instanceType kernel ramdisk userData disableApiTermination disableApiStop instanceInitiatedShutdownBehavior
    rootDeviceName blockDeviceMapping productCodes sourceDestCheck groupSet ebsOptimized sriovNetSupport enaSupport enclaveOptions"""

#: Operation -> requests that succeed for the account whose world it is. Those that need nothing are not named.
BASES: dict[str, Callable[[World], list[Params]]] = {
    "AuthorizeSecurityGroupEgress": lambda w: _authorize(w, 5000),
    "AuthorizeSecurityGroupIngress": lambda w: _ingress(w, 5000),
    "RevokeSecurityGroupEgress": lambda w: [{"GroupId": w.group, "IpPermissions": [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]}],
    "RevokeSecurityGroupIngress": lambda w: [
        {"GroupId": w.group, "SecurityGroupRuleIds": [w.rule]}, {"GroupId": w.group, "IpPermissions": rule(w)},
        {"GroupName": w.group_name, "IpPermissions": rule(w)},
    ],
    "CreateFleet": lambda w: [fleet(w), fleet(w) | {"ClientToken": w.token}],
    "CreateKeyPair": lambda w: [{"KeyName": name, "KeyType": "ed25519", "TagSpecifications": tagged(w, "key-pair")} for name in (w.fresh, w.key)],
    "ImportKeyPair": lambda w: [{"KeyName": name, "PublicKeyMaterial": ANY_KEY, "TagSpecifications": tagged(w, "key-pair")} for name in (w.fresh, w.key)],
    "CreateLaunchTemplate": lambda w: [{"LaunchTemplateName": name, "LaunchTemplateData": template_data(w), "VersionDescription": w.text} for name in (w.fresh, w.template_name)],
    "CreateLaunchTemplateVersion": lambda w: _template(w, LaunchTemplateData=template_data(w), SourceVersion="1"),
    "CreatePlacementGroup": lambda w: [{"GroupName": name, "Strategy": "spread", "TagSpecifications": tagged(w, "placement-group")} for name in (w.fresh, w.placement)],
    "CreateSecurityGroup": lambda w: [{"GroupName": name, "Description": w.text, "VpcId": w.vpc, "TagSpecifications": tagged(w, "security-group")} for name in (w.fresh, w.group_name)],
    "CreateTags": lambda w: [{"Resources": [one], "Tags": [{"Key": w.tag_key, "Value": w.text}]} for one in w.ids()],
    "DeleteTags": lambda w: [{"Resources": [one], "Tags": [{"Key": w.tag_key, "Value": w.tag_value}]} for one in w.ids()] + [{"Resources": [w.instance]}],
    "DeleteFleets": lambda w: [{"FleetIds": [w.fleet], "TerminateInstances": True}],
    "DeleteKeyPair": lambda w: [{"KeyPairId": w.key_id}, {"KeyName": w.key}],
    "DeleteLaunchTemplate": _template,
    "DeleteLaunchTemplateVersions": lambda w: _template(w, Versions=["2"]),
    "DeletePlacementGroup": lambda w: [{"GroupName": w.placement2}],
    "DeleteSecurityGroup": lambda w: [{"GroupId": w.group3}, {"GroupName": f"{w.mark}-group3"}],
    "DeregisterImage": lambda w: [{"ImageId": w.image2}],
    "DescribeFleets": _describe("FleetIds", "fleet"),
    "DescribeDhcpOptions": _describe("DhcpOptionsIds", "dhcp"),
    "DescribeImages": lambda w: [{"ImageIds": [w.image2]}, {"Owners": [w.account]}, {"Owners": ["self"]}, {"ExecutableUsers": [w.account]}],
    "DescribeInstanceCreditSpecifications": _describe("InstanceIds", "instance"),
    "DescribeInstanceStatus": lambda w: [{"InstanceIds": [w.instance]}, {"InstanceIds": [w.stopped], "IncludeAllInstances": True}],
    "DescribeInstances": _describe("InstanceIds", "instance", "stopped"),
    "DescribeInternetGateways": _describe("InternetGatewayIds", "gateway"),
    "DescribeKeyPairs": lambda w: [{"KeyNames": [w.key], "IncludePublicKey": True}, {"KeyPairIds": [w.key_id]}],
    "DescribeLaunchTemplateVersions": lambda w: [*_template(w, Versions=["1"]), {"Versions": ["$Latest"]}],
    "DescribeLaunchTemplates": lambda w: [{"LaunchTemplateIds": [w.template]}, {"LaunchTemplateNames": [w.template_name]}],
    "DescribeNetworkAcls": _describe("NetworkAclIds", "acl"),
    "DescribeNetworkInterfaces": _describe("NetworkInterfaceIds", "interface"),
    "DescribePlacementGroups": lambda w: [{"GroupIds": [w.placement_id]}, {"GroupNames": [w.placement]}],
    "DescribeRouteTables": _describe("RouteTableIds", "route_table"),
    "DescribeSecurityGroupRules": _describe("SecurityGroupRuleIds", "rule"),
    "DescribeSecurityGroups": lambda w: [{"GroupIds": [w.group]}, {"GroupNames": [w.group_name]}],
    "DescribeSubnets": _describe("SubnetIds", "subnet"),
    "DescribeVolumeStatus": _describe("VolumeIds", "volume"),
    "DescribeVolumes": _describe("VolumeIds", "volume"),
    "DescribeVolumesModifications": _describe("VolumeIds", "volume"),
    "DescribeVpcs": _describe("VpcIds", "vpc"),
    "DescribeImageAttribute": _each("Attribute", "description kernel ramdisk launchPermission productCodes blockDeviceMapping sriovNetSupport bootMode imdsSupport", ImageId="image2"),
    "DescribeInstanceAttribute": _each("Attribute", _ATTRIBUTES, InstanceId="instance"),
    "DescribeVpcAttribute": _each("Attribute", "enableDnsSupport enableDnsHostnames enableNetworkAddressUsageMetrics", VpcId="vpc"),
    "GetConsoleOutput": lambda w: [{"InstanceId": w.instance}, {"InstanceId": w.instance, "Latest": True}],
    "GetConsoleScreenshot": lambda w: [{"InstanceId": w.instance, "WakeUp": True}],
    "GetLaunchTemplateData": lambda w: [{"InstanceId": w.instance}],
    "ModifyImageAttribute": lambda w: [
        {"ImageId": w.image2, "Description": {"Value": w.text}}, {"ImageId": w.image2, "LaunchPermission": {"Add": [{"UserId": w.account}]}},
        {"ImageId": w.image2, "Attribute": "launchPermission", "OperationType": "add", "UserIds": [w.account]},
        {"ImageId": w.image2, "LaunchPermission": {"Add": [{"Group": "all"}]}},
    ],
    "ModifyInstanceAttribute": lambda w: [
        {"InstanceId": w.instance, "Groups": [w.group2]}, {"InstanceId": w.stopped, "InstanceType": {"Value": "t3.small"}},
        {"InstanceId": w.stopped, "UserData": {"Value": w.text.encode()}}, {"InstanceId": w.instance, "DisableApiTermination": {"Value": True}},
        {"InstanceId": w.instance, "BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"DeleteOnTermination": False}}]},
        {"InstanceId": w.instance, "Attribute": "sourceDestCheck", "Value": "false"},
    ],
    "ModifyInstanceCreditSpecification": lambda w: [{"InstanceCreditSpecifications": [{"InstanceId": w.instance, "CpuCredits": "standard"}]}],
    "ModifyInstanceMetadataOptions": lambda w: [{"InstanceId": w.instance, "HttpTokens": "required"}],
    "ModifyInstancePlacement": lambda w: [{"InstanceId": w.stopped, "GroupName": w.placement}, {"InstanceId": w.stopped, "GroupId": w.placement_id}],
    "ModifyLaunchTemplate": lambda w: _template(w, DefaultVersion="2"),
    "MonitorInstances": _describe("InstanceIds", "instance"),
    "UnmonitorInstances": _describe("InstanceIds", "instance"),
    "RebootInstances": _describe("InstanceIds", "instance"),
    "StartInstances": _describe("InstanceIds", "stopped"),
    "StopInstances": _describe("InstanceIds", "instance"),
    "TerminateInstances": _describe("InstanceIds", "instance"),
    "RegisterImage": lambda w: [
        {"Name": w.fresh, "Description": w.text, "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": w.snapshot}}]},
        register(w) | {"ImageLocation": "haneul/base"},
    ],
    "ResetImageAttribute": lambda w: [{"ImageId": w.image2, "Attribute": "launchPermission"}],
    "RunInstances": lambda w: [
        {"MinCount": 1, "MaxCount": 1} | launch(w), {"MinCount": 1, "MaxCount": 1, "ClientToken": w.token} | launch(w),
        {"MinCount": 1, "MaxCount": 1, "LaunchTemplate": {"LaunchTemplateId": w.template, "Version": "1"}},
        {"MinCount": 1, "MaxCount": 1, "LaunchTemplate": {"LaunchTemplateName": w.template_name}},
        {"MinCount": 1, "MaxCount": 1, "ImageId": w.image2, "NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": w.subnet, "Groups": [w.group], "Description": w.text}]},
        {"MinCount": 1, "MaxCount": 1, "ImageId": PUBLIC_IMAGE, "SecurityGroups": [w.group_name], "Placement": {"GroupId": w.placement_id}},
    ],
    "GetInstanceProfile": lambda w: [{"InstanceProfileName": w.mark}],
    "GetParameter": lambda w: [{"Name": f"/haneul/images/{w.disk}"}],
    "GetParameters": lambda w: [{"Names": [f"/haneul/images/{w.disk}", f"/haneul/images/{w.image2}"]}],
}  # fmt: skip


# --- naming what another has ------------------------------------------------------------------------

#: Last name of a member -> what of a world it may name; others are free text.
_NAMES: tuple[tuple[str, str], ...] = (
    ("InstanceIds?", "instance stopped"), ("NetworkInterfaceIds?", "interface"), ("SubnetIds?", "subnet"), ("VpcIds?", "vpc"),
    ("VolumeIds?", "volume"), ("ImageIds?", "image image2"), ("SnapshotIds?", "snapshot"), ("SecurityGroupRuleIds?", "rule"),
    ("RouteTableIds?", "route_table"), ("InternetGatewayIds?", "gateway"), ("NetworkAclIds?", "acl"), ("DhcpOptionsIds?", "dhcp"),
    ("GroupIds?", "group placement_id"), ("GroupNames?", "group_name placement"), ("SecurityGroupIds?|Groups", "group"),
    ("SecurityGroups|SourceSecurityGroupName", "group_name"), ("KeyNames?", "key"), ("KeyPairIds?", "key_id"),
    ("LaunchTemplateIds?", "template"), ("LaunchTemplateNames?", "template_name"), ("FleetIds?", "fleet"),
    ("Resources", "instance volume interface vpc subnet group rule route_table gateway acl dhcp key_id template placement_id image2 fleet snapshot"),
    ("PrivateIpAddress(?:es)?", "address"), ("PublicIps?", "public"), ("AllocationIds?|AssociationIds?", "attachment"),
    ("UserIds?|Owners?|OwnerId|OwnerIds|ExecutableUsers|SourceSecurityGroupOwnerId", "account"), ("ClientToken", "token"),
    ("UserData", "user_data"), ("Key", "tag_key"), ("Value", "tag_value text"), ("Arns?|.*Arn", "placement_arn"), ("Name", "image_name key placement"),
)  # fmt: skip


def _kinds(name: str) -> list[str]:
    found = next((kinds for pattern, kinds in _NAMES if re.fullmatch(pattern, name)), "text")
    return found.split()


Path = tuple[str | int, ...]


def leaves(shape: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of the members that take a text of the caller's choice. Filters are tried apart."""
    if shape.type_name == "structure" and len(path) < 9:
        for name, member in shape.members.items():
            if name not in ("Filters", "Filter"):
                yield from leaves(member, (*path, name))
    elif shape.type_name == "list" and len(path) < 9:
        yield from leaves(shape.member, (*path, 0))
    elif shape.type_name == "string" and not getattr(shape, "enum", None):
        yield path


def put(params: Any, path: Path, value: Any) -> Any:
    """A copy of `params` with `value` at `path`; what is missing on the way is made."""
    head, *rest = path
    if isinstance(head, int):
        items = list(params) if isinstance(params, list) else []
        first = put(items[0] if items else None, tuple(rest), value) if rest else value
        return [first, *items[1:]]
    whole = dict(params) if isinstance(params, dict) else {}
    whole[head] = put(whole.get(head), tuple(rest), value) if rest else value
    return whole


#: (own world, another's) -> parameters.
Request = Callable[[World, World], Params]


def bases(name: str, world: World) -> list[Params]:
    return BASES[name](world) if name in BASES else [{}]


def requests(service: str, name: str, other: World) -> Iterator[Request]:
    """Ways to name what `other` has in a call of the operation."""
    count = len(bases(name, other))
    for at in range(count):
        yield lambda own, other, at=at: copy.deepcopy(bases(name, other)[at])
    shape = protocol.operation_model(service, name).input_shape
    if shape is None:
        return
    for path in leaves(shape):
        # A second base of what creates is one whose name is taken.
        yield from _at(name, path, other, range(1 if name.startswith(("Create", "Import", "Run")) else min(count, 2)))
    if service == "ec2":
        field = next((one for one in ("Filters", "Filter") if one in shape.members), "")
        yield from _filtered(name, field) if field else ()


def _at(name: str, path: Path, other: World, chosen: range) -> Iterator[Request]:
    last = next(str(part) for part in reversed(path) if isinstance(part, str))
    if last == "NextToken":
        if f"next {name}" in other.values:
            yield lambda own, other: {"NextToken": other.values[f"next {name}"]} | _paged(name)
            yield lambda own, other: {"NextToken": other.values[f"next {name}"]} | _needed(name)
        return
    for kind in _kinds(last):
        for at in chosen:
            yield lambda own, other, at=at, kind=kind: put(bases(name, own)[at], path, other.values[kind])
        if path[-1] == 0:
            yield lambda own, other, kind=kind: put(
                bases(name, own)[0], path[:-1], [own.values[kind], other.values[kind]]
            )


def _needed(name: str) -> Params:
    return {"Versions": ["$Latest"]} if name == "DescribeLaunchTemplateVersions" else {}


def _paged(name: str) -> Params:
    return {"MaxResults": 5} | _needed(name)


def _filtered(name: str, field: str) -> Iterator[Request]:
    """Every documented filter with all that `other` has, and with patterns."""
    names = sorted(documented_filters(name) - {"tag"})
    for one in names:
        key = (lambda other: f"tag:{other.tag_key}") if one.startswith("tag:") else (lambda other, one=one: one)
        for values in (_everything, lambda other: [f"{other.mark}*", f"?{other.mark[1:]}*", "*"]):
            yield (
                lambda own, other, key=key, values=values: (
                    {field: [{"Name": key(other), "Values": values(other)}]} | _needed(name)
                )
            )
    if "tag-key" in names:
        yield lambda own, other: {field: [{"Name": f"tag:{other.tag_key}", "Values": ["*"]}]} | _needed(name)


def _everything(other: World) -> list[str]:
    return list(dict.fromkeys(value for name, value in other.values.items() if not name.startswith("next ")))
