"""Who gets in: signatures, accounts, the open door, and what is refused."""

from __future__ import annotations

import datetime as dt
import http.client
from collections.abc import Callable

import boto3
import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from haneul.api import signature
from haneul.errors import CloudError
from tests.conformance.conftest import FakeCloud

BODY = "Action=DescribeRegions&Version=2016-11-15"


def _send(
    cloud: FakeCloud, method: str, path: str, body: str = "", headers: dict[str, str] | None = None
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", cloud.running.settings.port, timeout=10)
    connection.request(method, path, body.encode(), headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def _signed(
    cloud: FakeCloud, body: str = BODY, secret: str = "", service: str = "ec2", path: str = "/"
) -> dict[str, str]:
    access_key, real = cloud.identity.read_credentials()
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    request = AWSRequest("POST", cloud.endpoint + path, data=body.encode(), headers=headers)
    SigV4Auth(Credentials(access_key, secret or real), service, "eu-west-1").add_auth(request)
    return dict(request.headers.items())


def test_a_signed_request_gets_in(fake: FakeCloud) -> None:
    status, text = _send(fake, "POST", "/", BODY, _signed(fake))
    assert status == 200 and "<regionName>eu-west-1</regionName>" in text
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>')
    assert '<DescribeRegionsResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>' in text


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: headers | {"Authorization": headers["Authorization"][:-64] + "0" * 64},
        lambda headers: headers | {"X-Amz-Date": "20200101T000000Z"},
        lambda headers: {name: value for name, value in headers.items() if name != "Authorization"},
        lambda headers: headers | {"Authorization": "AWS4-HMAC-SHA256 nonsense"},
        lambda headers: headers | {"Authorization": "AWS AKIA:sig"},
    ],
)
def test_a_bad_signature_does_not(fake: FakeCloud, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    status, text = _send(fake, "POST", "/", BODY, change(_signed(fake)))
    assert status == 401 and "<Code>AuthFailure</Code>" in text


def test_a_tampered_body_or_query_does_not(fake: FakeCloud) -> None:
    assert _send(fake, "POST", "/", BODY + "&DryRun=true", _signed(fake))[0] == 401
    assert _send(fake, "POST", "/?DryRun=true", BODY, _signed(fake))[0] == 401


def test_a_wrong_secret_and_an_unknown_key_do_not(fake: FakeCloud) -> None:
    assert _send(fake, "POST", "/", BODY, _signed(fake, secret="wrong"))[0] == 401
    with pytest.raises(ClientError, match="AuthFailure"):
        fake.client(aws_access_key_id="AKIAUNKNOWN").describe_regions()


def test_a_presigned_get_works_until_it_expires(fake: FakeCloud) -> None:
    credentials = Credentials(*fake.identity.read_credentials())

    def path(expires: int) -> str:
        request = AWSRequest("GET", f"{fake.endpoint}/?{BODY}")
        SigV4QueryAuth(credentials, "ec2", "us-east-1", expires=expires).add_auth(request)
        return str(request.prepare().url).removeprefix(fake.endpoint)

    assert _send(fake, "GET", path(60))[0] == 200
    status, text = _send(fake, "GET", path(60).replace("X-Amz-Expires=60", "X-Amz-Expires=6000"))
    assert status == 401 and "AuthFailure" in text


def test_a_session_token_is_refused(fake: FakeCloud) -> None:
    """There are no temporary credentials here: a token comes from another cloud, in whatever way it is sent."""
    with pytest.raises(ClientError, match="AuthFailure"):
        fake.client(aws_session_token="token").describe_regions()
    credentials = Credentials(*fake.identity.read_credentials(), token="token")
    request = AWSRequest("GET", f"{fake.endpoint}/?{BODY}")
    SigV4QueryAuth(credentials, "ec2", "us-east-1", expires=60).add_auth(request)
    path = str(request.prepare().url).removeprefix(fake.endpoint)
    assert "X-Amz-Security-Token" in path and _send(fake, "GET", path)[0] == 401


def test_a_replay_outside_the_window_is_refused(fake: FakeCloud) -> None:
    """The same bytes, sent again: good within a quarter of an hour of their time, refused before and after it."""
    headers = {name.lower(): value for name, value in _signed(fake).items()}
    headers["host"] = fake.endpoint.removeprefix("http://")
    request = signature.Request("POST", "/", (), headers, BODY.encode())
    scope = signature.read_scope(request)
    assert scope is not None
    _, secret = fake.identity.read_credentials()
    for minutes in (-14, 0, 14):
        signature.verify(request, scope, secret, scope.time + dt.timedelta(minutes=minutes))
    for minutes in (-16, 16, 60 * 24):
        with pytest.raises(CloudError) as error:
            signature.verify(request, scope, secret, scope.time + dt.timedelta(minutes=minutes))
        assert error.value.code == "RequestExpired"


def test_skew_is_refused(fake: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.auth

    late = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: late.replace(tzinfo=None))
    status, text = _send(fake, "POST", "/", BODY, _signed(fake))
    assert status == 400 and "<Code>RequestExpired</Code>" in text


def test_other_services_and_unknown_operations_are_named(fake: FakeCloud) -> None:
    status, text = _send(
        fake,
        "POST",
        "/",
        "Action=ListUsers&Version=2010-05-08",
        _signed(fake, "Action=ListUsers&Version=2010-05-08", service="iam"),
    )
    assert status == 400 and "UnsupportedOperation" in text and "iam" in text
    for body, code in (
        ("Action=NoSuchThing", "InvalidAction"),
        ("Version=2016-11-15", "MissingAction"),
        ("Action=CreateVpnGateway&Type=ipsec.1", "UnsupportedOperation"),
    ):
        status, text = _send(fake, "POST", "/", body, _signed(fake, body))
        assert status == 400 and f"<Code>{code}</Code>" in text


def test_every_other_operation_of_the_model_answers_that_we_do_not_have_it(fake: FakeCloud) -> None:
    from haneul.api import protocol
    from haneul.errors import CloudError
    from haneul.services.context import OPERATIONS, Caller

    missing = sorted(protocol.operations("ec2") - set(OPERATIONS.names("ec2")))
    assert len(missing) > 600
    for name in missing:
        with pytest.raises(CloudError) as error:
            fake.running.cloud.call("ec2", name, Caller("000000000000", "us-east-1", ""), {})
        assert error.value.code == "UnsupportedOperation"


def test_the_open_door_is_for_programs_of_this_machine(start_cloud: Callable[..., FakeCloud]) -> None:
    cloud = start_cloud(auth="open")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert _send(cloud, "POST", "/", BODY, form)[0] == 200
    assert _send(cloud, "GET", f"/?{BODY}")[0] == 200
    for headers in (
        {"Host": "attacker.example"},
        {"Host": "127.0.0.1.attacker.example:4566"},
        {"Origin": "http://attacker.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        status, text = _send(cloud, "POST", "/", BODY, form | headers)
        assert status == 401 and "AuthFailure" in text, headers
    client = boto3.client(
        "sts",
        region_name="us-west-2",
        endpoint_url=cloud.endpoint,
        aws_access_key_id="123456789012",
        aws_secret_access_key="x",
    )
    assert client.get_caller_identity()["Account"] == "123456789012"


def test_regions_and_accounts_are_name_spaces(fake: FakeCloud) -> None:
    here, there = fake.client(), fake.client(region="ap-northeast-2")
    here.create_key_pair(KeyName="only-here")
    names = {one["KeyName"] for one in there.describe_key_pairs()["KeyPairs"]}
    assert "only-here" not in names
    assert there.describe_vpcs()["Vpcs"][0]["VpcId"] != here.describe_vpcs()["Vpcs"][0]["VpcId"]
    with pytest.raises(ClientError, match="AuthFailure"):
        fake.client(region="nowhere").describe_vpcs()


def test_bodies_are_bounded(fake: FakeCloud) -> None:
    body = BODY + "&x=" + "a" * (2 << 20)
    status, text = _send(fake, "POST", "/", body, {"Content-Type": "application/x-www-form-urlencoded"})
    assert status == 400 and "RequestEntityTooLarge" in text


def test_the_wire_is_libclouds_too(fake: FakeCloud) -> None:
    """Operations without an answer of their own say `<return>true</return>`."""
    group = fake.client().create_security_group(GroupName="wire", Description="d")["GroupId"]
    body = f"Action=CreateTags&ResourceId.0={group}&Tag.0.Key=a&Tag.0.Value=b"
    status, text = _send(fake, "POST", "/", body, _signed(fake, body))
    assert status == 400, "another region"
    assert "InvalidGroup.NotFound" in text
