"""Random requests to the metadata service: nobody is told anything of another instance, nor without a token."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from haneul.metadata_service.documents import Answer, answer, make_token

SECRET = b"s" * 32
NOW = 1_700_000_000
REQUESTS = 20_000
TOKEN = "x-aws-ec2-metadata-token"
TTL = "x-aws-ec2-metadata-token-ttl-seconds"
_LEAVES = ("meta-data/instance-id", "meta-data/local-ipv4", "dynamic/instance-identity/document", "meta-data/a/b/c")
_STEPS = (
    "latest", "2021-07-15", "1.0", "0.0", "api", "token", "meta-data", "dynamic", "user-data", "instance-id", "tags",
    "instance", "public-keys", "0", "1", "0=key", "openssh-key", "instance-identity", "document", "..", ".", "", "%2e%2e",
    "%2f", "..%2f", "\0", "%00", "*", "~", "A" * 5000, "i-bbbb", "Name", "OWN-A", "OWN-B", "\r\nX: y", "\xe9", " ", ";", "\\",
)  # fmt: skip
_METHODS = ("GET", "GET", "GET", "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "")
_BEFORE = ("/", "/", "/", "//", "", "http://169.254.169.254/", "http://10.0.0.11/latest/", "*", "/../", "/?")
_HEADERS = (
    "host", "x-forwarded-for", "x-instance-id", "x-real-ip", "forwarded", "authorization", "content-length", TTL, "via",
)  # fmt: skip


def _instance(letter: str, tokens: str = "optional") -> dict[str, Any]:
    """Everything that it has carries its mark."""
    mark = f"OWN-{letter}"
    return {
        "instance_id": f"i-{letter.lower() * 4}",
        "http_tokens": tokens,
        "http_endpoint": "enabled",
        "hop_limit": 1,
        "tree": {path: f"{mark} {path}" for path in _LEAVES} | {f"meta-data/{mark}": mark},
        "public_keys": [[f"key {mark}", f"ssh-ed25519 {mark}"]],
        "tags": {"Name": mark, mark: "x"},
        "user_data": base64.b64encode(mark.encode()).decode(),
    }


A, B = _instance("A"), _instance("B")
STRICT = _instance("A", "required")


class Requests:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tokens: Counter[str] = Counter()

    def path(self) -> str:
        choose = self.random.choice
        if self.random.random() < 0.3:
            return (
                f"/{choose(('latest', '2021-07-15'))}/{choose((*_LEAVES, 'user-data', 'meta-data/', 'api/token', ''))}"
            )
        steps = [choose(_STEPS) for _ in range(self.random.randrange(7))]
        return choose(_BEFORE) + "/".join(steps) + choose(("", "", "/", "?", "?x=/latest/user-data", "#x"))

    def token(self) -> tuple[str, str | None]:
        """(what kind, the token)."""
        own, others = (make_token(SECRET, f"i-{letter * 4}", NOW + 600) for letter in "ab")
        cut = self.random.randrange(len(own))
        flipped = own[:cut] + self.random.choice("ABCxyz-_=+/ \0é") + own[cut + 1 :]
        kinds: dict[str, Callable[[], str | None]] = {
            "none": lambda: None,
            "own": lambda: own,
            "another's": lambda: others,
            "cut": lambda: own[:cut],
            "changed": lambda: flipped,
            "longer": lambda: own + self.random.choice(("A", "=", " ", "\n", own, others)),
            "spliced": lambda: own[:8] + others[8:],
            "expired": lambda: make_token(SECRET, "i-aaaa", NOW - self.random.randrange(1, 9999)),
            "of another key": lambda: make_token(b"t" * 32, "i-aaaa", NOW + 600),
            "noise": lambda: "".join(chr(self.random.randrange(256)) for _ in range(self.random.randrange(90))),
            "long": lambda: "A" * 10000,
        }
        kind = self.random.choice(list(kinds))
        self.tokens[kind] += 1
        return kind, kinds[kind]()

    def headers(self, token: str | None) -> dict[str, str]:
        out = {} if token is None else {TOKEN: token}
        for name in self.random.sample(_HEADERS, self.random.randrange(4)):
            out[name] = self.random.choice(
                ("10.0.0.11", "i-bbbb", "60", "21601", "-1", "1e3", "٣", "", "60, 60", "x" * 3000)
            )
        return out


def _said(reply: Answer) -> bytes:
    return reply.body + repr(reply.headers).encode()


def test_nobody_is_told_of_another(record_tally: Callable[[str], None]) -> None:
    requests = Requests(1)
    told = 0
    for _ in range(REQUESTS):
        _, token = requests.token()
        reply = answer(A, requests.random.choice(_METHODS), requests.path(), requests.headers(token), SECRET, NOW)
        assert b"OWN-B" not in _said(reply) and b"bbbb" not in _said(reply)
        told += b"OWN-A" in reply.body
    assert told > REQUESTS // 100, "some were answered: the requests are not all nonsense"
    record_tally(f"metadata, random requests: {REQUESTS}, {told} told the asker of itself; 0 of another")


def test_without_a_token_of_its_own_nothing_is_told(record_tally: Callable[[str], None]) -> None:
    requests = Requests(2)
    told = given = 0
    for _ in range(REQUESTS):
        kind, token = requests.token()
        good = kind == "own" or token == make_token(SECRET, "i-aaaa", NOW + 600)
        method, path, headers = requests.random.choice(_METHODS), requests.path(), requests.headers(token)
        reply = answer(STRICT, method, path, headers, SECRET, NOW)
        if reply.status == 200 and method != "PUT":
            assert good, (kind, method, path)
            told += 1
        if reply.status == 200 and method == "PUT":
            assert "x-forwarded-for" not in headers
            assert reply.body.decode() == make_token(SECRET, "i-aaaa", NOW + int(headers[TTL]))
            given += 1
        assert b"OWN-B" not in _said(reply)
    assert told and given
    shown = ", ".join(f"{count} {kind}" for kind, count in requests.tokens.most_common())
    record_tally(
        f"metadata with tokens required: {REQUESTS} ({shown}); {told} answers, each to a token made for the asker"
    )


def test_a_token_serves_one_instance_until_it_ends() -> None:
    token = make_token(SECRET, "i-aaaa", NOW + 60)
    path = "/latest/meta-data/instance-id"
    assert answer(STRICT, "GET", path, {TOKEN: token}, SECRET, NOW).status == 200
    assert answer(STRICT, "GET", path, {TOKEN: token}, SECRET, NOW + 60).status == 401
    assert answer(B, "GET", path, {TOKEN: token}, SECRET, NOW).status == 401
