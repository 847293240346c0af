"""Who did what: one record for each call, in the form of AWS CloudTrail ("CloudTrail record contents").

Secrets are left out as CloudTrail leaves them out. Requests whose sender is not known are not recorded: else anybody
could fill the file until nothing else is left in it; the log and the metrics count them.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import Any

from haneul.records.journal import moment
from haneul.services.context import Caller, is_read

REMOVED = "<sensitiveDataRemoved>"
_SECRET = frozenset({"UserData", "ClientToken", "NextToken", "Password", "PublicKeyMaterial"})
_IDS = re.compile(rb"\b(?:i|ami|vol|eni|vpc|subnet|sg|sgr|rtb|igw|acl|dopt|key|lt|pg|fleet|snap|r)-[0-9a-f]{8,17}\b")
_MOST_IDS = 100
_MOST_TEXT = 1024
#: Of an answer only so much is searched for ids (bytes), and of the parameters so much is recorded: one account must not
#: be able to push the records of all others out of the file. CloudTrail leaves out what is over 100 KB.
_SEARCHED = 64 << 10
_MOST_PARAMETERS = 8 << 10


def record(
    *,
    caller: Caller,
    service: str,
    operation: str,
    params: dict[str, Any],
    answer: bytes,
    error: tuple[str, str] | None,
    request_id: str,
    source: str,
    agent: str,
    seconds: float,
) -> dict[str, Any]:
    """`seconds`: how long it took; `error`: (code, message) of a refusal; `answer` is searched for ids only."""
    found: dict[str, Any] = {
        "eventVersion": "1.09",
        "userIdentity": {
            "type": "Root",
            "principalId": caller.account,
            "arn": caller.arn,
            "accountId": caller.account,
            "accessKeyId": caller.access_key,
        },
        "eventTime": moment(time.time() - seconds),
        "eventSource": f"{service}.amazonaws.com",
        "eventName": operation,
        "awsRegion": caller.region,
        "sourceIPAddress": source,
        "userAgent": agent[:_MOST_TEXT],
        "requestParameters": _bounded(without_secrets(params)),
        "requestID": request_id,
        "eventID": str(uuid.uuid4()),
        "readOnly": is_read(operation),
        "eventType": "AwsApiCall",
        "recipientAccountId": caller.account,
        "durationMs": round(seconds * 1000, 3),
    }
    if error is not None:
        found["errorCode"], found["errorMessage"] = error[0], error[1][:_MOST_TEXT]
        answer = b""
    if not is_read(operation):
        asked = json.dumps(found["requestParameters"], default=str).encode()
        ids = dict.fromkeys([*_IDS.findall(asked), *_IDS.findall(answer[:_SEARCHED])])
        found["resources"] = [one.decode() for one in list(ids)[:_MOST_IDS]]
    return found


def _bounded(parameters: Any) -> Any:
    size = len(json.dumps(parameters, default=str))
    return parameters if size <= _MOST_PARAMETERS else {"omitted": True, "originalSize": size}


def without_secrets(value: Any) -> Any:
    """The parameters as they are recorded: no secrets, no long texts, no bytes."""
    if isinstance(value, dict):
        return {
            name[:1].lower() + name[1:]: REMOVED if name in _SECRET else without_secrets(one)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(one) for one in value[:_MOST_IDS]]
    if isinstance(value, bytes):
        return REMOVED
    return value[:_MOST_TEXT] if isinstance(value, str) else value
