"""A whole haneul in one process: store, operations, control plane, agent, API. Given its drivers, it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn

from haneul import __version__
from haneul.agent.agent import Agent, Drivers
from haneul.agent.link import LocalLink
from haneul.api.app import Api, make_app
from haneul.api.control import make_control
from haneul.api.http import BoundedHttp
from haneul.api.protocol import KeptForms
from haneul.app.ask import LocalAsk
from haneul.app.keys import StoredIdentities, first_account
from haneul.app.owner import Running, Teller
from haneul.config import Settings
from haneul.errors import CloudError, SettingsError
from haneul.identity import Identity, write_secret
from haneul.linux.boot import boot_id
from haneul.model.image import CatalogueImage
from haneul.reconcile.assign import Signer
from haneul.reconcile.control import Control
from haneul.records.journal import AUDIT, EVENTS, Journal
from haneul.records.metrics import Metrics
from haneul.services import ec2, iam, ssm, sts
from haneul.services.dispatch import Cloud
from haneul.store import ownership
from haneul.store.database import Store
from haneul.store.ownership import Binding, Fenced, Holder, Lease, Present

log = logging.getLogger(__name__)
#: More are answered 503, which SDKs try again.
MAX_CONNECTIONS = 4096
SWEEP_SECONDS = 5.0
#: How long a part rests that has failed (seconds).
AGAIN_SECONDS = 1.0
_OPERATIONS = (ec2, iam, ssm, sts)  # importing them fills the table of operations


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: one haneul has two servers and handles signals once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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


@dataclass
class _Tasks:
    """What runs beside the API, for ever. One that fails is begun anew; one that was fenced off ends this haneul, with its reason."""

    over: asyncio.Future[None]
    running: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        task = asyncio.create_task(self._for_ever(work, name), name=name)
        task.add_done_callback(self.ended)
        self.running.append(task)

    async def _for_ever(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        while True:
            try:
                await work()
            except Fenced:
                raise
            except Exception:
                log.exception("%s has failed and begins anew", name)
            await asyncio.sleep(AGAIN_SECONDS)

    def ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.over.done():
            return
        error = task.exception()
        if error is not None and not isinstance(error, Fenced):
            log.critical("%s has failed", task.get_name(), exc_info=error)
        why = str(error) if error is not None else "it has ended"
        self.over.set_exception(SettingsError(f"haneul stops, instances go on: {task.get_name()}: {why}"))
        self.over.exception()  # nobody may wait for it any more

    async def end(self) -> None:
        """Cancel them, again and again: what a task awaits may have swallowed it, and then it goes on as if nothing was."""
        pending = set(self.running)
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=1)


async def _present(drivers: Drivers) -> Present:
    return Present(frozenset(await drivers.machines.observe()), await drivers.disks.observe())


def _holder(data: Path) -> Holder:
    found = data.stat()
    return Holder(socket.gethostname(), boot_id(), str(data), f"{found.st_dev}:{found.st_ino}")


def _claim(settings: Settings, identity: Identity, present: Present, accept: bool) -> tuple[Store, Lease]:
    """The store, brought to this version's schema, and the right to act for this server. Raises `SettingsError`."""
    url, holder = settings.database_url, _holder(settings.data)
    binding = _read_binding(identity)
    if not accept:
        ownership.check_is_there(url, holder, present)
    store = Store(url, settings.is_durable)
    try:
        if not accept:
            ownership.check_older(store, holder, present)
        store.migrate()
        lease = ownership.claim(
            store,
            binding,
            holder,
            present,
            lambda bound: write_secret(identity.binding, bound.text().encode()),
            accept=accept,
            alone=not settings.database,
        )
    except BaseException:
        store.close()
        raise
    return store, lease


def _read_binding(identity: Identity) -> Binding | None:
    try:
        return Binding.read(identity.binding.read_text())
    except FileNotFoundError:
        return None


async def _hold(lease: Lease) -> None:
    """Renew the lease until another haneul has it; a thread of its own, so that nothing else delays it."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "lease") as thread:
        while True:
            await asyncio.sleep(ownership.RENEW_SECONDS)
            try:
                await loop.run_in_executor(thread, lease.renew)
            except Fenced:
                raise
            except CloudError as error:
                log.warning("the lease of %s could not be renewed: %s", lease.server_id, error.message)


@asynccontextmanager
async def start(
    settings: Settings,
    identity: Identity,
    make_drivers: Callable[[Callable[[], None]], Drivers],
    catalogue: Callable[[], list[CatalogueImage]],
    control_socket: Path | None = None,
    *,
    accept_store: bool = False,
) -> AsyncIterator[Running]:
    """A haneul that serves until the block ends. Machines, networks and metadata go on after it.

    Raises `SettingsError` if it may not or cannot; then nothing was touched.
    """
    async with AsyncExitStack() as stack:
        running, servers = await _put_together(
            stack, settings, identity, make_drivers, catalogue, control_socket, accept_store
        )
        tasks = _Tasks(running.over)
        serving = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers]
        for one in serving:
            one.add_done_callback(tasks.ended)
        stack.push_async_callback(_stop_serving, [server for server, _ in servers], serving, tasks)
        tasks.start(running.agent.run, "the agent")
        tasks.start(lambda: _sweeps(running.control), "the sweeper")
        tasks.start(running.metrics.loop.watch, "the watch of the event loop")
        tasks.start(lambda: _hold(running.lease), "the lease")
        while not all(server.started for server, _ in servers):
            if running.over.done():
                await running.over
            await asyncio.sleep(0.01)
        yield running


async def _put_together(
    stack: AsyncExitStack,
    settings: Settings,
    identity: Identity,
    make_drivers: Callable[[Callable[[], None]], Drivers],
    catalogue: Callable[[], list[CatalogueImage]],
    control_socket: Path | None,
    accept_store: bool,
) -> tuple[Running, list[tuple[_HttpServer, socket.socket]]]:
    """Every part; `stack` has how each of them ends."""
    if settings.public_pool == "auto":
        settings = replace(settings, public_pool=identity.pool)
    loop = asyncio.get_running_loop()
    listener = stack.enter_context(_listen(settings))
    settings = replace(settings, port=listener.getsockname()[1])
    agent: Agent | None = None

    def wake() -> None:
        if agent is not None:
            loop.call_soon_threadsafe(agent.wake)

    drivers = make_drivers(wake)
    store, lease = await asyncio.to_thread(_claim, settings, identity, await _present(drivers), accept_store)
    stack.push_async_callback(_close_store, store, lease)
    first_account(store, settings, identity)
    audit = Journal(settings.data / AUDIT, (settings.audit_mib << 20) // 4, 3)
    events = Journal(settings.data / EVENTS, 8 << 20, 1)
    for journal in (audit, events):
        stack.push_async_callback(asyncio.to_thread, journal.close)
    metrics = Metrics()
    teller = Teller(events, metrics)
    stack.callback(lambda: teller.tell({"time": time.time(), "event": "stop"}))
    cloud = Cloud(
        store, settings, LocalAsk(drivers, loop), time.time, identity.secret, forms=KeptForms(settings.forms_mib << 20)
    )
    # Fake machines have nobody inside who could read documents, and making them is most of what a launch costs.
    signer = Signer(identity.sign if settings.drivers != "fake" else None, identity.ssh_public)
    control = Control(store, settings, signer, time.time, catalogue, teller.tell)
    link = LocalLink(control, lease.server_id, lease.epoch)
    agent = Agent(link, drivers, lease.server_id, may_act=lambda: lease.is_valid, epoch=lease.epoch)
    store.on_commit(wake)
    await asyncio.to_thread(control.sweep)
    identities = StoredIdentities(store)
    over: asyncio.Future[None] = loop.create_future()
    running = Running(
        settings, cloud, control, agent, store, loop, identity, identities, metrics, audit, events, lease, over
    )
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
        settings.extra_regions,
    )
    stack.callback(api.close)
    await agent.introduce()
    servers = [(_HttpServer(_uvicorn(make_app(api))), listener)]
    if control_socket is not None:
        app = make_control(running.status, running.accounts, running.templates, running.unclaimed)
        servers.append((_HttpServer(_uvicorn(app)), stack.enter_context(_unix(control_socket))))
    return running, servers


async def _stop_serving(servers: list[_HttpServer], serving: list[asyncio.Task[None]], tasks: _Tasks) -> None:
    if not tasks.over.done():
        tasks.over.set_result(None)
    for server in servers:
        server.should_exit = True
    await tasks.end()
    await asyncio.gather(*serving, return_exceptions=True)


async def _close_store(store: Store, lease: Lease) -> None:
    def close() -> None:
        # A store that does not answer keeps the lease until its time is over.
        with contextlib.suppress(CloudError):
            lease.release()
        store.close()

    await asyncio.to_thread(close)


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


async def until_told_to_stop(running: Running) -> None:
    """Returns at SIGTERM or SIGINT. Raises `SettingsError` if a part has ended that this haneul cannot be without."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running.over.add_done_callback(lambda _: stop.set())
    await stop.wait()
    if running.over.done():
        await running.over
