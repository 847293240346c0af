"""What the metadata service answers. Pure: an instance, a request and the time in, an answer out.

EC2 User Guide, "Use the Instance Metadata Service"; the demands of cloud-init and botocore besides.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

#: Versions that clients ask for by name; all answer alike.
VERSIONS = (
    "1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01",
    "2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25", "2014-11-05", "2015-10-20", "2016-04-19",
    "2016-06-30", "2016-09-02", "2018-03-28", "2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03",
    "2021-03-23", "2021-07-15", "2022-09-24", "2024-04-11", "latest",
)  # fmt: skip
MAX_TTL = 21600
TOKEN_PATH = "api/token"


@dataclass(frozen=True)
class Answer:
    """`ttl` is the IP time to live that the reply's packets get, where the hop limit applies."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    ttl: int | None = None


Instance = Mapping[str, Any]

_REASONS = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}


def _refuse(status: int, **headers: str) -> Answer:
    reason = _REASONS[status]
    page = f"<html><head><title>{status} - {reason}</title></head><body><h1>{status} - {reason}</h1></body></html>\n"
    return Answer(status, page.encode(), {"Content-Type": "text/html"} | headers)


# --- tokens -------------------------------------------------------------------------------------------


def make_token(secret: bytes, instance_id: str, expires: int) -> str:
    """A token says when it ends and is signed for one instance: nothing has to be remembered."""
    head = expires.to_bytes(6, "big")
    signature = hmac.new(secret, head + instance_id.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(head + signature).decode().rstrip("=")


def token_holds(secret: bytes, instance_id: str, token: str, now: float) -> bool:
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except ValueError:
        return False
    expires = int.from_bytes(raw[:6], "big")
    return hmac.compare_digest(make_token(secret, instance_id, expires), token) and now < expires


def _give_token(instance: Instance, headers: Mapping[str, str], secret: bytes, now: float) -> Answer:
    if "x-forwarded-for" in headers:
        return _refuse(403)
    ttl = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
    if not (ttl.isascii() and ttl.isdigit() and len(ttl) < 7 and 1 <= int(ttl) <= MAX_TTL):
        return _refuse(400)
    token = make_token(secret, instance["instance_id"], int(now) + int(ttl))
    extra = {"Content-Type": "text/plain", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds": ttl}
    return Answer(200, token.encode(), extra, ttl=instance["hop_limit"])


# --- the tree -----------------------------------------------------------------------------------------


def tree(instance: Instance) -> dict[str, Any]:
    """The nested directories below a version: text or a dictionary at every name.

    A name that lists differently than it is asked for (`0=mykey` for `0`) is written as (`0`, `0=mykey`).
    """
    root: dict[str, Any] = {}
    for path, text in instance["tree"].items():
        *directories, leaf = path.split("/")
        node = root
        for name in directories:
            node = node.setdefault(name, {})
        node[leaf] = text
    meta = root.setdefault("meta-data", {})
    keys = {
        str(number): (f"{number}={_one_line(name)}", {"openssh-key": text})
        for number, (name, text) in enumerate(instance["public_keys"])
    }
    if keys:
        meta["public-keys"] = keys
    if instance["tags"]:
        meta["tags"] = {"instance": dict(instance["tags"])}
    return root


def _one_line(name: str) -> str:
    return " ".join(name.split())


def _list(node: Mapping[str, Any]) -> str:
    lines = []
    for name, child in sorted(node.items()):
        if isinstance(child, tuple):
            lines.append(child[0])
        else:
            lines.append(f"{name}/" if isinstance(child, dict) else name)
    return "\n".join(lines)


def _walk(node: Any, parts: list[str]) -> Any:
    for part in parts:
        if isinstance(node, tuple):
            node = node[1]
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node[1] if isinstance(node, tuple) else node


def _find(instance: Instance, parts: list[str]) -> bytes | None:
    """The text at a path below a version, or None."""
    if parts == ["user-data"]:
        data = instance["user_data"]
        return base64.b64decode(data) if data else None
    root = tree(instance)
    found = _walk(root, parts)
    if found is None:
        return None
    if isinstance(found, str):
        return found.encode()
    names = found
    if not parts and instance["user_data"]:
        names = found | {"user-data": ""}
    return _list(names).encode()


def answer(
    instance: Instance, method: str, target: str, headers: Mapping[str, str], secret: bytes, now: float
) -> Answer:
    """`headers` has lower-case names; `now` is in seconds since the epoch."""
    if instance["http_endpoint"] == "disabled":
        return _refuse(403)
    path = target.partition("?")[0]
    # Decoded after splitting (RFC 3986, 2.4): clients may encode any character of a part, and cloud-init does.
    parts = [unquote(part) for part in path.split("/") if part]
    if parts[1:] == TOKEN_PATH.split("/") and parts[0] in VERSIONS:
        if method == "PUT":
            return _give_token(instance, headers, secret, now)
        return _refuse(405, Allow="OPTIONS, PUT")
    if method not in ("GET", "HEAD"):
        return _refuse(405, Allow="OPTIONS, GET, HEAD")
    token = headers.get("x-aws-ec2-metadata-token")
    if token is None and instance["http_tokens"] == "required":
        return _refuse(401)
    if token is not None and not token_holds(secret, instance["instance_id"], token, now):
        return _refuse(401)
    if not parts:
        return Answer(200, "\n".join(VERSIONS).encode(), {"Content-Type": "text/plain"})
    found = _find(instance, parts[1:]) if parts[0] in VERSIONS else None
    if found is None:
        return _refuse(404)
    kind = "application/octet-stream" if parts[1:] == ["user-data"] else "text/plain"
    return Answer(200, found, {"Content-Type": kind})
