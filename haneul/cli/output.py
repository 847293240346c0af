"""How commands print: for people, for scripts, and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

#: Exit codes: 1 for "no" (not running, unhealthy), 2 for a mistake in the call, 3 for what this machine refuses.
NO, WRONG, REFUSED = 1, 2, 3


#: A pipe has no width: what is cut there is lost.
out = Console() if sys.stdout.isatty() else Console(width=200)


err = Console(stderr=True)


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


class progress:
    """A line that changes, on a terminal; nothing in a pipe."""

    def __init__(self, every: bool = False) -> None:
        self._terminal = err.is_terminal
        self._every = every
        self._status = err.status("") if self._terminal else None
        self._last = ""

    def __enter__(self) -> Callable[..., None]:
        if self._status is not None:
            self._status.start()
        return self._say

    def _say(self, text: str, phase: str = "") -> None:
        """`text` changes all the time on a terminal; a pipe has a line for each `phase` (default: for each text)."""
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(text))
        elif self._every and (phase or text) != self._last:
            print(f"  {phase or text}", flush=True)
        self._last = phase or text

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
