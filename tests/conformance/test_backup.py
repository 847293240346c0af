"""A backup is one moment of a cloud, and a restore is that cloud again: whole, or not at all."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from haneul.app.lifecycle import Lifecycle
from haneul.backup import archive
from haneul.config import Settings
from haneul.errors import SettingsError
from tests.conformance.conftest import FakeCloud
from tests.postgresql import Server
from tests.system.conftest import eventually

AMI = "ami-0123456789abcdef0"
DESCRIBES = [
    "describe_instances", "describe_volumes", "describe_network_interfaces", "describe_key_pairs", "describe_vpcs",
    "describe_subnets", "describe_security_groups", "describe_security_group_rules", "describe_route_tables",
    "describe_internet_gateways", "describe_network_acls", "describe_dhcp_options", "describe_launch_templates",
    "describe_placement_groups", "describe_tags", "describe_fleets", "describe_images",
]  # fmt: skip
SECRET_MODES = 0o077


def _settings(data: Path, **more: Any) -> Settings:
    return Settings(data=data, drivers="fake", **more)


def _backup(data: Path, file: Path, *, volumes: bool = False, force: bool = False, **settings: Any) -> list[str]:
    return Lifecycle().backup(_settings(data, **settings), file, volumes, force, lambda _: None)


def _restore(data: Path, file: Path, *, replace: bool = False, without: bool = False, **settings: Any) -> list[str]:
    return Lifecycle().restore(_settings(data, **settings), file, replace, without, lambda _: None)


def _answers(cloud: FakeCloud) -> dict[str, Any]:
    found = {}
    for region in ("us-east-1", "eu-west-1"):
        ec2 = cloud.client(region=region)
        for name in DESCRIBES:
            answer = getattr(ec2, name)()
            answer.pop("ResponseMetadata")
            found[f"{region} {name}"] = answer
    return found


def _rich(cloud: FakeCloud) -> list[str]:
    """Something of everything; the ids of the instances (running, stopped, terminated)."""
    ec2 = cloud.client()
    ec2.create_key_pair(KeyName="old key")
    group = ec2.create_security_group(GroupName="web", Description="web")["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=80, ToPort=80, CidrIp="0.0.0.0/0")
    ec2.create_placement_group(GroupName="apart", Strategy="spread")
    data = {"ImageId": AMI, "InstanceType": "t3.nano"}
    ec2.create_launch_template(LaunchTemplateName="small", LaunchTemplateData=data)
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web 한 \"'\\ 🙂"}]}]
    answer = ec2.run_instances(
        ImageId=AMI, InstanceType="t3.nano", MinCount=4, MaxCount=4, KeyName="old key", SecurityGroupIds=[group],
        TagSpecifications=tags, ClientToken="once", UserData="#!/bin/sh\necho 한",
    )  # fmt: skip
    ids = [one["InstanceId"] for one in answer["Instances"]]
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig={"Delay": 1})
    ec2.reboot_instances(InstanceIds=ids[:1])
    ec2.stop_instances(InstanceIds=ids[1:2])
    ec2.terminate_instances(InstanceIds=ids[2:3])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=ids[1:2], WaiterConfig={"Delay": 1})
    ec2.get_waiter("instance_terminated").wait(InstanceIds=ids[2:3], WaiterConfig={"Delay": 1})
    cloud.client(region="eu-west-1").create_key_pair(KeyName="there")
    return ids


@pytest.fixture(scope="module")
def rich(start_cloud: Callable[..., FakeCloud], tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeCloud, Path]:
    """A cloud that runs, and a backup of it."""
    cloud = start_cloud(tmp_path_factory.mktemp("rich"), unknown_image="refuse")
    _rich(cloud)
    file = tmp_path_factory.mktemp("backups") / "rich.tgz"
    _backup(cloud.running.settings.data, file)
    return cloud, file


def _same(was: dict[str, Any], restored: FakeCloud) -> None:
    def ask() -> bool:
        found = _answers(restored)
        for name, answer in was.items():
            assert found[name] == answer, name
        return True

    eventually("every answer is as it was", ask, 20)


def test_restored_elsewhere_every_answer_is_as_it_was(
    rich: tuple[FakeCloud, Path], start_cloud: Callable[..., FakeCloud], tmp_path: Path
) -> None:
    cloud, file = rich
    was = _answers(cloud)
    data = tmp_path / "other"
    told = _restore(data, file)
    assert "4 instances" in told[0]
    assert not list(data.glob("before-restore-*")) and not list(data.glob(".restor*"))
    for path in data.rglob("*"):
        if (
            path.is_file()
            and not path.name.endswith(".pem")
            and not path.name.startswith(("ssh_key.pub", "fake-world.db"))
        ):
            assert not path.stat().st_mode & SECRET_MODES, path
    # The keys of then sign: `client` takes them from the restored identity.
    restored = start_cloud(data, public_pool=cloud.running.settings.public_pool)
    assert restored.identity.read_credentials() == cloud.identity.read_credentials()
    assert restored.identity.secret == cloud.identity.secret
    _same(was, restored)
    machines = restored.world.all("machine")
    assert sorted(one["power"] for one in machines.values()) == ["off", "running", "running"]
    ec2 = restored.client()
    (stopped,) = [one for one, value in machines.items() if value["power"] == "off"]
    ec2.start_instances(InstanceIds=[stopped])
    ec2.get_waiter("instance_running").wait(InstanceIds=[stopped], WaiterConfig={"Delay": 1})
    again = ec2.run_instances(
        ImageId=AMI, InstanceType="t3.nano", MinCount=4, MaxCount=4, KeyName="old key", ClientToken="new"
    )
    assert len(again["Instances"]) == 4
    ec2.reboot_instances(InstanceIds=[stopped])
    restored.stop()


def test_what_is_there_is_put_aside_only_if_told_so(
    rich: tuple[FakeCloud, Path], start_cloud: Callable[..., FakeCloud], tmp_path: Path
) -> None:
    cloud, file = rich
    data = tmp_path / "used"
    used = start_cloud(data)
    used.client().create_key_pair(KeyName="of the used one")
    (machine,) = [
        one["InstanceId"]
        for one in used.client().run_instances(ImageId=AMI, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"]
    ]
    used.client().get_waiter("instance_running").wait(InstanceIds=[machine], WaiterConfig={"Delay": 1})
    used.client().stop_instances(InstanceIds=[machine])
    used.client().get_waiter("instance_stopped").wait(InstanceIds=[machine], WaiterConfig={"Delay": 1})
    key = used.identity.read_credentials()
    used.stop()
    with pytest.raises(SettingsError, match="--replace"):
        _restore(data, file)
    told = _restore(data, file, replace=True)
    (before,) = data.glob("before-restore-*")
    assert str(before) in told[-1] and not before.stat().st_mode & SECRET_MODES
    assert (before / "identity" / "credentials").read_text().split()[0] == key[0]
    # The old cloud lives on in the folder.
    shutil.copytree(before, tmp_path / "old")
    old = start_cloud(tmp_path / "old")
    assert [one["KeyName"] for one in old.client().describe_key_pairs()["KeyPairs"]] == ["of the used one"]
    old.stop()
    restored = start_cloud(data, public_pool=cloud.running.settings.public_pool)
    _same(_answers(cloud), restored)
    restored.stop()


def test_sqlite_to_postgresql_and_back(
    rich: tuple[FakeCloud, Path],
    start_cloud: Callable[..., FakeCloud],
    postgresql_server: Server,
    tmp_path: Path,
) -> None:
    cloud, file = rich
    was = _answers(cloud)
    database = postgresql_server.database()
    pool = cloud.running.settings.public_pool
    _restore(tmp_path / "pg", file, database=database)
    there = start_cloud(tmp_path / "pg", database=database, public_pool=pool)
    _same(was, there)
    there.client().create_key_pair(KeyName="on PostgreSQL")
    second = _answers(there)
    _backup(tmp_path / "pg", tmp_path / "back.tar", database=database)
    there.stop()
    with pytest.raises(SettingsError, match="--replace"):
        _restore(tmp_path / "pg", file, database=database)
    _restore(tmp_path / "pg", file, replace=True, database=database)
    (before,) = (tmp_path / "pg").glob("before-restore-*")
    assert "on PostgreSQL" in (before / "store.jsonl").read_text()
    there = start_cloud(tmp_path / "pg", database=database, public_pool=pool)
    _same(was, there)
    there.stop()
    _restore(tmp_path / "lite", tmp_path / "back.tar")
    back = start_cloud(tmp_path / "lite", public_pool=pool)
    _same(second, back)
    back.stop()


def _write_until(cloud: FakeCloud, name: str, end: threading.Event, log: list[tuple[str, float, float]]) -> None:
    ec2 = cloud.client()
    for number in range(10000):
        if end.is_set():
            return
        key, began = f"{name}-{number}", time.monotonic()
        tags = [{"ResourceType": "key-pair", "Tags": [{"Key": "n", "Value": key}]}]
        ec2.create_key_pair(KeyName=key, TagSpecifications=tags)
        if number % 5 == 0:
            ec2.run_instances(ImageId=AMI, InstanceType="t3.nano", MinCount=1, MaxCount=1, ClientToken=key)
        log.append((key, began, time.monotonic()))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_under_writes_is_one_moment(
    request: pytest.FixtureRequest, kind: str, start_cloud: Callable[..., FakeCloud], tmp_path: Path
) -> None:
    """There is a time before which everything that was answered is in it, and after which nothing that was asked is."""
    database = request.getfixturevalue("postgresql_server").database() if kind == "postgresql" else ""
    cloud = start_cloud(tmp_path / "busy", database=database)
    end, log = threading.Event(), list[tuple[str, float, float]]()
    writers = [threading.Thread(target=_write_until, args=(cloud, f"w{one}", end, log)) for one in range(3)]
    for one in writers:
        one.start()
    files = []
    for number in range(4):
        time.sleep(0.5)
        files.append(tmp_path / f"{number}.tar")
        _backup(tmp_path / "busy", files[-1], database=database)
    end.set()
    for one in writers:
        one.join()
    cloud.stop()
    sizes = []
    for file in files:
        with archive.opened(file) as (manifest, members):
            rows = [
                json.loads(line)
                for name, content in members
                for line in (b"".join(content).splitlines() if name == "store.jsonl" else ())
            ]
        assert manifest.rows["key_pairs"] == sum(name == "key_pairs" for name, _ in rows)
        names = {row["name"] for name, row in rows if name == "key_pairs"}
        assert names == {row["value"] for name, row in rows if name == "tags" and row["key"] == "n"}
        inside = [began for key, began, _ in log if key in names]
        outside = [ended for key, _, ended in log if key not in names]
        assert max(inside, default=0) <= min(outside, default=time.monotonic())
        instances = {row["id"] for name, row in rows if name == "instances"}
        assert instances == {row["instance_id"] for name, row in rows if name == "volumes"}
        assert instances == {row["instance_id"] for name, row in rows if name == "interfaces"}
        sizes.append(len(names))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


# --- the command line -----------------------------------------------------------------------------------


def _haneul(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HANEUL_")}
    environment |= {"HANEUL_DATA": str(data), "HANEUL_DRIVERS": "fake", "HANEUL_PORT": "0"}
    command = [sys.executable, "-m", "haneul", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_commands(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "b.tgz"
    nothing = _haneul(data, "backup", str(file))
    assert nothing.returncode == 3 and "nothing to back up" in nothing.stderr and not list(tmp_path.glob(".*"))
    assert _haneul(data, "up", "--detach").returncode == 0
    try:
        made = _haneul(data, "backup", str(file))
        assert made.returncode == 0 and "disks are not in it" in made.stdout and made.stderr == ""
        assert file.stat().st_mode & 0o777 == 0o600
        refused = _haneul(data, "backup", str(file))
        assert refused.returncode == 3 and "--force" in refused.stderr
        assert _haneul(data, "backup", "--force", str(file)).returncode == 0
        refused = _haneul(data, "backup", "--volumes", str(tmp_path / "c"))
        assert refused.returncode == 3 and "haneul down" in refused.stderr
        refused = _haneul(data, "restore", "--replace", str(file))
        assert refused.returncode == 3 and "haneul down" in refused.stderr
    finally:
        _haneul(data, "down")
    assert _haneul(data, "backup", "--volumes", str(tmp_path / "c")).returncode == 0
    missing = _haneul(data, "restore", "--replace", str(tmp_path / "no"))
    assert missing.returncode == 3 and "there is no file" in missing.stderr
    done = _haneul(data, "restore", "--replace", str(file))
    assert done.returncode == 0 and "is restored" in done.stdout and "before-restore-" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tgz", "c", "data"]
    assert _haneul(data, "up", "--detach").returncode == 0
    assert _haneul(data, "down", "--purge").returncode == 0 and not data.exists()


# --- hostile files --------------------------------------------------------------------------------------

Parts = list[tuple[tarfile.TarInfo, bytes]]


def _parts(file: Path) -> Parts:
    with tarfile.open(file) as tar:
        return [(one, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def _info(name: str, content: bytes, **values: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size = len(content)
    for key, value in values.items():
        setattr(found, key, value)
    return found


def _packed(parts: Parts, *, end: bool = True) -> bytes:
    out = io.BytesIO()
    for info, content in parts:
        out.write(info.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512))
    return out.getvalue() + (b"\0" * 1024 if end else b"")


def _with(parts: Parts, name: str, content: bytes, honest: bool = True) -> Parts:
    """One member's content is another; with `honest` the manifest says so."""
    changed = [(_info(i.name, content) if i.name == name else i, content if i.name == name else c) for i, c in parts]
    if not honest:
        return changed
    manifest = json.loads(changed[0][1])
    manifest["members"][name] = vars(archive.member(io.BytesIO(content)))
    return _manifest(changed, manifest)


def _manifest(parts: Parts, manifest: Any) -> Parts:
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    return [(_info("manifest.json", text), text), *parts[1:]]


def _rows(parts: Parts, change: Callable[[list[Any]], None], *, count: bool = True) -> Parts:
    (store,) = [content for info, content in parts if info.name == "store.jsonl"]
    rows = [json.loads(line) for line in store.splitlines()]
    change(rows)
    changed = _with(parts, "store.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    if not count:
        return changed
    manifest = json.loads(changed[0][1])
    manifest["rows"] = {}
    for row in rows:
        manifest["rows"][row[0]] = manifest["rows"].get(row[0], 0) + 1
    return _manifest(changed, manifest)


def _set(table: str, column: str, value: Any) -> Callable[[list[Any]], None]:
    def change(rows: list[Any]) -> None:
        next(row for row in rows if row[0] == table)[1][column] = value

    return change


def _hostile(file: Path) -> Iterator[tuple[str, bytes]]:
    parts = _parts(file)
    good = json.loads(parts[0][1])
    store = next(content for info, content in parts if info.name == "store.jsonl")
    plain = _packed(parts)
    for name in (
        "/etc/passwd",
        "../../x",
        "identity/../../x",
        "volumes/../x.qcow2",
        "volumes/vol-1.qcow2",
        "x",
        ".",
        "",
    ):
        yield f"a member called {name!r}", _packed([*parts, (_info(name, b"x"), b"x")])
        members = good["members"] | {name: {"size": 1, "sha256": "0" * 64}}
        changed = _manifest(parts, good | {"members": members})
        yield f"a described member called {name!r}", _packed([*changed, (_info(name, b"x"), b"x")])
    for name, kind in {"symlink": b"2", "hard link": b"1", "device": b"3", "block device": b"4", "folder": b"5",
                       "pipe": b"6", "pax": b"x", "global pax": b"g", "long name": b"L", "sparse": b"S"}.items():  # fmt: skip
        bad = _info("identity/secret", b"", type=kind, linkname="/etc/shadow")
        yield f"a {name}", _packed([parts[0], (bad, b""), *parts[1:]])
        yield f"a {name} at the begin", _packed([(bad, b""), *parts])
        huge = _info("x", b"", type=kind)
        huge.size = 1 << 40
        yield f"a huge {name}", huge.tobuf(tarfile.GNU_FORMAT) + plain
    for info, content in parts:
        other = bytes([content[0] ^ 1]) + content[1:]
        yield f"{info.name} with a flipped bit", _packed(_with(parts, info.name, other, honest=False))
        yield f"{info.name} twice", _packed([*parts, (info, content)])
        yield f"without {info.name}", _packed([one for one in parts if one[0] is not info])
        longer = _info(info.name, content)
        longer.size = 1 << 60
        yield f"{info.name} of 2^60 bytes", _packed([(longer if i is info else i, c) for i, c in parts])
    end = 0
    for info, content in parts:
        for cut in (end, end + 100, end + 512, end + 512 + len(content) // 2):
            yield f"cut off at {cut} (in {info.name})", plain[:cut]
        end += 512 + len(content) + -len(content) % 512
    yield "cut off before its end", plain[:end]
    zipped = file.read_bytes()
    for cut in (1, 2, 10, len(zipped) // 2, len(zipped) - 9):
        yield f"gzip cut off at {cut}", zipped[:cut]
    yield "gzip with a flipped bit", zipped[: len(zipped) // 2] + b"\xff\x00\xff" + zipped[len(zipped) // 2 + 3 :]
    yield "nothing", b""
    yield "text", b"hello\n" * 1000
    yield "zeros", b"\0" * 100000
    for text in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100000,
        b'{"format": NaN}',
        b'{"format": 1}',
        b"\xff\xfe{}",
        b'{"format": true}',
    ):
        yield f"a manifest of {text[:20]!r}", _packed(_manifest(parts, text))
    for name, value in {
        "format": 2, "schema": "9999", "members": {}, "rows": {"instances": -1}, "volumes": {"../x": {}}, "made": "\x1b[2J",
        "images": {"../..": "0"}, "data": 5, "haneul": None,
    }.items():  # fmt: skip
        yield f"{name} = {value!r}", _packed(_manifest(parts, good | {name: value}))
    volume = {"size": 1 << 60, "image": "", "backing": "", "included": True}
    huge_one = good | {"volumes": {"vol-0": volume}}
    huge_one["members"] = good["members"] | {"volumes/vol-0.qcow2": {"size": 1 << 49, "sha256": "0" * 64}}
    yield "a volume that does not fit on the disk", _packed(_manifest(parts, huge_one))
    strange = _with(parts, "identity/slot", b"256")
    yield "slot 256", _packed(strange)
    yield "slot ../", _packed(_with(parts, "identity/slot", b"../"))
    for text in (b"{}\n", b"[1,2]\n", b'["instances",{}]\n', b'["instances"\n', b"[" * 200000 + b"\n", b"\xff\n", store[:-1],
                 store + b'["nothing",{"id":1}]\n', store + store, b"\0" * 1000000):  # fmt: skip
        yield f"rows {text[:20]!r} ({len(text)})", _packed(_with(parts, "store.jsonl", text))
    for table, column, value in (
        ("instances", "no_such_column", 1), ("instances", "id", None), ("instances", "id", "../../x"),
        ("volumes", "id", "/etc/passwd"), ("volumes", "image_name", "../../../etc"), ("instances", "boot_count", "1"),
        ("instances", "boot_count", 1 << 70), ("instances", "boot_count", True), ("instances", "created", "now"),
        ("instances", "force", 1), ("security_group_rules", "cidr", "0.0.0.0/0; flush ruleset"), ("vpcs", "cidr", "x y"),
        ("interfaces", "mac", "00:00,script=x"), ("instances", "power", "on;"), ("tags", "key", "k" * 200),
        ("key_pairs", "name", "a\0b"), ("key_pairs", "name", ["x"]), ("accounts", "created", float("nan")),
    ):  # fmt: skip
        yield f"{table}.{column} = {str(value)[:30]!r}", _packed(_rows(parts, _set(table, column, value)))
    yield (
        "a table alembic_version",
        _packed(_rows(parts, lambda rows: rows.append(["alembic_version", {"version_num": "1"}]))),
    )
    yield "a row twice", _packed(_rows(parts, lambda rows: rows.append(rows[0])))
    yield "a row too few", _packed(_rows(parts, lambda rows: rows.pop() and None, count=False))


def _tree(data: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(data)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(data.rglob("*"))
        if path.name != "haneul.lock" and not path.name.startswith("fake-world.db")
    }


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_hostile_files_change_nothing(
    rich: tuple[FakeCloud, Path], request: pytest.FixtureRequest, database: str, tmp_path: Path,
    record_tally: Callable[[str], None],
) -> None:  # fmt: skip
    _, file = rich
    url = request.getfixturevalue("postgresql_server").database() if database == "postgresql" else ""
    data, bad = tmp_path / "data", tmp_path / "bad.tar"
    _restore(data, file, database=url)
    was = _tree(data)
    count = 0
    for what, content in _hostile(file):
        bad.write_bytes(content)
        began = time.monotonic()
        try:
            _restore(data, bad, replace=True, database=url)
        except SettingsError as error:
            assert "haneul runs" not in str(error), what
            assert "\n" not in str(error) and "\x1b" not in str(error) and len(str(error)) < 800, what
        else:
            raise AssertionError(f"taken: {what}")
        assert time.monotonic() - began < 20, what
        assert _tree(data) == was, what
        count += 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "data"]
    _backup(data, tmp_path / "still.tar", database=url)
    record_tally(f"backups: {count} hostile or damaged files refused on {database}, nothing changed")


# --- killed ---------------------------------------------------------------------------------------------


def _torture(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.conformance.kill_restore", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_killed_at_any_moment_it_is_the_old_one_or_the_new_one(
    rich: tuple[FakeCloud, Path], request: pytest.FixtureRequest, database: str,
    start_cloud: Callable[..., FakeCloud], tmp_path: Path, record_tally: Callable[[str], None],
) -> None:  # fmt: skip
    """kill -9 at every step that the file system sees, and at moments by chance; also while the next one finishes it."""
    _, file = rich
    url = request.getfixturevalue("postgresql_server").database() if database == "postgresql" else ""
    old = start_cloud(tmp_path / "old")
    old.client().create_key_pair(KeyName="of the old one")
    old.stop()
    _backup(tmp_path / "old", tmp_path / "old.tar")
    found = _torture(tmp_path, str(file), str(tmp_path / "old.tar"), url, str(random.Random(7).random()))
    assert found["mixed"] == []
    assert found["old"] and found["new"], found
    record_tally(
        f"restore on {database}, kill -9 at {found['steps']} steps and {found['moments']} moments: "
        f"{found['old']} times the old store, {found['new']} times the new one, never a mix"
    )
