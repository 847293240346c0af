"""What the owner of this haneul sees and does, across accounts and regions: behind the control socket and /metrics."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from haneul.agent.agent import Agent
from haneul.app.keys import StoredIdentities
from haneul.config import Settings
from haneul.drivers.interface import DriverError, LaunchCounter
from haneul.errors import CloudError
from haneul.identity import Identity
from haneul.model.generation import as_run
from haneul.model.instance_types import instance_types
from haneul.reconcile.control import Control
from haneul.records.journal import Journal, moment
from haneul.records.metrics import Gauges, Metrics
from haneul.services import accounts
from haneul.services.dispatch import Cloud
from haneul.store import tables
from haneul.store.database import Store
from haneul.store.ownership import Lease
from haneul.store.rows import state_of

#: What an instance's state is computed from.
STATE_COLUMNS = ("power", "boot_count", "started_at_boot", "observed_power", "observed_boot_count")


@dataclass
class Running:
    """A started haneul."""

    settings: Settings
    cloud: Cloud
    control: Control
    agent: Agent
    store: Store
    loop: asyncio.AbstractEventLoop
    identity: Identity
    identities: StoredIdentities
    metrics: Metrics
    audit: Journal
    events: Journal
    lease: Lease
    over: asyncio.Future[None]

    def accounts(self, what: str, arguments: dict[str, str]) -> Any:
        """`haneul account …`. Raises `CloudError`."""
        done = self._accounts(what, arguments)
        if what != "list":
            self.audit.write(_by_owner(f"{what.title()}Account", arguments | {"account": done["account"]}))
        return done

    def _accounts(self, what: str, arguments: dict[str, str]) -> Any:
        now = time.time()
        if what == "list":
            with self.store.read() as tx:
                return accounts.listed(tx)
        mine, _ = self.identity.read_credentials()
        with self.store.write() as tx:
            if what == "add":
                done: Any = asdict(accounts.add(tx, now, arguments["name"], arguments.get("id", "")))
            elif what == "rotate":
                done = asdict(accounts.rotate(tx, now, arguments["account"]))
            elif what == "rm":
                done = {"account": accounts.remove(tx, arguments["account"], self.settings.account)}
            else:
                raise CloudError("InvalidAction", f"there is nothing like {what!r} to do with accounts")
            lost = tx.get(tables.access_keys, mine) is None
        self.identities.forget()
        if what == "rm":
            self.cloud.forget(done["account"])
        if lost and what == "rotate":
            # The key of `haneul env` was one of those that are void now.
            self.identity.write_credentials(done["access_key"], done["secret"])
        return done

    async def templates(self, what: str, arguments: dict[str, str]) -> Any:
        """`haneul image warm` and `templates`: those of the agent in this process. Raises `CloudError`."""
        driver = self.agent.drivers.templates
        if driver is None:
            fake = self.settings.drivers == "fake"
            why = "its drivers are fake and boot nothing" if fake else 'it was started with warm = "off"'
            raise CloudError("UnsupportedOperation", f"this haneul has no templates: {why}")
        if what == "list":
            return [asdict(one) for one in driver.observe()]
        if what == "sweep":
            await driver.sweep()
            return []
        if what != "order":
            raise CloudError("InvalidAction", f"there is nothing like {what!r} to do with templates")
        try:
            done = asdict(await driver.order(arguments["image"], arguments["type"]))
        except DriverError as error:
            raise CloudError("UnsupportedOperation", str(error)) from None
        self.audit.write(_by_owner("OrderTemplate", arguments))
        return done

    async def unclaimed(self, what: str, arguments: dict[str, str]) -> Any:
        """`haneul unclaimed`: what is here and the store does not know. Raises `CloudError`."""
        if what == "list":
            return [asdict(one) for one in self.agent.unclaimed]
        if what != "remove":
            raise CloudError("InvalidAction", f"there is nothing like {what!r} to do with what is unclaimed")
        try:
            gone = await self.agent.remove_unclaimed(arguments.get("id", ""))
        except (DriverError, OSError) as error:
            raise CloudError("IncorrectState", str(error)) from None
        self.audit.write(_by_owner("RemoveUnclaimed", arguments))
        return asdict(gone)

    def gauges(self) -> Gauges:
        """What /metrics tells of the store."""
        with self.store.read() as tx:
            servers = tx.select(tables.servers)
            columns = [tables.instances.c[name] for name in STATE_COLUMNS]
            counted = tx.execute(sa.select(*columns, sa.func.count()).group_by(*columns)).all()
        states: Counter[str] = Counter()
        for *values, count in counted:
            row = dict(zip(STATE_COLUMNS, values, strict=True))
            states[state_of(row | {"force": False, "observed_cause": "", "observed_detail": ""})] += count
        yield "haneul_instances", "Instances by state.", ("state",), [((one,), float(n)) for one, n in states.items()]
        for kind in ("vcpus", "memory_mib"):
            for column, text in ((kind, "may promise"), (f"reserved_{kind}", "has promised")):
                samples = [((row["id"],), float(row[column])) for row in servers]
                yield f"haneul_server_{column}", f"What a server {text} to instances.", ("server",), samples
        yield "haneul_problems", "What the last pass could not do.", (), [((), float(len(self.agent.problems)))]
        unclaimed = [((), float(len(self.agent.unclaimed)))]
        yield "haneul_unclaimed", "Machines, volumes and networks here that the store does not know.", (), unclaimed
        lost = [((name,), float(one.lost)) for name, one in (("audit", self.audit), ("events", self.events))]
        yield "haneul_lost_records", "Lines that could not be written.", ("journal",), lost
        yield from self._gauges_of_templates()

    def _gauges_of_templates(self) -> Gauges:
        """Nothing where there is no warm launch."""
        machines, driver = self.agent.drivers.machines, self.agent.drivers.templates
        if isinstance(machines, LaunchCounter):
            samples = [((path,), float(machines.launches[path])) for path in ("warm", "cold")]
            yield "haneul_first_boots_total", "First boots: from a template, or cold.", ("path",), samples
        if driver is not None:
            found = driver.observe()
            states = Counter(one.state for one in found)
            yield "haneul_templates", "Templates by state.", ("state",), [((s,), float(n)) for s, n in states.items()]
            memory = sum(one.memory_bytes for one in found if one.state == "loaded")
            samples = [(("memory",), float(memory)), (("disk",), float(sum(one.disk_bytes for one in found)))]
            yield "haneul_template_bytes", "What templates take.", ("where",), samples

    def status(self) -> dict[str, Any]:
        """What `haneul status` shows."""
        with self.store.read() as tx:
            servers = tx.select(tables.servers)
            instances = tx.select(tables.instances)
            addresses = {row["instance_id"]: row for row in tx.select(tables.interfaces)}
        shown = []
        for row in sorted(instances, key=lambda row: row["created"]):
            interface = addresses.get(row["id"])
            shown.append(
                {
                    "instance": row["id"],
                    "account": row["account"],
                    "region": row["region"],
                    "type": row["instance_type"],
                    "image": row["image_name"],
                    "state": state_of(row),
                    "phase": row["observed_phase"],
                    "accelerator": row["observed_accelerator"],
                    "virtualized": as_run(
                        instance_types()[row["instance_type"]].generation, row["observed_accelerator"]
                    ),
                    "address": interface["address"] if interface else "",
                    "public_address": (interface["public_address"] or "") if interface else "",
                    "reason": row["reason_message"],
                }
            )
        return {
            "endpoint": self.settings.endpoint,
            "data": str(self.settings.data),
            "drivers": self.settings.drivers,
            "auth": self.settings.auth,
            "uplink": self.settings.uplink,
            "public_pool": self.settings.public_pool,
            "servers": [
                {
                    "server": row["id"],
                    "epoch": row["epoch"],
                    "vcpus": row["vcpus"],
                    "memory_mib": row["memory_mib"],
                    "reserved_vcpus": row["reserved_vcpus"],
                    "reserved_memory_mib": row["reserved_memory_mib"],
                    **row["observed_facts"],
                }
                for row in servers
            ],
            "instances": shown,
            "templates": [asdict(one) for one in driver.observe()] if (driver := self.agent.drivers.templates) else [],
            "problems": self.agent.problems,
            "unclaimed": [asdict(one) for one in self.agent.unclaimed],
        }


def _by_owner(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    """An audit record of what came through the control socket, which only the owner of this haneul can open."""
    return {
        "eventVersion": "1.09",
        "userIdentity": {"type": "Owner"},
        "eventTime": moment(time.time()),
        "eventSource": "haneul",
        "eventName": name,
        "requestParameters": arguments,
        "readOnly": False,
        "eventID": str(uuid.uuid4()),
        "eventType": "AwsServiceEvent",
    }


class Teller:
    """Takes what happened to the events' file and to the metrics."""

    def __init__(self, journal: Journal, metrics: Metrics) -> None:
        self._journal = journal
        self._metrics = metrics

    def tell(self, event: dict[str, Any]) -> None:
        if event["event"] == "state" and event["was"] != event["now"]:
            self._metrics.state(event["now"])
        if event["event"] == "boot":
            for span in event["spans"]:
                self._metrics.launch_step(span["name"], span["ended"] - event["ordered"])
        self._journal.write(event | {"time": moment(event["time"])})
