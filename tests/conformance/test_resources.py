"""Key pairs, tags, images, security groups and the default VPC, against fake drivers."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from haneul.model.image import CatalogueImage
from haneul.reconcile.catalogue import sync_catalogue
from tests.conformance.conftest import FakeCloud
from tests.conformance.test_instances import refused, run

ANY = [{"CidrIp": "0.0.0.0/0"}]


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_key_pairs(ec2: Any, tmp_path: Path, kind: str) -> None:
    made = ec2.create_key_pair(KeyName=f"k-{kind}", KeyType=kind)
    private = tmp_path / "key"
    private.write_text(made["KeyMaterial"])
    private.chmod(0o600)
    public = subprocess.run(["ssh-keygen", "-y", "-f", str(private)], capture_output=True, text=True, check=True).stdout
    (shown,) = ec2.describe_key_pairs(KeyNames=[f"k-{kind}"], IncludePublicKey=True)["KeyPairs"]
    assert shown["PublicKey"].split()[:2] == public.split()[:2], "the private key belongs to the public one"
    if kind == "ed25519":
        digest = base64.b64encode(hashlib.sha256(base64.b64decode(public.split()[1])).digest()).decode()
        assert shown["KeyFingerprint"].rstrip("=") == digest.rstrip("=")
    else:
        der = subprocess.run(
            ["openssl", "pkcs8", "-in", str(private), "-nocrypt", "-topk8", "-outform", "DER"],
            capture_output=True,
            check=True,
        ).stdout
        assert shown["KeyFingerprint"].replace(":", "") == hashlib.sha1(der).hexdigest()
    with refused("InvalidKeyPair.Duplicate"):
        ec2.create_key_pair(KeyName=f"k-{kind}")
    imported = ec2.import_key_pair(KeyName=f"i-{kind}", PublicKeyMaterial=public.encode())
    assert imported["KeyFingerprint"]
    if kind == "rsa":
        der = subprocess.run(
            ["openssl", "rsa", "-in", str(private), "-pubout", "-outform", "DER"], capture_output=True, check=True
        ).stdout
        assert imported["KeyFingerprint"].replace(":", "") == hashlib.md5(der).hexdigest()
    ec2.delete_key_pair(KeyName=f"k-{kind}")
    ec2.delete_key_pair(KeyName=f"k-{kind}")
    with refused("InvalidKeyPair.NotFound"):
        ec2.describe_key_pairs(KeyNames=[f"k-{kind}"])
    with refused("InvalidKey.Format"):
        ec2.import_key_pair(KeyName="bad", PublicKeyMaterial=b"ssh-rsa nonsense")


def test_tags(ec2: Any) -> None:
    (one,) = run(ec2)
    group = ec2.create_security_group(GroupName="tagged", Description="d")["GroupId"]
    ec2.create_tags(Resources=[one, group], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}])
    ec2.create_tags(Resources=[one], Tags=[{"Key": "a", "Value": "2"}])
    mine = {"Name": "resource-id", "Values": [one, group]}
    shown = {(tag["ResourceId"], tag["Key"], tag["Value"]) for tag in ec2.describe_tags(Filters=[mine])["Tags"]}
    assert shown == {(one, "a", "2"), (one, "b", ""), (group, "a", "1"), (group, "b", "")}
    ec2.delete_tags(Resources=[one], Tags=[{"Key": "a", "Value": "other"}])
    ec2.delete_tags(Resources=[group], Tags=[{"Key": "a"}])
    assert {tag["Key"] for tag in ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [group]}])["Tags"]} == {
        "b"
    }
    with refused("InvalidInstanceID.NotFound"):
        ec2.create_tags(Resources=[one, "i-0123456789abcdef0"], Tags=[{"Key": "c", "Value": "3"}])
    with refused("InvalidID"):
        ec2.create_tags(Resources=["nothing"], Tags=[{"Key": "c", "Value": "3"}])
    with refused("InvalidParameterValue"):
        ec2.create_tags(Resources=[one], Tags=[{"Key": "aws:c", "Value": "3"}])
    with refused("TagLimitExceeded"):
        ec2.create_tags(Resources=[one], Tags=[{"Key": f"k{number}", "Value": ""} for number in range(50)])
    ec2.delete_tags(Resources=[one])
    assert "c" not in {tag["Key"] for tag in ec2.describe_tags(Filters=[mine])["Tags"]}


def test_security_group_rules(ec2: Any) -> None:
    group = ec2.create_security_group(GroupName="rules", Description="d")["GroupId"]
    everything = {"IpProtocol": "-1", "IpRanges": ANY}
    (shown,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert shown["IpPermissionsEgress"][0]["IpRanges"] == ANY and shown["IpPermissions"] == []
    with refused("InvalidPermission.Duplicate"):
        ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[everything])
    ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[everything])
    with refused("InvalidPermission.NotFound"):
        ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[everything])
    web = {
        "IpProtocol": "tcp",
        "FromPort": 80,
        "ToPort": 81,
        "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "in"}, *ANY],
    }
    made = ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[web])["SecurityGroupRules"]
    assert [one["CidrIpv4"] for one in made] == ["10.0.0.0/8", "0.0.0.0/0"]
    ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="6", FromPort=22, ToPort=22, CidrIp="192.168.1.7/16")
    (shown,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    by_port = {one["FromPort"]: one["IpRanges"] for one in shown["IpPermissions"]}
    assert by_port == {80: web["IpRanges"], 22: [{"CidrIp": "192.168.0.0/16"}]}
    ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[made[0]["SecurityGroupRuleId"]])
    rules = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])["SecurityGroupRules"]
    assert {one["CidrIpv4"] for one in rules} == {"0.0.0.0/0", "192.168.0.0/16"}
    ec2.get_waiter("security_group_exists").wait(GroupIds=[group])
    for permission, code in (
        ({"IpProtocol": "tcp", "FromPort": 5, "ToPort": 1, "IpRanges": ANY}, "InvalidParameterValue"),
        ({"IpProtocol": "tcp", "FromPort": 5, "ToPort": 99999, "IpRanges": ANY}, "InvalidParameterValue"),
        ({"IpProtocol": "tcp", "IpRanges": ANY}, "InvalidParameterValue"),
        ({"IpProtocol": "-1", "IpRanges": [{"CidrIp": "300.0.0.0/8"}]}, "InvalidParameterValue"),
        ({"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-0123456789abcdef0"}]}, "InvalidGroup.NotFound"),
        ({"IpProtocol": "nonsense", "IpRanges": ANY}, "InvalidParameterValue"),
    ):
        with refused(code):
            ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
    peer = ec2.create_security_group(GroupName="peer", Description="d")["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=peer, IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
    )
    with refused("DependencyViolation"):
        ec2.delete_security_group(GroupId=group)
    ec2.delete_security_group(GroupId=peer)
    ec2.delete_security_group(GroupId=group)
    with refused("InvalidGroup.NotFound"):
        ec2.describe_security_groups(GroupIds=[group])
    with refused("InvalidGroup.Duplicate"):
        ec2.create_security_group(GroupName="again", Description="d")
        ec2.create_security_group(GroupName="again", Description="d")
    with refused("CannotDelete"):
        ec2.delete_security_group(GroupName="default")


def test_images(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud(unknown_image="debian-12")
    image = CatalogueImage("debian-12", "Debian", "x86_64", 8, 1.0, "admin")
    with cloud.running.store.write() as tx:
        sync_catalogue(tx, [image])
    ec2 = cloud.client()
    (shown,) = ec2.describe_images(Owners=["haneul"])["Images"]
    assert (shown["ImageId"], shown["VirtualizationType"], shown["RootDeviceType"]) == (image.image_id, "hvm", "ebs")
    assert ec2.describe_images(Owners=["self"])["Images"] == []
    root = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": image.snapshot_id, "VolumeSize": 12}}
    mine = ec2.register_image(Name="mine", BlockDeviceMappings=[root], RootDeviceName="/dev/xvda")["ImageId"]
    ec2.get_waiter("image_available").wait(ImageIds=[mine])
    assert ec2.describe_images(Owners=["self"])["Images"][0]["Name"] == "mine"
    (one,) = run(ec2, ImageId=mine)
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [one]}])["Volumes"]
    assert (volume["Size"], volume["SnapshotId"]) == (12, image.snapshot_id)
    with refused("InvalidAMIName.Duplicate"):
        ec2.register_image(Name="mine", BlockDeviceMappings=[root], RootDeviceName="/dev/xvda")
    with refused("AuthFailure"):
        ec2.deregister_image(ImageId=image.image_id)
    ec2.deregister_image(ImageId=mine)
    with refused("InvalidAMIID.NotFound"):
        ec2.describe_images(ImageIds=[mine])
    (stands_in,) = run(ec2, ImageId="ami-00000000000000001")
    found = ec2.describe_instances(InstanceIds=[stands_in])["Reservations"][0]["Instances"][0]
    assert found["ImageId"] == "ami-00000000000000001"
    assert {"Key": "aws:haneul:stands-in", "Value": "debian-12 for ami-00000000000000001"} in found["Tags"]


def test_the_default_vpc(ec2: Any) -> None:
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "isDefault", "Values": ["true"]}])["Vpcs"]
    here = [{"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
    assert vpc["CidrBlock"] == "172.31.0.0/16"
    assert {one["AvailabilityZone"] for one in ec2.describe_subnets(Filters=here)["Subnets"]} == {
        "us-east-1a",
        "us-east-1b",
        "us-east-1c",
    }
    (table,) = ec2.describe_route_tables(Filters=[*here, {"Name": "association.main", "Values": ["true"]}])[
        "RouteTables"
    ]
    (gateway,) = ec2.describe_internet_gateways(Filters=[{"Name": "attachment.vpc-id", "Values": [vpc["VpcId"]]}])[
        "InternetGateways"
    ]
    assert {one["GatewayId"] for one in table["Routes"]} == {"local", gateway["InternetGatewayId"]}
    (acl,) = ec2.describe_network_acls(Filters=[*here, {"Name": "default", "Values": ["true"]}])["NetworkAcls"]
    assert len(acl["Entries"]) == 4 and len(acl["Associations"]) == 3
    (options,) = ec2.describe_dhcp_options(DhcpOptionsIds=[vpc["DhcpOptionsId"]])["DhcpOptions"]
    assert options["DhcpConfigurations"][0]["Values"][0]["Value"] == "ec2.internal"
    assert ec2.describe_vpc_attribute(VpcId=vpc["VpcId"], Attribute="enableDnsSupport")["EnableDnsSupport"]["Value"]
    (one,) = run(ec2)
    (interface,) = ec2.describe_network_interfaces(Filters=[{"Name": "attachment.instance-id", "Values": [one]}])[
        "NetworkInterfaces"
    ]
    assert interface["Status"] == "in-use" and interface["Attachment"]["DeviceIndex"] == 0
    with refused("InvalidVpcID.NotFound"):
        ec2.describe_vpcs(VpcIds=["vpc-0123456789abcdef0"])
    with pytest.raises(ClientError, match="Malformed"):
        ec2.describe_subnets(SubnetIds=["subnet-x"])


def test_places(ec2: Any) -> None:
    assert "ap-northeast-2" in {one["RegionName"] for one in ec2.describe_regions()["Regions"]}
    zones = ec2.describe_availability_zones(ZoneNames=["us-east-1b"])["AvailabilityZones"]
    assert [(one["ZoneId"], one["State"]) for one in zones] == [("use1-az2", "available")]
    with refused("InvalidParameterValue"):
        ec2.describe_availability_zones(ZoneNames=["us-east-1z"])
