"""Journals, what is recorded in them, and what people are shown of it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from haneul.agent.tracing import Tracer
from haneul.api import audit
from haneul.records import journal, watching
from haneul.records.journal import Journal
from haneul.services.context import Caller


def test_lines_of_many_threads_are_whole_and_in_each_ones_order(tmp_path: Path) -> None:
    found = Journal(tmp_path / "j", 1 << 20, 1)

    def write(number: int) -> None:
        for count in range(200):
            found.write({"thread": number, "count": count, "text": "한\n" * 20})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.close()
    records = list(journal.read(tmp_path / "j"))
    assert len(records) == 1000
    for number in range(5):
        assert [one["count"] for one in records if one["thread"] == number] == list(range(200))
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o600


def test_old_records_go_when_there_is_no_room(tmp_path: Path) -> None:
    found = Journal(tmp_path / "j", 1000, 2)
    for count in range(100):
        found.write({"count": count, "text": "x" * 80})
    found.close()
    kept = [one["count"] for one in journal.read(tmp_path / "j")]
    assert kept == list(range(kept[0], 100)) and 15 <= len(kept) <= 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j", "j.1", "j.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk is played by a limit")
def test_a_full_disk_costs_lines_and_spoils_none(tmp_path: Path) -> None:
    found = Journal(Path("/dev/full"), 1000, 1)
    found.write({"lost": True})
    found.close()
    assert found.lost == 1


def test_a_journal_is_followed_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text('{"old": 1}\n')
    coming = journal.follow(path)
    assert next(coming) is None
    with path.open("a") as file:
        file.write('{"a": 1}\n{"half"')
    assert next(coming) == {"a": 1}
    assert next(coming) is None
    with path.open("a") as file:
        file.write(": 2}\nnot json\n")
    assert next(coming) == {"half": 2}
    path.rename(tmp_path / "j.1")
    assert next(coming) is None
    path.write_text('{"new": 3}\n')
    assert next(coming) == {"new": 3}


def _record(**more: object) -> dict[str, object]:
    given: dict[str, object] = {
        "caller": Caller("1" * 12, "us-east-1", "AKIA"), "service": "ec2", "operation": "RunInstances", "params": {},
        "answer": b"<i>i-0123456789abcdef0</i> i-0123456789abcdef0 sg-0123456789abcdef0", "error": None,
        "request_id": "r", "source": "127.0.0.1", "agent": "x" * 5000, "seconds": 0.5,
    }  # fmt: skip
    return audit.record(**(given | more))  # type: ignore[arg-type]


def test_no_secret_is_recorded() -> None:
    params = {
        "UserData": "s3cret", "ClientToken": "s3cret", "PublicKeyMaterial": b"s3cret",
        "LaunchTemplateData": {"UserData": "s3cret", "Deep": [{"UserData": "s3cret"}]}, "ImageId": "ami-1",
    }  # fmt: skip
    found = _record(params=params)
    assert "s3cret" not in str(found)
    assert found["requestParameters"]["imageId"] == "ami-1"  # type: ignore[index]
    assert len(str(found["userAgent"])) == 1024


def test_a_record_names_what_it_was_about() -> None:
    assert _record()["resources"] == ["i-0123456789abcdef0", "sg-0123456789abcdef0"]
    refused = _record(error=("InvalidX", "no"))
    assert (refused["errorCode"], refused["resources"]) == ("InvalidX", []), (
        "an answer that was refused tells of nothing"
    )
    asked = _record(operation="ModifyInstanceAttribute", params={"InstanceId": "i-0aaaaaaaaaaaaaaaa"}, answer=b"")
    assert asked["resources"] == ["i-0aaaaaaaaaaaaaaaa"]
    assert _record(operation="DescribeInstances")["readOnly"] is True


def test_no_record_is_large() -> None:
    """Else one account could push the records of all others out of the file."""
    params = {"Filters": [{"Name": f"tag:{n}", "Values": ["\x01" * 5000] * 200} for n in range(50)]}
    assert len(json.dumps(_record(params=params))) < 20000
    assert len(json.dumps(_record(answer=b" i-0123456789abcdef0" * 10**6))) < 20000


def test_half_a_line_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"whole": 1}\n{"ha')
    found = Journal(tmp_path / "j", 1000, 1)
    found.write({"next": 2})
    found.close()
    assert list(journal.read(tmp_path / "j")) == [{"whole": 1}, {"next": 2}]


def test_what_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    found = Journal(tmp_path / "j", 1000, 1)
    round_and_round: dict[str, object] = {}
    round_and_round["self"] = round_and_round
    found.write(round_and_round)
    found.write({"next": 2})
    found.close()
    assert (found.lost, list(journal.read(tmp_path / "j"))) == (1, [{"next": 2}])


def test_nothing_of_an_account_drives_the_owners_terminal() -> None:
    record = _record(params={}, agent="x") | {
        "resources": ["i-\x1b]0;owned\x07\nFORGED"],
        "eventName": "Stop\r\n\u202e",
    }
    line = watching.line(record)
    assert line.isprintable()


def test_a_boot_is_shown_with_the_call_that_ordered_it() -> None:
    boot = {"instance": "i-1", "ordered": 1000.0, "spans": [{"name": "disks", "began": 1000.2, "ended": 1001.0}]}
    calls = [{"eventName": "RunInstances", "eventTime": journal.moment(at), "resources": ["i-1"], "durationMs": 1.0}
             for at in (100.0, 999.9, 5000.0)]  # fmt: skip
    assert watching.call_of(boot, calls) is calls[1]
    assert watching.call_of(boot | {"ordered": 9000.0, "spans": [{"began": 9000.0}]}, calls) is None


def test_a_boot_is_told_once_with_its_steps_in_order() -> None:
    now = [100.0]
    tracer = Tracer(lambda: now[0])

    def step(name: str, seconds: float, boot: int = 1) -> None:
        with tracer.step("i-1", boot, name):
            now[0] += seconds

    step("disks", 1.0)
    step("disks", 2.0)  # tried again: the later one counts
    step("machine", 3.0)
    now[0] += 10
    tracer.over("i-1", 1, "guest")
    tracer.over("i-1", 1, "guest")
    step("disks", 1.0)
    tracer.over("i-1", 1, "guest")
    (trace,) = tracer.take()
    assert [(one.name, one.ended - one.began) for one in trace.spans] == [("disks", 2), ("machine", 3), ("guest", 10)]
    tracer.give_back((trace,))
    assert tracer.take() == (trace,)
    step("disks", 1.0, boot=2)
    tracer.over("i-1", 2, "failed", "why")
    assert tracer.take()[0].failed == "why"


def test_a_waterfall_begins_with_the_call_and_shows_the_wait_for_the_agent() -> None:
    boot = {"ordered": 1000.0, "spans": [{"name": "disks", "began": 1000.5, "ended": 1001.0},
                                         {"name": "guest", "began": 1001.0, "ended": 1003.0}]}  # fmt: skip
    call = {"eventTime": journal.moment(999.9), "durationMs": 200.0}
    bars = watching.waterfall(boot, call)
    assert [bar.name for bar in bars] == ["api", "agent", "disks", "guest"]
    assert [round(bar.ended, 3) for bar in bars] == [0.1, 0.5, 1.0, 3.0]
    assert all(len(line) <= 80 for line in watching.drawn(bars, 80))


def test_lines_tell_what_happened() -> None:
    state = {
        "time": "2026-01-02T03:04:05.678901Z",
        "event": "state",
        "instance": "i-1",
        "was": "pending",
        "now": "running",
        "why": "",
    }
    assert watching.line(state) == "2026-01-02 03:04:05.678  i-1  pending -> running"
    call = {"eventTime": "2026-01-02T03:04:05.678901Z", "eventName": "StopInstances", "errorCode": "Nope",
            "resources": ["i-1"], "requestParameters": {}, "userIdentity": {"accountId": "1", "accessKeyId": "A"}}  # fmt: skip
    assert watching.line(call).endswith("i-1  StopInstances by A (1): Nope")
    assert watching.concerns(call, "i-1") and watching.concerns(state, "i-1") and not watching.concerns(call, "i-2")
