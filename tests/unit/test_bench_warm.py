"""The pure parts of `benchmarks/warm.py`: what it makes of logs, counters, packets and facts."""

from __future__ import annotations

import json
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import warm_figures as figures
from benchmarks import warm_guest as guest

ANSWERED = "i-0a1b goes on from a template: loaded 0.015 s, answered 0.261 s"
STAMP = "2026-11-23T11:32:38.492123Z"
MAC = guest.hardware("06:9a:5f:12:01:7a")
OWN = guest.hardware("02:00:00:00:00:01")


# --- samples -----------------------------------------------------------------------------------------


def test_nothing_measured_has_no_figure() -> None:
    assert figures.median([]) is None and figures.spread([]) is None
    assert figures.ratio(None, 1.0) is None and figures.ratio(20.0, None) is None
    assert figures.ratio(25.0, 0.5) == 50.0


@given(st.lists(st.floats(min_value=0.001, max_value=1e4), min_size=1, max_size=30))
def test_a_spread_is_in_order(samples: list[float]) -> None:
    found = figures.spread(samples)
    assert found is not None and found["samples"] == len(samples)
    assert found["min"] <= found["low"] <= found["median"] <= found["high"] <= found["max"]


# --- haneul's own words ------------------------------------------------------------------------------


def test_an_answer_is_read_from_either_form_of_the_log() -> None:
    found = figures.answer(
        json.dumps({"time": STAMP, "level": "INFO", "logger": "x", "request": "-", "message": ANSWERED})
    )
    assert found == figures.Answer("i-0a1b", pytest.approx(1795433558.492123), {"loaded": 0.015, "answered": 0.261})
    plain = figures.answer(f"2026-11-23 11:32:38,492 INFO haneul.drivers.warm [-]: {ANSWERED}")
    assert plain is not None and plain.parts == found.parts and plain.at % 60 == pytest.approx(38.492)


def test_further_parts_of_an_answer_are_read_too_and_other_lines_are_none() -> None:
    more = figures.answer(
        json.dumps({"time": STAMP, "message": "i-0a1b goes on from a template: told at once 0.010 s, answered 1 s"})
    )
    assert more is not None and more.parts == {"told at once": 0.01, "answered": 1.0}
    for line in (
        "",
        "{",
        "[]",
        '{"time": 1}',
        "Traceback (most recent call last):",
        json.dumps({"time": STAMP, "message": "else"}),
    ):
        assert figures.answer(line) is None
        assert not figures.says_ready(line)


def test_a_template_that_is_ready() -> None:
    text = "2026-11-23 11:32:38,011 INFO haneul.drivers.templates [-]: a template of Shape(image='tiny') is ready after 9.3 s"
    assert figures.says_ready(text)
    assert not figures.says_ready(text.replace("is ready after 9.3 s", "is taken up"))


def test_when_a_guest_goes_on() -> None:
    lines = [
        '{"QMP": {}}', "no event", '{"timestamp": {"seconds": 9, "microseconds": 1}, "event": "MIGRATION"}',
        '{"timestamp": {"seconds": 10, "microseconds": 250000}, "event": "RESUME"}',
        '{"timestamp": {"seconds": 99, "microseconds": 0}, "event": "RESUME"}',
    ]  # fmt: skip
    assert figures.goes_on_at("\n".join(lines)) == 10.25
    assert figures.goes_on_at("") is None


# --- the kernel's words ------------------------------------------------------------------------------


def test_memory_of_a_process() -> None:
    text = """5601-7ffc ---p 00000000 00:00 0    [rollup]
Rss:               4096 kB
Pss:               3072 kB
Pss_Dirty:         1024 kB
Shared_Clean:      1024 kB
Shared_Dirty:         0 kB
Private_Clean:      512 kB
Private_Dirty:     2560 kB
"""
    assert figures.memory(text) == {"private": 3.0, "private_dirty": 2.5, "shared": 1.0, "pss": 3.0, "rss": 4.0}


def test_a_process_began_so_long_ago() -> None:
    stat = "710 (a (strange) name) S 1 710 710 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 4 0 50000 1558356 37223"
    assert figures.started_at(stat, 100, now=10_000.0, since_boot=600.0) == 9900.0


def test_what_a_process_had_of_processors() -> None:
    """Its 14th and 15th figure, whatever its name is."""
    assert figures.cpu_seconds("42 (a ) b) S " + " ".join(str(one) for one in range(4, 53)), 10) == pytest.approx(2.9)


def test_how_busy_the_processors_were() -> None:
    """user, nice, system, idle, iowait, irq, softirq, steal, guest (a part of user), guest_nice."""
    before = "cpu  100 0 50 1000 10 0 5 20 90 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    after = "cpu  150 10 60 1080 30 0 5 50 140 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    assert figures.busy_share(before, after) == pytest.approx(0.5)
    assert figures.busy_share(before, before) == 0


def test_the_servers_memory_and_one_that_has_more() -> None:
    text = "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:   1048576 kB\n"
    assert figures.available_mib(text) == 1024 and figures.total_mib(text) == pytest.approx(24105.5, abs=0.1)
    more = figures.with_total(text, 65536)
    assert figures.total_mib(more) == 65536 and figures.available_mib(more) == 1024


def test_who_a_template_was_is_in_its_journals_memory() -> None:
    own, other = "a" * 32, "b" * 32
    saved = [
        f"_MACHINE_ID={own}\0_MACHINE_ID={own}\0_HOSTNAME=localhost\n".encode(),
        f"_MACHINE_ID={other}\0_BOOT_ID=%s\0".encode(),
    ]
    assert figures.template_identity(saved) == {"machine_id": [own, other], "boot_id": [], "hostname": ["localhost"]}


# --- the waterfall -----------------------------------------------------------------------------------


def test_steps_follow_each_other_and_what_is_not_known_is_left_out() -> None:
    found = figures.steps(
        {"request": 100.5, "api": 101.0, "volume": None, "prepare": 100.9, "answer": 102.0}, sent=100.0
    )
    assert [(one.name, one.began, one.ended) for one in found] == [
        ("request", 0.0, 0.5), ("api", 0.5, 1.0), ("prepare", 1.0, 1.0), ("answer", 1.0, 2.0),
    ]  # fmt: skip


def test_the_waterfall_of_several_launches_has_the_medians_of_their_steps() -> None:
    launches = [[figures.Step("api", 0, lasts), figures.Step("answer", lasts, lasts + 1)] for lasts in (1.0, 2.0, 9.0)]
    assert figures.middle(launches) == [figures.Step("api", 0, 2.0), figures.Step("answer", 2.0, 3.0)]
    assert figures.middle([]) == []
    drawn = list(figures.drawn(figures.middle(launches), width=62))
    assert len(drawn) == 2 and drawn[0].startswith("api") and "2000.0 ms" in drawn[0] and drawn[0].count("█") == 20
    assert all(len(line) <= 62 for line in drawn)


def test_steps_of_ssh() -> None:
    said = [
        (1.0, "OpenSSH_9.2p1"), (2.0, "debug1: Connection established."), (3.0, "debug1: Remote protocol version 2.0, remote"),
        (4.0, "debug1: SSH2_MSG_NEWKEYS received"), (5.0, 'Authenticated to 198.19.0.1 ([198.19.0.1]:22) using "publickey".'),
        (6.0, "debug1: SSH2_MSG_NEWKEYS received"),
    ]  # fmt: skip
    assert figures.ssh_steps(said) == {"connected": 2.0, "banner": 3.0, "keys": 4.0, "authenticated": 5.0}


# --- whether clones differ ---------------------------------------------------------------------------


def test_facts_end_at_their_end() -> None:
    assert figures.facts(["mac 06:00", "empty ", "ssh_ed25519 AAAA BBBB", "end ", "mac later"]) == {
        "mac": "06:00", "ssh_ed25519": "AAAA BBBB",
    }  # fmt: skip


def test_a_tally_counts_every_guest_that_has_anothers_value() -> None:
    guests = [{"id": "a", "mac": "1"}, {"id": "a", "mac": "2"}, {"id": "b"}, {"id": "a"}]
    assert figures.tally(guests) == {
        "id": {"guests": 4, "values": 2, "repeated": 3}, "mac": {"guests": 2, "values": 2, "repeated": 0},
    }  # fmt: skip
    assert figures.tally([]) == {}


def test_what_a_guest_says_is_compared_with_what_ec2_says() -> None:
    wanted = {"hostname": "ip-172-31-0-5", "address": "172.31.0.5", "mac": "06:01", "cloud_init_id": "i-1"}
    assert (
        figures.differing({"hostname": "ip-172-31-0-5.ec2.internal", "address": "172.31.0.5", "mac": "06:01"}, wanted)
        == []
    )
    assert figures.differing({"address": "172.31.0.6", "hostname": "localhost"}, wanted) == [
        "hostname is localhost, not ip-172-31-0-5", "address is 172.31.0.6, not 172.31.0.5",
    ]  # fmt: skip


def test_the_quickest_round_tells_the_clock() -> None:
    ahead, at_most = figures.offset([(10.0, 10.9, 11.0), (20.0, 20.06, 20.02), (30.0, 30.3, 30.5)])
    assert ahead == pytest.approx(0.05) and at_most == pytest.approx(0.01)


def test_places_of_different_guests_are_the_same_place() -> None:
    place = "/var/log/journal/43648fbb87051800a008d04ef8316953/system.journal: _BOOT_ID"
    own = {"machine_id": "43648fbb87051800a008d04ef8316953", "short": "log"}
    assert figures.of_any(place, own) == "/var/log/journal/MACHINE_ID/system.journal: _BOOT_ID"


def test_only_differences_are_told() -> None:
    assert figures.unequal({"qemu": 0, "files": 9, "gone": 1}, {"qemu": 0, "files": 12.5}) == {"files": 3.5, "gone": -1}


# --- packets -----------------------------------------------------------------------------------------


def test_packets_have_right_checksums() -> None:
    echo = guest._echo(OWN, MAC, "172.31.0.1", "172.31.14.206")
    assert echo[:12] == MAC + OWN and guest._checksum(echo[14:34]) == 0 and guest._checksum(echo[34:]) == 0
    knock = guest._knock(OWN, MAC, "172.31.0.1", "172.31.14.206", 22)
    pseudo = knock[26:34] + struct.pack("!HH", 6, 20)
    assert guest._checksum(knock[14:34]) == 0 and guest._checksum(pseudo + knock[34:]) == 0
    assert knock[36:38] == struct.pack("!H", 22) and knock[47] == 0x02


def test_answers_tell_who_has_sent_them() -> None:
    address = socket.inet_aton("172.31.14.206")
    arp = (
        OWN
        + MAC
        + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 2)
        + MAC
        + address
        + OWN
        + socket.inet_aton("172.31.0.1")
    )
    assert guest._arp_answer(arp) == ("172.31.14.206", MAC)
    assert guest._arp_answer(guest._who_has(OWN, "172.31.0.1", "172.31.14.206")) is None
    asked = guest._echo(MAC, OWN, "172.31.14.206", "172.31.0.1")
    answered = asked[:34] + b"\0" + asked[35:]
    assert guest._echo_answer(answered) == ("172.31.14.206", MAC)
    for frame in (b"", asked, arp, answered[:20]):
        assert guest._echo_answer(frame) is None


def test_a_port_is_open_if_its_connection_is_accepted() -> None:
    asked = guest._knock(MAC, OWN, "172.31.14.206", "172.31.0.1", 47123)
    from_22 = asked[:34] + struct.pack("!H", 22) + asked[36:]
    accepted, refused = from_22[:47] + b"\x12" + from_22[48:], from_22[:47] + b"\x14" + from_22[48:]
    assert guest._open_answer(accepted, 22) == ("172.31.14.206", MAC)
    for frame in (b"", refused, from_22, guest._echo(OWN, MAC, "172.31.0.1", "172.31.0.2")):
        assert guest._open_answer(frame, 22) is None
    assert guest._open_answer(accepted, 23) is None


def test_a_login_as_another_user_becomes_root_by_sudo() -> None:
    key = guest.Path("/k")
    assert guest.Login("198.19.0.1", "root", key).root("id; id") == "id; id"
    assert guest.Login("198.19.0.1", "admin", key).root("id; id") == "sudo -n sh -c 'id; id'"
    assert guest.Login("198.19.0.1", "admin", key).command("true")[-2:] == ["admin@198.19.0.1", "true"]


def test_what_is_searched_for_is_not_told_to_sudo_and_programs_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in (guest.PYTHON, guest.TRACES_PYTHON):
        compile(program, "guest", "exec")
    told: list[tuple[str, str]] = []

    def said(login: guest.Login, command: str, seconds: float, given: str) -> str:
        told.append((command, given))
        return "kernel_boot_id k\ncontrol /etc/machine-id\ntrace /var/log/x: abc\nend\n"

    monkeypatch.setattr(guest, "said", said)
    assert guest.traces(guest.Login("198.19.0.1", "admin", guest.Path("/k")), False, ["abc0123"]) == (
        "k",
        ["/var/log/x: abc"],
    )
    ((command, given),) = told
    assert "abc0123" not in command and given == "abc0123"
