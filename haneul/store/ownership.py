"""Which server a store belongs to, and which haneul acts for that server now.

Store, data directory and server know each other by tokens: a store that does not know this data is refused, because to
it everything here would be nobody's. A server is held by one haneul at a time: a *lease* in the server's row, with an
epoch that each claim raises (a fencing token: what an earlier holder still says is refused). The holder raises `beat`
every few seconds; whoever waits for the lease watches that, so that no two clocks are ever compared.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import sqlalchemy as sa

from haneul.errors import CloudError, SettingsError
from haneul.store import tables
from haneul.store.database import Row, Store, Transaction, with_driver

#: A lease that nobody has renewed for so long (seconds) may be taken by another haneul.
LEASE_SECONDS = 15.0
#: A holder that could not renew it for so long starts nothing more: well before another may take it.
TRUST_SECONDS = 10.0
RENEW_SECONDS = 4.0


class Fenced(CloudError):
    """Another haneul has claimed the server since; this one must not act for it any more."""

    def __init__(self, server_id: str) -> None:
        super().__init__("Unavailable", f"Another haneul has taken over {server_id}.")


@dataclass(frozen=True)
class Binding:
    """What a data directory knows of its store: the store's token, its server's id and that one's token."""

    store: str
    server: str
    token: str

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> Binding:
        return Binding(**json.loads(text))


@dataclass(frozen=True)
class Holder:
    """A haneul, as a server's row names it. `place` is the data directory itself, whatever its path."""

    host: str
    boot: str
    data: str
    place: str

    def is_same_place(self, other: Holder) -> bool:
        """Whether both have the same data directory in the same boot: then its lock file says that only one of them lives."""
        return (self.boot, self.place) == (other.boot, other.place)


@dataclass(frozen=True)
class Present:
    """What the data directory holds: ids of machines and volumes."""

    machines: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.machines or self.volumes)

    def __str__(self) -> str:
        return f"{len(self.machines)} machines and {len(self.volumes)} volumes"


@dataclass
class Lease:
    """The right to act for a server, as long as it is renewed. `clock` gives seconds, also while the machine sleeps."""

    store: Store
    server_id: str
    epoch: int
    #: The store is a file of the data directory, whose lock keeps every other haneul away: nothing needs to be renewed.
    alone: bool = False
    clock: Callable[[], float] = field(default=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    renewed: float = 0.0

    def __post_init__(self) -> None:
        self.renewed = self.clock()

    @property
    def is_valid(self) -> bool:
        """Whether nobody else can have the lease yet: to be asked before anything is started."""
        age = self.clock() - self.renewed
        return age < (float("inf") if self.alone else TRUST_SECONDS)

    def renew(self) -> None:
        """Raises `Fenced` if another has it; `CloudError` if the store cannot say."""
        began = self.clock()
        with self.store.write() as tx:
            beaten = tx.execute(_beat(), {"server": self.server_id, "held": self.epoch}).rowcount
            tx.wakes = False
        if not beaten:
            self.renewed = float("-inf")
            raise Fenced(self.server_id)
        self.renewed = began

    def release(self) -> None:
        """Let the next haneul have it at once. What was lost already is not given back."""
        table = tables.servers
        with self.store.write() as tx:
            tx.execute(
                sa.update(table).where(table.c.id == self.server_id, table.c.epoch == self.epoch).values(holder="")
            )
            tx.wakes = False
        self.renewed = float("-inf")


def _beat() -> sa.Update:
    table = tables.servers
    mine = (table.c.id == sa.bindparam("server")) & (table.c.epoch == sa.bindparam("held"))
    return sa.update(table).where(mine).values(beat=table.c.beat + 1)


def check_epoch(tx: Transaction, server_id: str, epoch: int) -> None:
    """Raises `Fenced` unless `epoch` is the server's present one; 0 is of an agent that was given none."""
    if not epoch:
        return
    row = tx.get(tables.servers, server_id)
    if row is None or row["epoch"] != epoch:
        raise Fenced(server_id)


def is_there(url: str) -> bool:
    """Whether a database has a store, found out without making one."""
    address = sa.make_url(with_driver(url))
    if address.drivername.startswith("sqlite"):
        path = Path(address.database or "")
        return path.is_file() and path.stat().st_size > 0
    engine = sa.create_engine(address)
    try:
        with engine.connect() as connection:
            return sa.inspect(connection).has_table("alembic_version")
    finally:
        engine.dispose()


def check_is_there(url: str, holder: Holder, present: Present) -> None:
    """Raises `SettingsError` if the store of a data directory that is in use is not there: to make an empty one would hide that."""
    if present and not is_there(url):
        raise SettingsError(
            f"the store {_shown(url)} is not there, and {holder.data} holds {present}: nothing was started or removed. "
            "Is the setting `database` right? A lost store comes back by `haneul restore BACKUP`; "
            "`haneul up --accept-store` begins with an empty one, and leaves alone what is here"
        )


def check_older(store: Store, holder: Holder, present: Present) -> None:
    """Raises `SettingsError` if a store from before servers had identities is not of this data directory.

    It is asked before its schema is raised: the older haneul that it belongs to could not use it any more.
    """
    with store.read() as tx:
        schema = sa.inspect(tx.connection)
        if schema.has_table(tables.volumes.name) and not schema.has_table(tables.store_identity.name):
            _check_knows(tx, store, holder, present)


def token_of(tx: Transaction) -> str:
    return str(tx.select(tables.store_identity)[0]["token"])


def claim(
    store: Store,
    binding: Binding | None,
    holder: Holder,
    present: Present,
    keep: Callable[[Binding], None],
    *,
    accept: bool = False,
    alone: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Become the haneul that acts for the server of this data directory; register it if it is new.

    `keep` writes the binding; the data directory has it before the store relies on it. `accept` takes the store as it is: the binding
    is made anew, and what the store does not know stays unclaimed. `alone`: the store is a file of the data directory, whose
    lock keeps every other haneul away. Raises `SettingsError` that says what to do.
    """
    with store.read() as tx:
        bound = _bind(tx, store, None if accept else binding, holder, present, accept)
    row = _server(store, bound.server) if alone else _wait_until_free(store, bound, holder, sleep)
    if bound != binding:
        keep(bound)
    with store.write() as tx:
        tx.wakes = False
        lease = _take(tx, store, bound, holder, row)
    lease.alone = alone
    return lease


def _bind(
    tx: Transaction, store: Store, binding: Binding | None, holder: Holder, present: Present, accept: bool
) -> Binding:
    """The binding of this data directory, checked or new. Raises `SettingsError`."""
    token = token_of(tx)
    servers = tx.select(tables.servers)
    if binding is not None and binding.store != token:
        if present:
            raise SettingsError(_not_its_store(store, holder, present))
        binding = None  # nothing here could be lost
    if binding is not None:
        known = next((row for row in servers if row["id"] == binding.server), None)
        if known is None and not servers:
            return binding  # killed before the store knew of it
        if known is None or known["token"] not in ("", binding.token):
            raise SettingsError(_not_its_store(store, holder, present))
        return binding
    mine = next((row for row in servers if not row["token"] or accept), None)
    if mine is not None:
        if not accept:
            _check_knows(tx, store, holder, present)
        return Binding(token, mine["id"], secrets.token_hex(16))
    if servers:
        raise SettingsError(_is_of_another(store, servers[0]))
    if present and not accept:
        raise SettingsError(_not_its_store(store, holder, present))
    return Binding(token, f"srv-0{secrets.token_hex(8)}", secrets.token_hex(16))


def _check_knows(tx: Transaction, store: Store, holder: Holder, present: Present) -> None:
    """A store without identities knows something of what is here. An empty directory is not its own, or not mounted."""
    machines, volumes = _ids(tx, tables.instances), _ids(tx, tables.volumes)
    if (present or volumes) and not (machines & present.machines or volumes & present.volumes):
        raise SettingsError(_not_its_store(store, holder, present))


def _ids(tx: Transaction, table: sa.Table) -> set[str]:
    return set(tx.execute(sa.select(table.c.id)).scalars())


def _shown(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)


def _not_its_store(store: Store, holder: Holder, present: Present) -> str:
    return (
        f"the store {_shown(store.url)} does not know what is in {holder.data} ({present}): nothing was started or removed. "
        "Is the setting `database` right? A lost store comes back by `haneul restore --replace BACKUP`; "
        "`haneul up --accept-store` begins with this one, and leaves alone what it does not know"
    )


def _is_of_another(store: Store, server: Row) -> str:
    other = _holder(server)
    where = f" (haneul on {other.host}, data in {other.data})" if other else ""
    return (
        f"the store {_shown(store.url)} is of the server {server['id']}{where}, which is not this one; several servers in one "
        "cloud are not supported yet: give this haneul a `database` of its own. If that server is gone for good, "
        "`haneul up --accept-store` takes its place"
    )


def _holder(row: Row) -> Holder | None:
    try:
        return Holder(**json.loads(row["holder"])) if row["holder"] else None
    except (ValueError, TypeError):
        return None


def _server(store: Store, server_id: str) -> Row | None:
    with store.read() as tx:
        return tx.get(tables.servers, server_id)


def _wait_until_free(store: Store, bound: Binding, holder: Holder, sleep: Callable[[float], None]) -> Row | None:
    """The server's row, once nobody else acts for it. Raises `SettingsError` if somebody does."""
    row = _server(store, bound.server)
    other = _holder(row) if row is not None else None
    if row is None or other is None or other.is_same_place(holder):
        return row
    waited = 0.0
    while waited < LEASE_SECONDS:
        sleep(0.5)
        waited += 0.5
        now = _server(store, bound.server)
        if now is None or not now["holder"]:
            return now
        if (now["beat"], now["epoch"]) != (row["beat"], row["epoch"]):
            raise SettingsError(
                f"the server {bound.server} is held by the haneul on {other.host} with the data directory {other.data}, "
                f"and that one is alive: stop it first (`haneul down` there). Is {holder.data} a copy of its data?"
            )
    return row


def _take(tx: Transaction, store: Store, bound: Binding, holder: Holder, seen: Row | None) -> Lease:
    table = tables.servers
    row = tx.get(table, bound.server)
    text = json.dumps(asdict(holder))
    if row is None:
        if others := tx.select(table):
            raise SettingsError(_is_of_another(store, others[0]))
        facts = {"hostname": holder.host, "drivers": "", "accelerators": {}, "generations": {}}
        values = {"zones": [], "vcpus": 0, "memory_mib": 0, "observed_facts": facts, "observed_at": 0.0}
        tx.insert(table, id=bound.server, token=bound.token, holder=text, epoch=1, **values)
        tx.wakes = False
        return Lease(store, bound.server, 1)
    if seen is None or (row["epoch"], row["beat"]) != (seen["epoch"], seen["beat"]):
        raise SettingsError(f"another haneul has just taken over the server {bound.server}: stop one of the two")
    epoch = row["epoch"] + 1
    tx.execute(sa.update(table).where(table.c.id == bound.server).values(holder=text, epoch=epoch, token=bound.token))
    return Lease(store, bound.server, epoch)
