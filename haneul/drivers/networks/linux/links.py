"""Addresses of the links between VPCs and the edge: allocated, and kept as long as the VPC is here.

A VPC's end has an address of its own, for what the VPC itself asks (upstream DNS). `links.json` lies beside the
namespaces, below /run: a reboot ends both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from haneul.drivers.interface import DriverError
from haneul.linux import files

#: 169.254.64.1 to 169.254.127.254, but for .0 and .255.
_BLOCKS, _EACH, _FIRST = 64, 254, 64
MOST = _BLOCKS * _EACH


def address(index: int) -> str:
    return f"169.254.{_FIRST + index // _EACH}.{1 + index % _EACH}"


def is_link(text: str) -> bool:
    """Whether an address is one that `address` gives."""
    parts = text.split(".")
    return parts[:2] == ["169", "254"] and _FIRST <= int(parts[2]) < _FIRST + _BLOCKS


def choose(taken: Mapping[str, str]) -> str:
    """The first address that no VPC has. Raises `DriverError` when all are taken."""
    used = set(taken.values())
    found = next((text for index in range(MOST) if (text := address(index)) not in used), None)
    if found is None:
        raise DriverError(f"a server has at most {MOST} VPCs", fatal=True)
    return found


class Links:
    """`file` maps VPC ids to their addresses. One haneul writes it at a time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._taken: dict[str, str] | None = None

    def _known(self) -> dict[str, str]:
        if self._taken is None:
            try:
                self._taken = dict(json.loads(self._file.read_text()))
            except (FileNotFoundError, ValueError):
                self._taken = {}  # each VPC that is here tells its own (`present`)
        return self._taken

    def of(self, vpc_id: str) -> str | None:
        return self._known().get(vpc_id)

    def allocate(self, vpc_id: str, present: str = "") -> str:
        """The VPC's address; `present` is one that its namespace has already (made by an older haneul)."""
        taken = self._known()
        if vpc_id not in taken:
            free = present and present not in taken.values()
            self._save({**taken, vpc_id: present if free else choose(taken)})
        return self._known()[vpc_id]

    def free(self, vpc_id: str) -> None:
        if vpc_id in self._known():
            self._save({one: text for one, text in self._known().items() if one != vpc_id})

    def forget(self) -> None:
        """All VPCs are gone."""
        self._file.unlink(missing_ok=True)
        self._taken = {}

    def _save(self, taken: dict[str, str]) -> None:
        """The file first: what is not in it is not allocated."""
        self._file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        files.replace(self._file, json.dumps(taken).encode())
        self._taken = taken
