"""The store on SQLite and on PostgreSQL: one suite, the same promises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from haneul.store import tables
from haneul.store.database import Store
from tests.postgresql import Server

Open = Callable[[], Store]


@pytest.fixture(params=["sqlite", "postgresql"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same database again and again, as several haneuls would."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'haneul.db'}"
    else:
        server: Server = request.getfixturevalue("postgresql_server")
        url = server.database()
    opened: list[Store] = []

    def open_it() -> Store:
        store = Store(url)
        store.migrate()
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Open) -> Store:
    return open_store()


def _key(name: str, **more: Any) -> dict[str, Any]:
    values = {"id": f"key-{name}", "account": "1" * 12, "region": "us-east-1", "created": 1.0, "name": name}
    return values | {"kind": "rsa", "fingerprint": "", "public_key": ""} | more


def _names(store: Store) -> list[str]:
    with store.read() as tx:
        return sorted(row["name"] for row in tx.select(tables.key_pairs))


def test_a_block_is_written_whole_or_not_at_all(store: Store) -> None:
    with store.write() as tx:
        tx.insert(tables.key_pairs, **_key("kept"))
    with pytest.raises(ZeroDivisionError), store.write() as tx:
        tx.insert(tables.key_pairs, **_key("lost"))
        tx.delete(tables.key_pairs, id="key-kept")
        _ = 1 // 0
    assert _names(store) == ["kept"]


def test_every_kind_of_value_comes_back_as_it_was(store: Store) -> None:
    text = "한늘 ☁ 🛰 '\" \\ %_\n\t é"
    with store.write() as tx:
        tx.insert(tables.key_pairs, **_key("x", public_key=text))
        scope = {"account": "1" * 12, "region": "r"}
        tx.insert(tables.images, id="ami-1", **scope, created=1784.123456, name="", description="", disk="",
                  snapshot_id="", block_devices=[{"a": None, "é": [1.5, True]}], more={}, public=True)  # fmt: skip
        tx.insert(tables.accounts, id="2" * 12, name=text, created=0.1)
        tx.raise_revision()
        tx.wakes = True
    with store.read() as tx:
        assert tx.select(tables.key_pairs)[0]["public_key"] == text
        (image,) = tx.select(tables.images)
        assert tx.select(tables.accounts, name=text)[0]["created"] == 0.1
        assert tx.revision() == 2, "one by hand, one by the commit"
    assert image["created"] == 1784.123456
    assert image["block_devices"] == [{"a": None, "é": [1.5, True]}]
    assert (image["public"], image["available"], image["size_gib"]) == (True, True, 8)


def test_null_is_asked_for_as_null(store: Store) -> None:
    row = {"account": "1" * 12, "region": "r", "created": 1.0, "vpc_id": "vpc-1", "subnet_id": "s", "groups": []}
    with store.write() as tx:
        for number, public in enumerate((None, "198.18.0.9")):
            tx.insert(tables.interfaces, id=f"eni-{number}", address=str(number), public_address=public, **row)
    with store.read() as tx:
        assert [one["id"] for one in tx.select(tables.interfaces, public_address=None)] == ["eni-0"]
        assert [one["id"] for one in tx.select(tables.interfaces, public_address="198.18.0.9")] == ["eni-1"]


def test_names_are_unique_and_a_savepoint_survives_the_refusal(store: Store) -> None:
    with store.write() as tx:
        tx.insert(tables.key_pairs, **_key("one"))
        with pytest.raises(sa.exc.IntegrityError), tx.savepoint():
            tx.insert(tables.key_pairs, **_key("one", id="key-other"))
        tx.insert(tables.key_pairs, **_key("two"))
    assert _names(store) == ["one", "two"]


def test_a_reader_sees_one_moment(open_store: Open) -> None:
    store, other = open_store(), open_store()
    with store.write() as tx:
        tx.insert(tables.key_pairs, **_key("first"))
    with store.read() as tx:
        before = len(tx.select(tables.key_pairs))
        done = threading.Thread(target=_insert, args=(other, "second"))
        done.start()
        done.join(20)
        assert not done.is_alive(), "a writer does not wait for readers"
        assert len(tx.select(tables.key_pairs)) == before
    assert _names(store) == ["first", "second"]


def _insert(store: Store, name: str) -> None:
    with store.write() as tx:
        tx.insert(tables.key_pairs, **_key(name))


def test_writers_of_several_haneuls_lose_nothing(open_store: Open) -> None:
    """What is read in a write transaction is still true when it commits."""
    stores = [open_store() for _ in range(3)]
    with stores[0].write() as tx:
        tx.insert(tables.servers, id="s", zones=[], vcpus=0, memory_mib=100, observed_facts={}, observed_at=0.0)
        tx.wakes = True

    def count(number: int) -> None:
        with stores[number % 3].write() as tx:
            row = tx.get(tables.servers, "s")
            assert row is not None
            tx.update(tables.servers, "s", vcpus=row["vcpus"] + 1)
            tx.wakes = True

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(count, range(90)))
    with stores[0].read() as tx:
        row = tx.get(tables.servers, "s")
        assert row is not None
        assert (row["vcpus"], row["version"], tx.revision()) == (90, 91, 91)


def test_two_never_claim_the_same_room(open_store: Open) -> None:
    stores = [open_store() for _ in range(2)]
    with stores[0].write() as tx:
        tx.insert(tables.servers, id="s", zones=[], vcpus=0, memory_mib=100, observed_facts={}, observed_at=0.0)
        tx.wakes = True
    table = tables.servers

    def claim(number: int) -> int:
        fits = (table.c.id == "s") & (table.c.reserved_memory_mib + 7 <= table.c.memory_mib)
        with stores[number % 2].write() as tx:
            return tx.update_where(table, fits, reserved_memory_mib=table.c.reserved_memory_mib + 7)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(40))) == 14


def test_a_change_of_a_part_raises_the_version_of_its_owner(store: Store) -> None:
    scope = {"account": "1" * 12, "region": "r", "created": 1.0}
    with store.write() as tx:
        tx.insert(tables.security_groups, id="sg-1", **scope, vpc_id="vpc-1", name="n", description="")
    versions = []
    for act in (
        lambda tx: tx.insert(tables.security_group_rules, id="sgr-1", **scope, group_id="sg-1", from_port=1, to_port=2),
        lambda tx: tx.update(tables.security_group_rules, "sgr-1", to_port=3),
        lambda tx: tx.insert(tables.tags, resource_id="sg-1", key="k", value="v", account="1" * 12, region="r",
                             resource_type="security-group"),
        lambda tx: tx.delete(tables.security_group_rules, id="sgr-1"),
    ):  # fmt: skip
        with store.write() as tx:
            act(tx)
        with store.read() as tx:
            row = tx.get(tables.security_groups, "sg-1")
            assert row is not None
            versions.append(row["version"])
    assert versions == [2, 3, 4, 5]


def test_a_commit_wakes_and_a_rollback_does_not(store: Store) -> None:
    woken: list[int] = []
    store.on_commit(lambda: woken.append(1))
    with pytest.raises(ZeroDivisionError), store.write() as tx:
        tx.insert(tables.key_pairs, **_key("x"))
        _ = 1 // 0
    with store.write() as tx:
        tx.select(tables.key_pairs)
    assert not woken
    _insert(store, "y")
    assert not woken, "a key pair is no agent's business"
    scope = {"account": "1" * 12, "region": "us-east-1", "created": 1.0}
    with store.write() as tx:
        tx.insert(tables.volumes, id="vol-1", size_gib=1, server_id="srv-1", **scope)
    assert woken == [1]
    with store.write() as tx:
        tx.delete(tables.volumes, id="vol-1")
    assert woken == [1, 1]


def test_many_at_once_in_pieces(store: Store) -> None:
    with store.write() as tx:
        tx.insert_many(tables.key_pairs, [_key(str(number)) for number in range(2500)])
    with store.read() as tx:
        wanted = [f"key-{number}" for number in range(0, 2500, 2)]
        assert len(tx.among(tables.key_pairs, "id", [*wanted, "key-none"], account="1" * 12)) == 1250


def test_all_haneuls_may_start_at_once(open_store: Open) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_store(), range(4)))
    _insert(stores[0], "x")
    assert _names(stores[3]) == ["x"]
