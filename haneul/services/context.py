"""What an operation is given, and the table of operations."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from botocore import xform_name

from haneul.config import Settings
from haneul.errors import CloudError
from haneul.model.aws import service_model
from haneul.model.ids import NewId
from haneul.model.times import moment
from haneul.store.database import Row, Transaction

Input = dict[str, Any]


Output = dict[str, Any]


class Ask(Protocol):
    """The one synchronous way down: a question to an instance's server, with a deadline in seconds.

    Raises `CloudError` where there is no answer in time.
    """

    def console_output(self, server_id: str, instance_id: str, deadline: float) -> bytes: ...

    def screenshot(self, server_id: str, instance_id: str, deadline: float) -> bytes:
        """A PNG."""


@dataclass(frozen=True, slots=True)
class Form:
    """A resource as it goes over the wire: the inside of its element."""

    text: str


class Forms(Protocol):
    """Forms kept by the version of their resource's row, in bounded memory. `shape` is the model's name."""

    def get(self, shape: str, resource: str, version: int) -> Form | None: ...

    def put(self, shape: str, resource: str, version: int, item: Mapping[str, Any]) -> Form: ...


@dataclass(frozen=True)
class Caller:
    account: str
    region: str
    access_key: str

    @property
    def arn(self) -> str:
        return f"arn:aws:iam::{self.account}:root"


@dataclass(frozen=True)
class Context:
    """One call of one operation. `now` is in seconds since the epoch; `secret` signs paging tokens."""

    tx: Transaction
    caller: Caller
    operation: str
    settings: Settings
    ask: Ask
    now: float
    new_id: NewId
    secret: bytes
    forms: Forms | None = None

    @property
    def account(self) -> str:
        return self.caller.account

    @property
    def region(self) -> str:
        return self.caller.region

    @property
    def time(self) -> dt.datetime:
        return moment(self.now)

    def own(self, table: Any, *where: Any, **equal: Any) -> list[Row]:
        """The caller's rows of a table in the caller's region."""
        return self.tx.select(table, *where, account=self.account, region=self.region, **equal)

    def add(self, table: Any, prefix: str, **values: Any) -> str:
        """Insert a resource of the caller's; gives its new id."""
        identifier = self.new_id(prefix)
        scope = {"account": self.account, "region": self.region, "created": self.now}
        self.tx.insert(table, id=identifier, **(scope | values))
        return identifier


@dataclass(frozen=True)
class Later:
    """An answer that has to wait for a server: it is asked for when the transaction has ended."""

    ask: Callable[[], Output]


Operation = Callable[[Context, Input], Output | Later]


#: Keeps the function's own type: an operation may call another.
Registered = TypeVar("Registered", bound=Operation)


@functools.cache
def _names(service: str) -> dict[str, str]:
    return {xform_name(name): name for name in service_model(service).operation_names}


class Operations:
    """(service, operation) -> function. Functions register under boto3's name of the operation."""

    def __init__(self) -> None:
        self._table: dict[tuple[str, str], Operation] = {}

    def of(self, service: str) -> Callable[[Registered], Registered]:
        def register(function: Registered) -> Registered:
            name = _names(service)[function.__name__]
            self._table[service, name] = function
            return function

        return register

    def find(self, service: str, name: str) -> Operation:
        try:
            return self._table[service, name]
        except KeyError:
            raise CloudError("UnsupportedOperation", f"haneul does not have the operation {service}:{name}.") from None

    def services(self) -> list[str]:
        return sorted({service for service, _ in self._table})

    def names(self, service: str) -> list[str]:
        return sorted(name for one, name in self._table if one == service)


OPERATIONS = Operations()


ec2 = OPERATIONS.of("ec2")


sts = OPERATIONS.of("sts")


#: Operations that wait for an instance's server (`Later`).
ASKS = frozenset({"GetConsoleOutput", "GetConsoleScreenshot"})


def is_read(operation: str) -> bool:
    """Operations that change nothing run on a read transaction, beside a writer."""
    return operation.startswith(("Describe", "Get", "List"))
