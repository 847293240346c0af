"""What the generation of a type asks of an instance: an image that boots under it, metadata that its guests can read,
no more volumes than it takes.

Asked wherever an instance gets a type (a launch, a change of the type) and at every start.
"""

from __future__ import annotations

from dataclasses import dataclass

from haneul.errors import CloudError, combination
from haneul.model.generation import Generation
from haneul.model.instance_types import InstanceType, instance_types
from haneul.services.context import Context
from haneul.services.ec2 import images
from haneul.store import tables
from haneul.store.database import Row

_TITLES: dict[Generation, str] = {"emulated": "emulated", "paravirtual": "paravirtual", "hvm": "HVM"}
_HOW: dict[Generation, str] = {
    "emulated": "emulated: every device emulated, from the disk's own boot record",
    "paravirtual": "paravirtual: with a kernel that is given, which asks the hypervisor",
    "hvm": "HVM: from the disk's own boot record, with paravirtual devices",
}
#: So many images are named in a refusal.
MOST_NAMED = 10


@dataclass(frozen=True)
class Guest:
    """What a type has to suit. `boots` are the generations under which the root volume boots."""

    image_id: str
    image: str
    boots: tuple[Generation, ...]
    http_tokens: str
    volumes: int


def of_instance(ctx: Context, row: Row) -> Guest:
    return Guest(
        row["image_id"],
        row["image_name"],
        images.boots_under(row["more"], row["image_name"]),
        row["metadata_options"]["HttpTokens"],
        len(ctx.tx.select(tables.volumes, instance_id=row["id"])),
    )


def check(ctx: Context, kind: InstanceType, guest: Guest) -> None:
    """Raises InvalidParameterCombination or AttachmentLimitExceeded."""
    if kind.generation not in guest.boots:
        raise _does_not_boot(ctx, kind, guest)
    if why := refuses_tokens(kind, guest.http_tokens):
        raise combination(why)
    if kind.most_volumes is not None and guest.volumes > kind.most_volumes:
        raise CloudError(
            "AttachmentLimitExceeded",
            f"The instance type {kind.name} is {_TITLES[kind.generation]}, and its instances have at most "
            f"{kind.most_volumes} volumes with the root volume, not {guest.volumes}.",
        )


def refuses_tokens(kind: InstanceType, http_tokens: str) -> str:
    """Why instances of a type cannot have `HttpTokens` so; empty where they can.

    A paravirtual guest has no DMI data by which cloud-init would know EC2, and then Debian's asks for version 1 only:
    it would boot without its keys and its user data, and nobody could log in to say so.
    """
    if http_tokens != "required" or kind.generation != "paravirtual":
        return ""
    return (
        f"Instances of the paravirtual instance type {kind.name} cannot have metadata options with HttpTokens=required: "
        "a paravirtual guest has no DMI data, and its cloud-init asks the metadata service by version 1 only. "
        "Specify HttpTokens=optional, or an instance type of another generation."
    )


def _does_not_boot(ctx: Context, kind: InstanceType, guest: Guest) -> CloudError:
    named = f"{guest.image_id} ({guest.image})" if guest.image not in ("", guest.image_id) else guest.image_id
    return combination(
        f"The image {named} does not boot under the instance type {kind.name} ({_HOW[kind.generation]}). "
        f"Families that would do: {_families(kind.architecture, guest.boots)}; "
        f"images that boot under {kind.family}: {_images(ctx, kind)}."
    )


def _families(architecture: str, boots: tuple[Generation, ...]) -> str:
    found: dict[Generation, list[str]] = {one: [] for one in boots}
    for kind in instance_types().values():
        if kind.architecture == architecture and kind.generation in found:
            found[kind.generation].append(kind.family)
    named = [f"{', '.join(dict.fromkeys(names))} ({_TITLES[one]})" for one, names in found.items() if names]
    return ", ".join(named) or "none"


def _images(ctx: Context, kind: InstanceType) -> str:
    """The catalogue's and the caller's own: what others share has names that others chose."""
    mine = tables.images.c.account.in_((ctx.account, tables.EVERYONE))
    rows = images.visible(ctx, mine, available=True, architecture=kind.architecture)
    names = sorted({row["name"] for row in rows if kind.generation in images.boots_under(row["more"], row["disk"])})
    return ", ".join([*names[:MOST_NAMED], *(["…"] if len(names) > MOST_NAMED else [])]) or "none here"
