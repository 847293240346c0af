"""What commands need beyond the public API; `haneul.app.lifecycle` has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from haneul.config import Settings
from haneul.images.store import ImageStore
from haneul.model.template import TemplateReport

if TYPE_CHECKING:
    from haneul.identity import Identity

Say = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """One line of `haneul doctor`: is it there, how was that found out, what to do about it.

    What is not `needed` makes more possible; without it virtual servers are launched all the same.
    """

    name: str
    ok: bool
    how: str
    advice: str
    needed: bool = True


class Lifecycle(Protocol):
    def up(self, settings: Settings, ready_fd: int | None, accept_store: bool) -> None: ...

    def start_detached(self, settings: Settings, accept_store: bool = False) -> None: ...

    def agent(self, settings: Settings, socket: Path, server_id: str) -> None: ...

    def is_running(self, settings: Settings) -> bool: ...

    def down(self, settings: Settings, instances: bool, purge: bool) -> bool: ...

    def backup(self, settings: Settings, file: Path, volumes: bool, force: bool, say: Say) -> list[str]: ...

    def restore(self, settings: Settings, file: Path, replace: bool, without_volumes: bool, say: Say) -> list[str]: ...

    def identity(self, settings: Settings) -> Identity: ...

    def control(self, settings: Settings) -> Path: ...

    def log(self, settings: Settings) -> Path: ...

    def console_socket(self, settings: Settings, instance_id: str) -> Path: ...

    def images(self, settings: Settings) -> ImageStore: ...

    def image_users(self, settings: Settings, name: str) -> list[str]: ...

    def templates(self, settings: Settings) -> list[TemplateReport]: ...

    def make_template(self, settings: Settings, image: str, instance_type: str, say: Say) -> TemplateReport: ...

    def sweep_templates(self, settings: Settings) -> None: ...

    def doctor(self, settings: Settings) -> list[Finding]: ...
