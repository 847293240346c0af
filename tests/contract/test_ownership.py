"""Who a store belongs to, and who acts for its server: on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from haneul.errors import SettingsError
from haneul.store import ownership, tables
from haneul.store.database import Store
from haneul.store.ownership import Binding, Fenced, Holder, Lease, Present
from tests.postgresql import Server

HERE = Holder("host", "boot", "/data", "1:1")
ELSEWHERE = Holder("other", "another boot", "/copy", "1:2")
SOMETHING = Present(frozenset({"i-1"}), frozenset({"vol-1"}))


@pytest.fixture(params=["sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Another empty store each time."""
    opened: list[Store] = []

    def one() -> Store:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path / f'haneul-{len(opened)}.db'}"
        else:
            server: Server = request.getfixturevalue("postgresql_server")
            url = server.database()
        assert not ownership.is_there(url)
        store = Store(url)
        store.migrate()
        assert ownership.is_there(url)
        opened.append(store)
        return store

    yield one
    for store in opened:
        store.close()


@pytest.fixture
def store(make: Callable[[], Store]) -> Store:
    return make()


class Data:
    """A data directory, as far as its binding goes."""

    def __init__(self) -> None:
        self.binding: Binding | None = None

    def keep(self, binding: Binding) -> None:
        self.binding = binding

    def claim(self, store: Store, holder: Holder = HERE, present: Present = SOMETHING, **more: Any) -> Lease:
        return ownership.claim(
            store, self.binding, holder, present, self.keep, **({"sleep": lambda seconds: None} | more)
        )


def _first(store: Store) -> tuple[Data, Lease]:
    data = Data()
    return data, data.claim(store, present=Present())


def test_a_first_start_registers_the_server(store: Store) -> None:
    data, lease = _first(store)
    assert data.binding is not None and lease.is_valid
    with store.read() as tx:
        (row,) = tx.select(tables.servers)
    assert (row["id"], row["token"], row["epoch"]) == (lease.server_id, data.binding.token, 1)


def test_started_again_in_the_same_place_it_goes_on_at_once(store: Store) -> None:
    """Also after `kill -9`: the lock of the data directory says that the one before is dead."""
    data, before = _first(store)
    waited: list[float] = []
    after = data.claim(store, sleep=waited.append)
    assert (after.server_id, after.epoch, waited) == (before.server_id, before.epoch + 1, [])
    with pytest.raises(Fenced):
        before.renew()
    assert not before.is_valid and after.is_valid


def test_a_copy_of_the_data_directory_is_refused_while_the_first_lives(store: Store) -> None:
    data, first = _first(store)
    copy = Data()
    copy.binding = data.binding
    with pytest.raises(SettingsError, match="is alive"):
        copy.claim(store, ELSEWHERE, sleep=lambda seconds: first.renew())
    first.renew()
    assert first.is_valid


def test_one_that_does_not_renew_loses_it_and_starts_nothing_more(store: Store) -> None:
    data, first = _first(store)
    now = [1000.0]
    first.clock = lambda: now[0]
    first.renew()
    now[0] += ownership.TRUST_SECONDS + 0.1
    assert not first.is_valid, "before anybody else may have it"
    second = data.claim(store, ELSEWHERE)
    assert second.epoch == first.epoch + 1
    with pytest.raises(Fenced):
        first.renew()
    with store.read() as tx, pytest.raises(Fenced):
        ownership.check_epoch(tx, first.server_id, first.epoch)
    first.release()
    assert second.is_valid
    second.renew()


def test_what_was_released_is_free_at_once(store: Store) -> None:
    data, first = _first(store)
    first.release()
    waited: list[float] = []
    data.claim(store, ELSEWHERE, sleep=waited.append)
    assert not waited


def test_another_store_is_refused_by_data_in_use(make: Callable[[], Store]) -> None:
    data, _ = _first(make())
    other = make()
    with pytest.raises(SettingsError, match="does not know what is in /data"):
        data.claim(other)
    with other.read() as tx:
        assert not tx.select(tables.servers)
    data.claim(other, accept=True)
    data.claim(other)


def test_data_that_hold_nothing_may_have_another_store(make: Callable[[], Store]) -> None:
    data, _ = _first(make())
    data.claim(make(), present=Present())


def test_a_second_server_is_refused_as_long_as_there_is_no_cloud_of_several(store: Store) -> None:
    _first(store)
    with pytest.raises(SettingsError, match="is of the server srv-"):
        _first(store)
    second = Data()
    lease = second.claim(store, present=Present(), accept=True)
    assert second.binding is not None and second.binding.server == lease.server_id


def test_two_that_register_at_once_are_not_both_taken(store: Store) -> None:
    first, second = Data(), Data()

    def keep_and_be_overtaken(binding: Binding) -> None:
        first.keep(binding)
        second.claim(store, ELSEWHERE, Present())

    with pytest.raises(SettingsError, match="is of the server"):
        ownership.claim(store, None, HERE, Present(), keep_and_be_overtaken)
    with store.read() as tx:
        assert len(tx.select(tables.servers)) == 1


def test_a_store_of_before_is_adopted_by_the_data_that_it_knows(store: Store) -> None:
    facts = {"vcpus": 1, "memory_mib": 1, "observed_facts": {}, "observed_at": 0.0}
    volume = {"account": "1" * 12, "region": "us-east-1", "created": 1.0, "size_gib": 1, "server_id": "server-1"}
    with store.write() as tx:
        tx.insert(tables.servers, id="server-1", zones=[], **facts)
        tx.insert(tables.volumes, id="vol-1", **volume)
    with pytest.raises(SettingsError, match="does not know"):
        Data().claim(store, present=Present(volumes=frozenset({"vol-9"})))
    data = Data()
    assert data.claim(store).server_id == "server-1"
    with store.write() as tx:
        assert tx.get(tables.servers, "server-1")["token"] == data.binding.token  # type: ignore[index,union-attr]


def test_killed_between_the_binding_and_the_store_it_begins_anew(store: Store) -> None:
    data = Data()

    def killed(binding: Binding) -> None:
        data.keep(binding)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ownership.claim(store, None, HERE, Present(), killed)
    kept = data.binding
    assert data.claim(store, present=Present()).server_id == kept.server  # type: ignore[union-attr]
    assert data.binding == kept


def test_an_older_copy_of_the_store_is_taken(store: Store) -> None:
    """What it does not know stays: nothing but a tombstone removes."""
    data, lease = _first(store)
    with store.write() as tx:
        tx.execute(sa.delete(tables.servers))
    again = data.claim(store)
    assert again.server_id == lease.server_id


def test_a_lost_store_is_not_made_anew(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lost.db'}"
    with pytest.raises(SettingsError, match="is not there"):
        ownership.check_is_there(url, HERE, SOMETHING)
    assert not (tmp_path / "lost.db").exists()
    ownership.check_is_there(url, HERE, Present())


def test_a_deleted_row_leaves_a_tombstone(store: Store) -> None:
    """Whoever deletes it: an order to remove is written by the store itself."""
    scope = {"account": "1" * 12, "region": "us-east-1", "created": 1.0, "size_gib": 1}
    with store.write() as tx:
        tx.insert(tables.volumes, id="vol-1", server_id="srv-1", **scope)
        tx.insert(tables.volumes, id="vol-2", server_id="", **scope)
        tx.delete(tables.volumes, account="1" * 12)
        tx.delete(tables.volumes, account="1" * 12)
    with store.read() as tx:
        assert [(row["kind"], row["id"], row["server_id"]) for row in tx.select(tables.tombstones)] == [
            ("volume", "vol-1", "srv-1")
        ]


def test_same_place_needs_the_same_boot() -> None:
    assert HERE.is_same_place(replace(HERE, data="/renamed"))
    assert not HERE.is_same_place(replace(HERE, boot="later"))


def test_a_refused_acceptance_changes_nothing(make: Callable[[], Store]) -> None:
    """Its data directory still belongs to the store that it was with before."""
    data, _ = _first(make())
    bound, other = data.binding, make()
    _, living = _first(other)
    with pytest.raises(SettingsError, match="is alive"):
        data.claim(other, ELSEWHERE, accept=True, sleep=lambda seconds: living.renew())
    assert data.binding == bound


def test_a_store_of_before_is_not_given_to_an_empty_directory(store: Store) -> None:
    """Its disk may not be mounted: all of its volumes would be made anew from their images."""
    volume = {"account": "1" * 12, "region": "us-east-1", "created": 1.0, "size_gib": 1, "server_id": "server-1"}
    with store.write() as tx:
        facts = {"vcpus": 1, "memory_mib": 1, "observed_facts": {}, "observed_at": 0.0}
        tx.insert(tables.servers, id="server-1", zones=[], **facts)
        tx.insert(tables.volumes, id="vol-1", **volume)
    data = Data()
    with pytest.raises(SettingsError, match="does not know"):
        data.claim(store, present=Present())
    assert data.binding is None


def test_the_agent_of_a_server_that_the_store_has_lost_is_fenced(store: Store) -> None:
    _, lease = _first(store)
    with store.write() as tx:
        tx.execute(sa.delete(tables.servers))
    with store.read() as tx, pytest.raises(Fenced):
        ownership.check_epoch(tx, lease.server_id, lease.epoch)


def test_a_store_beside_its_data_needs_no_renewing(store: Store) -> None:
    """A full disk refuses the renewal too, and what gives room back must go on."""
    data = Data()
    lease = data.claim(store, present=Present(), alone=True)
    now = lease.clock()
    lease.clock = lambda: now + 10 * ownership.LEASE_SECONDS
    assert lease.is_valid
    lease.release()
    assert not lease.is_valid
