"""How long each step of a boot takes. Kept in memory until the boot is over, then told in a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from haneul.model.assignment import Span, Trace

#: Boots that are over and not told yet; a control plane that never listens must not fill the memory.
MOST = 1000


@dataclass
class Tracer:
    """`clock` gives seconds since the epoch. A step that is done again in the same boot counts anew (it was tried again)."""

    clock: Callable[[], float] = time.time
    _open: dict[str, tuple[int, dict[str, Span]]] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)
    _over: list[Trace] = field(default_factory=list)

    @contextmanager
    def step(self, instance_id: str, boot_count: int, name: str) -> Iterator[None]:
        began = self.clock()
        try:
            yield
        finally:
            self._note(instance_id, boot_count, Span(name, began, self.clock()))

    def _note(self, instance_id: str, boot_count: int, span: Span) -> None:
        if self._told.get(instance_id) == boot_count:
            return
        known = self._open.get(instance_id)
        if known is None or known[0] != boot_count:
            known = self._open[instance_id] = (boot_count, {})
        known[1][span.name] = span

    def over(self, instance_id: str, boot_count: int, last: str, failed: str = "") -> None:
        """The boot has come to its end; `last` is the step that lasted from the others' end until now."""
        known = self._open.pop(instance_id, None)
        if known is None or known[0] != boot_count:
            return
        spans = sorted(known[1].values(), key=lambda span: (span.began, span.ended))
        spans.append(Span(last, max(span.ended for span in spans), self.clock()))
        self._told[instance_id] = boot_count
        self._over.append(Trace(instance_id, boot_count, tuple(spans), failed))
        del self._over[:-MOST]

    def forget(self, instance_id: str) -> None:
        self._open.pop(instance_id, None)
        self._told.pop(instance_id, None)

    def take(self) -> tuple[Trace, ...]:
        """The boots that are over since the last time."""
        found, self._over = tuple(self._over), []
        return found

    def give_back(self, traces: tuple[Trace, ...]) -> None:
        """They could not be told: the next report tries again."""
        self._over = [*traces, *self._over][-MOST:]
