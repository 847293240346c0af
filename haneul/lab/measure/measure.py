"""One workload in one place: the command, its answer, and whether the server was quiet meanwhile."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from haneul.lab import workloads
from haneul.lab.measure.places import Place, PlaceError, Server, missing_tools
from haneul.lab.results import Measurement, Subject
from haneul.lab.statistics import QUIET, disturbance
from haneul.lab.workloads import WORKLOADS, Reading, Unreadable, Workload
from haneul.model.generation import Way

#: How long the other end of a network workload may take to listen.
LISTEN_SECONDS = 20.0
#: How often it is tried whether the server is quiet again.
RESTS = 3


@dataclass
class Meter:
    """Measures, and keeps what the fixed loop took after the last measurement: that is what it takes before the next one."""

    server: Server
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    #: What the fixed loop took until now, in earlier runs too.
    loops: list[float] = field(default_factory=list)
    _loop: float = 0.0

    def measure(self, subject: Subject, way: Way, name: str, run: int, place: Place) -> Measurement:
        """What fails is a measurement too, with its reason. What was disturbed is measured once more, and the quieter one kept."""
        first = self._measure(subject, way, name, run, place)
        if not first.samples or self._disturbance(first) <= QUIET:
            return first
        self._rest()
        second = self._measure(subject, way, name, run, place)
        return second if second.samples and self._disturbance(second) < self._disturbance(first) else first

    def _disturbance(self, one: Measurement) -> float:
        return disturbance(one.before, one.after, statistics.median(self.loops)) if self.loops else 0.0

    def _rest(self) -> None:
        """Until the server is quiet again, for some seconds at most."""
        for _ in range(RESTS):
            self._loop = self.fixed_loop()
            if self._loop <= statistics.median(self.loops) * (1 + QUIET):
                return
            time.sleep(1.0)

    def _measure(self, subject: Subject, way: Way, name: str, run: int, place: Place) -> Measurement:
        workload = WORKLOADS[name]
        at = self.clock().isoformat(timespec="seconds")
        absent = missing_tools(name, place.tools) or (
            missing_tools(name, self.server.tools) if workload.is_network else []
        )
        if absent:
            where = "on the server" if place is self.server else "in the guest"
            return Measurement(subject, way, name, run, at, error=f"no {', '.join(absent)} {where}")
        before = self._loop or self.fixed_loop()
        try:
            words, reading = self._run(workload, place)
        except (PlaceError, Unreadable) as error:
            self._loop = 0.0
            return Measurement(subject, way, name, run, at, error=str(error))
        self._loop = after = self.fixed_loop()
        return Measurement(
            subject, way, name, run, at, reading.samples, "", before, after, tuple(words), (), reading.raw
        )  # fmt: skip

    def fixed_loop(self) -> float:
        """How long a loop of integers takes on the server now, in ns; 0 if that cannot be found out."""
        if "bench" not in self.server.tools:
            return 0.0
        words = [*self.server.tools["bench"], "registers", "--seconds", "0.2", "--samples", "3"]
        with contextlib.suppress(PlaceError, Unreadable):
            found = statistics.median(workloads.read_bench(self.server.run(words, 30)).samples)
            self.loops.append(found)
            return found
        return 0.0

    def rested(self) -> None:
        """Something else happened since the last measurement."""
        self._loop = 0.0

    def _run(self, workload: Workload, place: Place) -> tuple[list[str], Reading]:
        if workload.is_network:
            return self._over_network(workload, place)
        words = workload.on_server if place is self.server and workload.on_server else workload.words
        command = workloads.command(words, place.tools, {"file": place.file})
        try:
            return command, workload.read(place.run(command, workload.seconds))
        finally:
            if "{file}" in " ".join(words):
                with contextlib.suppress(PlaceError):
                    place.run(["rm", "-f", place.file], 60)

    def _over_network(self, workload: Workload, place: Place) -> tuple[list[str], Reading]:
        """The other end serves one client and ends."""
        values = {"address": place.address, "port": str(place.port(workload.port))}
        command = workloads.command(workload.words, self.server.tools, values)
        deadline = time.monotonic() + LISTEN_SECONDS
        with place.serve(workloads.command(workload.serving, place.tools, values)):
            while True:
                try:
                    return command, workload.read(self.server.run_anywhere(command, 60))
                # iperf3 says that nobody listens, and that it ended well.
                except (PlaceError, Unreadable):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.3)
