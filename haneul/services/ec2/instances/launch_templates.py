"""Launch templates and their versions (EC2 User Guide, "Store instance launch parameters in launch templates")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from haneul.errors import CloudError, combination, invalid, missing
from haneul.model.ids import is_id
from haneul.model.times import moment
from haneul.services import kept_answers, quotas
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe, matching, page, with_named
from haneul.services.ec2 import tags
from haneul.services.ec2.instances import launch_rules
from haneul.services.ec2.instances.describe import find
from haneul.services.ec2.instances.views import views
from haneul.store import tables
from haneul.store.database import Row

_NAME = re.compile(r"[a-zA-Z0-9().\-/_]{3,128}\Z")
MAX_VERSIONS = 200

#: Members of a template's data -> parameters of RunInstances, where they differ.
_RENAMED = {"RamDiskId": "RamdiskId", "ElasticGpuSpecifications": "ElasticGpuSpecification"}
_NOT_OF_A_LAUNCH = ("InstanceRequirements",)


# --- finding ----------------------------------------------------------------------------------------


def _named(ctx: Context, params: Input) -> Row:
    """The template that a request names, by id or by name."""
    identifier, name = params.get("LaunchTemplateId"), params.get("LaunchTemplateName")
    if bool(identifier) == bool(name):
        text = "Specify either the launch template ID or the launch template name in the request, and not both."
        raise combination(text) if identifier else CloudError("MissingParameter", text)
    if identifier:
        _check_ids([identifier])
        rows = ctx.own(tables.launch_templates, id=identifier)
        if not rows:
            raise _unknown([identifier])
    else:
        rows = ctx.own(tables.launch_templates, name=name)
        if not rows:
            raise _unknown_name(str(name))
    return rows[0]


def _check_ids(ids: Sequence[str]) -> None:
    for one in ids:
        if not is_id("lt", one):
            raise CloudError("InvalidLaunchTemplateId.Malformed", f"The launch template ID '{one[:80]}' is malformed.")


def _unknown(ids: Sequence[str]) -> CloudError:
    text = f"The specified launch template, with template ID {ids[0]}, does not exist."
    return CloudError("InvalidLaunchTemplateId.NotFound", text)


def _unknown_name(name: str) -> CloudError:
    text = "At least one of the launch templates specified in the request does not exist."
    return CloudError("InvalidLaunchTemplateName.NotFoundException", text)


def _versions(ctx: Context, template: Row) -> list[Row]:
    rows = ctx.tx.select(tables.launch_template_versions, template_id=template["id"])
    return sorted(rows, key=lambda row: -row["number"])


def _latest(ctx: Context, template: Row) -> int:
    """The highest version there is; `latest_version` is the highest that ever was."""
    table = tables.launch_template_versions
    found = ctx.tx.execute(sa.select(sa.func.max(table.c.number)).where(table.c.template_id == template["id"]))
    return int(found.scalar() or 0)


def _number(ctx: Context, template: Row, version: str) -> int:
    """`$Latest`, `$Default` or a number."""
    if version == "$Latest":
        return _latest(ctx, template)
    if version == "$Default":
        return int(template["default_version"])
    if not re.fullmatch(r"[0-9]{1,9}", version):
        raise invalid(version[:40], "version", "It is a number, $Latest or $Default.")
    return int(version)


def _version(ctx: Context, template: Row, version: str) -> Row:
    number = _number(ctx, template, version)
    rows = ctx.tx.select(tables.launch_template_versions, template_id=template["id"], number=number)
    if not rows:
        raise CloudError(
            "InvalidLaunchTemplateId.VersionNotFound",
            f"The launch template version {version} is not found for the specified launch template.",
        )
    return rows[0]


# --- views ------------------------------------------------------------------------------------------


def _view(row: Row, latest: int, labels: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "LaunchTemplateId": row["id"],
        "LaunchTemplateName": row["name"],
        "CreateTime": moment(row["created"]),
        "CreatedBy": row["created_by"],
        "DefaultVersionNumber": row["default_version"],
        "LatestVersionNumber": latest,
        "Tags": labels,
    }


def _views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    ids = [row["id"] for row in rows]
    labels, version = tags.of(ctx, ids), tables.launch_template_versions.c
    counted = sa.select(version.template_id, sa.func.max(version.number)).where(version.template_id.in_(ids))
    latest = dict(ctx.tx.execute(counted.group_by(version.template_id)).all())
    return [_view(row, latest[row["id"]], labels[row["id"]]) for row in rows]


def _shown(ctx: Context, template_id: str) -> dict[str, Any]:
    return _views(ctx, ctx.own(tables.launch_templates, id=template_id))[0]


def _version_view(template: Row, row: Row) -> dict[str, Any]:
    view = {
        "LaunchTemplateId": template["id"],
        "LaunchTemplateName": template["name"],
        "VersionNumber": row["number"],
        "CreateTime": moment(row["created"]),
        "CreatedBy": row["created_by"],
        "DefaultVersion": row["number"] == template["default_version"],
        "LaunchTemplateData": kept_answers.loads(row["data"]),
    }
    return view | ({"VersionDescription": row["description"]} if row["description"] else {})


# --- operations -------------------------------------------------------------------------------------


def _check_data(data: dict[str, Any]) -> None:
    """What EC2 refuses before a launch; all else is checked when it is launched."""
    if not data:
        raise missing("LaunchTemplateData")
    if data.get("UserData"):
        launch_rules.read_user_data(data["UserData"], too_large="InvalidUserData.Malformed")
    if data.get("MetadataOptions", {}).get("InstanceMetadataTags") == "enabled":
        given = (one for one in data.get("TagSpecifications", ()) if one.get("ResourceType") == "instance")
        tags.check_for_metadata(tag.get("Key", "") for one in given for tag in one.get("Tags", ()))
    if data.get("InstanceType") and data.get("InstanceRequirements"):
        raise combination("InstanceType and InstanceRequirements cannot be specified together.")
    for one in data.get("TagSpecifications", ()):
        tags.check(one.get("Tags", ()))


def _insert_version(ctx: Context, template: str, number: int, description: str, data: dict[str, Any]) -> None:
    if len(description) > 255:
        raise invalid(description[:40], "versionDescription", "It has at most 255 characters.")
    ctx.tx.insert(
        tables.launch_template_versions,
        template_id=template,
        number=number,
        created=ctx.now,
        created_by=ctx.caller.arn,
        description=description,
        data=kept_answers.dumps(data),
    )


@ec2
def create_launch_template(ctx: Context, params: Input) -> Output:
    name, data = params["LaunchTemplateName"], params["LaunchTemplateData"]
    if not _NAME.match(name):
        raise CloudError(
            "InvalidLaunchTemplateName.MalformedException",
            "A launch template name must be between 3 and 128 characters, and may contain letters, numbers, and the "
            "following characters: - ( ) . / _.",
        )
    _check_data(data)
    if ctx.own(tables.launch_templates, name=name):
        raise CloudError("InvalidLaunchTemplateName.AlreadyExistsException", "Launch template name already in use.")
    wanted = tags.specified(params, "launch-template").get("launch-template", {})
    quotas.check_room(
        ctx, tables.launch_templates, ctx.settings.quota_launch_templates, "LaunchTemplateLimitExceeded",
        "launch templates", "quota_launch_templates",
    )  # fmt: skip
    template = ctx.add(tables.launch_templates, "lt", name=name, created_by=ctx.caller.arn)
    _insert_version(ctx, template, 1, params.get("VersionDescription", ""), data)
    tags.put(ctx, template, wanted)
    return {"LaunchTemplate": _shown(ctx, template)}


@ec2
def create_launch_template_version(ctx: Context, params: Input) -> Output:
    """`SourceVersion`'s data with what is given laid over it, member by member."""
    template = _named(ctx, params)
    data = params["LaunchTemplateData"]
    if params.get("SourceVersion"):
        data = kept_answers.loads(_version(ctx, template, params["SourceVersion"])["data"]) | data
    _check_data(data)
    counted = sa.select(sa.func.count()).where(tables.launch_template_versions.c.template_id == template["id"])
    if ctx.tx.execute(counted).scalar() >= ctx.settings.quota_launch_template_versions:
        raise CloudError(
            "LaunchTemplateVersionLimitExceeded", "The launch template has as many versions as it may have."
        )
    number = template["latest_version"] + 1
    _insert_version(ctx, template["id"], number, params.get("VersionDescription", ""), data)
    ctx.tx.update(tables.launch_templates, template["id"], latest_version=number)
    return {"LaunchTemplateVersion": _version_view(template, _version(ctx, template, str(number)))}


@ec2
def modify_launch_template(ctx: Context, params: Input) -> Output:
    """`DefaultVersion` is on the wire `SetDefaultVersion`."""
    if params.get("LaunchTemplateId") and params.get("LaunchTemplateName"):
        text = "Either provide launch template ID or launch template name to modify the template."
        raise CloudError("InvalidParameterCombination", text)
    template = _named(ctx, params)
    if not params.get("DefaultVersion"):
        raise missing("DefaultVersion")
    row = _version(ctx, template, params["DefaultVersion"])
    ctx.tx.update(tables.launch_templates, template["id"], default_version=row["number"])
    return {"LaunchTemplate": _shown(ctx, template["id"])}


@ec2
def delete_launch_template(ctx: Context, params: Input) -> Output:
    template = _named(ctx, params)
    gone = _shown(ctx, template["id"])
    tags.remove_all(ctx, template["id"])
    ctx.tx.delete(tables.launch_template_versions, template_id=template["id"])
    ctx.tx.delete(tables.launch_templates, id=template["id"])
    return {"LaunchTemplate": gone}


@ec2
def delete_launch_template_versions(ctx: Context, params: Input) -> Output:
    template = _named(ctx, params)
    if len(params["Versions"]) > MAX_VERSIONS:
        raise invalid(len(params["Versions"]), "Versions", f"At most {MAX_VERSIONS} versions can be deleted in a call.")
    present = {row["number"] for row in _versions(ctx, template)}
    gone, kept = [], []
    for text in dict.fromkeys(params["Versions"]):
        number = _number(ctx, template, text)
        item = {"LaunchTemplateId": template["id"], "LaunchTemplateName": template["name"], "VersionNumber": number}
        if number not in present:
            error = {"Code": "launchTemplateVersionDoesNotExist", "Message": f"There is no version {number}."}
            kept.append(item | {"ResponseError": error})
        elif number == template["default_version"]:
            message = "The default version cannot be deleted; make another version the default first."
            kept.append(item | {"ResponseError": {"Code": "unexpectedError", "Message": message}})
        else:
            ctx.tx.delete(tables.launch_template_versions, template_id=template["id"], number=number)
            present.discard(number)
            gone.append(item)
    ctx.tx.update(tables.launch_templates, template["id"])
    return {"SuccessfullyDeletedLaunchTemplateVersions": gone, "UnsuccessfullyDeletedLaunchTemplateVersions": kept}


_TEMPLATES = Listing(
    tables.launch_templates, "LaunchTemplate", "LaunchTemplateIds", "lt", "InvalidLaunchTemplateId", "launch template",
    _views, {"launch-template-name": "LaunchTemplateName", "create-time": "CreateTime"},
    columns={"launch-template-name": "name"}, check=_check_ids, unknown=_unknown, least=1,
)  # fmt: skip


@ec2
def describe_launch_templates(ctx: Context, params: Input) -> Output:
    named = with_named(ctx, params, _TEMPLATES, "LaunchTemplateNames", lambda names: _unknown_name(names[0]))
    return describe(ctx, named, _TEMPLATES, "LaunchTemplates")


_DATA = "LaunchTemplateData"
_VERSION_FILTERS = {
    "create-time": "CreateTime",
    "ebs-optimized": f"{_DATA}.EbsOptimized",
    "http-endpoint": f"{_DATA}.MetadataOptions.HttpEndpoint",
    "http-tokens": f"{_DATA}.MetadataOptions.HttpTokens",
    "iam-instance-profile": f"{_DATA}.IamInstanceProfile.Arn",
    "image-id": f"{_DATA}.ImageId",
    "instance-type": f"{_DATA}.InstanceType",
    "is-default-version": "DefaultVersion",
    "kernel-id": f"{_DATA}.KernelId",
    "network-card-index": f"{_DATA}.NetworkInterfaces.NetworkCardIndex",
    "ram-disk-id": f"{_DATA}.RamDiskId",
}


@ec2
def describe_launch_template_versions(ctx: Context, params: Input) -> Output:
    """Versions of one template, newest first; or of all templates their `$Latest` and `$Default`."""
    wanted = params.get("Versions", [])
    if params.get("LaunchTemplateId") or params.get("LaunchTemplateName"):
        template = _named(ctx, params)
        pairs = [(template, row) for row in _chosen(ctx, template, params)]
    elif wanted and set(wanted) <= {"$Latest", "$Default"}:
        templates = ctx.own(tables.launch_templates)
        pairs = [(template, row) for template in templates for row in _chosen(ctx, template, params)]
    else:
        raise CloudError(
            "InvalidParameterValue",
            "A launch template must be specified by LaunchTemplateId or LaunchTemplateName, unless Versions are $Latest or $Default only.",
        )
    items = matching(ctx, params, (_version_view(*pair) for pair in pairs), _VERSION_FILTERS, taggable=False)
    shown, token = page(ctx, params, items, _newest_first, least=1)
    return {"LaunchTemplateVersions": shown, "NextToken": token}


def _newest_first(item: dict[str, Any]) -> str:
    return f"{item['LaunchTemplateId']} {10**12 - item['VersionNumber']:013d}"


def _chosen(ctx: Context, template: Row, params: Input) -> list[Row]:
    if params.get("Versions"):
        rows = [_version(ctx, template, version) for version in params["Versions"]]
        return list({row["number"]: row for row in rows}.values())
    rows = _versions(ctx, template)
    if params.get("MinVersion"):
        rows = [row for row in rows if row["number"] >= _number(ctx, template, params["MinVersion"])]
    if params.get("MaxVersion"):
        rows = [row for row in rows if row["number"] <= _number(ctx, template, params["MaxVersion"])]
    return rows


@ec2
def get_launch_template_data(ctx: Context, params: Input) -> Output:
    """An instance as data of a template that launches its like."""
    (row,) = find(ctx, [params["InstanceId"]])
    (view,) = views(ctx, [row])
    disks = {disk["device"]: disk for disk in ctx.tx.select(tables.volumes, instance_id=row["id"])}
    mappings = [
        {
            "DeviceName": device,
            "Ebs": {
                "DeleteOnTermination": disk["delete_on_termination"],
                "VolumeSize": disk["size_gib"],
                "VolumeType": disk["kind"],
                "Encrypted": False,
            }
            | ({"Iops": disk["iops"]} if disk["kind"] in ("gp3", "io1", "io2") else {})
            | ({"Throughput": disk["throughput"]} if disk["kind"] == "gp3" else {}),
        }
        for device, disk in sorted(disks.items())
    ]
    interfaces = [
        {
            "DeviceIndex": one["Attachment"]["DeviceIndex"],
            "DeleteOnTermination": one["Attachment"]["DeleteOnTermination"],
            "Description": one["Description"],
            "SubnetId": one["SubnetId"],
            "Groups": [group["GroupId"] for group in one["Groups"]],
            "AssociatePublicIpAddress": bool(one.get("Association")),
            "NetworkCardIndex": 0,
        }
        for one in view["NetworkInterfaces"]
    ]
    user_tags = [tag for tag in view.get("Tags", ()) if not tag["Key"].startswith("aws:")]
    data: dict[str, Any] = {
        "ImageId": view["ImageId"],
        "InstanceType": view["InstanceType"],
        "KeyName": view.get("KeyName"),
        "EbsOptimized": view["EbsOptimized"],
        "BlockDeviceMappings": mappings,
        "NetworkInterfaces": interfaces,
        "Monitoring": {"Enabled": row["monitoring"]},
        "Placement": {name: value for name, value in view["Placement"].items() if name != "AvailabilityZoneId"},
        "DisableApiTermination": row["disable_api_termination"],
        "DisableApiStop": row["disable_api_stop"],
        "InstanceInitiatedShutdownBehavior": row["shutdown_behavior"],
        "UserData": row["user_data"],
        "TagSpecifications": [{"ResourceType": "instance", "Tags": user_tags}] if user_tags else [],
        "MetadataOptions": row["metadata_options"],
    }
    return {"LaunchTemplateData": data}


# --- launching --------------------------------------------------------------------------------------


def merged(ctx: Context, params: Input) -> Input:
    """RunInstances' parameters, laid over the data of the launch template that they name, if they name one."""
    named = params.get("LaunchTemplate")
    if not named:
        return params
    template = _named(ctx, named)
    row = _version(ctx, template, named.get("Version") or "$Default")
    data = kept_answers.loads(row["data"])
    for name in _NOT_OF_A_LAUNCH:
        if data.get(name):
            raise combination(f"A launch template with {name} cannot be used by RunInstances.")
    base = {_RENAMED.get(name, name): value for name, value in data.items()}
    found = base | {name: value for name, value in params.items() if name != "LaunchTemplate"}
    found["TagSpecifications"] = _both_tags(base.get("TagSpecifications", []), params.get("TagSpecifications", []))
    found["BlockDeviceMappings"] = _by_device(base, params)
    found["$system-tags"] = {
        "aws:ec2launchtemplate:id": template["id"],
        "aws:ec2launchtemplate:version": str(row["number"]),
    }
    return found


def _both_tags(template: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tags of both; of a key that both have, the request's."""
    kinds = {one.get("ResourceType") for one in given}
    both = []
    for one in given:
        keys = {tag.get("Key") for tag in one.get("Tags", ())}
        same = [other for other in template if other.get("ResourceType") == one.get("ResourceType")]
        kept = [tag for other in same for tag in other.get("Tags", ()) if tag.get("Key") not in keys]
        both.append(one | {"Tags": [*kept, *one.get("Tags", ())]})
    return [*(one for one in template if one.get("ResourceType") not in kinds), *both]


def _by_device(base: Input, params: Input) -> list[dict[str, Any]]:
    given = params.get("BlockDeviceMappings", [])
    names = {one.get("DeviceName") for one in given}
    return [*(one for one in base.get("BlockDeviceMappings", []) if one.get("DeviceName") not in names), *given]
