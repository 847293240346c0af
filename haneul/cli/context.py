"""What a command works with: the settings in force, and what `haneul.app` does for commands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import typer

from haneul import config
from haneul.cli.lifecycle import Lifecycle
from haneul.config import Settings


@dataclass(frozen=True)
class Cli:
    lifecycle: Lifecycle

    @cached_property
    def settings(self) -> Settings:
        """Read when a command first asks. Raises `SettingsError`."""
        return config.load()


def here(ctx: typer.Context) -> Cli:
    """The command's `Cli`: `run` gives it to typer, which hands it to every command."""
    cli: Cli = ctx.obj
    return cli
