"""Images as the image store offers them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from haneul.model.generation import COMMON, Generation

#: The owner of the catalogue, as `OwnerId` shows it and `--owners` takes it.
CATALOGUE_OWNER = "100000000000"
CATALOGUE_ALIAS = "haneul"


@dataclass(frozen=True)
class CatalogueImage:
    """An image of the store. `disk` is its name there, `created` seconds since the epoch, `user` who logs in.

    `imported` is the format of the file that it was imported from, empty for what a recipe built. It boots under
    `generations`.
    """

    disk: str
    description: str
    architecture: str
    size_gib: int
    created: float
    user: str
    imported: str = ""
    generations: tuple[Generation, ...] = COMMON
    #: Whose it is at AWS; empty for haneul's own.
    owner: str = ""
    alias: str = ""
    #: What it is called, where that is not `disk`.
    called: str = ""
    root_device: str = "/dev/xvda"

    @property
    def name(self) -> str:
        return self.called or self.disk

    @property
    def image_id(self) -> str:
        return f"ami-0{self._digest('image')}"

    @property
    def snapshot_id(self) -> str:
        return f"snap-0{self._digest('snapshot')}"

    def _digest(self, what: str) -> str:
        """Ids follow from the name, so that they are the same in every region and on every machine."""
        return hashlib.sha256(f"haneul {what} {self.disk} {self.architecture}".encode()).hexdigest()[:16]
