"""The control plane's half: what a server should be goes out, what it is comes in.

No input but the store and reports, no retry inside: the next report is the retry.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import sqlalchemy as sa

from haneul.config import Settings
from haneul.errors import CloudError
from haneul.model.assignment import Assignment, MachineReport, Report, ServerFacts
from haneul.model.generation import noted
from haneul.model.image import CatalogueImage
from haneul.model.instance import Observed, Reason, ended_by_itself, why_ended
from haneul.model.instance_types import instance_types
from haneul.model.times import gmt
from haneul.reconcile import assign
from haneul.reconcile.assign import Assigner, Signer
from haneul.reconcile.catalogue import sync_catalogue
from haneul.store import capacity, tables
from haneul.store.database import Row, Store, Transaction
from haneul.store.ownership import check_epoch
from haneul.store.rows import desired, state_of
from haneul.store.rows import observed as observed_of

log = logging.getLogger(__name__)
#: Something that happened, for people: `event` says what, the rest depends on it.
Event = dict[str, Any]
VIRTUALIZATION_TAG = "aws:haneul:virtualization"
#: Machines whose reports are written in one transaction: the writer's lock is not held for long.
MACHINES_AT_ONCE = 100


class Control:
    """Thread-safe; all of its state is in the store (what it keeps is caches)."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        signer: Signer,
        clock: Callable[[], float],
        catalogue: Callable[[], list[CatalogueImage]],
        tell: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._tell = tell
        self._events: list[Event] = []
        self._detailed: dict[str, float] = {}
        self._told_problems: dict[str, tuple[str, ...]] = {}
        self._store = store
        self._settings = settings
        self._signer = signer
        self._clock = clock
        self._catalogue = catalogue
        self._known_catalogue: list[CatalogueImage] | None = None
        self._assigners: dict[str, Assigner] = {}
        self._last_facts: dict[str, ServerFacts] = {}
        self._followed: dict[str, tuple[MachineReport, int]] = {}
        self._revisions: dict[str, int] = {}
        self._assigning = threading.Lock()
        self._reporting = threading.Lock()

    def assignment(self, server_id: str, after: int = -1, epoch: int = 0) -> Assignment | None:
        """What the server should be now; None if nothing was committed since revision `after`.

        Raises `Fenced` for the agent of an earlier lease (`epoch`; 0 is of one that was given none).
        """
        with self._assigning, self._store.read() as tx:
            check_epoch(tx, server_id, epoch)
            if tx.revision() <= after:
                return None
            assigner = self._assigners.get(server_id)
            if assigner is None:
                assigner = self._assigners[server_id] = Assigner(server_id, self._settings, self._signer)
            return assigner.build(tx)

    def report(self, report: Report) -> None:
        """Write what an agent saw, and what follows from it. What says nothing new costs nothing.

        A machine is looked at when it is not as it was, or when its instance's row is not.
        """
        with self._reporting:
            self._tell_problems(report)
            news = self._news(report)
            said = bool(report.removed) or report.volumes is not None
            if not news and not said and self._last_facts.get(report.server_id) == report.facts:
                self._tell_traces(report)
                return
            if said:
                self._take_in_holdings(report)
            errors = [error for part in _parts(news) if (error := self._try_to_write(report, part)) is not None]
            if errors:
                raise errors[0]
            self._last_facts[report.server_id] = report.facts
            # Last: an agent whose report failed tells all of it again.
            self._tell_traces(report)

    def _try_to_write(self, report: Report, machines: list[MachineReport]) -> Exception | None:
        """One part's failure does not keep the others from being written; its machines are news again."""
        try:
            self._write(report, machines)
        except Exception as error:
            if len(machines) > 1 and not _is_unavailable(error):
                # One that cannot be written must not keep its neighbours from it.
                errors = [self._try_to_write(report, [machine]) for machine in machines]
                return next((one for one in errors if one is not None), None)
            log.error(
                "the report of %s could not be written: %r", machines[0].instance_id if machines else "a server", error
            )
            for machine in machines:
                self._followed.pop(machine.instance_id, None)
            self._revisions.pop(report.server_id, None)
            return error
        return None

    def _news(self, report: Report) -> list[MachineReport]:
        """The machines to look at. Those that are not written now are news again at the next report."""
        with self._store.read() as tx:
            revision = tx.revision()
            same = self._revisions.get(report.server_id) == revision
            versions = {} if same else assign.versions_of(tx, report.server_id)
        self._revisions[report.server_id] = revision
        found: list[MachineReport] = []
        for machine in report.machines:
            known = self._followed.get(machine.instance_id)
            version = versions.get(machine.instance_id, known[1] if known else 0)
            if known is None or known[1] != version or (known[0] is not machine and known[0] != machine):
                found.append(machine)
                self._followed[machine.instance_id] = (machine, version)
        if len(self._followed) > 2 * len(report.machines) + 1000:
            present = {machine.instance_id for machine in report.machines}
            self._followed = {one: known for one, known in self._followed.items() if one in present}
        return found

    def _write(self, report: Report, machines: list[MachineReport]) -> None:
        self._events = []
        with self._store.write() as tx:
            check_epoch(tx, report.server_id, report.epoch)
            if self._last_facts.get(report.server_id) != report.facts:
                self._register(tx, report)
            changed = False
            for machine in machines:
                changed |= self._observe(tx, report, machine)
            tx.wakes = changed
        # What was undone did not happen.
        for event in self._events:
            self._tell(event)

    def _take_in_holdings(self, report: Report) -> None:
        """Tombstones of which nothing is left are done with; volumes that have a file now are ones that can be lost."""
        with self._store.write() as tx:
            check_epoch(tx, report.server_id, report.epoch)
            buried = {(row["kind"], row["id"]) for row in tx.select(tables.tombstones, server_id=report.server_id)}
            done = [one for one in report.removed if (one.kind, one.id) in buried]
            for one in done:
                tx.delete(tables.tombstones, kind=one.kind, id=one.id, server_id=report.server_id)
            tx.wakes = bool(done)
            if report.volumes is not None:
                rows = tx.select(tables.volumes, server_id=report.server_id, observed_made=False)
                here = set(report.volumes)
                for row in rows:
                    if row["id"] in here:
                        tx.update(tables.volumes, row["id"], observed_made=True)
                        tx.wakes = True

    def _register(self, tx: Transaction, report: Report) -> None:
        facts = report.facts
        values: dict[str, Any] = {
            "vcpus": facts.vcpus * self._settings.vcpu_overcommit,
            "memory_mib": max(facts.memory_mib - self._settings.memory_reserve_mib, 0),
            "observed_facts": {
                "hostname": facts.hostname,
                "drivers": facts.drivers,
                "accelerators": facts.accelerators,
                "generations": facts.generations,
            },
            "observed_at": self._clock(),
        }
        if tx.get(tables.servers, report.server_id) is None:
            tx.insert(tables.servers, id=report.server_id, zones=[], **values)
        else:
            tx.update(tables.servers, report.server_id, **values)

    def _observe(self, tx: Transaction, report: Report, machine: MachineReport) -> bool:
        """Whether anything changed that an assignment depends on."""
        row = tx.get(tables.instances, machine.instance_id)
        if row is None or row["server_id"] != report.server_id:
            return False
        values = _observed_values(row, machine, self._clock())
        changed = self._take_in(tx, report, machine, row, values)
        self._note_change(tx, row, {**row, **values}, changed)
        return changed

    def _take_in(
        self, tx: Transaction, report: Report, machine: MachineReport, row: Row, values: dict[str, Any]
    ) -> bool:
        if any(row[name] != value for name, value in values.items()):
            tx.update(tables.instances, row["id"], **values)
            if bool(row["observed_boot_count"]) != bool(machine.boot_count):
                # Its volumes are attached from now on, and no longer attaching (or were never).
                tx.execute(_touch_volumes(), {"instance": row["id"]})
            said = self._say_how(tx, row, report, machine)
            return self._follow(tx, row, {**row, **values}) or said
        return self._follow(tx, row, {**row, **values})

    def _note_change(self, tx: Transaction, before: Row, seen: Row, changed: bool) -> None:
        """Remember a change of the instance's state, to be told when it is committed."""
        after = (tx.get(tables.instances, before["id"]) or seen) if changed else seen
        states = state_of(before), state_of(after)
        if states[0] == states[1]:
            # Details come from machines, and a machine may make one at every look: they are told once a minute.
            now = self._clock()
            if before["observed_detail"] == seen["observed_detail"] or now - self._detailed.get(before["id"], 0.0) < 60:
                return
            self._detailed[before["id"]] = now
            if len(self._detailed) > 10000:
                self._detailed.clear()
        why = after["reason_message"] or seen["observed_detail"]
        self._events.append(
            self._event("state", before, was=states[0], now=states[1], boot=seen["observed_boot_count"], why=why)
        )

    def _event(self, kind: str, row: Row, **more: Any) -> Event:
        scope = {"instance": row["id"], "account": row["account"], "region": row["region"]}
        return {"time": self._clock(), "event": kind, **scope, **more}

    def _tell_problems(self, report: Report) -> None:
        """What a server cannot do, when that changes."""
        if self._told_problems.get(report.server_id, ()) != report.problems:
            self._told_problems[report.server_id] = report.problems
            self._tell(
                {
                    "time": self._clock(),
                    "event": "problems",
                    "server": report.server_id,
                    "problems": list(report.problems),
                }
            )

    def _tell_traces(self, report: Report) -> None:
        if not report.traces:
            return
        with self._store.read() as tx:
            rows = {
                row["id"]: row for row in tx.among(tables.instances, "id", [one.instance_id for one in report.traces])
            }
        for trace in report.traces:
            row = rows.get(trace.instance_id)
            if row is None:
                continue
            first = row["launched"] if trace.boot_count == row["started_at_boot"] else trace.spans[0].began
            spans = [{"name": one.name, "began": one.began, "ended": one.ended} for one in trace.spans]
            self._tell(self._event("boot", row, boot=trace.boot_count, ordered=first, spans=spans, failed=trace.failed))

    def _say_how(self, tx: Transaction, row: Row, report: Report, machine: MachineReport) -> bool:
        """How an instance is really run, in a tag that tools leave alone (`aws:`). Whether the tag changed."""
        why = report.facts.accelerators.get("kvm") or "accelerator = tcg"
        kind = instance_types()[row["instance_type"]]
        value = noted(kind.generation, machine.accelerator, why)
        if value is None:
            return False
        value = value[:256]
        known = {tag["key"]: tag["value"] for tag in tx.select(tables.tags, resource_id=row["id"])}
        if known.get(VIRTUALIZATION_TAG, "") == value:
            return False
        tx.delete(tables.tags, resource_id=row["id"], key=VIRTUALIZATION_TAG)
        if value:
            scope = {"account": row["account"], "region": row["region"], "resource_type": "instance"}
            tx.insert(tables.tags, resource_id=row["id"], key=VIRTUALIZATION_TAG, value=value, **scope)
        return True

    def _follow(self, tx: Transaction, before: Row, row: Row) -> bool:
        """What the control plane does once a machine is as it is; `before` is the row as it was until this report."""
        observed = observed_of(row)
        assert observed is not None
        if ended_by_itself(desired(row), observed):
            if observed.cause == "server-reboot" and self._settings.after_reboot == "start":
                # One more boot, as if its user had ordered a reboot: it keeps its place and its addresses.
                tx.update(tables.instances, row["id"], boot_count=row["boot_count"] + 1)
                return True
            self._ended(tx, before, row, observed)
            return True
        if row["power"] == "stopped" and observed.power in ("off", "absent"):
            return self._settle_stopped(tx, row)
        if row["power"] == "terminated" and observed.power == "absent":
            self._finish(tx, row)
            return True
        return False

    def _ended(self, tx: Transaction, before: Row, row: Row, observed: Observed) -> None:
        """The guest powered off, crashed or never began: write down why and what it is from now on."""
        reason: Reason = why_ended(observed, gmt(self._clock()))
        values: dict[str, Any] = {
            "reason_code": reason.code,
            "reason_message": reason.message,
            "transition_reason": reason.transition,
        }
        by_guest = observed.cause == "guest-shutdown"
        # One that has been on has disks that are worth something, even if they cannot be found now.
        first_launch_failed = (
            observed.cause == "launch-failed" and row["boot_count"] == 1 and not before["observed_boot_count"]
        )
        if first_launch_failed or (by_guest and row["shutdown_behavior"] == "terminate"):
            tx.update(tables.instances, row["id"], power="terminated", ended=self._clock(), **values)
            return
        tx.update(tables.instances, row["id"], power="stopped", **values)
        self._settle_stopped(tx, row)

    def _settle_stopped(self, tx: Transaction, row: Row) -> bool:
        """A stopped instance holds no capacity and no public address."""
        holds = bool(row["reserved_memory_mib"])
        capacity.release(tx, row)
        table = tables.interfaces
        public = tx.select(table, table.c.public_address.is_not(None), instance_id=row["id"])
        for interface in public:
            tx.update(table, interface["id"], public_address=None)
        return holds or bool(public)

    def _finish(self, tx: Transaction, row: Row) -> None:
        """Nothing of the machine is left: so goes what belonged to it. The row stays to be described."""
        capacity.release(tx, row)
        gone = []
        for volume in tx.select(tables.volumes, instance_id=row["id"]):
            if volume["delete_on_termination"]:
                gone.append(volume["id"])
                tx.delete(tables.volumes, id=volume["id"])
            else:
                tx.update(tables.volumes, volume["id"], instance_id="", device="", attached=None)
        for interface in tx.select(tables.interfaces, instance_id=row["id"]):
            if interface["delete_on_termination"]:
                gone.append(interface["id"])
                tx.delete(tables.interfaces, id=interface["id"])
            else:
                tx.update(tables.interfaces, interface["id"], instance_id="", attachment_id="", public_address=None)
        tx.delete(tables.tags, tables.tags.c.resource_id.in_(gone))
        tx.update(tables.instances, row["id"], server_id="")
        if row["vpc_id"] not in assign.vpcs_of(tx, row["server_id"]):
            tx.bury("network", row["vpc_id"], row["server_id"])

    def sweep(self) -> None:
        """What time alone brings: terminated instances are forgotten, the catalogue follows the image store."""
        catalogue = self._catalogue()
        limit = self._clock() - self._settings.terminated_seconds
        table = tables.instances
        expired = (table.c.power == "terminated") & (table.c.server_id == "") & (table.c.ended < limit)
        oldest = self._clock() - self._settings.token_seconds
        with self._store.read() as tx:
            old = [row["id"] for row in tx.select(table, expired)]
            tokens = tx.execute(sa.select(sa.func.min(tables.client_tokens.c.created))).scalar()
            deregistered = [
                row["id"]
                for row in tx.select(tables.images, available=False)
                if row["more"].get("deregistered", 0) < limit
            ]
        stale_tokens = tokens is not None and tokens < oldest
        if not old and not stale_tokens and not deregistered and catalogue == self._known_catalogue:
            return
        with self._store.write() as tx:
            tx.wakes = False
            for instance in old:
                tx.delete(tables.tags, resource_id=instance)
                tx.delete(table, id=instance)
            for image in deregistered:
                tx.delete(tables.images, id=image)
            sync_catalogue(tx, catalogue)
            tx.delete(tables.client_tokens, tables.client_tokens.c.created < oldest)
            tx.wakes = False
        self._known_catalogue = catalogue


def _is_unavailable(error: Exception) -> bool:
    """The store itself cannot work: trying with less would only take longer."""
    return isinstance(error, CloudError) and error.code == "Unavailable"


def _parts(machines: list[MachineReport]) -> list[list[MachineReport]]:
    """At least one: the server's own facts are written with the first."""
    return [machines[n : n + MACHINES_AT_ONCE] for n in range(0, max(len(machines), 1), MACHINES_AT_ONCE)]


@cache
def _touch_volumes() -> Any:
    table = tables.volumes
    return sa.update(table).where(table.c.instance_id == sa.bindparam("instance")).values(version=table.c.version + 1)


def _observed_values(row: Row, machine: MachineReport, now: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "observed_power": machine.power,
        "observed_boot_count": machine.boot_count,
        "observed_cause": machine.cause,
        "observed_detail": machine.detail,
        "observed_phase": machine.phase,
        "observed_accelerator": machine.accelerator or row["observed_accelerator"],
        "observed_reachable": machine.reachable,
    }
    if row["observed_reachable"] != machine.reachable:
        values["observed_reachable_since"] = now
    return values
