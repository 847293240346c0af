"""Users of a cloud whose parts are killed at random moments, and what must be true afterwards.

A user remembers what the API promised: an operation that was answered has happened, one that was not answered (the
connection broke) has happened or not. Everything random comes from a seed.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from haneul.store import tables
from haneul.store.database import Store, Transaction
from tests.system.conftest import eventually

#: What a client sees when its server dies; and what a server says that is going down.
#: (An answer whose end was cut off is one that cannot be read.)
BROKEN = (BotoCoreError, ResponseParserError, OSError)


@dataclass
class Promise:
    """An instance: the states it may be in once all has settled, the values its tag may have."""

    token: str
    instance: str = ""
    states: set[str] = field(default_factory=lambda: {"running"})
    tags: set[str] = field(default_factory=lambda: {""})


@dataclass
class User:
    """One user, who works until `stop`; the instances are the user's own, so the order of what happens to one is known."""

    name: str
    client: Any
    rng: random.Random
    launch: Mapping[str, Any]
    most: int
    pause: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    promises: list[Promise] = field(default_factory=list)
    ports: dict[int, set[bool]] = field(default_factory=dict)
    group: str = ""
    answered: int = 0
    broken: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def work(self) -> None:
        """Until told to stop. A launch that was not answered is asked for again, with its token, until it is."""
        while not self.stop.wait(self.pause):
            alive = [one for one in self.promises if one.states != {"terminated"}]
            act = self.rng.random()
            if not self.group:
                self._make_group()
            elif len(alive) < self.most and (act < 0.3 or not alive):
                self._launch()
            elif act < 0.45:
                self._rule()
            else:
                self._change(self.rng.choice(alive))

    def finish(self) -> None:
        """Ask again for what was never answered."""
        for promise in self.promises:
            while not promise.instance:
                self._ask_for(promise)

    def _call(self, name: str, **parameters: Any) -> dict[str, Any] | None:
        """The answer; None if the connection broke. Raises `ClientError` for a refusal."""
        try:
            answer: dict[str, Any] = getattr(self.client, name)(**parameters)
        except BROKEN:
            self.broken += 1
            time.sleep(0.05)  # each try costs the haneul that starts a part of its processor
            return None
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("Unavailable", "503", "InternalError"):
                self.broken += 1
                return None
            self.refused[code] = self.refused.get(code, 0) + 1
            raise
        self.answered += 1
        return answer

    def _make_group(self) -> None:
        try:
            answer = self._call("create_security_group", GroupName=self.name, Description="chaos")
        except ClientError:
            filters = [{"Name": "group-name", "Values": [self.name]}]
            found = self._call("describe_security_groups", Filters=filters)
            answer = found["SecurityGroups"][0] if found else None
        self.group = answer["GroupId"] if answer else ""

    def _launch(self) -> None:
        promise = Promise(f"{self.name}-{len(self.promises)}")
        self.promises.append(promise)
        while not promise.instance and not self.stop.is_set():
            try:
                self._ask_for(promise)
            except ClientError as error:
                if not error.response["Error"]["Code"].startswith("Insufficient"):
                    raise
                # What was terminated holds its address until an agent has lived long enough. Nothing was promised.
                self.promises.remove(promise)
                self.stop.wait(0.1)
                return

    def _ask_for(self, promise: Promise) -> None:
        given = {"MinCount": 1, "MaxCount": 1, "ClientToken": promise.token, "SecurityGroupIds": [self.group]}
        answer = self._call("run_instances", **{**self.launch, **given})
        if answer is not None:
            promise.instance = answer["Instances"][0]["InstanceId"]

    def _rule(self) -> None:
        port = self.rng.randrange(1000, 1008)
        opens = self.ports.get(port, {False}) != {True}
        name = "authorize_security_group_ingress" if opens else "revoke_security_group_ingress"
        before = self.ports.get(port, {False})
        try:
            answer = self._call(
                name, GroupId=self.group, IpProtocol="tcp", FromPort=port, ToPort=port, CidrIp="10.0.0.0/8"
            )
        except ClientError as error:  # what was not answered had happened, or had not
            there = error.response["Error"]["Code"] == "InvalidPermission.Duplicate"
            self.ports[port] = {there}
            return
        self.ports[port] = {opens} if answer is not None else before | {opens}

    def _change(self, promise: Promise) -> None:
        verb, state = self.rng.choice(
            [("stop", "stopped"), ("start", "running"), ("start", "running"), ("reboot", ""), ("terminate", "terminated"),
             ("tag", "")]
        )  # fmt: skip
        if verb == "tag":
            value = str(self.rng.random())
            tag = {"Key": "chaos", "Value": value}
            answer = self._call("create_tags", Resources=[promise.instance], Tags=[tag])
            promise.tags = {value} if answer is not None else promise.tags | {value}
            return
        more = {"Force": True} if verb == "stop" and self.rng.random() < 0.5 else {}
        try:
            answer = self._call(f"{verb}_instances", InstanceIds=[promise.instance], **more)
        except ClientError:
            return  # not in a state for it: nothing has happened
        if state:
            promise.states = {state} if answer is not None else promise.states | {state}


# --- afterwards ---------------------------------------------------------------------------------------


def _described(client: Any) -> dict[str, Any]:
    pages = client.get_paginator("describe_instances").paginate()
    return {one["InstanceId"]: one for page in pages for r in page["Reservations"] for one in r["Instances"]}


def settled(client: Any, seconds: float) -> dict[str, Any]:
    """Every instance, once none is on its way any more."""

    def ask() -> dict[str, Any] | None:
        found = _described(client)
        moving = {"pending", "stopping", "shutting-down"}
        return None if any(one["State"]["Name"] in moving for one in found.values()) else found or {"": None}

    found = eventually("every instance has settled", ask, seconds)
    found.pop("", None)
    return found


def lost(user: User, found: Mapping[str, Any], killed: Collection[str] = ()) -> list[str]:
    """What the API promised to a user and is not so. Machines that were `killed` may be off, if that is the reason told."""
    wrong = []
    for promise in user.promises:
        instance = found.get(promise.instance)
        if instance is None:
            wrong.append(f"{promise.instance} ({promise.token}) is not there")
            continue
        state = instance["State"]["Name"]
        why = instance.get("StateReason", {}).get("Message", "")
        excused = promise.instance in killed and state == "stopped" and "virtual machine ended unexpectedly" in why
        if state not in promise.states and not excused:
            wrong.append(f"{promise.instance} is {state} ({why}), promised: {sorted(promise.states)}")
        tag = next((one["Value"] for one in instance.get("Tags", []) if one["Key"] == "chaos"), "")
        if tag not in promise.tags and state != "terminated":
            wrong.append(f"{promise.instance} has the tag {tag!r}, promised: {promise.tags}")
    if user.group:
        (group,) = user.client.describe_security_groups(GroupIds=[user.group])["SecurityGroups"]
        ports = {one["FromPort"] for one in group["IpPermissions"]}
        wrong += [f"port {port} of {user.group}" for port, may in user.ports.items() if (port in ports) not in may]
    return wrong


def twice(users: list[User], found: Mapping[str, Any]) -> list[str]:
    """Instances that nobody asked for: a token must have launched once."""
    known = {promise.instance for user in users for promise in user.promises}
    return [f"{one} was launched by nobody" for one in found if one not in known]


def inconsistencies(store: Store, settled: bool = True) -> list[str]:
    """What does not fit together in the store itself. While machines are on their way, what they hold is theirs yet."""
    with store.read() as tx:
        return [*_of_instances(tx, settled), *_of_servers(tx), *_of_parts(tx)]


def _of_instances(tx: Transaction, settled: bool) -> list[str]:
    nics, disks = (Counter(row["instance_id"] for row in tx.select(one)) for one in (tables.interfaces, tables.volumes))
    wrong = []
    for row in tx.select(tables.instances):
        on_its_way = not settled and row["power"] != "running" and bool(row["server_id"])
        alive = row["power"] != "terminated" or on_its_way
        holds = row["reserved_memory_mib"] > 0
        if on_its_way:
            holds = row["power"] == "running"
        found = (holds, nics[row["id"]], disks[row["id"]])
        if found != ((row["power"] == "running"), alive, alive):
            wrong.append(f"{row['id']} is {row['power']}: (holds room, interfaces, volumes) is {found}")
    return wrong


def _of_servers(tx: Transaction) -> list[str]:
    wrong = []
    for server in tx.select(tables.servers):
        for column in ("reserved_vcpus", "reserved_memory_mib"):
            table = tables.instances
            total = tx.execute(
                sa.select(sa.func.sum(table.c[column])).where(table.c.server_id == server["id"])
            ).scalar()
            if (total or 0) != server[column]:
                wrong.append(f"{server['id']}: {column} is {server[column]}, its instances hold {total}")
    return wrong


def _of_parts(tx: Transaction) -> list[str]:
    ids = {row["id"] for row in tx.select(tables.instances)}
    wrong = []
    for table in (tables.volumes, tables.interfaces):
        wrong += [f"{row['id']} is of no instance" for row in tx.select(table) if row["instance_id"] not in ids]
    addresses = [(row["subnet_id"], row["address"]) for row in tx.select(tables.interfaces)]
    if len(addresses) != len(set(addresses)):
        wrong.append("two interfaces have the same address")
    known = {row["id"] for table in {*tables.BY_PREFIX.values()} for row in tx.select(table)}
    return wrong + [f"a tag of {row['resource_id']}, which is not there" for row in tx.select(tables.tags)
                    if row["resource_id"] not in known]  # fmt: skip


@dataclass
class Tally:
    kills: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)

    def kill(self, what: str) -> None:
        self.kills[what] = self.kills.get(what, 0) + 1

    def text(self, users: list[User], seed: int) -> str:
        kinds = ", ".join(f"{count} of {what}" for what, count in sorted(self.kills.items()))
        answered, broken = sum(user.answered for user in users), sum(user.broken for user in users)
        launched = sum(len(user.promises) for user in users)
        return (
            f"kills (seed {seed}): {sum(self.kills.values())} tried ({kinds}); {answered} calls answered, {broken} cut off, "
            f"{launched} instances; lost: {len(self.lost)}, orphaned: {len(self.orphaned)}"
        )


def at_work(users: list[User], harass: Callable[[], None]) -> None:
    """Run `harass` while the users work."""
    failed: list[BaseException] = []

    def work(user: User) -> None:
        try:
            user.work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(user,), name=user.name) for user in users]
    for thread in threads:
        thread.start()
    try:
        harass()
    finally:
        for user in users:
            user.stop.set()
        for thread in threads:
            thread.join(120)
    if failed:
        raise failed[0]
