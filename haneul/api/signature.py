"""Signature Version 4, the server's side (AWS General Reference, "Signing AWS API requests"). Pure.

The account follows from the access key, the region from the credential scope, never from the host name.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from haneul.errors import CloudError

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW = dt.timedelta(minutes=15)
MAX_SIGNED_HEADERS = 64
#: Headers that say nothing about what is asked.
_UNSIGNED = frozenset({"x-amzn-trace-id", "x-amz-user-agent"})
_REFUSED = "AWS was not able to validate the provided access credentials"
_CREDENTIAL = re.compile(r"([^/]{1,128})/(\d{8})/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/aws4_request\Z")


@dataclass(frozen=True)
class Request:
    """What is signed. `headers` has lower-case names; `query` is decoded, in the order received."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Scope:
    """The credential of a signed request, before its signature was checked."""

    access_key: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    time: dt.datetime
    stamp: str
    expires: int | None = None


def _refuse() -> CloudError:
    return CloudError("AuthFailure", _REFUSED)


_STAMP = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})Z\Z")


def _time(text: str) -> dt.datetime:
    """`20260131T120000Z`; strptime would take as long as the signature itself."""
    found = _STAMP.match(text)
    try:
        if found is None:
            raise ValueError
        year, month, day, hour, minute, second = map(int, found.groups())
        return dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.UTC)
    except ValueError:
        raise CloudError("AuthFailure", "AWS authentication requires a valid Date or x-amz-date header") from None


def read_scope(request: Request) -> Scope | None:
    """The credential that the request carries, or None where it is not signed at all."""
    query = dict(request.query)
    header = request.headers.get("authorization", "")
    if header:
        return _from_header(header, request)
    if query.get("X-Amz-Algorithm"):
        return _from_query(query)
    if "AWSAccessKeyId" in query or b"AWSAccessKeyId=" in request.body:
        raise CloudError("AuthFailure", "Signature version 2 is not supported; use AWS4-HMAC-SHA256")
    return None


def _from_header(header: str, request: Request) -> Scope:
    algorithm, _, rest = header.partition(" ")
    if algorithm != ALGORITHM:
        raise CloudError("AuthFailure", f"The algorithm {algorithm[:40]} is not supported; use {ALGORITHM}")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    credential = _CREDENTIAL.match(fields.get("Credential", ""))
    if credential is None or not fields.get("Signature") or not fields.get("SignedHeaders"):
        raise _refuse()
    access_key, date, region, service = credential.groups()
    stamp = request.headers.get("x-amz-date", "")
    names = tuple(fields["SignedHeaders"].split(";"))
    return Scope(access_key, date, region, service, names, fields["Signature"], _time(stamp), stamp)


def _from_query(query: dict[str, str]) -> Scope:
    credential = _CREDENTIAL.match(query.get("X-Amz-Credential", ""))
    expires = query.get("X-Amz-Expires", "")
    if query["X-Amz-Algorithm"] != ALGORITHM or credential is None or not re.fullmatch(r"[0-9]{1,9}", expires):
        raise _refuse()
    access_key, date, region, service = credential.groups()
    names = tuple(query.get("X-Amz-SignedHeaders", "host").split(";"))
    stamp, signature = query.get("X-Amz-Date", ""), query.get("X-Amz-Signature", "")
    return Scope(access_key, date, region, service, names, signature, _time(stamp), stamp, min(int(expires), 604800))


def _encode(text: str) -> str:
    return quote(text, safe="-_.~")


def _canonical_request(request: Request, scope: Scope) -> str:
    pairs = sorted((_encode(k), _encode(v)) for k, v in request.query if k != "X-Amz-Signature")
    headers = "".join(f"{n}:{' '.join(request.headers.get(n, '').split())}\n" for n in scope.signed_headers)
    digest = hashlib.sha256(request.body).hexdigest()
    return "\n".join(
        (
            request.method,
            "/" if request.path == "/" else quote(request.path, safe="/-_.~") or "/",
            "&".join(f"{k}={v}" for k, v in pairs),
            headers,
            ";".join(scope.signed_headers),
            digest,
        )
    )


@lru_cache(maxsize=256)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def sign(secret: str, scope: Scope, canonical_request: str) -> str:
    key = _signing_key(secret, scope.date, scope.region, scope.service)
    credential_scope = f"{scope.date}/{scope.region}/{scope.service}/aws4_request"
    digest = hashlib.sha256(canonical_request.encode("utf-8", "surrogateescape")).hexdigest()
    to_sign = f"{ALGORITHM}\n{scope.stamp}\n{credential_scope}\n{digest}"
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def _headers_are_signed(request: Request, scope: Scope) -> bool:
    """Every header that means something is signed, each named once (a name repeated multiplies the work)."""
    names = set(scope.signed_headers)
    if len(names) != len(scope.signed_headers) or len(names) > MAX_SIGNED_HEADERS:
        return False
    return all(name in names for name in request.headers if name.startswith("x-amz-") and name not in _UNSIGNED)


def _has_session_token(request: Request) -> bool:
    """haneul gives no temporary credentials: whoever shows a token of them has credentials of somewhere else."""
    return "x-amz-security-token" in request.headers or any(name == "X-Amz-Security-Token" for name, _ in request.query)


def verify(request: Request, scope: Scope, secret: str | None, now: dt.datetime) -> None:
    """`secret` is that of the scope's access key, None where there is no such key.

    Raises `CloudError`: AuthFailure or RequestExpired.
    """
    if secret is None or _has_session_token(request):
        raise _refuse()
    if not _headers_are_signed(request, scope):
        raise _refuse()
    if "host" not in scope.signed_headers or not scope.stamp.startswith(scope.date):
        raise _refuse()
    expected = sign(secret, scope, _canonical_request(request, scope))
    if not hmac.compare_digest(expected.encode(), scope.signature.encode("utf-8", "replace")):
        raise _refuse()
    age = now - scope.time
    oldest = dt.timedelta(seconds=scope.expires) if scope.expires is not None else MAX_SKEW
    if age > oldest or age < -MAX_SKEW:
        raise CloudError("RequestExpired", "Request has expired.")
