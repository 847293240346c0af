"""Where a machine's things are, and how its processes are confined. The same for every engine."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

#: How much sooner a machine goes when the server runs out of memory; proc(5): -1000 (never) to 1000 (first).
OOM_SCORE = 500


@dataclass(frozen=True)
class Places:
    """Where a machine's things are. `run` belongs to the machine's uid, the rest to haneul."""

    directory: Path

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def qmp(self) -> Path:
        return self.run / "qmp.sock"

    @property
    def console(self) -> Path:
        return self.run / "console.sock"

    @property
    def console_log(self) -> Path:
        return self.run / "console.log"

    @property
    def screen(self) -> Path:
        return self.run / "screen.png"

    @property
    def events(self) -> Path:
        return self.directory / "events.log"

    @property
    def errors(self) -> Path:
        return self.directory / "stderr.log"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def boot(self) -> Path:
        return self.directory / "boot.json"

    @property
    def stopping(self) -> Path:
        return self.directory / "stopping.json"

    @property
    def uid(self) -> Path:
        return self.directory / "uid"

    @property
    def fuse(self) -> Path:
        """A device node, for engines that read raw disks."""
        return self.directory / "fuse"


def confined(uid: int, groups: list[int], command: list[str]) -> list[str]:
    """`command` as a user of its own that has no capability and cannot get any (setpriv(1), of util-linux)."""
    return [
        "setpriv", f"--reuid={uid}", f"--regid={uid}",
        f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups",
        "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--",
        *command,
    ]  # fmt: skip


def cold(disk: Path) -> Path:
    """Where a volume's own file is while a machine tries to go on from a template."""
    return disk.with_name(f".{disk.stem}.cold")


def take_back_cold(disk: Path) -> None:
    """A machine that was to go on from a template, and did not: its disk is as it was made."""
    disk.with_name(f".{disk.stem}.new").unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        cold(disk).rename(disk)
        # Two names of one file: then rename(2) does nothing.
        cold(disk).unlink(missing_ok=True)
