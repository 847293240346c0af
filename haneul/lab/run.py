"""`haneul compare`, put together: what may begin, what is gone on with, what is written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from haneul.errors import SettingsError
from haneul.lab import results
from haneul.lab.measure import guests as cloud
from haneul.lab.measure import machine, places
from haneul.lab.measure.compare import Comparison, Plan, Progress
from haneul.lab.measure.guests import Cloud, Session
from haneul.lab.measure.measure import Meter
from haneul.lab.measure.places import Server
from haneul.lab.report import costs, findings
from haneul.lab.report import page as report
from haneul.lab.results import File, Results
from haneul.lab.workloads import NAMES, WORKLOADS
from haneul.model.generation import GENERATIONS, Generation

PAGE, PICTURE = "report.html", "report.png"


@dataclass(frozen=True)
class Request:
    """What was asked for, by names."""

    generations: tuple[Generation, ...]
    workloads: tuple[str, ...]
    runs: int
    output: Path
    image: str
    again: bool


def chosen(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Names in a list with commas; all that are known if it is empty. Raises SettingsError for others."""
    names = [one.strip() for one in text.split(",") if one.strip()] or list(known)
    for name in names:
        if name not in known:
            raise SettingsError(f"{name!r} is no {what}; there are: {', '.join(known)}")
    return tuple(one for one in known if one in names)


def request(generations: str, workloads: str, runs: int, output: Path, image: str, again: bool) -> Request:
    """Raises SettingsError for names that are not known."""
    wanted = chosen(generations, GENERATIONS, "generation")
    those = tuple(one for one in GENERATIONS if one in wanted)
    return Request(those, chosen(workloads, NAMES, "workload"), runs, output, image, again)


def run(
    asked: Request,
    session: Session,
    images: Path,
    data: Path,
    watching: Callable[[int], contextlib.AbstractContextManager[Progress]],
) -> Results:
    """Measure what is missing, and write the report of everything. Raises SettingsError for what keeps it from beginning."""
    tools = places.server_tools(places.tools_folder(images))
    if "bench" not in tools:
        raise SettingsError(
            f"the programs to run are in the image {places.IMAGE}, which is not built here: `haneul image build {places.IMAGE}`"
        )
    image_id = cloud.image_id(session.ec2, asked.image)
    with _alone(data), _scratch(data) as scratch, _ended_by_signals():
        server = Server(tools, scratch)
        here = Cloud(session, image_id, Path(tools["bench"][0]))
        file = File(asked.output)
        old = None if asked.again else file.read()
        begun = _begun(old, machine.describe(server, asked.image, image_id))
        plan = Plan(results.subjects(asked.generations), asked.workloads, asked.runs)
        with watching(plan.missing(begun)) as progress:
            here.clean(lambda text: progress.doing(0, "before", text))
            begun = replace(begun, about=begun.about | {"others": max(here.others(), begun.about.get("others") or 0)})
            comparison = Comparison(plan, begun, Meter(server, loops=_loops(begun)), here, file.write, progress)
            try:
                return comparison.run()
            finally:
                write(asked.output, comparison.results)
                here.clean(lambda text: progress.doing(0, "after", text))


def _begun(old: Results | None, about: dict[str, Any]) -> Results:
    """The results that are there, if they are of the same image and machine, or none yet."""
    if old is None:
        return Results(about | {"started": datetime.now(UTC).isoformat(timespec="seconds")})
    results.check_same(old.about, about)
    return replace(old, about=about | {"started": old.about.get("started", "")})


def _loops(found: Results) -> list[float]:
    return [value for one in found.measurements for value in (one.before, one.after) if value > 0]


def write(output: Path, found: Results) -> None:
    """The three files of a comparison."""
    if not any(one.samples for one in found.measurements):
        return
    File(output).write(found, {"summary": summary(found)})
    results.write_whole(output / PAGE, report.page(found))
    results.write_whole(output / PICTURE, report.picture(found))


def summary(found: Results) -> dict[str, Any]:
    """What follows from the results, for programs that read them."""
    whole = costs.of(found)
    virtualized = str(found.about.get("virtualized", ""))
    return {
        "ways": {
            way: {
                "workloads": {
                    name: asdict(whole.costs[way, name]) | {"unit": one.unit, "better": one.better}
                    for name, one in WORKLOADS.items()
                    if (way, name) in whole.costs
                },
                "boot": asdict(whole.boots[way].totals) if way in whole.boots else None,
            }
            for way in whole.ways
        },
        "why": {way: [one.en for one in told] for way, told in findings.why(whole, virtualized).items()},
        "agreement": [
            {
                "claim": one.claim.en,
                "source": one.source.en,
                "verdict": one.verdict,
                "here": one.here.en,
                "because": [text.en for text in one.because],
            }
            for one in findings.agreement(whole, virtualized)
        ],
    }


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """One comparison at a time: two would measure each other, and end each other's instances."""
    descriptor = os.open(data / "compare.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError("another `haneul compare` runs on this cloud") from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _scratch(data: Path) -> Iterator[Path]:
    """A folder on the disk that guests' volumes are on, for the server's own disk workloads."""
    folder = data / "compare"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Told to end, it ends as by Ctrl-C: what it launched goes with it."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
