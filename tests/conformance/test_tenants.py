"""Two accounts never see, name, tag or use each other's things: every operation is tried across accounts.

A victim has something of everything, every text of it marked. An attacker sends, for every operation and every member
that can name something, what the victim has; beside it a twin with a world just like the attacker's sends the same with names
of nothing. Both have to be answered alike, the answer may hold nothing that was not sent, and the victim's rows stay as
they were. The victim sends the same too: what it is answered shows that the requests are worth something.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import select
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import botocore.serialize
import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from haneul.api import protocol
from haneul.services.context import OPERATIONS, is_read
from haneul.services.ec2 import absent
from haneul.store import tables
from tests.conformance import worlds
from tests.conformance.conftest import FakeCloud
from tests.conformance.worlds import ID, Builder, World

#: Thousands of requests: ten times what a quiet machine needs.
pytestmark = pytest.mark.timeout(2400)

SERVICES = ("ec2", "sts", "iam", "ssm")
#: Operations that show and change nothing of anybody's: the victim is answered as everybody is.
NOTHING_OF_ANYBODY = frozenset({"GetInstanceProfile", "ListAccountAliases", "ListInstanceProfiles", "GetParameter", "GetParameters",
    "DescribeRegions", "DescribeAvailabilityZones", "DescribeInstanceTypes", "DescribeInstanceTypeOfferings"})  # fmt: skip


# --- sending ----------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    body: bytes
    sent: str

    @property
    def code(self) -> str:
        """`ok`, also for what a dry run let through."""
        if self.status == 200:
            return "ok"
        found = re.search(rb"<Code>([^<]+)</Code>", self.body)
        code = found.group(1).decode() if found else str(json.loads(self.body)["__type"])
        return "ok" if code == "DryRunOperation" else code

    @property
    def message(self) -> str:
        found = re.search(rb"<Message>(.*?)</Message>", self.body, re.DOTALL)
        return found.group(1).decode() if found else ""


class Sender:
    """Signed requests over one connection, in any service's protocol."""

    def __init__(self, cloud: FakeCloud) -> None:
        self._port = cloud.running.settings.port
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)

    def send(self, who: World, service: str, name: str, params: dict[str, Any], *, get: bool = False) -> Answer:
        kind = protocol.service_model(service).protocol
        serialiser = botocore.serialize.create_serializer(kind, include_validation=False)
        made = serialiser.serialize_to_request(params, protocol.operation_model(service, name))
        headers = dict(made["headers"])
        text = made["body"].decode() if isinstance(made["body"], bytes) else urlencode(made["body"], quote_via=quote)
        if get and kind != "json":
            return self.raw("GET", f"/?{text}", "", self.signed(who, service, "GET", f"/?{text}", "", {}))
        return self.raw("POST", "/", text, self.signed(who, service, "POST", "/", text, headers))

    def signed(
        self, who: World, service: str, method: str, path: str, body: str, headers: dict[str, str]
    ) -> dict[str, str]:
        request = AWSRequest(method, f"http://127.0.0.1:{self._port}{path}", data=body.encode(), headers=headers)
        SigV4Auth(Credentials(who.access_key, who.secret), service, who.region).add_auth(request)
        return dict(request.headers.items())

    def presigned(self, who: World, query: str) -> str:
        request = AWSRequest("GET", f"http://127.0.0.1:{self._port}/?{query}")
        SigV4QueryAuth(Credentials(who.access_key, who.secret), "ec2", who.region, expires=600).add_auth(request)
        return request.url.partition(str(self._port))[2]

    def raw(self, method: str, path: str, body: str, headers: dict[str, str]) -> Answer:
        # What the server has closed, as it does with a connection that was idle for long, is no answer to what comes next.
        if self._connection.sock is not None and select.select([self._connection.sock], [], [], 0)[0]:
            self._connection.close()
        try:
            self._connection.request(method, path, body.encode(), headers)
            answer = self._connection.getresponse()
            return Answer(answer.status, answer.read(), f"{path} {body}")
        except BaseException:
            # One test's failure, its time limit too, is not the next one's: the connection is made anew.
            self._connection.close()
            raise


# --- what may not be let through --------------------------------------------------------------------


_ADDRESS = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}")


class Victim:
    """What must not be shown, and a watch over the victim's rows. `shared` is shown on purpose."""

    def __init__(self, cloud: FakeCloud, world: World, sender: Sender, *, one_region: bool = False) -> None:
        self.world = world
        self._scope: dict[str, str] = {"account": world.account} | ({"region": world.region} if one_region else {})
        self._file = sqlite3.connect(f"file:{cloud.running.settings.data}/haneul.db?mode=ro", uri=True)
        self._version, self._rows = -1, ""
        self._rows = self.rows()
        public = {worlds.PUBLIC_IMAGE, worlds.PUBLIC_SNAPSHOT} | ({world.account} if one_region else set())
        console = sender.send(world, "ec2", "GetConsoleOutput", {"InstanceId": world.instance}).body
        said = re.findall(r"<output>([^<]+)</output>", console.decode())
        values = {*world.values.values(), *said, base64.b64encode(world.text.encode()).decode()} - public
        # Ids and addresses are looked for as a whole: one address is the beginning of another.
        self._ids = {*ID.findall(self._rows), world.address, world.public} - public
        self._others = [value for value in values if value not in self._ids and world.mark not in value]
        self._marked = re.compile(rf"{world.mark}[\w-]*(?: text| data)?")
        self.shared: set[str] = set()

    def rows(self) -> str:
        """All rows of the victim's, as text; read again only when something was committed."""
        version = self._file.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._version, self._rows = version, json.dumps(list(self._read()), default=repr)
        return self._rows

    def _read(self) -> Iterator[Any]:
        parts = {
            "launch_template_versions": ("template_id", "launch_templates"),
            "image_permissions": ("image_id", "images"),
        }
        for table in tables.metadata.sorted_tables:
            column, owner = parts.get(table.name, ("", table.name))
            scope = {name: value for name, value in self._scope.items() if name in tables.metadata.tables[owner].c}
            if "account" not in scope:
                continue
            where = " AND ".join(f"{name} = ?" for name in scope)
            if column:
                where = f"{column} IN (SELECT id FROM {owner} WHERE {where})"
            found = self._file.execute(f"SELECT * FROM {table.name} WHERE {where} ORDER BY 1, 2", list(scope.values()))
            yield table.name, found.fetchall()

    def shown(self, text: str, sent: str) -> list[str]:
        """What of the victim's is in `text` that was not `sent`."""
        found = {*self._marked.findall(text), *(one for one in self._others if one in text)}
        found |= self._ids.intersection([*ID.findall(text), *_ADDRESS.findall(text)])
        # The server is everybody's.
        return sorted(one for one in found if one not in sent and one not in self.shared and not one.startswith("srv-"))


_TIMES = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z| GMT)")
_CHANGES = re.compile(
    r"<(requestId|RequestId|RequestID|keyMaterial|keyFingerprint|output|nextToken|macAddress)>[^<]*|\b(?:ip|ec2)(?:-\d+){4}|"
    r"(?:\d{1,3}\.){3}\d{1,3}(?!/)|The token '[^']*'|\bAKIA\w+|\b[a-z]{2,5}\d(?=-az\d)"
)


def neutral(answer: Answer, own: World, other: World) -> str:
    """An answer without what differs between two worlds that are alike."""
    known = {value: f"its {name}" for name, value in other.values.items()}
    known |= {value: name for name, value in own.values.items()}
    text = ID.sub(lambda match: f"[{known.get(match.group(0), 'id')}]", answer.body.decode())
    for one in (own, other):
        for name in ("account", "user_data", "material"):
            text = text.replace(one.values[name], f"[{name}]")
        text = text.replace(one.mark, "[mark]").replace(one.region, "[region]")
    text = _CHANGES.sub("[x]", _TIMES.sub("[time]", text))
    if answer.status != 200:
        return text
    # Ids are random, and so is the order that they give.
    return "".join(sorted(re.findall(r"<[^>]+>[^<]*", text)) or [text])


@dataclass
class Tally:
    attempts: Counter[str] = field(default_factory=Counter)
    controls: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def line(self, what: str) -> str:
        return (
            f"cross-account, {what}: {sum(self.attempts.values())} attempts over {len(self.attempts)} operations "
            f"(positive controls: {sum(self.controls.values())} over {len(self.controls)} operations), {len(self.faults)} let through"
        )


#: Controls of one operation: so many are enough to see that its requests are real ones.
CONTROLS = 12
#: Answer 200 and tell errors one by one: the victim's own call tells only in earnest, when all else has been tried.
PARTIAL = ("CreateFleet", "ModifyInstanceCreditSpecification", "DeleteFleets")


_TOLD = re.compile(rb"<error(?:Code)?>")


@dataclass
class Attack:
    """`pair` gives an attacker and a twin, alike, for an operation.

    `whole`: every request, and changing ones dry and in earnest. Otherwise every sixth, in earnest.
    """

    sender: Sender
    victim: Victim
    ghost: World
    pair: Callable[[str], tuple[World, World]]
    whole: bool = True
    tally: Tally = field(default_factory=Tally)
    partial: dict[str, Answer] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)

    def run(self) -> Tally:
        for service in SERVICES:
            for name in OPERATIONS.names(service):
                self.operation(service, name)
        for name, got in self.partial.items():
            self._control("ec2", name, next(worlds.requests("ec2", name, self.victim.world)), {}, got)
        return self.tally

    def operation(self, service: str, name: str) -> None:
        shape = protocol.operation_model(service, name).input_shape
        dry = {"DryRun": True} if shape is not None and "DryRun" in shape.members and not is_read(name) else {}
        first = len(worlds.bases(name, self.victim.world))
        for number, request in enumerate(worlds.requests(service, name, self.victim.world)):
            if not self.whole and number >= first and number % 6:
                continue
            for way in [dry, {}] if dry and self.whole else [{}]:
                got = self._once(service, name, request, way, number % 2 == len(way))
            if name in PARTIAL:
                self.partial.setdefault(name, got)
            elif self.tally.controls[name] < CONTROLS:
                self._control(service, name, request, dry, got)

    def _once(self, service: str, name: str, request: worlds.Request, way: Any, get: bool) -> Answer:
        attacker, twin = self.pair(name)
        for one in (attacker, twin):
            one.values["fresh"] = f"{one.mark}-new{sum(self.tally.attempts.values())}"
        before = self.victim.rows()
        params = request(attacker, self.victim.world) | way
        got = self.sender.send(attacker, service, name, params, get=get)
        # What a creating call of before has made is shown with the text that was sent then.
        said = self.said.setdefault(attacker.access_key, [])
        said.append(got.sent + str(params))
        same = self.sender.send(twin, service, name, request(twin, self.ghost) | way, get=get)
        self.tally.attempts[name] += 1
        assert b"validate the provided access" not in got.body, "not an attempt at all"
        told = f"{name} {params}: {got.status} {got.body[:600]!r}"
        shown = self.victim.shown(got.body.decode(), got.sent + str(params) if is_read(name) else " ".join(said))
        if shown:
            self.tally.faults.append(f"shows {shown}: {told}")
        if self.victim.rows() != before:
            self.tally.faults.append(f"changes the victim: {told}")
        if got.status >= 500:
            self.tally.faults.append(f"fails: {told}")
        one, two = neutral(got, attacker, self.victim.world), neutral(same, twin, self.ghost)
        if got.status != same.status or one != two:
            self.tally.faults.append(f"an oracle: {told}\n   but {same.body[:600]!r}\n   {one[:900]}\n   {two[:900]}")
        return got

    def _control(self, service: str, name: str, request: worlds.Request, way: Any, got: Answer) -> None:
        """Whether the victim itself is answered otherwise: then the attacker's request was a real one."""
        victim = self.victim.world
        params = request(victim, victim) | way
        answer = self.sender.send(victim, service, name, params)
        shows = self.victim.shown(answer.body.decode(), answer.sent + str(params))
        told = _TOLD.search(got.body) and answer.code == "ok" and not _TOLD.search(answer.body)
        if told or (answer.code == "ok") != (got.code == "ok") or (answer.code == "ok" and shows):
            self.tally.controls[name] += 1


#: Columns that hold what a user wrote, and no reference to anything.
_TEXTS = {
    "launch_template_versions": {"data", "description"}, "fleets": {"request", "answer"}, "client_tokens": {"token", "parameters", "result"},
    "instances": {"image_id", "client_token", "user_data", "key_name", "placement_group", "public_key"}, "tags": {"key", "value"}, "interfaces": {"description"},
    "images": {"name", "description"}, "key_pairs": {"name", "public_key"}, "launch_templates": {"name"}, "placement_groups": {"name"},
    "security_groups": {"name", "description"}, "security_group_rules": {"description"}, "image_permissions": {"account"},
}  # fmt: skip


def references(cloud: FakeCloud, victim: Victim) -> list[str]:
    """Rows of others' that refer to something of the victim's."""
    found = []
    with cloud.running.store.read() as tx:
        for table in tables.metadata.sorted_tables:
            for row in tx.select(table):
                kept = {name: value for name, value in row.items() if name not in _TEXTS.get(table.name, ())}
                text = json.dumps(kept, default=str)
                # A key pair of one's own may have another's name, but never its key.
                text += row["public_key"].split(" ")[1] if table.name == "instances" and row["public_key"] else ""
                if row.get("account") != victim.world.account and table.name not in (
                    "accounts",
                    "launch_template_versions",
                ):
                    shown = victim.shown(text, "")
                    found += [f"{table.name} refers to {shown}: {row}"] if shown else []
    return found


def _addresses(cloud: FakeCloud) -> set[str]:
    """Every address that any row of anybody's has."""
    with cloud.running.store.read() as tx:
        rows = [list(row.values()) for table in tables.metadata.sorted_tables for row in tx.select(table)]
    return set(_ADDRESS.findall(json.dumps(rows, default=str)))


@contextmanager
def rest(cloud: FakeCloud) -> Iterator[None]:
    """The agent does nothing more: what changes is somebody's doing, and both worlds stay alike."""
    link = cloud.running.agent.link
    asked, link.assignment = link.assignment, lambda after: _nothing()  # type: ignore[method-assign]
    try:
        yield
    finally:
        link.assignment = asked  # type: ignore[method-assign]


async def _nothing() -> None:
    return None


def _add_pages(sender: Sender, world: World) -> None:
    """The victim's own token of a second page, of every operation that gives one."""
    for name in OPERATIONS.names("ec2"):
        shape = protocol.operation_model("ec2", name).input_shape
        if shape is None or not {"NextToken", "MaxResults"} <= set(shape.members) or not is_read(name):
            continue
        for most in (1, 5):
            answer = sender.send(world, "ec2", name, worlds._needed(name) | {"MaxResults": most})
            if found := re.search(rb"<nextToken>([^<]+)</nextToken>", answer.body):
                world.values[f"next {name}"] = found.group(1).decode()


class Town:
    """A victim and two attackers whose worlds are alike; with `apart` two for each operation that changes something."""

    def __init__(self, cloud: FakeCloud, make: Callable[[], World], victim: World, *, apart: bool = False) -> None:
        self.cloud, self.sender, self.victim = cloud, Sender(cloud), victim
        cloud.put_image(worlds.PUBLIC_IMAGE, name="base", disk="base", snapshot_id=worlds.PUBLIC_SNAPSHOT)
        builder = Builder(cloud)
        builder.fill(victim, victim=True)
        changing = [name for service in SERVICES for name in OPERATIONS.names(service) if not is_read(name)]
        self.pairs = {name: (make(), make()) for name in ["reads", "changes", *(changing if apart else ())]}
        everybody = [one for pair in self.pairs.values() for one in pair]
        for one in everybody:
            builder.fill(one)
        builder.settle([victim, *everybody])
        _add_pages(self.sender, victim)

    def pair(self, name: str) -> tuple[World, World]:
        return self.pairs.get(name) or self.pairs["reads" if is_read(name) else "changes"]


def _account(cloud: FakeCloud, name: str, region: str = "us-east-1") -> World:
    key = cloud.running.accounts("add", {"name": name})
    return World(key["account"], region, key["access_key"], key["secret"])


@pytest.fixture(scope="module")
def town(start_cloud: Callable[..., FakeCloud]) -> Iterator[Town]:
    cloud = start_cloud()
    numbers = iter(range(10**6))
    made = Town(cloud, lambda: _account(cloud, f"attacker-{next(numbers)}"), _account(cloud, "victim"), apart=True)
    yield made


def _check(tally: Tally, what: str, record_tally: Callable[[str], None], *same: str) -> None:
    """`same` are operations that answer the victim and the attacker alike and may."""
    record_tally(tally.line(what))
    assert not tally.faults, f"{len(tally.faults)} faults\n" + "\n".join(tally.faults[:12])
    names = {name for service in SERVICES for name in OPERATIONS.names(service)}
    empty = {"".join(part.title() for part in one.operation.split("_")) for one in absent._LIST}
    unreached = names - NOTHING_OF_ANYBODY - empty - set(tally.controls) - set(same)
    assert not unreached, f"no request of these was one that the victim itself may make: {sorted(unreached)}"


def _attack(town: Town, *, whole: bool, one_region: bool = False) -> Tally:
    victim = Victim(town.cloud, town.victim, town.sender, one_region=one_region)
    real = ("account",) if one_region else ()
    nobody = worlds.ghost(town.victim, *real, taken=_addresses(town.cloud))
    with rest(town.cloud):
        tally = Attack(town.sender, victim, nobody, town.pair, whole).run()
    tally.faults += references(town.cloud, victim)
    return tally


def test_no_operation_lets_another_account_through(town: Town, record_tally: Callable[[str], None]) -> None:
    _check(_attack(town, whole=True), "signed", record_tally)


def test_no_operation_reaches_into_another_region(
    start_cloud: Callable[..., FakeCloud], record_tally: Callable[[str], None]
) -> None:
    """The same account with the same key: ids and names are of one region all the same."""
    cloud = start_cloud()
    here = _account(cloud, "one")
    others = iter(
        [
            f"{way}-{side}-{n}"
            for way in ("eu", "us", "ap", "sa")
            for side in ("west", "north", "south", "east", "central")
            for n in range(5, 10)
        ]
    )

    def elsewhere() -> World:
        return World(here.account, next(others), here.access_key, here.secret)

    town = Town(cloud, elsewhere, here)
    _check(_attack(town, whole=False, one_region=True), "another region", record_tally, "GetCallerIdentity")


def test_no_operation_lets_through_an_open_door(
    start_cloud: Callable[..., FakeCloud], record_tally: Callable[[str], None]
) -> None:
    """With auth = open a twelve-digit access key is an account of its own; an unknown image is stood in for."""
    cloud = start_cloud(auth="open", unknown_image="base")
    numbers = iter(range(100000000001, 999999999999))

    def anyone() -> World:
        number = str(next(numbers))
        return World(number, "us-east-1", number)

    _check(_attack(Town(cloud, anyone, anyone()), whole=False), "open door", record_tally)


# --- what is shared on purpose ----------------------------------------------------------------------


def _fields(answer: Answer) -> set[str]:
    return set(re.findall(r"<(\w+)>", answer.body.decode()))


@pytest.mark.parametrize("permission", [{"Group": "all"}, {"UserId": "self"}])
def test_a_shared_image_shows_nothing_else(town: Town, permission: dict[str, str]) -> None:
    """Its members as AWS shows them, but none of the owner's tags, permissions, other images; and no snapshot to copy."""
    owner, (other, _) = town.victim, town.pairs["reads"]
    if permission.get("UserId"):
        permission = {"UserId": other.account}
    victim, send = Victim(town.cloud, owner, town.sender), town.sender.send
    change = {"ImageId": owner.image2, "LaunchPermission": {"Add": [permission]}}
    assert send(owner, "ec2", "ModifyImageAttribute", change).code == "ok"
    victim.shared = {owner.account, owner.image2, owner.snapshot, owner.text, f"{owner.mark}-ami2"}
    try:
        seen = send(other, "ec2", "DescribeImages", {"ImageIds": [owner.image2]})
        mine = send(other, "ec2", "DescribeImages", {"ImageIds": [other.image2]})
        assert (
            seen.code == "ok"
            and _fields(seen) == _fields(mine)
            and owner.snapshot in seen.body.decode()
            # What it boots under is haneul's tag, and all that is there of tags.
            and re.findall(rb"<key>([^<]*)</key>", seen.body) == [b"aws:haneul:generations"]
        )
        for service in SERVICES:
            for name in OPERATIONS.names(service):
                for make in list(worlds.requests(service, name, owner))[:: 4 if is_read(name) else 2][:20]:
                    shape = protocol.operation_model(service, name).input_shape
                    dry = (
                        {"DryRun": True}
                        if shape is not None and "DryRun" in shape.members and not is_read(name)
                        else {}
                    )
                    params = make(other, owner) | dry
                    answer = send(other, service, name, params)
                    assert not victim.shown(answer.body.decode(), answer.sent + str(params)), (
                        name,
                        params,
                        answer.body,
                    )
                    assert answer.status < 500
        for name, params in (
            ("CreateTags", {"Resources": [owner.image2], "Tags": [{"Key": "a", "Value": "b"}]}),
            ("DeregisterImage", {"ImageId": owner.image2}),
            ("ResetImageAttribute", {"ImageId": owner.image2, "Attribute": "launchPermission"}),
            ("DescribeImageAttribute", {"ImageId": owner.image2, "Attribute": "launchPermission"}),
        ):
            assert send(other, "ec2", name, params).code in ("AuthFailure", "InvalidAMIID.NotFound"), name
        # To launch an image is not to have its snapshot: an image of one's own would outlive the permission.
        root = [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": owner.snapshot}}]
        copied = send(other, "ec2", "RegisterImage", {"Name": "copied", "BlockDeviceMappings": root})
        assert copied.code == "InvalidSnapshot.NotFound"
        launched = send(other, "ec2", "RunInstances", {"ImageId": owner.image2, "MinCount": 1, "MaxCount": 1})
        assert launched.code == "ok" and not victim.shown(launched.body.decode(), launched.sent)
    finally:
        send(owner, "ec2", "ResetImageAttribute", {"ImageId": owner.image2, "Attribute": "launchPermission"})
    # Fake drivers launch any image, and describe it so: this one as they would an id of nobody's.
    after = send(other, "ec2", "DescribeImages", {"ImageIds": [owner.image2]})
    assert after.code == "ok" and not victim.shown(after.body.decode(), after.sent)


# --- signatures -------------------------------------------------------------------------------------


def test_no_signature_is_anothers(town: Town) -> None:
    """Whose request it is follows from the key that signed it, whatever else it says."""
    victim, (other, _) = town.victim, town.pairs["reads"]
    sender, body = town.sender, "Action=DescribeInstances&Version=2016-11-15"
    form = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}

    def signed(who: World, **more: str) -> dict[str, str]:
        return sender.signed(who, "ec2", "POST", "/", body, form | more)

    def code(headers: dict[str, str], path: str = "/", text: str = body) -> str:
        return sender.raw("POST", path, text, headers).code

    assert code(signed(other)) == "ok"
    mine, theirs = signed(other), signed(victim)
    for key in (victim.account, victim.access_key, "AKIA" + "A" * 16):
        assert code(mine | {"Authorization": mine["Authorization"].replace(other.access_key, key)}) == "AuthFailure"
    swapped = theirs["Authorization"].rpartition("Signature=")[2]
    assert (
        code(mine | {"Authorization": mine["Authorization"].rpartition("Signature=")[0] + f"Signature={swapped}"})
        == "AuthFailure"
    )
    assert code(signed(other, **{"X-Amz-Security-Token": "anothers"})) == "AuthFailure"
    assert code(theirs, text=body.replace("Describe", "Terminate")) == "AuthFailure"
    for region in ("eu-west-1", "us-east-1/x", "US-EAST-1", "us-east-1%20", "*"):
        assert code(theirs | {"Authorization": theirs["Authorization"].replace("us-east-1", region)}) == "AuthFailure"
    # A credential of the victim's in the query says nothing where the header signs.
    query = f"/?X-Amz-Credential={victim.access_key}%2F20260101%2Fus-east-1%2Fec2%2Faws4_request&X-Amz-Algorithm=AWS4-HMAC-SHA256"
    answer = sender.raw("POST", query, body, sender.signed(other, "ec2", "POST", query, body, form))
    assert answer.code == "AuthFailure" or victim.instance not in answer.body.decode()
    for region in ("*", "us-east-1 ", "../us-east-1"):
        odd = World(other.account, region, other.access_key, other.secret)
        assert code(signed(odd)) == "AuthFailure"


def test_a_presigned_request_is_that_request_only(town: Town) -> None:
    victim, (other, _) = town.victim, town.pairs["reads"]
    path = town.sender.presigned(victim, f"Action=DescribeInstances&InstanceId.1={victim.instance}&Version=2016-11-15")
    assert town.sender.raw("GET", path, "", {}).code == "ok"
    for changed in (
        path.replace("DescribeInstances", "TerminateInstances"), path.replace(victim.instance, victim.stopped),
        path + "&InstanceId.2=" + victim.stopped, path + "&DryRun=true", path.replace("us-east-1", "eu-west-1"),
        path.replace("X-Amz-Expires=600", "X-Amz-Expires=604800"), path.replace(victim.access_key, other.access_key),
        path + "&X-Amz-Security-Token=x", path.replace("&Version=2016-11-15", ""), "/x" + path[1:],
    ):  # fmt: skip
        assert changed != path and town.sender.raw("GET", changed, "", {}).code == "AuthFailure", changed
    assert town.sender.raw("POST", path, "Action=TerminateInstances", {}).code in ("AuthFailure", "InvalidRequest")
