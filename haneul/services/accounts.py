"""Accounts and their access keys: for the owner of this haneul, not part of AWS's API.

A secret is told once, when its key is made. Errors are `CloudError` with codes in IAM's manner.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

from haneul.errors import CloudError
from haneul.model.ids import new_access_key
from haneul.model.image import CATALOGUE_OWNER
from haneul.store import tables
from haneul.store.database import Row, Transaction

_ID = re.compile(r"[0-9]{12}\Z")
_NAME = re.compile(r"[\w .@+=,-]{1,64}\Z", re.ASCII)


@dataclass(frozen=True)
class NewKey:
    account: str
    name: str
    access_key: str
    secret: str


def _give_key(tx: Transaction, account: Row, now: float) -> NewKey:
    access_key, secret = new_access_key()
    tx.insert(tables.access_keys, id=access_key, account=account["id"], secret=secret, created=now)
    return NewKey(account["id"], account["name"], access_key, secret)


def _find(tx: Transaction, wanted: str) -> Row:
    """By id or by name; no name has the form of an id."""
    rows = [row for row in tx.select(tables.accounts) if wanted in (row["id"], row["name"])]
    if not rows:
        raise CloudError("NoSuchEntity", f"there is no account {wanted!r}; `haneul account list` shows them")
    return rows[0]


def add(tx: Transaction, now: float, name: str, account: str = "") -> NewKey:
    """A new account with a first key. `account` is twelve digits; chosen where it is empty."""
    if not _NAME.match(name) or _ID.match(name):
        raise CloudError(
            "InvalidInput",
            "an account's name has 1 to 64 letters, digits, spaces or . @ + = , - _, and not the form of an id",
        )
    if account and (not _ID.match(account) or account == CATALOGUE_OWNER):
        raise CloudError("InvalidInput", f"{account!r} is not twelve digits that are free")
    known = {row["id"] for row in tx.select(tables.accounts)}
    if any(row["name"] == name for row in tx.select(tables.accounts)):
        raise CloudError("EntityAlreadyExists", f"there is an account named {name!r} already")
    if account in known:
        raise CloudError("EntityAlreadyExists", f"there is an account {account} already")
    while not account or account in known:
        account = f"{secrets.randbelow(9 * 10**11) + 10**11:012d}"
    tx.insert(tables.accounts, id=account, name=name, created=now)
    return _give_key(tx, _find(tx, account), now)


def listed(tx: Transaction) -> list[dict[str, Any]]:
    keys: dict[str, list[str]] = {}
    for row in sorted(tx.select(tables.access_keys), key=lambda row: float(row["created"])):
        keys.setdefault(row["account"], []).append(row["id"])
    counts: dict[str, int] = {}
    for row in tx.select(tables.instances, tables.instances.c.power != "terminated"):
        counts[row["account"]] = counts.get(row["account"], 0) + 1
    rows = sorted(tx.select(tables.accounts), key=lambda row: float(row["created"]))
    return [
        {
            "account": row["id"],
            "name": row["name"],
            "access_keys": keys.get(row["id"], []),
            "instances": counts.get(row["id"], 0),
        }
        for row in rows
    ]


def rotate(tx: Transaction, now: float, wanted: str) -> NewKey:
    """A new key instead of all that the account has."""
    account = _find(tx, wanted)
    tx.delete(tables.access_keys, account=account["id"])
    return _give_key(tx, account, now)


def remove(tx: Transaction, wanted: str, default: str) -> str:
    """The account with all that it has. Refused for the default account and while it has instances."""
    account = _find(tx, wanted)["id"]
    if account == default:
        raise CloudError("InvalidInput", f"{account} is this haneul's default account (setting `account`)")
    table = tables.instances
    alive = tx.select(table, (table.c.power != "terminated") | (table.c.server_id != ""), account=account)
    if alive:
        ids = ", ".join(str(row["id"]) for row in alive[:3])
        raise CloudError("DeleteConflict", f"account {account} has instances ({ids}…): terminate them first")
    templates = [row["id"] for row in tx.select(tables.launch_templates, account=account)]
    tx.delete(tables.launch_template_versions, tables.launch_template_versions.c.template_id.in_(templates))
    for one in tables.metadata.sorted_tables:
        if "account" in one.c and one is not tables.accounts:
            tx.delete(one, account=account)
    tx.delete(tables.accounts, id=account)
    return str(account)
