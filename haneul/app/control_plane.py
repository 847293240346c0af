"""A whole haneul in one process: store, operations, control plane, agent, API. Given its drivers, it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn

from haneul import __version__
from haneul.agent.agent import Agent, Drivers
from haneul.agent.link import LocalLink
from haneul.api.app import Api, Key, make_app
from haneul.api.control import make_control
from haneul.api.http import BoundedHttp
from haneul.api.protocol import KeptForms
from haneul.config import Settings
from haneul.drivers.interface import Console, DriverError, LaunchCounter, Screenshotter
from haneul.errors import CloudError, SettingsError
from haneul.identity import Identity
from haneul.model.generation import as_run
from haneul.model.image import CatalogueImage
from haneul.model.instance_types import instance_types
from haneul.reconcile.assign import Signer
from haneul.reconcile.control import Control
from haneul.records.journal import AUDIT, EVENTS, Journal, moment
from haneul.records.metrics import Gauges, Metrics
from haneul.services import accounts, ec2, iam, ssm, sts
from haneul.services.dispatch import Cloud
from haneul.services.ec2.instances.views import state_of
from haneul.store import tables
from haneul.store.database import Store

log = logging.getLogger(__name__)
SERVER_ID = "server-1"
#: More are answered 503, which SDKs try again.
MAX_CONNECTIONS = 4096
SWEEP_SECONDS = 5.0
#: What an instance's state is computed from.
STATE_COLUMNS = ("power", "boot_count", "started_at_boot", "observed_power", "observed_boot_count")
_OPERATIONS = (ec2, iam, ssm, sts)  # importing them fills the table of operations


class LocalAsk:
    """Questions to the agent's drivers, from the operations' threads to the agent's loop."""

    def __init__(self, drivers: Drivers, loop: asyncio.AbstractEventLoop) -> None:
        self._machines = drivers.machines
        self._loop = loop

    def console_output(self, server_id: str, instance_id: str, deadline: float) -> bytes:
        if not isinstance(self._machines, Console):
            raise CloudError("UnsupportedOperation", "This server's machines have no console.")
        return self._answer(self._machines.console_output(instance_id), deadline)

    def screenshot(self, server_id: str, instance_id: str, deadline: float) -> bytes:
        if not isinstance(self._machines, Screenshotter):
            raise CloudError("UnsupportedOperation", "This server's machines have no display.")
        return self._answer(self._machines.screenshot(instance_id), deadline)

    def _answer(self, question: Any, deadline: float) -> bytes:
        future = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return bytes(future.result(deadline))
        except TimeoutError:
            future.cancel()
            raise CloudError("Unavailable", "The instance's server did not answer in time.") from None
        except DriverError as error:
            raise CloudError("Unavailable", f"The instance's server could not answer: {error}") from None


class StoredIdentities:
    """Access keys, from the store. Found ones are kept in memory until `forget`: every request asks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Key] = {}

    def find(self, access_key: str) -> Key | None:
        # What is read before `forget` must not be kept after it: it is put into the dictionary of then.
        kept = self._known
        known = kept.get(access_key)
        if known is not None:
            return known
        with self._store.read() as tx:
            row = tx.get(tables.access_keys, access_key)
        if row is None:
            return None
        return kept.setdefault(access_key, Key(row["account"], row["secret"]))

    def answers_at_once(self, access_key: str) -> bool:
        """A database elsewhere is not asked on the event loop."""
        return self._store.reads_at_once or access_key in self._known

    def forget(self) -> None:
        """Keys have been removed: look them up again."""
        self._known = {}


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: one haneul has two servers and handles signals once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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


def _first_account(store: Store, settings: Settings, identity: Identity) -> None:
    """The keys of the first start belong to the default account."""
    access_key, secret = identity.read_credentials()
    with store.write() as tx:
        if tx.get(tables.accounts, settings.account) is None:
            tx.insert(tables.accounts, id=settings.account, name="default", created=time.time())
        known = tx.select(tables.access_keys)
        if known and access_key not in {row["id"] for row in known}:
            log.warning("the key of `haneul env` is void; `haneul account rotate default` makes another")
        if not known:
            tx.insert(tables.access_keys, id=access_key, account=settings.account, secret=secret, created=time.time())


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named, asyncio turns Nagle off: a body would wait 40 ms for the client to acknowledge its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}. "
            "Another program (or another haneul) has the port; choose one with HANEUL_PORT."
        ) from None
    listener.listen(512)
    return listener


@asynccontextmanager
async def start(
    settings: Settings,
    identity: Identity,
    make_drivers: Callable[[Callable[[], None]], Drivers],
    catalogue: Callable[[], list[CatalogueImage]],
    control_socket: Path | None = None,
) -> AsyncIterator[Running]:
    """A haneul that serves until the block ends. Machines, networks and metadata go on after it."""
    if settings.public_pool == "auto":
        settings = replace(settings, public_pool=identity.pool)
    loop = asyncio.get_running_loop()
    listener = _listen(settings)
    settings = replace(settings, port=listener.getsockname()[1])
    store = Store(settings.database_url, settings.is_durable)
    await asyncio.to_thread(store.migrate)
    _first_account(store, settings, identity)
    agent: Agent | None = None

    def wake() -> None:
        if agent is not None:
            loop.call_soon_threadsafe(agent.wake)

    drivers = make_drivers(wake)
    cloud = Cloud(
        store, settings, LocalAsk(drivers, loop), time.time, identity.secret, forms=KeptForms(settings.forms_mib << 20)
    )
    # Fake machines have nobody inside who could read documents, and making them is most of what a launch costs.
    signer = Signer(identity.sign if settings.drivers != "fake" else None, identity.ssh_public)
    audit = Journal(settings.data / AUDIT, (settings.audit_mib << 20) // 4, 3)
    events = Journal(settings.data / EVENTS, 8 << 20, 1)
    metrics = Metrics()
    teller = Teller(events, metrics)
    control = Control(store, settings, signer, time.time, catalogue, teller.tell)
    agent = Agent(LocalLink(control, SERVER_ID), drivers, SERVER_ID)
    store.on_commit(wake)
    await asyncio.to_thread(control.sweep)
    identities = StoredIdentities(store)
    running = Running(settings, cloud, control, agent, store, loop, identity, identities, metrics, audit, events)
    metrics.gauges = running.gauges
    teller.tell({"time": time.time(), "event": "start", "endpoint": settings.endpoint, "version": __version__})
    api = Api(
        cloud,
        identities,
        settings.auth == "open",
        settings.account,
        settings.region,
        time.time,
        metrics,
        audit.write,
        settings.audit,
    )
    await agent.introduce()
    servers = [(_Server(_uvicorn(make_app(api))), listener)]
    if control_socket is not None:
        app = make_control(running.status, running.accounts, running.templates)
        servers.append((_Server(_uvicorn(app)), _unix(control_socket)))
    tasks = [asyncio.create_task(server.serve(sockets=[one])) for server, one in servers]
    tasks += [asyncio.create_task(one) for one in (agent.run(), _sweeps(control), metrics.loop.watch())]
    try:
        while not all(server.started for server, _ in servers):
            await asyncio.sleep(0.01)
        yield running
    finally:
        for server, _ in servers:
            server.should_exit = True
        await _end(tasks[len(servers) :])
        await asyncio.gather(*tasks, return_exceptions=True)
        api.close()
        await asyncio.to_thread(store.close)
        teller.tell({"time": time.time(), "event": "stop"})
        for journal in (audit, events):
            await asyncio.to_thread(journal.close)


def _uvicorn(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=BoundedHttp,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )


def _unix(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(16)
    return listener


async def _sweeps(control: Control) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await asyncio.to_thread(control.sweep)
        except Exception:
            log.exception("a sweep failed; the next one tries again")


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel them, again and again: what a task awaits may have swallowed it, and then it goes on as if nothing was."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)


async def until_told_to_stop() -> None:
    """Returns at SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
