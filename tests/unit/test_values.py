"""What crosses from the control plane to an agent survives JSON."""

from __future__ import annotations

from haneul.model.assignment import Assignment, MachineReport, MetadataSpec, Report, ServerFacts
from haneul.model.values import from_json, to_json
from tests.contract.test_machines import SPEC
from tests.contract.test_networks import NETWORK


def test_round_trips() -> None:
    metadata = MetadataSpec(
        "i-1", "vpc-1", ("10.0.0.4",), "required", "enabled", 1, {"a": "b"}, (("k", "v"),), {}, None
    )
    assignment = Assignment(7, "server-1", (SPEC,), (NETWORK,), (metadata,), SPEC.disks)
    assert from_json(Assignment, to_json(assignment)) == assignment
    facts = ServerFacts(2, 1024, "h", "real", {"tcg": ""})
    report = Report(7, "server-1", facts, (MachineReport("i-1", "off", 1, "crash", reachable=None),), ("p",))
    assert from_json(Report, to_json(report)) == report
