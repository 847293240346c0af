"""The catalogue follows the image store."""

from __future__ import annotations

from collections.abc import Iterable

from haneul.model.image import CatalogueImage
from haneul.store import tables
from haneul.store.database import Transaction


def sync_catalogue(tx: Transaction, catalogue: Iterable[CatalogueImage]) -> None:
    """Make the public images those of the image store. Writes only what differs."""
    wanted = {image.image_id: image for image in catalogue}
    present = {row["id"]: row for row in tx.select(tables.images, account=tables.EVERYONE)}
    for gone in present.keys() - wanted.keys():
        tx.delete(tables.images, id=gone)
    for image_id, image in wanted.items():
        values = {
            "name": image.name,
            "description": image.description,
            "architecture": image.architecture,
            "disk": image.disk,
            "snapshot_id": image.snapshot_id,
            "size_gib": image.size_gib,
            "public": True,
            "created": image.created,
            "root_device": image.root_device,
            "more": {"user": image.user, "generations": list(image.generations)}
            | ({"owner": image.owner, "alias": image.alias} if image.owner else {}),
        }
        old = present.get(image_id)
        if old is None:
            everyone = {"account": tables.EVERYONE, "region": tables.EVERYONE}
            tx.insert(tables.images, id=image_id, **everyone, **values, block_devices=[])
        elif any(old[name] != value for name, value in values.items()):
            tx.update(tables.images, image_id, **values)
