"""RunInstances: from a request to rows, in one transaction.

Reads as a recipe: read the request into `_Launch`, then for each instance reserve a server, take addresses,
write the instance, its volumes and its interface.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from dataclasses import dataclass
from typing import Any

from haneul.errors import CloudError, combination, invalid, missing
from haneul.model.instance_types import InstanceType
from haneul.model.network import free_address, mac_address
from haneul.model.region import zone_id, zones
from haneul.services import placement
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.ec2 import (
    images,
    instance_types,
    instance_views,
    keypairs,
    networks,
    security_groups,
    tags,
    volumes,
)
from haneul.store import tables
from haneul.store.database import Row

DEFAULT_TYPE = "t3.micro"
MAX_USER_DATA = 16384
MAX_COUNT = 1000
MAX_GROUPS = 5

_CAPACITY = ("InsufficientInstanceCapacity", "InsufficientAddressCapacity", "InsufficientFreeAddressesInSubnet")

_UNSUPPORTED = {
    "LaunchTemplate": "launch templates",
    "InstanceMarketOptions": "Spot instances",
    "ElasticGpuSpecification": "elastic graphics",
    "ElasticInferenceAccelerators": "elastic inference",
    "LicenseSpecifications": "licence configurations",
    "Ipv6Addresses": "IPv6 addresses",
    "KernelId": "kernel images of your own",
    "RamdiskId": "RAM disk images of your own",
    "Ipv6AddressCount": "IPv6 addresses",
    "CpuOptions": "CPU options",
    "EnablePrimaryIpv6": "IPv6 addresses",
}


@dataclass(frozen=True)
class _Volume:
    device: str
    image: str
    snapshot_id: str
    values: dict[str, Any]


@dataclass(frozen=True)
class _Launch:
    """A checked request; the same for each of the instances that it asks for."""

    image: Row
    image_id: str
    stands_in: bool
    instance_type: InstanceType
    subnet: Row
    groups: list[str]
    address: str
    wants_public: bool
    interface: dict[str, Any]
    volumes: list[_Volume]
    key: Row | None
    values: dict[str, Any]
    tags: dict[str, dict[str, str]]


@ec2
def run_instances(ctx: Context, params: Input) -> Output:
    least, most = params["MinCount"], params["MaxCount"]
    if least < 1 or most < 1:
        raise invalid(min(least, most), "MinCount" if least < 1 else "MaxCount", "It must be at least 1.")
    if least > most:
        raise invalid(least, "MinCount", "It is greater than MaxCount.")
    if most > MAX_COUNT:
        raise CloudError(
            "InstanceLimitExceeded", f"You have requested more instances ({most}) than the {MAX_COUNT} of one call."
        )
    launch = _read(ctx, params)
    if launch.address and most > 1:
        raise combination("A private address can be given to one instance only.")
    reservation = ctx.new_id("r")
    made: list[str] = []
    for index in range(most):
        try:
            with ctx.tx.savepoint():
                made.append(_launch_one(ctx, launch, reservation, index))
        except CloudError as error:
            if error.code in _CAPACITY and len(made) >= least:
                break
            raise
    return instance_views.reservation(ctx, made)


def _read(ctx: Context, params: Input) -> _Launch:
    for name, what in _UNSUPPORTED.items():
        if params.get(name):
            raise CloudError("UnsupportedOperation", f"haneul does not have {what} yet (parameter {name}).")
    if params.get("IamInstanceProfile"):
        profile = params["IamInstanceProfile"]
        raise invalid(
            profile.get("Name") or profile.get("Arn"), "iamInstanceProfile", "Invalid IAM Instance Profile name"
        )
    if not params.get("ImageId"):
        raise missing("ImageId")
    image, stands_in = images.find(ctx, params["ImageId"])
    instance_type = instance_types.find(params.get("InstanceType", DEFAULT_TYPE))
    _check_fits(image, instance_type)
    interface = _interface(params)
    subnet = _subnet(ctx, params, interface)
    groups = _groups(ctx, params, interface, subnet)
    return _Launch(
        image=image,
        image_id=params["ImageId"],
        stands_in=stands_in,
        instance_type=instance_type,
        subnet=subnet,
        groups=groups,
        address=_address(ctx, params, interface, subnet),
        wants_public=bool(interface.get("AssociatePublicIpAddress", subnet["map_public"])),
        interface=interface,
        volumes=_volumes(image, params),
        key=keypairs.find(ctx, params["KeyName"]) if params.get("KeyName") else None,
        values=_values(params),
        tags=tags.specified(params, "instance", "volume", "network-interface", "spot-instances-request"),
    )


def _check_fits(image: Row, instance_type: InstanceType) -> None:
    if image["architecture"] != instance_type.architecture:
        raise CloudError(
            "InvalidParameterValue",
            f"The architecture '{instance_type.architecture}' of the specified instance type does not match the "
            f"architecture '{image['architecture']}' of the specified AMI. Specify an instance type and an AMI that "
            "have matching architectures, and try again.",
        )


_UNSUPPORTED_INTERFACE = {
    "Ipv6AddressCount": "IPv6 addresses",
    "Ipv6Addresses": "IPv6 addresses",
    "Ipv6Prefixes": "IPv6 addresses",
    "Ipv4Prefixes": "prefix delegation",
    "SecondaryPrivateIpAddressCount": "secondary private addresses",
}


def _take_primary(interface: dict[str, Any]) -> None:
    """Terraform gives the address as a list of one."""
    given = interface.get("PrivateIpAddresses", [])
    if len(given) > 1:
        raise CloudError("UnsupportedOperation", "haneul does not have secondary private addresses yet.")
    if given:
        interface["PrivateIpAddress"] = given[0].get("PrivateIpAddress", "")


def _interface(params: Input) -> dict[str, Any]:
    """The one `NetworkInterface` of the request (Terraform's form), or an empty one."""
    given = params.get("NetworkInterfaces", [])
    if len(given) > 1:
        raise CloudError("UnsupportedOperation", "haneul does not have instances with several interfaces yet.")
    if not given:
        return {}
    one = dict(given[0])
    if one.get("DeviceIndex") != 0:
        raise CloudError("InvalidParameterValue", "The first network interface must have the device index 0.")
    if one.get("NetworkInterfaceId"):
        raise CloudError("UnsupportedOperation", "haneul does not launch with existing interfaces yet.")
    for name, what in _UNSUPPORTED_INTERFACE.items():
        if one.get(name):
            raise CloudError("UnsupportedOperation", f"haneul does not have {what} yet (NetworkInterface.{name}).")
    _take_primary(one)
    for name in ("SubnetId", "SecurityGroupIds", "SecurityGroups", "PrivateIpAddress"):
        if params.get(name):
            raise combination(
                "Network interfaces and an instance-level subnet ID, groups or address may not be specified on the same request"
            )
    return one


def _subnet(ctx: Context, params: Input, interface: dict[str, Any]) -> Row:
    placement_given = params.get("Placement", {})
    zone = placement_given.get("AvailabilityZone")
    if placement_given.get("AvailabilityZoneId"):
        by_id = {zone_id(one): one for one in zones(ctx.region)}
        zone = by_id.get(placement_given["AvailabilityZoneId"], placement_given["AvailabilityZoneId"])
    if zone and zone not in zones(ctx.region):
        raise invalid(zone, "availabilityZone", "It is not a zone of this region.")
    subnet_id = interface.get("SubnetId") or params.get("SubnetId")
    if not subnet_id:
        return networks.default_subnet(ctx, zone)
    subnet = networks.find_subnet(ctx, subnet_id)
    if zone and subnet["zone"] != zone:
        raise invalid(zone, "availabilityZone", f"The subnet {subnet_id} is in {subnet['zone']}.")
    return subnet


def _groups(ctx: Context, params: Input, interface: dict[str, Any], subnet: Row) -> list[str]:
    wanted = list(dict.fromkeys(interface.get("Groups") or params.get("SecurityGroupIds") or ()))
    by_name = [
        security_groups.find_by_name(ctx, name, subnet["vpc_id"])["id"] for name in params.get("SecurityGroups", ())
    ]
    chosen = list(dict.fromkeys([*wanted, *by_name]))
    if not chosen:
        return [security_groups.find_by_name(ctx, "default", subnet["vpc_id"])["id"]]
    return check_groups(ctx, chosen, subnet["vpc_id"])


def check_groups(ctx: Context, wanted: list[str], vpc_id: str) -> list[str]:
    """The groups as they are, if all are of the VPC."""
    if len(wanted) > MAX_GROUPS:
        raise CloudError(
            "SecurityGroupsPerInterfaceLimitExceeded", f"An interface has at most {MAX_GROUPS} security groups."
        )
    for one in wanted:
        if security_groups.find(ctx, one)["vpc_id"] != vpc_id:
            raise CloudError("InvalidParameter", f"Security group {one} and the subnet belong to different networks.")
    return wanted


def _address(ctx: Context, params: Input, interface: dict[str, Any], subnet: Row) -> str:
    wanted = interface.get("PrivateIpAddress") or params.get("PrivateIpAddress") or ""
    if not wanted:
        return ""
    network = ipaddress.IPv4Network(subnet["cidr"])
    try:
        address = ipaddress.IPv4Address(wanted)
    except ValueError:
        raise invalid(wanted, "address", "Invalid IPv4 address.") from None
    if address not in network or not 4 <= int(address) - int(network[0]) < network.num_addresses - 1:
        raise CloudError("InvalidParameterValue", f"Address {wanted} does not fall within the subnet's address range")
    if ctx.own(tables.interfaces, subnet_id=subnet["id"], address=wanted):
        raise CloudError("InvalidIPAddress.InUse", f"Address {wanted} is in use.")
    return str(wanted)


def _volumes(image: Row, params: Input) -> list[_Volume]:
    root = image["root_device"]
    volumes.check_devices(params.get("BlockDeviceMappings", []))
    given = {one["DeviceName"]: one for one in params.get("BlockDeviceMappings", ())}
    if "NoDevice" in given.get(root, {}):
        raise CloudError("InvalidBlockDeviceMapping", f"The root device {root} cannot be left out.")
    snapshot = given.get(root, {}).get("Ebs", {}).get("SnapshotId", image["snapshot_id"])
    if snapshot != image["snapshot_id"]:
        raise CloudError("InvalidBlockDeviceMapping", f"snapshotId cannot be modified on root device {root}")
    mappings = {one["DeviceName"]: one for one in image["block_devices"]} | given
    least = image["size_gib"]
    root_values = volumes.check_mapping(mappings.pop(root, {}).get("Ebs", {}), least, least)
    found = [_Volume(root, image["disk"], image["snapshot_id"], root_values)]
    for device, mapping in mappings.items():
        if "NoDevice" in mapping or mapping.get("VirtualName"):
            continue
        ebs = mapping.get("Ebs", {})
        if ebs.get("SnapshotId"):
            raise CloudError("InvalidSnapshot.NotFound", f"The snapshot '{ebs['SnapshotId']}' does not exist.")
        found.append(_Volume(device, "", "", volumes.check_mapping(ebs, 1, 0)))
    return found


def read_user_data(text: str) -> str:
    """Base64 user data, checked. Raises InvalidUserData.Malformed."""
    try:
        decoded = base64.b64decode(text, validate="\n" not in text)
    except (binascii.Error, ValueError):
        raise CloudError("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.") from None
    if len(decoded) > MAX_USER_DATA:
        raise CloudError("InvalidParameterValue", f"User data is limited to {MAX_USER_DATA} bytes")
    return base64.b64encode(decoded).decode()


def metadata_options(given: dict[str, Any], present: dict[str, Any] | None = None) -> dict[str, Any]:
    """`MetadataOptions` with what is given laid over what is present (or EC2's defaults)."""
    hops = given.get("HttpPutResponseHopLimit")
    if hops is not None and not 1 <= hops <= 64:
        raise invalid(hops, "HttpPutResponseHopLimit", "It is between 1 and 64.")
    if given.get("HttpProtocolIpv6") == "enabled":
        raise CloudError("UnsupportedOperation", "haneul does not serve metadata over IPv6 yet.")
    defaults = {
        "HttpTokens": "optional",
        "HttpPutResponseHopLimit": 1,
        "HttpEndpoint": "enabled",
        "HttpProtocolIpv6": "disabled",
        "InstanceMetadataTags": "disabled",
    }
    base = present or defaults
    return base | {name: given[name] for name in defaults if given.get(name) is not None}


def _values(params: Input) -> dict[str, Any]:
    tenancy = params.get("Placement", {}).get("Tenancy", "default")
    if tenancy != "default" or params.get("Placement", {}).get("HostId"):
        raise CloudError("UnsupportedOperation", "haneul does not have dedicated tenancy.")
    if params.get("Placement", {}).get("GroupName"):
        raise CloudError("InvalidPlacementGroup.Unknown", "The placement group is unknown.")
    if params.get("HibernationOptions", {}).get("Configured"):
        raise CloudError("UnsupportedOperation", "haneul does not hibernate instances.")
    if params.get("EnclaveOptions", {}).get("Enabled"):
        raise CloudError("UnsupportedOperation", "haneul does not have Nitro Enclaves.")
    credit = params.get("CreditSpecification", {}).get("CpuCredits")
    return {
        "user_data": read_user_data(params["UserData"]) if params.get("UserData") else None,
        "shutdown_behavior": params.get("InstanceInitiatedShutdownBehavior", "stop"),
        "disable_api_termination": params.get("DisableApiTermination", False),
        "disable_api_stop": params.get("DisableApiStop", False),
        "ebs_optimized": params.get("EbsOptimized", False),
        "monitoring": params.get("Monitoring", {}).get("Enabled", False),
        "metadata_options": metadata_options(params.get("MetadataOptions", {})),
        "client_token": params.get("ClientToken", ""),
        "more": {"credit": credit} if credit else {},
    }


def _launch_one(ctx: Context, launch: _Launch, reservation: str, index: int) -> str:
    wanted = placement.need(ctx.settings, launch.instance_type, launch.subnet["zone"])
    server = placement.reserve(ctx.tx, wanted, ctx.settings)
    key = launch.key
    instance = ctx.add(
        tables.instances,
        "i",
        zone=launch.subnet["zone"],
        reservation_id=reservation,
        launch_index=index,
        launched=ctx.now,
        image_id=launch.image_id,
        image_name=launch.image["disk"],
        instance_type=launch.instance_type.name,
        key_name=key["name"] if key else "",
        public_key=key["public_key"] if key else "",
        vpc_id=launch.subnet["vpc_id"],
        subnet_id=launch.subnet["id"],
        stands_in=launch.stands_in,
        root_device=launch.image["root_device"],
        server_id=server,
        reserved_vcpus=wanted.vcpus,
        reserved_memory_mib=wanted.memory_mib,
        **launch.values,
    )
    _add_interface(ctx, launch, instance)
    _add_volumes(ctx, launch, instance, server)
    tags.put(ctx, instance, launch.tags.get("instance", {}))
    if launch.stands_in and launch.image["disk"]:
        tags.put(ctx, instance, {"aws:haneul:stands-in": f"{launch.image['name']} for {launch.image_id}"})
    return instance


def _add_interface(ctx: Context, launch: _Launch, instance: str) -> None:
    interface = ctx.new_id("eni")
    subnet = launch.subnet
    used = {row["address"] for row in ctx.tx.select(tables.interfaces, subnet_id=subnet["id"])}
    address = launch.address or free_address(subnet["cidr"], used, interface)
    if address is None:
        raise CloudError(
            "InsufficientFreeAddressesInSubnet", f"There are not enough free addresses in subnet '{subnet['id']}'."
        )
    ctx.tx.insert(
        tables.interfaces,
        id=interface,
        account=ctx.account,
        region=ctx.region,
        created=ctx.now,
        vpc_id=subnet["vpc_id"],
        subnet_id=subnet["id"],
        zone=subnet["zone"],
        description=launch.interface.get("Description", ""),
        mac=mac_address(interface),
        address=address,
        wants_public=launch.wants_public,
        public_address=take_public(ctx, interface) if launch.wants_public else None,
        groups=launch.groups,
        instance_id=instance,
        attachment_id=ctx.new_id("eni-attach"),
        delete_on_termination=launch.interface.get("DeleteOnTermination", True),
        attached=ctx.now,
    )
    tags.put(ctx, interface, launch.tags.get("network-interface", {}))


def take_public(ctx: Context, interface: str) -> str:
    """A free address of the public pool. Its first four belong to haneul's own ends."""
    table = tables.interfaces
    used = {row["public_address"] for row in ctx.tx.select(table, table.c.public_address.is_not(None))}
    address = free_address(ctx.settings.public_pool, used, interface)
    if address is None:
        raise CloudError("InsufficientAddressCapacity", f"The pool {ctx.settings.public_pool} has no free address.")
    return address


def _add_volumes(ctx: Context, launch: _Launch, instance: str, server: str) -> None:
    for volume in launch.volumes:
        volume_id = ctx.add(
            tables.volumes,
            "vol",
            zone=launch.subnet["zone"],
            snapshot_id=volume.snapshot_id,
            image_name=volume.image,
            instance_id=instance,
            device=volume.device,
            attached=ctx.now,
            server_id=server,
            **volume.values,
        )
        tags.put(ctx, volume_id, launch.tags.get("volume", {}))
