"""One call of one operation: transaction, DryRun, ClientToken. Written once, for all operations."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from haneul.config import Settings
from haneul.errors import CloudError
from haneul.model.ids import NewId, new_id
from haneul.services import defaults, kept_answers
from haneul.services.context import OPERATIONS, Ask, Caller, Context, Forms, Input, Later, Operation, Output, is_read
from haneul.store import tables
from haneul.store.database import Store, Transaction


class _DryRun(Exception):
    """Undoes the transaction of an operation that would have succeeded."""


def _digest(params: Input) -> str:
    plain = {name: value for name, value in params.items() if name not in ("ClientToken", "DryRun")}
    return hashlib.sha256(kept_answers.dumps(plain).encode()).hexdigest()


def _now(result: Output | Later) -> Output:
    """What writes may not wait for a server: it would hold the one writer's lock."""
    assert not isinstance(result, Later)
    return result


#: Operation -> its parameter of ids. Some rows by id, in forms that are kept: done before a thread would have begun.
_BY_ID = {
    "DescribeInstances": "InstanceIds",
    "DescribeInstanceStatus": "InstanceIds",
    "DescribeVolumes": "VolumeIds",
    "DescribeNetworkInterfaces": "NetworkInterfaceIds",
}
_FEW = 20

#: Reads that look at the default VPC, so that it has to be there: others make nothing.
_SHOWS_DEFAULTS = frozenset(
    {
        "DescribeAccountAttributes", "DescribeDhcpOptions", "DescribeInternetGateways", "DescribeNetworkAcls", "DescribeRouteTables",
        "DescribeSecurityGroupRules", "DescribeSecurityGroups", "DescribeSubnets", "DescribeVpcAttribute", "DescribeVpcs",
    }
)  # fmt: skip


@dataclass
class Cloud:
    """The EC2 operations over one store. Thread-safe: every call is a transaction of its own."""

    store: Store
    settings: Settings
    ask: Ask
    clock: Callable[[], float]
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    make_id: NewId = new_id
    forms: Forms | None = None
    _scopes: set[tuple[str, str]] = field(default_factory=set)
    _scopes_lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, service: str, name: str, caller: Caller, params: Input) -> Output:
        """The operation's output. Raises `CloudError`."""
        operation = OPERATIONS.find(service, name)
        if service == "ec2" and (not is_read(name) or name in _SHOWS_DEFAULTS):
            self._ensure_scope(caller)
        if is_read(name):
            with self.store.read() as tx:
                result = operation(self._context(tx, caller, name), params)
                if params.get("DryRun"):
                    raise CloudError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
            return result.ask() if isinstance(result, Later) else result
        try:
            with self.store.write() as tx:
                self._still_known(tx, caller)
                result = self._once(operation, self._context(tx, caller, name), params)
                if params.get("DryRun"):
                    raise _DryRun
                return result
        except _DryRun:
            raise CloudError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.") from None

    def _still_known(self, tx: Transaction, caller: Caller) -> None:
        """A request that came just before its key became void changes nothing after it."""
        if (
            self.settings.auth == "signed"
            and caller.access_key
            and tx.get(tables.access_keys, caller.access_key) is None
        ):
            raise CloudError("AuthFailure", "AWS was not able to validate the provided access credentials")

    def is_quick(self, service: str, name: str, caller: Caller, params: Input) -> bool:
        """Whether the call is a look at a few rows by their ids, which waits for nobody and takes well under 1 ms."""
        if service != "ec2" or not self.store.reads_at_once:
            return False
        ids = params.get(_BY_ID.get(name, ""))
        return ids is not None and len(params) == 1 and 0 < len(ids) <= _FEW

    def _context(self, tx: Transaction, caller: Caller, name: str) -> Context:
        return Context(tx, caller, name, self.settings, self.ask, self.clock(), self.make_id, self.secret, self.forms)

    def _once(self, operation: Operation, ctx: Context, params: Input) -> Output:
        """A repeated ClientToken gives the first answer; token and new rows are of one transaction."""
        token = params.get("ClientToken")
        if not token:
            return _now(operation(ctx, params))
        if len(token) > 64 or not token.isascii():
            raise CloudError("InvalidParameterValue", "A client token has at most 64 ASCII characters.")
        scope = {"account": ctx.account, "region": ctx.region, "operation": ctx.operation, "token": token}
        digest = _digest(params)
        known = ctx.tx.select(tables.client_tokens, **scope)
        if known and known[0]["parameters"] != digest:
            raise CloudError(
                "IdempotentParameterMismatch",
                "The client token has been used before with different parameters.",
            )
        if known:
            first: Output = kept_answers.loads(known[0]["result"])
            return first
        result = _now(operation(ctx, params))
        ctx.tx.insert(
            tables.client_tokens, **scope, parameters=digest, result=kept_answers.dumps(result), created=ctx.now
        )
        return result

    def _check_accounts(self, tx: Transaction, account: str) -> None:
        """On the open door accounts are made up by who calls: there is an end to them."""
        if self.settings.auth != "open" or tx.get(tables.accounts, account) is not None:
            return
        known = tx.execute(sa.select(tables.vpcs.c.account).distinct()).scalars().all()
        if account not in known and len(known) >= self.settings.quota_accounts:
            raise CloudError(
                "RequestLimitExceeded",
                f"There are {len(known)} accounts already, which is the most (setting quota_accounts).",
            )

    def forget(self, account: str) -> None:
        """The account is gone: should it come again, it begins anew."""
        with self._scopes_lock:
            self._scopes = {scope for scope in self._scopes if scope[0] != account}

    def _ensure_scope(self, caller: Caller) -> None:
        """Every account has a default VPC in every region from the first write there on, or the first look at it."""
        scope = (caller.account, caller.region)
        if scope in self._scopes:
            return
        with self._scopes_lock, self.store.write() as tx:
            self._still_known(tx, caller)
            self._check_accounts(tx, caller.account)
            defaults.ensure(tx, *scope, self.clock(), self.make_id)
        with self._scopes_lock:
            self._scopes = self._scopes | {scope}
