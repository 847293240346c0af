"""Generations as data: how an instance is run, what is said of it, and which server can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from haneul.config import Settings
from haneul.errors import CloudError
from haneul.model.assignment import ServerFacts
from haneul.model.generation import GENERATIONS, WAYS, Generation, as_run, noted, parse, run_way
from haneul.model.instance_types import families, instance_types
from haneul.model.values import from_json, to_json
from haneul.services import placement

NO_KVM = "there is no /dev/kvm"


@pytest.mark.parametrize(
    ("generation", "accelerator", "way", "tag"),
    [
        ("hvm", "kvm", "hvm", ""),
        ("hvm", "tcg", "emulated-fast", f"emulated (TCG) with virtio devices: {NO_KVM}"),
        ("emulated", "tcg", "emulated", "emulated (every device emulated)"),
        ("paravirtual", "uml", "paravirtual", "paravirtual (User-mode Linux)"),
        # Before the first boot, fake drivers, and what a machine reported when its instance had another type.
        ("hvm", "", None, None),
        ("paravirtual", "fake", None, None),
        ("hvm", "uml", None, None),
        ("paravirtual", "tcg", None, None),
    ],
)
def test_what_is_said_of_how_an_instance_is_run(
    generation: Generation, accelerator: str, way: Any, tag: str | None
) -> None:
    assert run_way(generation, accelerator) == way
    assert noted(generation, accelerator, NO_KVM) == tag
    assert as_run(generation, accelerator) == (WAYS[way].title if way else accelerator)


def test_generations_that_are_unknown_are_passed_over() -> None:
    assert parse(["hvm", "quantum", "emulated"]) == ("emulated", "hvm")


def test_every_family_has_one_generation_and_every_generation_a_family() -> None:
    by_generation = {one: families(one) for one in GENERATIONS}
    assert by_generation["emulated"] == ["e1"] and by_generation["paravirtual"] == ["t1", "m1"]
    assert sorted(name for names in by_generation.values() for name in names) == sorted(
        {one.family for one in instance_types().values()}
    )
    # User-mode Linux has one processor.
    assert {one.vcpus for one in instance_types().values() if one.generation == "paravirtual"} == {1}


# --- placement --------------------------------------------------------------------------------------


def server(name: str = "server-1", **facts: Any) -> dict[str, Any]:
    room = {"vcpus": 8, "memory_mib": 65536, "reserved_vcpus": 0, "reserved_memory_mib": 0}
    return {"id": name, "zones": [], "observed_facts": facts} | room


def why_not(kind: str, tmp_path: Path, one: dict[str, Any], **settings: Any) -> str:
    given = Settings(data=tmp_path, **settings)
    return placement.why_not(one, placement.need(given, instance_types()[kind], "us-east-1a"), given)


def test_a_server_is_asked_whether_it_runs_the_generation(tmp_path: Path) -> None:
    able = server(generations=dict.fromkeys(GENERATIONS, ""))
    unable = server(generations={"emulated": "", "paravirtual": "there is no linux.uml"})
    for kind in ("e1.small", "t1.micro", "t3.micro"):
        assert why_not(kind, tmp_path, able) == ""
    assert why_not("t1.micro", tmp_path, unable) == "cannot run paravirtual guests: there is no linux.uml"
    assert why_not("e1.small", tmp_path, unable) == "" == why_not("t3.micro", tmp_path, unable)


def test_a_server_that_does_not_say_runs_what_qemu_alone_does(tmp_path: Path) -> None:
    """An older agent's facts have no generations, and survive the way to the control plane as that."""
    older = from_json(ServerFacts, to_json(ServerFacts(8, 65536, "host", "real")).replace('"generations":{},', ""))
    assert older.generations == {}
    for facts in ({}, {"generations": older.generations}):
        assert why_not("t1.micro", tmp_path, server(**facts)) == "has not said whether it runs paravirtual guests"
        assert why_not("e1.small", tmp_path, server(**facts)) == "" == why_not("t3.micro", tmp_path, server(**facts))


def test_the_fallback_concerns_hvm_types_alone(tmp_path: Path) -> None:
    no_kvm = server(accelerators={"tcg": "", "kvm": NO_KVM}, generations=dict.fromkeys(GENERATIONS, ""))
    assert NO_KVM in why_not("t3.micro", tmp_path, no_kvm, generation_fallback="refuse")
    for kind in ("e1.small", "t1.micro"):
        assert why_not(kind, tmp_path, no_kvm, generation_fallback="refuse") == ""


def test_the_refusal_names_each_server_and_its_reason(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    wanted = placement.need(settings, instance_types()["t1.micro"], "us-east-1a")
    servers = [server("server-1", generations={"paravirtual": "there is no linux.uml"}), server("server-2")]
    with pytest.raises(CloudError) as refused:
        placement.choose(servers, wanted, settings)
    assert refused.value.code == "InsufficientInstanceCapacity"
    assert "server-1 cannot run paravirtual guests: there is no linux.uml" in refused.value.message
    assert "server-2 has not said whether it runs paravirtual guests" in refused.value.message
    able = server("server-3", generations={"paravirtual": ""})
    assert placement.choose([*servers, able], wanted, settings)["id"] == "server-3"
