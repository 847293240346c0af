"""The codec, with botocore as the oracle: its serialiser against our parser, our serialiser against its parser."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import parse_qsl, urlencode

import botocore.parsers
import botocore.serialize
import pytest
from botocore.model import Shape

from haneul.api import protocol
from haneul.errors import CloudError

SERVICES = ["ec2", "sts"]
TIME = dt.datetime(2026, 1, 31, 12, 0, 0, tzinfo=dt.UTC)


def sample(shape: Any, depth: int = 0) -> Any:
    """A value for every member, two for every list."""
    kind = shape.type_name
    if kind == "structure":
        if depth > 6:
            return {}
        return {name: sample(member, depth + 1) for name, member in shape.members.items()}
    if kind == "list":
        return [sample(shape.member, depth + 1) for _ in range(2)] if depth <= 6 else []
    if kind == "map":
        return {}
    values: dict[str, Any] = {
        "string": (getattr(shape, "enum", None) or ["a <&> 'text' \" é\n"])[0],
        "integer": shape.metadata.get("min", 7),
        "long": shape.metadata.get("min", 1 << 40),
        "boolean": True,
        "float": 1.5,
        "double": 2.5,
        "timestamp": TIME,
        "blob": b"\x00bytes\xff",
    }
    return values[kind]


def operations() -> list[tuple[str, str]]:
    return [(service, name) for service in SERVICES for name in sorted(protocol.operations(service))]


def _plain(value: Any) -> Any:
    """Without what a wire cannot tell: empty structures and lists are not sent."""
    if isinstance(value, dict):
        found = {name: _plain(item) for name, item in value.items()}
        return {name: item for name, item in found.items() if item not in ({}, [], None)}
    if isinstance(value, list):
        return [item for item in map(_plain, value) if item not in ({}, [], None)]
    return value


def test_every_operation_goes_round_in_both_directions() -> None:
    tried, failed = 0, []
    for service, name in operations():
        model = protocol.service_model(service)
        operation = protocol.operation_model(service, name)
        tried += 2
        if _requests_differ(model.protocol, service, operation):
            failed.append(f"{name} request")
        if _answers_differ(model.protocol, service, operation):
            failed.append(f"{name} answer")
    print(f"{tried} round trips, {len(failed)} failures")
    assert not failed, failed[:20]


def _requests_differ(kind: str, service: str, operation: Any) -> bool:
    shape: Shape | None = operation.input_shape
    wanted = sample(shape) if shape is not None else {}
    sent = botocore.serialize.create_serializer(kind, include_validation=False).serialize_to_request(wanted, operation)[
        "body"
    ]
    body = urlencode(sent) if isinstance(sent, dict) else sent.decode()
    got = protocol.parse(service, operation, parse_qsl(body, keep_blank_values=True))
    return bool(_plain(got) != _plain(wanted))


def _answers_differ(kind: str, service: str, operation: Any) -> bool:
    shape = operation.output_shape
    wanted = sample(shape) if shape is not None else {}
    body = protocol.serialise(service, operation, wanted, "11111111-2222-3333-4444-555555555555")
    answer = {"body": body, "headers": {}, "status_code": 200}
    got = botocore.parsers.create_parser(kind).parse(answer, shape)
    assert got.pop("ResponseMetadata")["RequestId"] == "11111111-2222-3333-4444-555555555555"
    return bool(_plain(got) != _plain(wanted))


def _parse(query: str, name: str = "RunInstances") -> Any:
    return protocol.parse("ec2", protocol.operation_model("ec2", name), parse_qsl(query, keep_blank_values=True))


def test_lists_are_taken_in_numeric_order_wherever_they_start() -> None:
    got = _parse("ResourceId.0=a&ResourceId.10=c&ResourceId.2=b&Tag.0.Key=k&Tag.0.Value=v", "CreateTags")
    assert got == {"Resources": ["a", "b", "c"], "Tags": [{"Key": "k", "Value": "v"}]}


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("MaxCount=1", "MissingParameter"),
        ("MinCount=one&MaxCount=1", "InvalidParameterValue"),
        ("MinCount=1&MaxCount=1&NoSuchThing=1", "UnknownParameter"),
        ("MinCount=1&MaxCount=1&EbsOptimized=perhaps", "InvalidParameterValue"),
        ("MinCount=1&MaxCount=1&Placement=here", "InvalidParameterValue"),
        ("MinCount=1&MaxCount=1&Placement.AvailabilityZone.Deep=1", "InvalidParameterValue"),
        ("MinCount=1&MinCount.1=1&MaxCount=1", "InvalidParameter"),
        ("MinCount=99999999999&MaxCount=1", "InvalidParameterValue"),
        ("MinCount=1&MaxCount=1&SecurityGroupId.x=1", "UnknownParameter"),
        ("MinCount=1&MaxCount=1&" + ".".join(["a"] * 100) + "=1", "InvalidParameter"),
    ],
)
def test_malformed_requests_are_refused_with_a_code(query: str, code: str) -> None:
    with pytest.raises(CloudError) as error:
        _parse(query)
    assert error.value.code == code


def test_text_that_xml_cannot_hold_does_not_break_the_answer() -> None:
    operation = protocol.operation_model("ec2", "DescribeTags")
    wanted = {"Tags": [{"Key": "k\x00\ud800<", "Value": "]]>&\r"}]}
    body = protocol.serialise("ec2", operation, wanted, "r")
    got = botocore.parsers.create_parser("ec2").parse(
        {"body": body, "headers": {}, "status_code": 200}, operation.output_shape
    )
    assert got["Tags"] == [{"Key": "k\ufffd\ufffd<", "Value": "]]>&\r"}]
