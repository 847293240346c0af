"""AMIs: haneul's own catalogue, which everybody may launch, and the images that accounts register."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from haneul.errors import CloudError, combination, invalid, missing, not_found
from haneul.model.generation import COMMON, GENERATIONS, WAYS, Generation, VirtualizationType, parse
from haneul.model.ids import is_id
from haneul.model.image import CATALOGUE_ALIAS, CATALOGUE_OWNER
from haneul.model.times import moment
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import check_ids, matching, page
from haneul.services.ec2 import tags
from haneul.services.ec2.storage import volumes
from haneul.store import tables
from haneul.store.database import Row

_ACCOUNT = re.compile(r"[0-9]{12}\Z")


_AMI_NAME = re.compile(r"[a-zA-Z0-9()\[\] ./\-'@_]{3,128}\Z")


def visible(ctx: Context, *where: Any, **equal: Any) -> list[Row]:
    """The caller's images, the catalogue, and what others share with the caller or with everybody."""
    image, shared = tables.images.c, tables.image_permissions.c
    mine = sa.select(shared.image_id).where(shared.account == ctx.account)
    accounts = image.account.in_((ctx.account, tables.EVERYONE)) | image.public | image.id.in_(mine)
    regions = image.region.in_((ctx.region, tables.EVERYONE))
    return ctx.tx.select(tables.images, accounts, regions, *where, **equal)


def _visible_by_id(ctx: Context, image_id: str) -> Row | None:
    """One image, if the caller may see it; by its id alone, because every launch asks."""
    row = ctx.tx.get(tables.images, image_id)
    if row is None or row["region"] not in (ctx.region, tables.EVERYONE):
        return None
    if row["account"] in (ctx.account, tables.EVERYONE) or row["public"]:
        return row
    return row if ctx.tx.select(tables.image_permissions, image_id=image_id, account=ctx.account) else None


def stand_in(ctx: Context, image_id: str) -> Row | None:
    """The image that stands in for one which exists only at AWS, if the settings name one."""
    name = ctx.settings.unknown_image
    if ctx.settings.drivers == "fake" and name == "refuse":
        return _nothing(image_id)
    if name == "refuse":
        return None
    # The catalogue's names, or the id of an image of the caller's own: what others share decides nothing here.
    known = ctx.tx.select(tables.images, account=tables.EVERYONE, name=name)
    row = known[0] if known else _visible_by_id(ctx, name)
    if row is not None and row["account"] in (ctx.account, tables.EVERYONE) and row["available"]:
        return row
    raise CloudError("InvalidAMIID.NotFound", f"The setting unknown_image names '{name}', which is no image here")


def _nothing(image_id: str) -> Row:
    """What fake drivers launch: an image that has no bytes."""
    return {
        "id": image_id,
        "account": tables.EVERYONE,
        "name": image_id,
        "description": "an image that only fake drivers launch",
        "created": 0.0,
        "public": True,
        "available": True,
        "disk": "",
        "architecture": "x86_64",
        "root_device": "/dev/xvda",
        "size_gib": 8,
        "snapshot_id": "",
        "block_devices": [],
        "more": {},
    }


def find(ctx: Context, image_id: str) -> tuple[Row, bool]:
    """The image to launch, and whether it stands in for the one that was asked for."""
    if not is_id("ami", image_id):
        raise CloudError("InvalidAMIID.Malformed", f'Invalid id: "{image_id}"')
    row = _visible_by_id(ctx, image_id)
    if row is not None and row["available"]:
        return row, False
    if row is not None:
        raise CloudError("InvalidAMIID.Unavailable", f"The image ID '{image_id}' is not available")
    other = stand_in(ctx, image_id)
    if other is None:
        raise not_found_image(image_id)
    return other, True


def not_found_image(*ids: str) -> CloudError:
    text = (
        f"The image id '[{ids[0]}]' does not exist"
        if len(ids) == 1
        else f"The image ids '[{', '.join(ids)}]' do not exist"
    )
    return CloudError("InvalidAMIID.NotFound", text)


def _described(ctx: Context, rows: list[Row], wanted: list[str]) -> list[Row]:
    """The images of these ids. What stands in for one that exists only at AWS is described under its id: it can be launched."""
    for one in wanted:
        if not is_id("ami", one):
            raise CloudError("InvalidAMIID.Malformed", f'Invalid id: "{one}"')
    known = {row["id"]: row for row in rows}
    for one in wanted:
        if one not in known and _visible_by_id(ctx, one) is None and (other := stand_in(ctx, one)) is not None:
            known[one] = {**other, "id": one}
    unknown = [one for one in wanted if one not in known]
    if unknown:
        raise not_found_image(*unknown)
    return [known[one] for one in dict.fromkeys(wanted)]


def boots_under(more: dict[str, Any], disk: str) -> tuple[Generation, ...]:
    """The generations under which a root volume boots, from what its image's (or its instance's) row says of it.

    Rows from before there were generations say nothing. What fake drivers launch may have no disk: nothing boots.
    """
    if "generations" in more:
        return parse(more["generations"])
    return COMMON if disk else GENERATIONS


def _boots_under(row: Row) -> tuple[Generation, ...]:
    return boots_under(row["more"], row["disk"])


def _virtualization_type(row: Row) -> VirtualizationType:
    """EC2's, which knows two: what boots on emulated hardware boots on HVM's."""
    kinds = {WAYS[one].virtualization_type for one in _boots_under(row)}
    return "paravirtual" if kinds == {"paravirtual"} else "hvm"


def _system_tags(row: Row) -> list[dict[str, str]]:
    """Who logs in to instances of the image, and what it boots under: system tags, which clients leave alone."""
    tags_of = {"aws:haneul:generations": " ".join(_boots_under(row)), "aws:haneul:user": row["more"].get("user")}
    return [{"Key": key, "Value": value} for key, value in tags_of.items() if value]


def _view(row: Row, labels: list[dict[str, str]]) -> dict[str, Any]:
    catalogue = row["account"] == tables.EVERYONE
    kind = _virtualization_type(row)
    owner = (row["more"].get("owner") or CATALOGUE_OWNER) if catalogue else row["account"]
    alias = row["more"].get("alias", CATALOGUE_ALIAS)
    root = {
        "DeviceName": row["root_device"],
        "Ebs": {
            "SnapshotId": row["snapshot_id"],
            "VolumeSize": row["size_gib"],
            "VolumeType": "gp3",
            "DeleteOnTermination": True,
            "Encrypted": False,
        },
    }
    view = {
        "ImageId": row["id"],
        "Name": row["name"],
        "ImageLocation": f"{(alias or owner) if catalogue else owner}/{row['name']}",
        "Description": row["description"],
        "Architecture": row["architecture"],
        "CreationDate": moment(row["created"]).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "ImageType": "machine",
        "Public": row["public"],
        "OwnerId": owner,
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "State": "available" if row["available"] else "deregistered",
        "BlockDeviceMappings": [root, *row["block_devices"]],
        "RootDeviceName": row["root_device"],
        "RootDeviceType": "ebs",
        "VirtualizationType": kind,
        "Hypervisor": "xen",
        "EnaSupport": False,
        "SriovNetSupport": None,
        "BootMode": "legacy-bios" if kind == "hvm" else None,
        "Tags": [*labels, *_system_tags(row)],
    }
    return view | ({"ImageOwnerAlias": alias} if catalogue and alias else {})


_FILTERS = {
    "architecture": "Architecture",
    "boot-mode": "BootMode",
    "block-device-mapping.delete-on-termination": "BlockDeviceMappings.Ebs.DeleteOnTermination",
    "block-device-mapping.device-name": "BlockDeviceMappings.DeviceName",
    "block-device-mapping.snapshot-id": "BlockDeviceMappings.Ebs.SnapshotId",
    "block-device-mapping.volume-size": "BlockDeviceMappings.Ebs.VolumeSize",
    "block-device-mapping.volume-type": "BlockDeviceMappings.Ebs.VolumeType",
    "block-device-mapping.encrypted": "BlockDeviceMappings.Ebs.Encrypted",
    "creation-date": "CreationDate",
    "description": "Description",
    "ena-support": "EnaSupport",
    "hypervisor": "Hypervisor",
    "image-id": "ImageId",
    "image-type": "ImageType",
    "is-public": "Public",
    "kernel-id": "KernelId",
    "manifest-location": "ImageLocation",
    "name": "Name",
    "owner-alias": "ImageOwnerAlias",
    "owner-id": "OwnerId",
    "platform": "Platform",
    "product-code": "ProductCodes.ProductCodeId",
    "product-code.type": "ProductCodes.ProductCodeType",
    "ramdisk-id": "RamdiskId",
    "root-device-name": "RootDeviceName",
    "root-device-type": "RootDeviceType",
    "source-image-id": "SourceImageId",
    "source-instance-id": "SourceInstanceId",
    "state": "State",
    "state-reason-code": "StateReason.Code",
    "state-reason-message": "StateReason.Message",
    "sriov-net-support": "SriovNetSupport",
    "virtualization-type": "VirtualizationType",
}


def _owned(view: dict[str, Any], owners: list[str], account: str) -> bool:
    names = {account if owner == "self" else owner for owner in owners}
    return view["OwnerId"] in names or view.get("ImageOwnerAlias") in names


def _executable_by(ctx: Context, users: list[str]) -> Callable[[dict[str, Any]], bool]:
    """Images with a launch permission for `all`, for the caller (`self`), or (own ones) for an account."""
    shared = tables.image_permissions
    accounts = [ctx.account if user == "self" else user for user in users]
    granted: dict[str, set[str]] = {}
    for row in ctx.tx.select(shared, shared.c.account.in_(accounts)):
        granted.setdefault(row["image_id"], set()).add(row["account"])

    def allowed(item: dict[str, Any]) -> bool:
        found = granted.get(item["ImageId"], set())
        return (
            ("all" in users and item["Public"])
            or ctx.account in found
            or bool(found and item["OwnerId"] == ctx.account)
        )

    return allowed


@ec2
def describe_images(ctx: Context, params: Input) -> Output:
    rows = visible(ctx, available=True)
    if params.get("ImageIds"):
        rows = _described(ctx, rows, params["ImageIds"])
    labels = tags.of(ctx, [row["id"] for row in rows])
    items = [_view(row, labels[row["id"]]) for row in rows]
    if params.get("Owners"):
        items = [item for item in items if _owned(item, params["Owners"], ctx.account)]
    if params.get("ExecutableUsers"):
        allowed = _executable_by(ctx, params["ExecutableUsers"])
        items = [item for item in items if allowed(item)]
    shown, token = page(
        ctx, params, matching(ctx, params, items, _FILTERS), lambda item: item["ImageId"], ids="ImageIds", least=1
    )
    return {"Images": shown, "NextToken": token}


def _disk_of_location(ctx: Context, location: str) -> Row:
    """A catalogue image by its `ImageLocation`: `haneul/debian-12` or just `debian-12`."""
    name = location.removeprefix(f"{CATALOGUE_ALIAS}/")
    rows = ctx.tx.select(tables.images, account=tables.EVERYONE, name=name)
    if not rows:
        raise CloudError(
            "InvalidManifest",
            f"'{location}' is not an image of this haneul; `haneul image list` names them.",
        )
    return rows[0]


def _disk_of_snapshot(ctx: Context, snapshot: str) -> Row:
    """Of the caller's own or of the catalogue: sharing an image does not share its snapshot (as on EC2), and a copy
    would outlive the permission."""
    check_ids("snap", "InvalidSnapshotID", [snapshot])
    own = tables.images.c.account.in_((ctx.account, tables.EVERYONE))
    rows = visible(ctx, own, snapshot_id=snapshot, available=True)
    if not rows:
        raise not_found("InvalidSnapshot.NotFound", "snapshot", [snapshot])
    # An image may have been registered of the same snapshot for fewer generations than it boots under.
    return max(rows, key=lambda row: len(_boots_under(row)))


def _of_kind(source: Row, kind: str | None) -> dict[str, Any]:
    """What an image of `source`'s snapshot knows of it. One of the VirtualizationType `paravirtual` is that alone."""
    if kind not in (None, "hvm", "paravirtual"):
        raise invalid(kind, "virtualizationType", "It is hvm or paravirtual.")
    found = _boots_under(source)
    if kind is not None and kind not in {WAYS[one].virtualization_type for one in found}:
        raise combination(
            f"The snapshot of {source['name']} does not boot as an image of the virtualization type '{kind}'. "
            f"It boots under: {', '.join(found) or 'nothing'}."
        )
    more: dict[str, Any] = source["more"]
    return more | {"generations": ["paravirtual"]} if kind == "paravirtual" else more


def _check_more(mappings: list[dict[str, Any]]) -> None:
    """Data volumes of an image: blank ones only."""
    for one in mappings:
        if one.get("Ebs", {}).get("SnapshotId"):
            raise CloudError("UnsupportedOperation", "haneul does not have snapshots of data volumes yet.")
        volumes.check_mapping(one.get("Ebs", {}), 1, 0)


def _root_mapping(params: Input, root: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    mappings = params.get("BlockDeviceMappings", [])
    volumes.check_devices(mappings)
    roots = [one for one in mappings if one.get("DeviceName") == root]
    return (roots[0].get("Ebs", {}) if roots else {}), [one for one in mappings if one.get("DeviceName") != root]


@ec2
def register_image(ctx: Context, params: Input) -> Output:
    """An image of the caller's from a snapshot of its own or of the catalogue, or from `ImageLocation=haneul/NAME`."""
    name = params.get("Name")
    if not name:
        raise missing("Name")
    if not _AMI_NAME.match(name):
        raise CloudError(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, "
            "'(', ')', '.', '-', '/' and '_'.",
        )
    if ctx.own(tables.images, name=name, available=True):
        raise CloudError("InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI")
    root = params.get("RootDeviceName", "/dev/xvda")
    volumes.check_device(root)
    ebs, others = _root_mapping(params, root)
    if params.get("ImageLocation"):
        source = _disk_of_location(ctx, params["ImageLocation"])
    elif ebs.get("SnapshotId"):
        source = _disk_of_snapshot(ctx, ebs["SnapshotId"])
    else:
        raise combination(f"A snapshot is needed for the root device {root}, or an ImageLocation.")
    if params.get("Architecture", source["architecture"]) != source["architecture"]:
        raise invalid(params["Architecture"], "architecture", f"The snapshot holds {source['architecture']}.")
    more = _of_kind(source, params.get("VirtualizationType"))
    size = volumes.check_mapping(ebs, source["size_gib"], source["size_gib"])["size_gib"]
    _check_more(others)
    wanted = tags.specified(params, "image", "snapshot").get("image", {})
    image_id = ctx.add(
        tables.images,
        "ami",
        name=name,
        description=params.get("Description", ""),
        architecture=source["architecture"],
        disk=source["disk"],
        snapshot_id=source["snapshot_id"],
        root_device=root,
        size_gib=size,
        block_devices=others,
        more=more,
    )
    tags.put(ctx, image_id, wanted)
    return {"ImageId": image_id}


@ec2
def deregister_image(ctx: Context, params: Input) -> Output:
    image_id = _owned_one(ctx, params["ImageId"])["id"]
    row = ctx.tx.get(tables.images, image_id)
    assert row is not None
    # Its id stays known for a while: it is one of haneul's own, which nothing stands in for.
    ctx.tx.update(tables.images, image_id, available=False, more=row["more"] | {"deregistered": ctx.now})
    ctx.tx.delete(tables.image_permissions, image_id=image_id)
    tags.remove_all(ctx, image_id)
    return {"Return": True}


def _known(ctx: Context, image_id: str) -> Row:
    if not is_id("ami", image_id):
        raise CloudError("InvalidAMIID.Malformed", f'Invalid id: "{image_id[:80]}"')
    row = _visible_by_id(ctx, image_id)
    if row is None or not row["available"]:
        raise not_found_image(image_id)
    return row


def _owned_one(ctx: Context, image_id: str) -> Row:
    row = _known(ctx, image_id)
    if row["account"] != ctx.account:
        raise CloudError("AuthFailure", f"Not authorized for image:{image_id}")
    return row


def _permissions(ctx: Context, row: Row) -> list[dict[str, str]]:
    users = sorted(one["account"] for one in ctx.tx.select(tables.image_permissions, image_id=row["id"]))
    return [*([{"Group": "all"}] if row["public"] else []), *({"UserId": user} for user in users)]


@ec2
def describe_image_attribute(ctx: Context, params: Input) -> Output:
    """Of an image of the caller's; `launchPermission` is for its owner alone, as on EC2."""
    row, name = _known(ctx, params["ImageId"]), params["Attribute"]
    if name in ("launchPermission", "productCodes"):
        row = _owned_one(ctx, row["id"])
    values: dict[str, Callable[[], dict[str, Any]]] = {
        "description": lambda: {"Description": {"Value": row["description"]}},
        "kernel": lambda: {"KernelId": {}},
        "ramdisk": lambda: {"RamdiskId": {}},
        "launchPermission": lambda: {"LaunchPermissions": _permissions(ctx, row)},
        "productCodes": lambda: {"ProductCodes": []},
        "blockDeviceMapping": lambda: {"BlockDeviceMappings": _view(row, [])["BlockDeviceMappings"]},
        "sriovNetSupport": lambda: {"SriovNetSupport": {}},
        "bootMode": lambda: {"BootMode": {"Value": _view(row, [])["BootMode"]}},
        "imdsSupport": lambda: {"ImdsSupport": {}},
    }
    if name not in values:
        raise CloudError("UnsupportedOperation", f"haneul's images do not have the attribute {name}.")
    return {"ImageId": row["id"]} | values[name]()


def _permission_changes(params: Input) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(to add, to remove), of either form of the request."""
    given = params.get("LaunchPermission", {})
    add, remove = list(given.get("Add", ())), list(given.get("Remove", ()))
    listed = [{"UserId": one} for one in params.get("UserIds", ())]
    listed += [{"Group": one} for one in params.get("UserGroups", ())]
    if listed and not params.get("OperationType"):
        raise missing("OperationType")
    (remove if params.get("OperationType") == "remove" else add).extend(listed)
    return add, remove


def _change_permissions(ctx: Context, row: Row, add: list[dict[str, str]], remove: list[dict[str, str]]) -> None:
    for one in (*add, *remove):
        if one.get("OrganizationArn") or one.get("OrganizationalUnitArn"):
            raise CloudError("UnsupportedOperation", "haneul does not have organizations to share images with.")
        if one.get("Group", "all") != "all" or not (one.get("Group") or _ACCOUNT.match(one.get("UserId", ""))):
            value = one.get("UserId") or one.get("Group") or ""
            raise CloudError(
                "InvalidAMIAttributeItemValue", f'Invalid attribute item value "{value[:40]}" for userId item type.'
            )
    shared = tables.image_permissions
    present = {one["account"] for one in ctx.tx.select(shared, image_id=row["id"])}
    for user in {one["UserId"] for one in add if one.get("UserId")} - present:
        ctx.tx.insert(shared, image_id=row["id"], account=user)
    for user in {one["UserId"] for one in remove if one.get("UserId")}:
        ctx.tx.delete(shared, image_id=row["id"], account=user)
    if any(one.get("Group") for one in (*add, *remove)):
        ctx.tx.update(tables.images, row["id"], public=any(one.get("Group") for one in add))


@ec2
def modify_image_attribute(ctx: Context, params: Input) -> Output:
    row = _owned_one(ctx, params["ImageId"])
    add, remove = _permission_changes(params)
    name = params.get("Attribute")
    text = params.get("Description", {}).get("Value", params.get("Value") if name == "description" else None)
    if params.get("OrganizationArns") or params.get("OrganizationalUnitArns"):
        raise CloudError("UnsupportedOperation", "haneul does not have organizations to share images with.")
    if name not in (None, "description", "launchPermission") or params.get("ProductCodes") or params.get("ImdsSupport"):
        raise CloudError("UnsupportedOperation", f"haneul does not change the image attribute {name or 'given'}.")
    if (text is not None) == bool(add or remove):
        raise combination("One attribute a call: a description, or launch permissions.")
    if text is not None:
        if len(text) > 255:
            raise invalid(text[:40], "description", "It has at most 255 characters.")
        ctx.tx.update(tables.images, row["id"], description=text)
    else:
        _change_permissions(ctx, row, add, remove)
    return {}


@ec2
def reset_image_attribute(ctx: Context, params: Input) -> Output:
    """Launch permissions go: the image is its owner's alone."""
    row = _owned_one(ctx, params["ImageId"])
    ctx.tx.delete(tables.image_permissions, image_id=row["id"])
    ctx.tx.update(tables.images, row["id"], public=False)
    return {}
