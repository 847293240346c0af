"""What all Describe operations share: ids, filters, pages.

Filters: several filters AND, several values OR, case-sensitive, `*` any run, `?` one character, a backslash
escapes (EC2 User Guide, "List and filter your resources"). A filter's meaning is data: a path into the
answer's own item (`State.Name`, lists are walked through), or a function of the item.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import botocore.session

from haneul.errors import CloudError, combination, malformed, not_found
from haneul.model.ids import is_id
from haneul.services.context import Context, Input

Item = Mapping[str, Any]
Filters = Mapping[str, str | Callable[[Any], Iterable[str]]]
MAX_PAGE = 1000
MAX_TOKEN = 2048


def texts(item: Any, path: str) -> Iterator[str]:
    """The values at a path as filters compare them: text, numbers and booleans as EC2 writes them."""
    head, _, rest = path.partition(".")
    if isinstance(item, Mapping):
        if head and (found := item.get(head)) is not None:
            yield from texts(found, rest)
    elif isinstance(item, list):
        for one in item:
            yield from texts(one, path)
    elif not path and item is not None:
        yield _text(item)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
    return str(value)


def _pattern(value: str) -> Callable[[str], bool]:
    if not re.search(r"[*?\\]", value):
        return value.__eq__
    pieces: list[str] = []
    out: list[str] = []
    escaped = False
    for character in value:
        if escaped:
            out.append(re.escape(character))
        elif character == "\\":
            escaped = True
            continue
        elif character == "*":
            pieces.append("".join(out))
            out = []
        else:
            out.append("." if character == "?" else re.escape(character))
        escaped = False
    pieces.append("".join(out))
    # Each star takes the shortest run that lets the next piece follow, and never reconsiders: linear.
    first, *middle = pieces
    last = middle.pop() if middle else None
    text = first + "".join(f"(?>.*?{piece})" for piece in middle if piece)
    if last is not None:
        text += f".*{last}"
    return re.compile(text, re.DOTALL).fullmatch  # type: ignore[return-value]


def _tag_values(name: str) -> Callable[[Item], Iterable[str]] | None:
    if name.startswith("tag:"):
        key = name[4:]
        return lambda item: (tag["Value"] for tag in item.get("Tags", ()) if tag["Key"] == key)
    if name == "tag-key":
        return lambda item: texts(item, "Tags.Key")
    if name == "tag-value":
        return lambda item: texts(item, "Tags.Value")
    return None


@cache
def documented_filters(operation: str) -> frozenset[str]:
    """The filters that the model's documentation names for an operation."""
    model = botocore.session.get_session().get_service_model("ec2").operation_model(operation)
    text = model.input_shape.members["Filters"].documentation
    return frozenset(re.findall(r"<li> ?<p> ?<code>([a-zA-Z0-9.-]+)</code>", text))


def _predicate(operation: str, one: Mapping[str, Any], known: Filters, taggable: bool) -> Callable[[Item], bool]:
    name = one.get("Name", "")
    source = (_tag_values(name) if taggable else None) or known.get(name)
    if source is None and name in documented_filters(operation):
        # A filter on what no resource here has: nothing matches, as on EC2.
        source = _nothing
    if source is None:
        raise CloudError("InvalidParameterValue", f"The filter '{name}' is invalid")
    values = one.get("Values")
    if not values:
        raise CloudError("InvalidParameterValue", f"The filter '{name}' must have at least one value")
    patterns = [_pattern(value) for value in values]
    read = (lambda item: texts(item, source)) if isinstance(source, str) else source
    return lambda item: any(pattern(text) for text in read(item) for pattern in patterns)


def _nothing(item: Item) -> Iterable[str]:
    return ()


def matching(ctx: Context, params: Input, items: Iterable[Item], known: Filters, *, taggable: bool = True) -> list[Any]:
    predicates = [_predicate(ctx.operation, one, known, taggable) for one in params.get("Filters", ())]
    return [item for item in items if all(predicate(item) for predicate in predicates)]


def check_ids(prefix: str, code: str, ids: Iterable[str]) -> None:
    """`InvalidInstanceID.Malformed` and its like for the first id that is not of the prefix's form."""
    for one in ids:
        if not is_id(prefix, one):
            raise malformed(f"{code}.Malformed", one)


def require(prefix: str, code: str, what: str, ids: Sequence[str], found: Iterable[str]) -> None:
    """One unknown id fails the whole call: `.Malformed` first, then `.NotFound`."""
    check_ids(prefix, code, ids)
    known = set(found)
    unknown = [one for one in dict.fromkeys(ids) if one not in known]
    if unknown:
        raise not_found(f"{code}.NotFound", what, unknown)


def _sign(ctx: Context, last: str) -> str:
    text = json.dumps([ctx.operation, ctx.account, ctx.region, last])
    return hmac.new(ctx.secret, text.encode(), hashlib.sha256).hexdigest()[:32]


def _encode_token(ctx: Context, last: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([last, _sign(ctx, last)]).encode()).decode()


def _decode_token(ctx: Context, token: str) -> str:
    try:
        if len(token) > MAX_TOKEN:
            raise ValueError
        last, signature = json.loads(base64.urlsafe_b64decode(token.encode()))
        if isinstance(last, str) and hmac.compare_digest(signature, _sign(ctx, last)):
            return last
    except (ValueError, TypeError, RecursionError):
        pass
    raise CloudError("InvalidNextToken", f"The token '{token[:80]}' is not valid")


def page(
    ctx: Context, params: Input, items: Iterable[Any], key: Callable[[Any], str], *, ids: str = "", least: int = 5
) -> tuple[list[Any], str | None]:
    """The wanted page of `items` and the token of the next one, None on the last.

    The token names the last item given, not a position, so pages stay right while rows come and go; it
    survives a restart. `ids` names the parameter that does not go together with MaxResults.
    """
    ordered = sorted(items, key=key)
    most, token = params.get("MaxResults"), params.get("NextToken")
    if most is not None and ids and params.get(ids):
        raise combination(f"The parameter {ids} cannot be used with the parameter maxResults")
    if most is not None and most < least:
        raise CloudError(
            "InvalidParameterValue",
            f"Value ( {most} ) for parameter maxResults is invalid. Expecting a value greater than or equal to {least}.",
        )
    if most is not None and most > MAX_PAGE:
        raise CloudError(
            "InvalidParameterValue",
            f"Value ( {most} ) for parameter maxResults is invalid. Expecting a value less than or equal to {MAX_PAGE}.",
        )
    if token:
        last = _decode_token(ctx, token)
        ordered = [item for item in ordered if key(item) > last]
    if most is None and not token:
        return ordered, None
    most = most or MAX_PAGE
    following = _encode_token(ctx, key(ordered[most - 1])) if len(ordered) > most else None
    return ordered[:most], following
