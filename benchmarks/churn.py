#!/usr/bin/env python
"""A busy day of a cloud, compressed: what grows in a haneul that lives on?

    .venv/bin/python benchmarks/churn.py [--launches 20000] [--seconds 360] [--quick] [--plot churn.png]

Starts a haneul with fake drivers on data of its own and lets simulated users work in four regions: RunInstances in small
batches, tags, rules, stop, start, reboot, describe, key pairs, launch templates, placement groups, fleets, terminate; beside
them 500 connections are held open of which some talk. So many lives of instances as a day has pass in `--seconds`, and
what AWS forgets after an hour (terminated instances) or a day (client tokens) is forgotten after the compressed hour: the
last line's `compression` says by how much. Every second is sampled: memory, descriptors, threads, rows of each table, files,
delay. At the end everything is deleted and forgotten, and what rows are left is told.

Growth is the Theil-Sen slope after the warm-up (a third of the run), for an hour of the simulated day. The delay of the event
loop is measured by haneul itself where it has /metrics (`haneul_loop_lag_seconds_max`), and from outside as the latency of a
DescribeInstances by id on a connection of its own, which waits for a processor too. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import sqlite3
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from botocore.auth import SigV4Auth  # noqa: E402
from botocore.awsrequest import AWSRequest  # noqa: E402
from botocore.credentials import Credentials  # noqa: E402

from benchmarks import chart  # noqa: E402
from benchmarks.api import AMI, Connection, Server, haneul  # noqa: E402

REGIONS = ("us-east-1", "eu-west-1", "ap-northeast-2", "sa-east-1")
DAY, HOUR = 86400.0, 3600.0
#: Small enough to be full before the warm-up ends: a cache that fills is no leak, but looks like one.
FORMS_MIB = 8
WARM_UP = 1 / 3
#: A row for each account and region, for ever.
KEPT = ("usage",)
INSTANCE, BATCH = re.compile(rb"<instanceId>(i-[0-9a-f]+)</instanceId>"), (1, 1, 2, 3, 4, 6)


class Client:
    """One connection with signed requests of one region. Refusals are counted, not raised."""

    def __init__(self, server: Server, region: str) -> None:
        self._server, self._region = server, region
        self._connection = Connection(server.port)
        self.codes: Counter[str] = Counter()

    def request(self, action: str, **parameters: Any) -> bytes:
        body = urlencode({"Action": action, "Version": "2016-11-15"} | parameters).encode()
        host = f"127.0.0.1:{self._server.port}"
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8", "Host": host}
        signed = AWSRequest("POST", f"http://{host}/", data=body, headers=headers)
        credentials = Credentials(self._server.access_key, self._server.secret)
        SigV4Auth(credentials, "ec2", self._region).add_auth(signed)
        lines = "".join(f"{name}: {value}\r\n" for name, value in signed.headers.items())
        return f"POST / HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def call(self, action: str, **parameters: Any) -> bytes:
        head, body = self._connection.answer(self.request(action, **parameters))
        found = re.search(rb"<Code>([^<]+)</Code>", body)
        self.codes[found.group(1).decode() if found and b" 200" not in head[:14] else action] += 1
        return body

    def close(self) -> None:
        self._connection.close()


def _numbered(name: str, values: list[str]) -> dict[str, str]:
    return {f"{name}.{number}": value for number, value in enumerate(values, 1)}


# --- the users --------------------------------------------------------------------------------------


@dataclass
class User:
    """Launches at a given pace, does what users do with what it has, and ends the oldest beyond `population`."""

    client: Client
    name: str
    per_second: float
    until: float
    population: int
    rng: random.Random
    alive: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    launched: int = 0
    group: str = ""

    def day(self) -> None:
        self.settle_in()
        began = time.monotonic()
        while (now := time.monotonic()) < self.until:
            behind = (now - began) * self.per_second - self.launched
            if behind < 1:
                time.sleep(min(0.2, (1 - behind) / self.per_second))
                continue
            self.launch()
            for work in self.rng.sample(self.works, 2):
                work()
            self.end(len(self.alive) - self.population)
        self.end(len(self.alive) + len(self.stopped))

    def settle_in(self) -> None:
        answer = self.client.call("CreateSecurityGroup", GroupName=self.name, GroupDescription="web")
        self.group = re.search(rb"<groupId>(sg-[0-9a-f]+)", answer).group(1).decode()  # type: ignore[union-attr]
        self.client.call("CreateKeyPair", KeyName=self.name, KeyType="ed25519")

    def settle_out(self) -> None:
        """The group goes when the last instance in it has."""
        deadline = time.monotonic() + 60
        while b"DependencyViolation" in self.client.call("DeleteSecurityGroup", GroupId=self.group):
            assert time.monotonic() < deadline, "instances do not end"
            time.sleep(0.2)
        self.client.call("DeleteKeyPair", KeyName=self.name)
        self.client.close()

    @property
    def works(self) -> list[Callable[[], object]]:
        once = [self.tag, self.rules, self.look, self.look_by_tag, self.reboot, self.rest]
        return [*once, *once, self.keys, self.templates, self.groups, self.fleet]

    def launch(self, **more: str) -> None:
        count = self.rng.choice(BATCH)
        tag = {"TagSpecification.1.ResourceType": "instance", "TagSpecification.1.Tag.1.Key": "Name"}
        tag |= {"TagSpecification.1.Tag.1.Value": f"{self.name}-{self.launched}"}
        if self.rng.random() < 0.5:
            more |= {"ClientToken": f"{self.name}-{self.launched}-{self.rng.random()}"}
        if "LaunchTemplate.LaunchTemplateName" not in more:
            more |= {"ImageId": AMI, "InstanceType": "t3.micro", "KeyName": self.name, "SecurityGroupId.1": self.group}
        made = INSTANCE.findall(self.client.call("RunInstances", MinCount=count, MaxCount=count, **tag, **more))
        self.alive += [one.decode() for one in made]
        self.launched += len(made)

    def some(self) -> str:
        return self.rng.choice(self.alive[-50:] or ["i-0123456789abcdef0"])

    def tag(self) -> None:
        one = self.some()
        self.client.call(
            "CreateTags", **{"ResourceId.1": one, "Tag.1.Key": "team", "Tag.1.Value": str(self.rng.random())}
        )
        if self.rng.random() < 0.5:
            self.client.call("DeleteTags", **{"ResourceId.1": one, "Tag.1.Key": "team"})

    def rules(self) -> None:
        port = str(self.rng.randrange(1, 65000))
        rule = {"GroupId": self.group, "IpProtocol": "tcp", "FromPort": port, "ToPort": port, "CidrIp": "10.0.0.0/8"}
        self.client.call("AuthorizeSecurityGroupIngress", **rule)
        self.client.call("RevokeSecurityGroupIngress", **rule)

    def look(self) -> None:
        self.client.call("DescribeInstances", **{"InstanceId.1": self.some()})
        self.client.call("DescribeInstances", MaxResults=100)
        self.client.call("DescribeVolumes", MaxResults=50)

    def look_by_tag(self) -> None:
        name = f"{self.name}-{self.rng.randrange(self.launched + 1)}"
        self.client.call("DescribeInstances", **{"Filter.1.Name": "tag:Name", "Filter.1.Value.1": name})
        self.client.call("DescribeSecurityGroups")
        self.client.call("DescribeInstanceStatus", **{"InstanceId.1": self.some()})

    def reboot(self) -> None:
        self.client.call("RebootInstances", **{"InstanceId.1": self.some()})

    def rest(self) -> None:
        """Some sleep, and those that slept for long wake up."""
        if self.alive:
            one = self.alive[self.rng.randrange(len(self.alive))]
            if b"<Code>" not in self.client.call("StopInstances", **{"InstanceId.1": one}):
                self.alive.remove(one)
                self.stopped.append(one)
        if len(self.stopped) > 20:
            one = self.stopped.pop(0)
            self.client.call("StartInstances", **{"InstanceId.1": one})
            self.alive.insert(0, one)

    def keys(self) -> None:
        self.client.call("CreateKeyPair", KeyName=f"{self.name}-once", KeyType="ed25519")
        self.client.call("DeleteKeyPair", KeyName=f"{self.name}-once")

    def template(self, name: str) -> None:
        data = {"LaunchTemplateData.ImageId": AMI, "LaunchTemplateData.InstanceType": "t3.nano"}
        self.client.call("CreateLaunchTemplate", LaunchTemplateName=name, **data)
        self.client.call("CreateLaunchTemplateVersion", LaunchTemplateName=name, SourceVersion="1", **data)

    def templates(self) -> None:
        name = f"{self.name}-template"
        self.template(name)
        self.launch(**{"LaunchTemplate.LaunchTemplateName": name, "LaunchTemplate.Version": "2"})
        self.client.call("DeleteLaunchTemplate", LaunchTemplateName=name)

    def groups(self) -> None:
        self.client.call("CreatePlacementGroup", GroupName=f"{self.name}-near", Strategy="cluster")
        self.client.call("DescribePlacementGroups")
        self.client.call("DeletePlacementGroup", GroupName=f"{self.name}-near")
        answer = self.client.call("CreateSecurityGroup", GroupName=f"{self.name}-once", GroupDescription="once")
        found = re.search(rb"<groupId>(sg-[0-9a-f]+)", answer)
        self.client.call("DeleteSecurityGroup", GroupId=found.group(1).decode() if found else "sg-x")

    def fleet(self) -> None:
        name = f"{self.name}-fleet"
        self.template(name)
        template = {"LaunchTemplateConfigs.1.LaunchTemplateSpecification.LaunchTemplateName": name}
        template["LaunchTemplateConfigs.1.LaunchTemplateSpecification.Version"] = "1"
        capacity = {"TargetCapacitySpecification.TotalTargetCapacity": "2", "Type": "instant"}
        answer = self.client.call("CreateFleet", **template, **capacity)
        found = re.search(rb"<fleetId>(fleet-[0-9a-f]+)", answer)
        self.launched += 2 if found else 0
        fleet = found.group(1).decode() if found else "fleet-x"
        self.client.call("DeleteFleets", **{"FleetId.1": fleet, "TerminateInstances": "true"})
        self.client.call("DeleteLaunchTemplate", LaunchTemplateName=name)

    def end(self, count: int) -> None:
        while count > 0:
            gone = (self.alive or self.stopped)[: min(count, 50)]
            self.client.call("TerminateInstances", **_numbered("InstanceId", gone))
            del (self.alive or self.stopped)[: len(gone)]
            count -= len(gone) or count


# --- what is measured -------------------------------------------------------------------------------


class Crowd:
    """Connections that are held open; in every second some of them talk, so that none is idle for too long."""

    def __init__(self, server: Server, count: int) -> None:
        self._client = Client(server, REGIONS[0])
        self.connections = [Connection(server.port) for _ in range(count)]
        self._next, self.talked, self.reopened = 0, 0, 0
        self._say(count)

    def talk(self) -> None:
        """Every connection once in 50 seconds: haneul closes what is silent for 75."""
        self._say(max(1, len(self.connections) // 50))

    def _say(self, count: int) -> None:
        request = self._client.request("DescribeInstances", MaxResults=5)
        for _ in range(count):
            one = self.connections[self._next % len(self.connections)]
            self._next += 1
            try:
                one.answer(request)
            except (AssertionError, OSError):
                self.reopened += 1
                one.close()
                one.answer(request)
            self.talked += 1

    def close(self) -> None:
        for one in self.connections:
            one.close()


class Probe:
    """How long a look by id takes on a connection of its own, again and again: the worst since the last question."""

    def __init__(self, server: Server) -> None:
        self._client, self._connection = Client(server, REGIONS[0]), Connection(server.port)
        self._worst, self.all = 0.0, [0.0]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            request = self._client.request("DescribeInstances", **{"InstanceId.1": "i-0123456789abcdef0"})
            began = time.perf_counter()
            self._connection.answer(request)
            took = (time.perf_counter() - began) * 1000
            self.all.append(took)
            self._worst = max(self._worst, took)

    def worst_ms(self) -> float:
        found, self._worst = self._worst, 0.0
        return found

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        self._connection.close()


def loop_lag_ms(port: int) -> float | None:
    """The event loop's largest delay since the last question, in haneul's own words; None where it has none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        found = re.search(r"^haneul_loop_lag_seconds_max(?:\{[^}]*\})? (\S+)", text, re.MULTILINE)
        if answer.status == 200 and found:
            return float(found.group(1)) * 1000
    return None


class Sampler:
    """One sample a second: name -> values."""

    def __init__(self, server: Server, crowd: Crowd, probe: Probe, users: list[User]) -> None:
        assert server.data is not None
        self._server, self._crowd, self._probe, self._users = server, crowd, probe, users
        self._data = server.data
        self._store = sqlite3.connect(f"file:{server.data}/haneul.db?mode=ro", uri=True, check_same_thread=False)
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name != 'alembic_version'"
        self.tables = [name for (name,) in self._store.execute(query)]
        self.times: list[float] = []
        self.series: dict[str, list[float]] = {}
        self._began = time.monotonic()

    def sample(self) -> None:
        self._crowd.talk()
        found = self._process() | self._rows_by_name() | self._files()
        found["latency_ms"] = self._probe.worst_ms()
        found["launched"] = float(sum(user.launched for user in self._users))
        lag = loop_lag_ms(self._server.port)
        if lag is not None:
            found["loop_lag_ms"] = lag
        self.times.append(time.monotonic() - self._began)
        for name, value in found.items():
            self.series.setdefault(name, []).append(value)

    def rows(self) -> dict[str, int]:
        query = "SELECT count(*) FROM "
        return {name: int(self._store.execute(query + name).fetchone()[0]) for name in self.tables}

    def _rows_by_name(self) -> dict[str, float]:
        return {f"rows {name}": float(count) for name, count in self.rows().items()}

    def _process(self) -> dict[str, float]:
        place = Path(f"/proc/{self._server.pid}")
        memory = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", (place / "smaps_rollup").read_text(), re.MULTILINE))
        threads = re.search(r"^Threads:\s+(\d+)", (place / "status").read_text(), re.MULTILINE)
        assert threads
        return {
            "rss_mib": int(memory["Rss"]) / 1024, "pss_mib": int(memory["Pss"]) / 1024,
            "descriptors": float(len(list((place / "fd").iterdir()))), "threads": float(threads.group(1)),
        }  # fmt: skip

    def _files(self) -> dict[str, float]:
        def mib(*patterns: str) -> float:
            paths = [path for pattern in patterns for path in self._data.glob(pattern)]
            return sum(path.stat().st_size for path in paths) / 2**20

        return {
            "database_mib": mib("haneul.db"),
            "wal_mib": mib("*-wal"),
            "logs_mib": mib("*.log*"),
            "world_mib": mib("fake-world.db"),
        }


def theil_sen(times: list[float], values: list[float], most: int = 200) -> float:
    """The median of the slopes between all pairs of (at most `most`) points: outliers do not move it."""
    step = max(1, len(times) // most)
    points = list(zip(times[::step], values[::step], strict=True))
    slopes = [
        (later[1] - sooner[1]) / (later[0] - sooner[0])
        for at, sooner in enumerate(points)
        for later in points[at + 1 :]
        if later[0] > sooner[0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def _p(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


# --- the day ----------------------------------------------------------------------------------------


@dataclass
class Plan:
    launches: int
    seconds: float
    connections: int
    population: int

    @property
    def hour(self) -> float:
        """Seconds here that stand for an hour of the day."""
        return self.seconds * HOUR / DAY


QUICK = Plan(1500, 60.0, 500, 100)


@contextlib.contextmanager
def _working(users: list[User]) -> Iterator[list[threading.Thread]]:
    threads = [threading.Thread(target=user.day, name=user.name, daemon=True) for user in users]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.join(120)


def _until_forgotten(sampler: Sampler, before: dict[str, int], seconds: float) -> dict[str, int]:
    """Rows that are more than before the day, when there has been time to forget them."""
    deadline = time.monotonic() + seconds
    while True:
        sampler.sample()
        rows = sampler.rows().items()
        left = {name: count - before[name] for name, count in rows if count > before[name] and name not in KEPT}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def run(plan: Plan, say: Callable[[str], None]) -> tuple[dict[str, Any], Sampler]:
    forget = max(1, round(plan.hour))
    with haneul(terminated_seconds=forget, token_seconds=forget, forms_mib=FORMS_MIB) as server:
        for region in REGIONS:
            Client(server, region).call("DescribeVpcs")
        crowd, probe = Crowd(server, plan.connections), Probe(server)
        until = time.monotonic() + plan.seconds
        share = plan.launches / plan.seconds / len(REGIONS)
        users = [
            User(Client(server, region), f"user-{n}", share, until, plan.population // len(REGIONS), random.Random(n))
            for n, region in enumerate(REGIONS)
        ]
        sampler = Sampler(server, crowd, probe, users)
        before = sampler.rows()
        with _working(users):
            while time.monotonic() < until:
                began = time.monotonic()
                sampler.sample()
                if len(sampler.times) % 30 == 0:
                    say(_line(sampler))
                time.sleep(max(0.0, 1 - (time.monotonic() - began)))
        worked = len(sampler.times)
        for user in users:
            user.settle_out()
        left = _until_forgotten(sampler, before, forget + 60)
        probe.close()
        held = len(crowd.connections)
        result = _result(plan, sampler, worked, users, probe) | {"rows_left_at_the_end": left}
        result |= {"connections_held": held, "connections_talked": crowd.talked, "connections_reopened": crowd.reopened}
        crowd.close()
    return result, sampler


def _line(sampler: Sampler) -> str:
    last = {name: values[-1] for name, values in sampler.series.items()}
    shown = ("launched", "rows instances", "pss_mib", "descriptors", "wal_mib", "latency_ms")
    return f"{sampler.times[-1]:6.0f} s  " + "  ".join(f"{name} {last[name]:.0f}" for name in shown)


def _result(plan: Plan, sampler: Sampler, worked: int, users: list[User], probe: Probe) -> dict[str, Any]:
    first = int(worked * WARM_UP)
    times = sampler.times[first:worked]
    growth, most = {}, {}
    for name, values in sampler.series.items():
        if len(values) < worked or name == "launched":
            continue
        growth[name] = round(theil_sen(times, values[first:worked]) * plan.hour, 3)
        most[name] = round(max(values), 1)
    codes: Counter[str] = Counter()
    for user in users:
        codes += user.client.codes
    lag = sampler.series.get("loop_lag_ms")
    launched = sum(user.launched for user in users)
    return {
        "asked": plan.launches, "launched": launched, "requests": codes.total() + len(probe.all), "seconds": round(sampler.times[worked - 1], 1),
        "compression": {"a_day_in_seconds": plan.seconds, "an_hour_in_seconds": round(plan.hour, 1), "forms_mib": FORMS_MIB},
        "growth_per_hour_of_the_day": {name: value for name, value in growth.items() if value or not name.startswith("rows")},
        "most": {name: value for name, value in most.items() if value},
        "loop_lag_ms_max": round(max(lag), 1) if lag else "not measured",
        "latency_ms": {"p50": round(_p(probe.all, 0.5), 2), "p99": round(_p(probe.all, 0.99), 1), "max": round(max(probe.all), 1)},
        "answers": dict(codes.most_common()),
    }  # fmt: skip


def panels(sampler: Sampler) -> list[chart.Panel]:
    series, minutes = sampler.series, [one / 60 for one in sampler.times]

    def panel(title: str, unit: str, **lines: str) -> chart.Panel:
        return chart.Panel(
            title, unit, minutes, {label: series[name] for label, name in lines.items() if name in series}
        )

    delay = {"worst look by id": "latency_ms"} | ({"event loop": "loop_lag_ms"} if "loop_lag_ms" in series else {})
    return [
        panel("Memory", "MiB", RSS="rss_mib", PSS="pss_mib"),
        panel("Instances launched", "", launched="launched"),
        panel("What lives and is forgotten", "rows", instances="rows instances", interfaces="rows interfaces"),
        panel("Other rows", "rows", **{"tags": "rows tags", "client tokens": "rows client_tokens", "rules": "rows security_group_rules"}),
        panel("Descriptors and threads", "", descriptors="descriptors", threads="threads"),
        panel("Files", "MiB", **{"database": "database_mib", "write-ahead log": "wal_mib", "logs": "logs_mib"}),
        panel("What is made and deleted", "rows", **{"template versions": "rows launch_template_versions", "key pairs": "rows key_pairs", "fleets": "rows fleets"}),
        panel("Delay in each second", "ms", **delay),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=20000, help="lives of instances in the day")
    parser.add_argument("--seconds", type=float, default=360.0, help="how long the day is here")
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--population", type=int, default=300, help="instances that are alive at once")
    parser.add_argument("--quick", action="store_true", help="1500 launches, in a minute")
    parser.add_argument("--plot", type=Path, help="draw the curves into this PNG")
    options = parser.parse_args()
    plan = Plan(options.launches, options.seconds, options.connections, options.population)
    if options.quick:
        plan = QUICK
    result, sampler = run(plan, lambda text: print(text, file=sys.stderr, flush=True))
    if options.plot:
        title = f"{result['launched']:,} instances launched and ended: a day in {plan.seconds:.0f} seconds"
        chart.draw(options.plot, title, panels(sampler), "minutes")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
