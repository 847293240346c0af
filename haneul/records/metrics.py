"""What haneul says of itself at /metrics, in Prometheus' text format (prometheus.io, "Exposition formats")."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

log = logging.getLogger(__name__)

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
#: A loop that is held up for longer is told in the log (seconds).
BLOCKED = 0.1
LOOK_SECONDS = 0.02
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LAUNCH_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)

#: (name, help, names of labels, samples of (labels, value)): asked for at each scrape.
Gauges = Iterable[tuple[str, str, tuple[str, ...], Iterable[tuple[tuple[str, ...], float]]]]


class Metrics:
    """Counters of one haneul. `gauges` is asked at each scrape for what is counted in the store."""

    def __init__(self, gauges: Callable[[], Gauges] = lambda: ()) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.gauges = gauges
        self._requests = Counter(
            "haneul_requests", "Requests by operation and answer.", ("service", "operation", "code"),
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "haneul_request_seconds", "From the head of a request to its answer.", ("kind",),
            buckets=_REQUEST_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._launches = Histogram(
            "haneul_launch_seconds", "From RunInstances to each step of a launch.", ("step",),
            buckets=_LAUNCH_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._changes = Counter(
            "haneul_instance_changes", "Changes of instances' states.", ("state",), registry=self.registry
        )
        self.loop = LoopMonitor()
        self.registry.register(self)

    def request(self, service: str, operation: str, code: str, kind: str, seconds: float) -> None:
        """`operation` is a name of the model or `-`, so that no client makes up label values."""
        self._requests.labels(service, operation, code).inc()
        self._seconds.labels(kind).observe(seconds)

    def launch_step(self, step: str, seconds: float) -> None:
        self._launches.labels(step).observe(seconds)

    def state(self, state: str) -> None:
        self._changes.labels(state).inc()

    def describe(self) -> Iterable[Metric]:
        """Nothing is collected when this is registered: the store may not be there yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            of_store = list(self.gauges())
        except Exception:
            log.exception("the store could not be asked for its metrics")
            of_store = []
        for name, text, labels, samples in [*of_store, *self.loop.gauges()]:
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family: CounterMetricFamily | GaugeMetricFamily = kind(name, text, labels=labels)
            for values, value in samples:
                family.add_metric(list(values), value)
            yield family

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _waited() -> float:
    """How long this thread was ready to run and had no processor, in seconds (Linux, sched-stats)."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class LoopMonitor:
    """How long the event loop keeps a timer waiting: whatever blocks it keeps every client waiting as long.

    What other programs took of the processors is not the loop's doing, and is left out.
    """

    def __init__(self) -> None:
        self._most = 0.0
        self._ever = 0.0
        self._over = 0
        self._lock = threading.Lock()

    async def watch(self) -> None:
        """For ever."""
        while True:
            began, waited = time.perf_counter(), _waited()
            await asyncio.sleep(LOOK_SECONDS)
            late = time.perf_counter() - began - LOOK_SECONDS - (_waited() - waited)
            with self._lock:
                self._most, self._ever = max(self._most, late), max(self._ever, late)
                self._over += late > BLOCKED
            if late > BLOCKED:
                log.warning("the event loop was held up for %.0f ms", late * 1000)

    def gauges(self) -> Gauges:
        with self._lock:
            most, self._most = self._most, 0.0
        yield "haneul_loop_lag_seconds_max", "Longest delay of the event loop since the last scrape.", (), [((), most)]
        yield "haneul_loop_lag_seconds_ever", "Longest delay of the event loop since the start.", (), [((), self._ever)]
        yield "haneul_loop_delays", "Delays of more than 100 ms since the start.", (), [((), float(self._over))]
