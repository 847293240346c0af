"""The codec, with botocore as the oracle: its serialiser against our parser, our serialiser against its parser."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import botocore.parsers
import botocore.serialize
import pytest

from haneul.api import protocol
from haneul.errors import CloudError
from tests.conformance import generate

#: Of every kind of query: lists of members and of items, maps, operations without an answer.
SERVICES = ["ec2", "sts", "iam", "autoscaling", "elbv2", "elasticbeanstalk"]
#: One with every member of the shape, the others with some.
SAMPLES = 3


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


def test_every_operation_goes_round_in_both_directions(record_tally: Callable[[str], None]) -> None:
    tried, failed = 0, []
    for service, name in operations():
        kind = protocol.service_model(service).protocol
        operation = protocol.operation_model(service, name)
        for number in range(SAMPLES):
            rng = random.Random(f"{name} {number}")
            tried += 3
            for method in ("POST", "GET"):
                if _requests_differ(kind, service, operation, method, _sample(operation.input_shape, rng, number)):
                    failed.append(f"{name} {method} request, sample {number}")
            if _answers_differ(kind, service, operation, _sample(operation.output_shape, rng, number)):
                failed.append(f"{name} answer, sample {number}")
    record_tally(
        f"round trips: {len(operations())} operations, {tried} trips (POST, GET, answer), {len(failed)} failures"
    )
    assert not failed, failed[:20]


def _sample(shape: Any, rng: random.Random, number: int) -> Any:
    return generate.value(shape, rng, every=number == 0) if shape is not None else {}


def _requests_differ(kind: str, service: str, operation: Any, method: str, wanted: Any) -> bool:
    serializer = botocore.serialize.create_serializer(kind, include_validation=False)
    sent = serializer.serialize_to_request(wanted, operation)["body"]
    text = urlencode(sent) if isinstance(sent, dict) else sent.decode()
    # A GET carries the same parameters in its query string; libcloud sends all of its requests so.
    received = text if method == "POST" else urlsplit(f"http://127.0.0.1/?{text}").query
    got = protocol.parse(service, operation, parse_qsl(received, keep_blank_values=True))
    return bool(_plain(got) != _plain(_without_nothing(operation.input_shape, wanted)))


def _without_nothing(shape: Any, value: Any) -> Any:
    """An empty text that means nothing is left out on the way (`protocol.means_nothing`)."""
    if shape is None or shape.type_name not in ("structure", "list"):
        return value
    if shape.type_name == "list":
        return [_without_nothing(shape.member, one) for one in value]
    members = shape.members
    return {
        name: _without_nothing(members[name], one)
        for name, one in value.items()
        if one != "" or not protocol.means_nothing(shape, name, members[name])
    }


def _answers_differ(kind: str, service: str, operation: Any, wanted: Any) -> bool:
    body = protocol.serialise(service, operation, wanted, "11111111-2222-3333-4444-555555555555")
    answer = {"body": body, "headers": {}, "status_code": 200}
    got = botocore.parsers.create_parser(kind).parse(answer, operation.output_shape)
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
