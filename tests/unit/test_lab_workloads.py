"""The workloads as data: commands with programs in their places, and answers of the programs read."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import pytest

from haneul.lab import workloads
from haneul.lab.measure import places
from haneul.lab.report import literature, texts
from haneul.lab.report.texts import Text
from haneul.lab.workloads import GROUPS, WORKLOADS, Unreadable, command

BENCH = Path(workloads.__file__).parent / "measure" / "bench.c"


def test_programs_of_several_words_and_values_take_their_places() -> None:
    tools = {"fio": ["ld.so", "--library-path", "lib", "fio"]}
    assert command(("{fio}", "--filename={file}", "x"), tools, {"file": "/a b"}) == [
        "ld.so", "--library-path", "lib", "fio", "--filename=/a b", "x",
    ]  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_has_its_texts_and_a_complete_command(name: str) -> None:
    one = WORKLOADS[name]
    assert one.group in GROUPS
    assert name in texts.WORKLOAD
    assert name in texts.WORKLOAD_WHAT
    tools = {tool: [f"/bin/{tool}"] for tool in one.tools}
    values = {"file": "/f", "address": "198.18.0.1", "port": "5201"}
    for words in filter(None, (one.words, one.on_server, one.serving)):
        assert not [word for word in command(words, tools, values) if "{" in word]


def test_every_workload_of_our_program_is_in_it() -> None:
    source = BENCH.read_text()
    there = set(re.findall(r'^    \{"([a-z0-9-]+)", "', source, re.MULTILINE))
    asked = {one.words[1] for one in WORKLOADS.values() if one.words[0] == "{bench}"} - {"command"}
    assert asked == there


def test_our_program_gives_samples() -> None:
    told = '{"name": "getppid", "unit": "us", "samples": [0.19, 0.2], "checksum": "0"}\n'
    assert workloads.read_bench(told).samples == (0.19, 0.2)


@pytest.mark.parametrize(
    "told", ["", "Segmentation fault", "{}", '{"samples": []}', '{"samples": "x"}', "{", "[1]", '{"samples": [1']
)
def test_what_is_no_answer_is_refused(told: str) -> None:
    for one in WORKLOADS.values():
        with pytest.raises(Unreadable):
            one.read(told)


def test_sysbench() -> None:
    cpu = "CPU speed:\n    events per second:  2825.27\n\nGeneral statistics:\n"
    assert WORKLOADS["primes"].read(cpu).samples == (2825.27,)
    memory = "17427.00 MiB transferred (17384.35 MiB/sec)\n"
    assert WORKLOADS["memory-blocks"].read(memory).samples == (17384.35,)


def test_fio_behind_its_complaints() -> None:
    write = {"bw_bytes": 5e8, "iops": 500.0, "runtime": 512, "io_bytes": 268435456, "total_ios": 256}
    told = "note: both iodepth >= 1 and synchronous I/O engine\n" + json.dumps(
        {"jobs": [{"write": write, "read": write}]}
    )
    assert WORKLOADS["disk-sync"].read(told).samples == (2000.0,)
    assert WORKLOADS["disk-write"].read(told).samples == (pytest.approx(524.288),)
    assert WORKLOADS["disk-read"].read(told).samples == (500.0,)
    with pytest.raises(Unreadable):
        WORKLOADS["disk-write"].read(json.dumps({"jobs": [{"write": write | {"runtime": 0}}]}))


def test_iperf3_has_a_sample_for_each_second() -> None:
    def second(bits: float, seconds: float = 1.0, omitted: bool = False) -> dict[str, object]:
        return {"sum": {"bits_per_second": bits, "seconds": seconds, "omitted": omitted}}

    told = {
        "intervals": [second(1e6, omitted=True), second(2e9), second(3e9), second(9e9, 0.01)],
        "end": {"sum_received": {"bits_per_second": 2.5e9}},
    }
    assert WORKLOADS["net-in"].read(json.dumps(told)).samples == (2000.0, 3000.0)
    with pytest.raises(Unreadable, match="refused"):
        WORKLOADS["net-in"].read('{"error": "unable to connect: Connection refused"}')


def test_tools_of_a_guest() -> None:
    told = "motd of the guest\nhaneul-bench /usr/local/bin/haneul-bench\nfio /usr/bin/fio\nsource /usr/local/share/haneul-bench/bench.i\n"
    assert places.found_tools(told) == {
        "bench": ["/usr/local/bin/haneul-bench"], "fio": ["/usr/bin/fio"], "source": [places.SOURCE],
    }  # fmt: skip
    assert places.missing_tools("compile", places.found_tools(told)) == ["haneul-cc1"]


@pytest.mark.parametrize("source", ["bench.i", "share/bench.i", "share/haneul-bench/bench.i"])
def test_tools_of_the_server_bring_their_libraries(tmp_path: Path, source: str) -> None:
    for name in ("lib/ld-linux-x86-64.so.2", "bin/haneul-bench", "bin/fio", "bin/cc1", source):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    loader = [str(tmp_path / "lib/ld-linux-x86-64.so.2"), "--library-path", str(tmp_path / "lib")]
    assert places.server_tools(tmp_path) == {
        "bench": [str(tmp_path / "bin/haneul-bench")],
        "fio": [*loader, str(tmp_path / "bin/fio")],
        "cc1": [*loader, str(tmp_path / "bin/cc1")],
        "source": [str(tmp_path / source)],
    }
    assert places.server_tools(tmp_path / "nothing") == {}


def _all_texts() -> list[Text]:
    tables = (
        texts.WAY, texts.WAY_HOW, texts.WORKLOAD, texts.WORKLOAD_WHAT, texts.GROUP, texts.COLUMN, texts.TECHNIQUE, texts.BOOT,
        texts.PHASE, texts.PAGE, texts.WARNING, texts.MACHINE, texts.GUEST, texts.WHY, texts.VERDICT, texts.CLAIM, texts.FINDING,
    )  # fmt: skip
    listed = [one for table in tables for one in table.values()]  # type: ignore[attr-defined]
    return [*listed, *texts.METHOD, *(part for one in literature.PUBLISHED for part in (one.about, one.figure))]


def test_both_languages_say_the_same_and_each_in_its_own_letters() -> None:
    for text in _all_texts():
        assert text.en.strip(), text
        assert text.ko.strip(), text
        names = [{name for _, name, _, _ in string.Formatter().parse(one) if name} for one in (text.en, text.ko)]
        assert names[0] == names[1], text
        assert not re.search("[가-힣]", text.en), text
        if len(text.en) > 40:
            assert re.search("[가-힣]", text.ko), text


def test_a_text_within_a_text_keeps_its_language() -> None:
    inner = Text("disk", "디스크")
    assert Text("the {what}", "그 {what}").of(what=inner) == Text("the disk", "그 디스크")
