"""Images as the image store offers them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogueImage:
    """A built image. `disk` is its name in the image store, `created` seconds since the epoch, `user` who logs in."""

    disk: str
    description: str
    architecture: str
    size_gib: int
    created: float
    user: str

    @property
    def image_id(self) -> str:
        return f"ami-0{self._digest('image')}"

    @property
    def snapshot_id(self) -> str:
        return f"snap-0{self._digest('snapshot')}"

    def _digest(self, what: str) -> str:
        """Ids follow from the name, so that they are the same in every region and on every machine."""
        return hashlib.sha256(f"haneul {what} {self.disk} {self.architecture}".encode()).hexdigest()[:16]
