"""What the metadata service answers, as data."""

from __future__ import annotations

from typing import Any

import pytest

from haneul.metadata_service.documents import Answer, answer

SECRET = b"s" * 32
INSTANCE: dict[str, Any] = {
    "instance_id": "i-1",
    "http_tokens": "optional",
    "http_endpoint": "enabled",
    "hop_limit": 2,
    "tree": {
        "meta-data/instance-id": "i-1",
        "meta-data/placement/region": "r",
        "dynamic/instance-identity/document": "{}",
    },
    "public_keys": [["my/key", "ssh-ed25519 AAAA me"], ["haneul", "ssh-ed25519 BBBB haneul"]],
    "tags": {"Name": "x"},
    "user_data": "aGVsbG8=",
}


def get(
    path: str, token: str | None = None, instance: dict[str, Any] = INSTANCE, now: float = 1000, method: str = "GET"
) -> Answer:
    headers = {"x-aws-ec2-metadata-token": token} if token is not None else {}
    return answer(instance, method, path, headers, SECRET, now)


def put(ttl: str, instance: dict[str, Any] = INSTANCE, **headers: str) -> Answer:
    return answer(
        instance, "PUT", "/latest/api/token", {"x-aws-ec2-metadata-token-ttl-seconds": ttl} | headers, SECRET, 1000
    )


def test_listings_and_leaves() -> None:
    assert get("/latest/").body == b"dynamic\nmeta-data\nuser-data".replace(b"dynamic", b"dynamic/").replace(
        b"meta-data", b"meta-data/"
    )
    assert get("/2009-04-04/meta-data/instance-id").body == b"i-1"
    assert get("/latest/meta-data/").body == b"instance-id\nplacement/\npublic-keys/\ntags/"
    assert get("/latest/meta-data/public-keys/").body == b"0=my/key\n1=haneul"
    assert get("/latest/meta-data/public-keys/0/").body == b"openssh-key"
    assert get("/latest/meta-data/public-keys/0/openssh-key").body == b"ssh-ed25519 AAAA me"
    assert get("/latest/dynamic/instance-identity").body == b"document", "asked without a slash"
    assert get("/latest/user-data").body == b"hello"
    assert b"latest" in get("/").body


@pytest.mark.parametrize(
    "path",
    [
        "/latest/nothing",
        "/1066-01-01/meta-data/",
        "/latest/meta-data/instance-id/x",
        "/latest/meta-data/public-keys/9/openssh-key",
        "/latest/../etc/passwd",
    ],
)
def test_what_is_not_there_is_404(path: str) -> None:
    assert get(path).status == 404


def test_no_user_data_is_404_and_not_listed() -> None:
    bare = INSTANCE | {"user_data": None}
    assert get("/latest/user-data", instance=bare).status == 404
    assert b"user-data" not in get("/latest/", instance=bare).body


def test_tokens() -> None:
    given = put("60")
    token = given.body.decode()
    assert (given.status, given.ttl) == (200, 2)
    assert get("/latest/meta-data/instance-id", token).status == 200
    assert get("/latest/meta-data/instance-id", token, now=1061).status == 401, "it has expired"
    assert get("/latest/meta-data/instance-id", token, INSTANCE | {"instance_id": "i-2"}).status == 401, "it was stolen"
    assert get("/latest/meta-data/instance-id", "nonsense").status == 401
    assert get("/latest/meta-data/instance-id", "é").status == 401
    required = INSTANCE | {"http_tokens": "required"}
    assert get("/latest/meta-data/instance-id", instance=required).status == 401
    assert get("/latest/meta-data/instance-id", token, required).status == 200


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-5", "x", "٣", "1e3"])
def test_bad_lifetimes_are_400(ttl: str) -> None:
    assert put(ttl).status == 400


def test_refusals() -> None:
    assert put("60", **{"x-forwarded-for": "1.2.3.4"}).status == 403
    assert get("/latest/api/token").status == 405
    assert get("/latest/meta-data/", method="POST").status == 405
    assert get("/latest/meta-data/", instance=INSTANCE | {"http_endpoint": "disabled"}).status == 403


def test_every_part_of_a_path_may_be_encoded() -> None:
    """cloud-init asks for `cost%2Bcenter`; one 404 makes it give up all metadata (RFC 3986, 2.4: split, then decode)."""
    tagged = INSTANCE | {"tags": {"cost+center": "1", "a=b": "2", "who@team": "3", "a:b": "4"}}
    macs = tagged | {"tree": {"meta-data/network/interfaces/macs/02:aa:00:00:00:01/mac": "02:aa:00:00:00:01"}}
    for path, value in (
        ("tags/instance/cost%2Bcenter", b"1"),
        ("tags/instance/cost+center", b"1"),
        ("tags/instance/a%3Db", b"2"),
        ("tags/instance/who%40team", b"3"),
        ("tags/instance/a%3Ab", b"4"),
        ("network/interfaces/macs/02%3aaa%3a00%3a00%3a00%3a01/mac", b"02:aa:00:00:00:01"),
    ):
        assert get(f"/latest/meta-data/{path}", instance=macs).body == value, path
    assert get("/latest/meta-data/tags%2Finstance", instance=macs).status == 404, "decoded after splitting"
