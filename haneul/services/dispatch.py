"""One call of one operation: transaction, DryRun, ClientToken. Written once, for all operations."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from haneul.config import Settings
from haneul.errors import CloudError
from haneul.model.ids import NewId, new_id
from haneul.services import defaults
from haneul.services.context import OPERATIONS, Ask, Caller, Context, Forms, Input, Later, Operation, Output, is_read
from haneul.store import tables
from haneul.store.database import Store, Transaction


class _DryRun(Exception):
    """Undoes the transaction of an operation that would have succeeded."""


def _encode(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return {"$time": value.isoformat()}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    raise TypeError(f"not JSON: {type(value)}")


def _decode(value: dict[str, Any]) -> Any:
    if "$time" in value:
        return dt.datetime.fromisoformat(value["$time"])
    return bytes.fromhex(value["$bytes"]) if "$bytes" in value else value


def _digest(params: Input) -> str:
    plain = {name: value for name, value in params.items() if name not in ("ClientToken", "DryRun")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=_encode).encode()).hexdigest()


def _now(result: Output | Later) -> Output:
    """What writes may not wait for a server: it would hold the one writer's lock."""
    assert not isinstance(result, Later)
    return result


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
        if service == "ec2":
            self._ensure_scope(caller)
        if is_read(name):
            with self.store.read() as tx:
                result = operation(self._context(tx, caller, name), params)
                if params.get("DryRun"):
                    raise CloudError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
            return result.ask() if isinstance(result, Later) else result
        try:
            with self.store.write() as tx:
                result = self._once(operation, self._context(tx, caller, name), params)
                if params.get("DryRun"):
                    raise _DryRun
                return result
        except _DryRun:
            raise CloudError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.") from None

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
            first: Output = json.loads(known[0]["result"], object_hook=_decode)
            return first
        result = _now(operation(ctx, params))
        text = json.dumps(result, default=_encode)
        ctx.tx.insert(tables.client_tokens, **scope, parameters=digest, result=text, created=ctx.now)
        return result

    def _ensure_scope(self, caller: Caller) -> None:
        """Every account has a default VPC in every region from its first call there on."""
        scope = (caller.account, caller.region)
        if scope in self._scopes:
            return
        with self._scopes_lock, self.store.write() as tx:
            defaults.ensure(tx, *scope, self.clock(), self.make_id)
        self._scopes.add(scope)
