"""Access keys of the store, for the API."""

from __future__ import annotations

import logging
import time

from haneul.api.app import Key
from haneul.config import Settings
from haneul.identity import Identity
from haneul.store import tables
from haneul.store.database import Store

log = logging.getLogger(__name__)


class StoredIdentities:
    """Access keys, from the store. Found ones are kept in memory until `forget`: every request asks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Key] = {}

    def find(self, access_key: str) -> Key | None:
        # Write to the dict captured before the read, so that a lookup that races with forget() cannot repopulate the new one.
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


def first_account(store: Store, settings: Settings, identity: Identity) -> None:
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
