"""RunInstances: from a request to rows, in one transaction.

Reads as a recipe: read the request into `_Launch`, then for each instance reserve a server, take addresses,
write the instance, its volumes and its interface.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from haneul.errors import CloudError, combination, invalid, missing
from haneul.model.instance_types import InstanceType
from haneul.model.network import mac_address
from haneul.model.region import zone_id, zones
from haneul.services import placement, quotas
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.ec2 import images, keypairs, options, tags
from haneul.services.ec2.instances import generations, launch_templates, placement_groups
from haneul.services.ec2.instances import types as instance_types
from haneul.services.ec2.instances import views as instance_views
from haneul.services.ec2.instances.launch_addresses import free, no_address, no_public
from haneul.services.ec2.instances.launch_rules import check_credit, check_groups, metadata_options, read_user_data
from haneul.services.ec2.network import security_groups, subnets
from haneul.services.ec2.storage import volumes
from haneul.store import tables
from haneul.store.database import Row

DEFAULT_TYPE = "t3.micro"


MAX_COUNT = 1000


_UNSUPPORTED = {
    "ElasticGpuSpecification": "elastic graphics",
    "ElasticInferenceAccelerators": "elastic inference",
    "LicenseSpecifications": "licence configurations",
    "Ipv6Addresses": "IPv6 addresses",
    "KernelId": "kernel images of your own",
    "RamdiskId": "RAM disk images of your own",
    "Ipv6AddressCount": "IPv6 addresses",
    "CpuOptions": "CPU options",
    "EnablePrimaryIpv6": "IPv6 addresses",
    "SecondaryInterfaces": "secondary interfaces",
    "Operator": "service-managed instances",
    "AdditionalInfo": "additional information",
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
    group: Row | None
    partition: int
    system_tags: dict[str, str]


@ec2
def run_instances(ctx: Context, params: Input) -> Output:
    rows = run(ctx, launch_templates.merged(ctx, params))
    return instance_views.reservation(
        ctx, rows[tables.instances], rows[tables.interfaces], rows[tables.volumes], rows[tables.tags]
    )


Written = dict[Any, list[dict[str, Any]]]


def run(ctx: Context, params: Input) -> Written:
    """Launch what RunInstances asks for, between MinCount and MaxCount of them; gives the rows that it wrote."""
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
    return _launch(ctx, launch, least, quotas.room_for_instances(ctx, launch.instance_type, least, most))


def _read(ctx: Context, params: Input) -> _Launch:
    for name, what in _UNSUPPORTED.items():
        if params.get(name):
            raise CloudError("UnsupportedOperation", f"haneul does not have {what} yet (parameter {name}).")
    if params.get("InstanceMarketOptions", {}).get("MarketType", "on-demand") != "on-demand":
        raise CloudError(
            "UnsupportedOperation", "haneul does not have Spot instances (parameter InstanceMarketOptions)."
        )
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
    group = placement_groups.named(ctx, params.get("Placement", {}))
    placement_groups.check_type(group, instance_type)
    launch = _Launch(
        group=group,
        partition=placement_groups.partition(group, params.get("Placement", {})),
        system_tags=params.get("$system-tags", {}),
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
    generations.check(ctx, instance_type, _guest(launch))
    if launch.values["metadata_options"]["InstanceMetadataTags"] == "enabled":
        tags.check_for_metadata(launch.tags.get("instance", {}))
    return launch


def _guest(launch: _Launch) -> generations.Guest:
    return generations.Guest(
        launch.image_id,
        launch.image["name"],
        images.boots_under(launch.image["more"], launch.image["disk"]),
        launch.values["metadata_options"]["HttpTokens"],
        len(launch.volumes),
    )


def _check_fits(image: Row, instance_type: InstanceType) -> None:
    if image["architecture"] != instance_type.architecture:
        raise CloudError(
            "InvalidParameterValue",
            f"The architecture '{instance_type.architecture}' of the specified instance type does not match the "
            f"architecture '{image['architecture']}' of the specified AMI. Specify an instance type and an AMI that "
            "have matching architectures, and try again.",
        )


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
    options.only_known(one, options.INTERFACE, "NetworkInterface")
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
        return subnets.default_subnet(ctx, zone)
    subnet = subnets.find_subnet(ctx, subnet_id)
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


def _values(params: Input) -> dict[str, Any]:
    tenancy = params.get("Placement", {}).get("Tenancy", "default")
    if tenancy != "default" or params.get("Placement", {}).get("HostId"):
        raise CloudError("UnsupportedOperation", "haneul does not have dedicated tenancy.")
    options.only_known(params.get("Placement", {}), options.PLACEMENT, "Placement")
    if params.get("HibernationOptions", {}).get("Configured"):
        raise CloudError("UnsupportedOperation", "haneul does not hibernate instances.")
    if params.get("EnclaveOptions", {}).get("Enabled"):
        raise CloudError("UnsupportedOperation", "haneul does not have Nitro Enclaves.")
    return {
        "user_data": read_user_data(params["UserData"]) if params.get("UserData") else None,
        "shutdown_behavior": params.get("InstanceInitiatedShutdownBehavior", "stop"),
        "disable_api_termination": params.get("DisableApiTermination", False),
        "disable_api_stop": params.get("DisableApiStop", False),
        "ebs_optimized": params.get("EbsOptimized", False),
        "monitoring": params.get("Monitoring", {}).get("Enabled", False),
        "metadata_options": metadata_options(params.get("MetadataOptions", {})),
        "client_token": params.get("ClientToken", ""),
        "more": _credit(params) | ({"options": kept} if (kept := options.kept(params)) else {}),
    }


def _credit(params: Input) -> dict[str, Any]:
    credit = params.get("CreditSpecification", {}).get("CpuCredits")
    if credit is None:
        return {}
    return {"credit": check_credit(params.get("InstanceType", DEFAULT_TYPE), credit)}


def _launch(ctx: Context, launch: _Launch, least: int, most: int) -> Written:
    """Take addresses and room for as many as there are, then write all rows."""
    interfaces = [ctx.new_id("eni") for _ in range(most)]
    addresses: list[str | None] = [launch.address]
    if not launch.address:
        addresses = free(
            ctx, tables.interfaces.c.address, launch.subnet["cidr"], interfaces, subnet_id=launch.subnet["id"]
        )
    publics = (
        free(ctx, tables.interfaces.c.public_address, ctx.settings.public_pool, interfaces)
        if launch.wants_public
        else []
    )
    wanted = placement.need(ctx.settings, launch.instance_type, launch.subnet["zone"])
    group = placement_groups.Placer(ctx, launch.group, launch.subnet["zone"], launch.partition)
    places: list[placement.Member] = []
    for index in range(most):
        try:
            if addresses[index] is None:
                raise no_address(launch.subnet["id"])
            if launch.wants_public and publics[index] is None:
                raise no_public(ctx)
            places.append(group.place(wanted))
        except CloudError:
            if len(places) < least:
                raise
            break
    return _write(ctx, launch, wanted, list(zip(places, interfaces, addresses, publics or [None] * most, strict=False)))


def _write(
    ctx: Context,
    launch: _Launch,
    wanted: placement.Need,
    chosen: list[tuple[placement.Member, str, str | None, str | None]],
) -> Written:
    reservation = ctx.new_id("r")
    notes = launch.system_tags
    if launch.stands_in and launch.image["disk"]:
        notes = notes | {"aws:haneul:stands-in": f"{launch.image['name']} for {launch.image_id}"}
    rows: Written = {table: [] for table in (tables.instances, tables.interfaces, tables.volumes, tables.tags)}
    for index, (place, interface, address, public) in enumerate(chosen):
        instance = ctx.new_id("i")
        # Instances of one launch are shown in the order of their launch index.
        scope = {"account": ctx.account, "region": ctx.region, "created": ctx.now + index * 1e-6}
        row = _instance_row(ctx, launch, reservation, index) | {
            "id": instance,
            "server_id": place.server_id,
            "partition_number": place.partition,
            "reserved_vcpus": wanted.vcpus,
            "reserved_memory_mib": wanted.memory_mib,
        }
        rows[tables.instances].append(tables.whole(tables.instances, scope | row))
        nic = _interface_row(ctx, launch, interface, instance, address, public)
        rows[tables.interfaces].append(tables.whole(tables.interfaces, scope | nic))
        disks = [
            tables.whole(tables.volumes, scope | _volume_row(ctx, launch, volume, instance, place.server_id))
            for volume in launch.volumes
        ]
        rows[tables.volumes] += disks
        labels = {"instance": [instance], "network-interface": [interface], "volume": [disk["id"] for disk in disks]}
        rows[tables.tags] += tags.rows(ctx, instance, notes)
        for kind, ids in labels.items():
            for one in ids:
                rows[tables.tags] += tags.rows(ctx, one, launch.tags.get(kind, {}))
    for table, made in rows.items():
        ctx.tx.insert_many(table, made)
    for vpc, server in {(row["vpc_id"], row["server_id"]) for row in rows[tables.instances]}:
        ctx.tx.unbury("network", vpc, server)
    return rows


def _instance_row(ctx: Context, launch: _Launch, reservation: str, index: int) -> dict[str, Any]:
    key = launch.key
    return {
        "zone": launch.subnet["zone"],
        "reservation_id": reservation,
        "launch_index": index,
        "launched": ctx.now,
        "image_id": launch.image_id,
        "image_name": launch.image["disk"],
        "instance_type": launch.instance_type.name,
        "key_name": key["name"] if key else "",
        "public_key": key["public_key"] if key else "",
        "vpc_id": launch.subnet["vpc_id"],
        "subnet_id": launch.subnet["id"],
        "stands_in": launch.stands_in,
        "root_device": launch.image["root_device"],
        "placement_group": launch.group["name"] if launch.group else "",
        **launch.values,
        # The image may be gone when the instance gets another type.
        "more": launch.values["more"] | {"generations": list(_guest(launch).boots)},
    }


def _interface_row(
    ctx: Context, launch: _Launch, interface: str, instance: str, address: str | None, public: str | None
) -> dict[str, Any]:
    subnet = launch.subnet
    return {
        "id": interface,
        "vpc_id": subnet["vpc_id"],
        "subnet_id": subnet["id"],
        "zone": subnet["zone"],
        "description": launch.interface.get("Description", ""),
        "mac": mac_address(interface),
        "address": address,
        "wants_public": launch.wants_public,
        "public_address": public,
        "groups": launch.groups,
        "instance_id": instance,
        "attachment_id": ctx.new_id("eni-attach"),
        "delete_on_termination": launch.interface.get("DeleteOnTermination", True),
        "attached": ctx.now,
    }


def _volume_row(ctx: Context, launch: _Launch, volume: _Volume, instance: str, server: str) -> dict[str, Any]:
    return {
        "id": ctx.new_id("vol"),
        "zone": launch.subnet["zone"],
        "snapshot_id": volume.snapshot_id,
        "image_name": volume.image,
        "instance_id": instance,
        "device": volume.device,
        "attached": ctx.now,
        "server_id": server,
        **volume.values,
    }
