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
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Table

from haneul.errors import CloudError, combination, malformed, not_found
from haneul.model.aws import service_model
from haneul.model.ids import is_id
from haneul.services.context import Context, Input, Output
from haneul.store import tables
from haneul.store.database import IN_CHUNK, Row

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
    model = service_model("ec2").operation_model(operation)
    members = model.input_shape.members
    text = (members.get("Filters") or members["Filter"]).documentation
    return frozenset(re.findall(r"<li> ?<p> ?<code>([a-zA-Z0-9.-]+)</code>", text))


MAX_FILTERS = 50
MAX_VALUES = 200


def _checked(filters: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """EC2 takes 50 filters of 200 values each (EC2 API Reference, "Filter")."""
    if len(filters) > MAX_FILTERS:
        raise CloudError("FilterLimitExceeded", f"A request has at most {MAX_FILTERS} filters.")
    for one in filters:
        name = one.get("Name", "")
        if not one.get("Values"):
            raise CloudError("InvalidParameterValue", f"The filter '{name[:80]}' must have at least one value")
        if len(one["Values"]) > MAX_VALUES:
            raise CloudError("FilterLimitExceeded", f"A filter has at most {MAX_VALUES} values: '{name[:80]}'.")
    return filters


def _predicate(operation: str, one: Mapping[str, Any], known: Filters, taggable: bool) -> Callable[[Item], bool]:
    name = one.get("Name", "")
    source = (_tag_values(name) if taggable else None) or known.get(name)
    if source is None and name in documented_filters(operation):
        # A filter on what no resource here has: nothing matches, as on EC2.
        source = _nothing
    if source is None:
        raise CloudError("InvalidParameterValue", f"The filter '{name[:80]}' is invalid")
    matches = _any_of(one["Values"])
    if isinstance(source, str):
        # A member that is empty is one that the resource does not have; a tag's value may be empty.
        return lambda item: any(text != "" and matches(text) for text in texts(item, source))
    return lambda item: any(map(matches, source(item)))


def _any_of(values: Sequence[str]) -> Callable[[str], bool]:
    patterns = [_pattern(value) for value in values]
    return lambda text: any(pattern(text) for pattern in patterns)


def _is_exact(values: Sequence[str]) -> bool:
    return not any(re.search(r"[*?\\]", value) for value in values)


def _nothing(item: Item) -> Iterable[str]:
    return ()


def matching(ctx: Context, params: Input, items: Iterable[Item], known: Filters, *, taggable: bool = True) -> list[Any]:
    predicates = [_predicate(ctx.operation, one, known, taggable) for one in _checked(params.get("Filters", ()))]
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
        last, _ = json.loads(base64.urlsafe_b64decode(token.encode()))
        if isinstance(last, str) and hmac.compare_digest(token.encode(), _encode_token(ctx, last).encode()):
            return last
    except (ValueError, TypeError, RecursionError):
        pass
    raise CloudError("InvalidNextToken", f"The token '{token[:80]}' is not valid")


#: Parameters of ids as EC2's own texts name them.
_WIRE_SETS = {"InstanceIds": "instancesSet", "VolumeIds": "volumeSet", "GroupIds": "securityGroupIdSet"}


def _page_size(params: Input, ids: str, least: int) -> int | None:
    """MaxResults, checked. `ids` names the parameter that does not go together with it."""
    most = params.get("MaxResults")
    if ids and params.get(ids) and (most is not None or params.get("NextToken")):
        raise combination(f"The parameter {_WIRE_SETS.get(ids, ids)} cannot be used with the parameter maxResults")
    if most is None:
        return MAX_PAGE if params.get("NextToken") else None
    for wrong, bound in (
        (most < least, f"greater than or equal to {least}"),
        (most > MAX_PAGE, f"less than or equal to {MAX_PAGE}"),
    ):
        if wrong:
            raise CloudError(
                "InvalidParameterValue",
                f"Value ( {most} ) for parameter maxResults is invalid. Expecting a value {bound}.",
            )
    return int(most)


def page(
    ctx: Context, params: Input, items: Iterable[Any], key: Callable[[Any], str], *, ids: str = "", least: int = 5
) -> tuple[list[Any], str | None]:
    """The wanted page of `items` and the token of the next one, None on the last.

    The token names the last item given, not a position, so pages stay right while rows come and go; it
    survives a restart. `ids` names the parameter that does not go together with MaxResults.
    """
    most = _page_size(params, ids, least)
    ordered = sorted(items, key=key)
    if params.get("NextToken"):
        last = _decode_token(ctx, params["NextToken"])
        ordered = [item for item in ordered if key(item) > last]
    if most is None:
        return ordered, None
    following = _encode_token(ctx, key(ordered[most - 1])) if len(ordered) > most else None
    return ordered[:most], following


# --- resources of a table ---------------------------------------------------------------------------


def _own(ctx: Context, table: Table) -> list[Any]:
    return [table.c.account == ctx.account, table.c.region == ctx.region]


@dataclass(frozen=True)
class Computed:
    """A filter's value that follows from some columns of the row alone."""

    columns: tuple[str, ...]
    texts: Callable[[Row], Iterable[str]]


@dataclass(frozen=True)
class Related:
    """A filter's value that lies in another table, in rows that name the resource in `names`."""

    names: Column[Any]
    value: Column[Any]
    texts: Callable[[Any], Iterable[str]] = lambda value: (_text(value),)


@dataclass(frozen=True)
class Listing:
    """What a Describe has to know of its kind of resource.

    `shape` is the model's name of what `views` makes of rows; `kept`: that depends on nothing but the row, its parts
    and its tags, so its serialised form is kept until the row's version changes. `paths` says what filters mean as
    paths into the view; `columns` and `related` say it in terms of the store, for those that need not look at all rows.
    `light` are columns that the caller wants beside.
    """

    table: Table
    shape: str
    ids: str
    prefix: str
    code: str
    what: str
    views: Callable[[Context, list[Row]], list[dict[str, Any]]]
    paths: Filters
    columns: Mapping[str, str | Computed] = field(default_factory=dict)
    related: Mapping[str, Related] = field(default_factory=dict)
    light: tuple[str, ...] = ()
    kept: bool = True
    #: What a malformed id is called, where EC2 spells it in another way than `code`.
    malformed: str = ""
    check: Callable[[Sequence[str]], None] | None = None
    unknown: Callable[[Sequence[str]], CloudError] | None = None
    least: int = 5


@dataclass
class _Plan:
    """A request's filters, each by the cheapest way: a condition of the query, the row, or the view."""

    conditions: list[Any] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    rows: list[Callable[[Row], bool]] = field(default_factory=list)
    views: list[Callable[[Item], bool]] = field(default_factory=list)
    ids: set[str] | None = None

    def only(self, ids: Iterable[str]) -> None:
        self.ids = set(ids) if self.ids is None else self.ids & set(ids)


def _plan(ctx: Context, params: Input, listing: Listing) -> _Plan:
    plan = _Plan()
    if "$ids" in params:
        plan.only(params["$ids"])
    for one in _checked(params.get("Filters", ())):
        name, values = one.get("Name", ""), one["Values"]
        column = listing.columns.get(name)
        if name.startswith("tag:") or name in ("tag-key", "tag-value"):
            plan.only(_tagged(ctx, name, values))
        elif name in listing.related:
            plan.only(_related(ctx, listing.related[name], values))
        elif column is not None:
            _by_column(plan, listing.table, column, values)
        else:
            plan.views.append(_predicate(ctx.operation, one, listing.paths, taggable=True))
    ids = plan.ids
    if ids is not None and len(ids) <= IN_CHUNK:
        plan.conditions.append(listing.table.c.id.in_(sorted(ids)))
    elif ids is not None:
        plan.rows.append(lambda row: row["id"] in ids)
    return plan


def exact_conditions(params: Input, table: Table, columns: Mapping[str, str]) -> list[Any]:
    """What the database can tell of a request's filters: those by a column, without wildcards."""
    return [
        table.c[columns[one["Name"]]].in_(one["Values"])
        for one in params.get("Filters", ())
        if one.get("Name") in columns and one.get("Values") and _is_exact(one["Values"])
    ]


def _by_column(plan: _Plan, table: Table, column: str | Computed, values: Sequence[str]) -> None:
    matches = _any_of(values)
    if isinstance(column, Computed):
        plan.columns.update(column.columns)
        plan.rows.append(lambda row: any(map(matches, column.texts(row))))
    elif _is_exact(values) and isinstance(table.c[column].type, sa.String):
        # An empty column is a member that the answer does not have.
        plan.conditions.append(table.c[column].in_([value for value in values if value]))
    else:
        plan.columns.add(column)
        plan.rows.append(lambda row: row[column] not in ("", None) and matches(_text(row[column])))


def _tagged(ctx: Context, name: str, values: Sequence[str]) -> list[str]:
    """The resources that have a tag as a `tag:`, `tag-key` or `tag-value` filter asks for."""
    tag = tables.tags.c
    where = _own(ctx, tables.tags)
    column = tag.key if name == "tag-key" else tag.value
    if name.startswith("tag:"):
        where.append(tag.key == name[4:])
    if _is_exact(values):
        return list(ctx.tx.execute(sa.select(tag.resource_id).where(*where, column.in_(values))).scalars())
    matches = _any_of(values)
    found = ctx.tx.execute(sa.select(tag.resource_id, column).where(*where))
    return [resource for resource, text in found if matches(text)]


def _related(ctx: Context, one: Related, values: Sequence[str]) -> list[str]:
    if _is_exact(values) and isinstance(one.value.type, sa.String):
        # Not within the scope: the value's own index is better, and the resources are asked for within it anyway.
        chosen = one.value.in_([value for value in values if value])
        return list(ctx.tx.execute(sa.select(one.names).where(one.names != "", chosen)).scalars())
    matches = _any_of(values)
    where = [one.names != "", *_own(ctx, one.names.table), one.value.is_not(None)]
    found = ctx.tx.execute(sa.select(one.names, one.value).where(*where))
    return [owner for owner, value in found if any(map(matches, one.texts(value)))]


def _place(token: str) -> tuple[float, str]:
    """(created, id) of the last one given."""
    try:
        created, last = json.loads(token)
        return float(created), str(last)
    except (ValueError, TypeError):
        raise CloudError("InvalidNextToken", "The token is of another version of haneul: begin anew.") from None


@cache
def _light_by_ids(table: Table, columns: tuple[str, ...], one: bool) -> Any:
    """By one id it is a statement of its own: SQLAlchemy writes an IN anew for every number of values."""
    among = table.c.id == sa.bindparam("among") if one else table.c.id.in_(sa.bindparam("among", expanding=True))
    own = [table.c[name] == sa.bindparam(name) for name in ("account", "region")]
    return sa.select(*(table.c[name] for name in columns)).where(among, *own).order_by(table.c.created, table.c.id)


def _light(
    ctx: Context, listing: Listing, plan: _Plan, wanted: Sequence[str], after: str, limit: int | None
) -> list[Row]:
    """The candidates in order, with no more columns than are needed to choose among them."""
    if plan.ids is not None and not plan.ids:
        return []
    table = listing.table
    columns = tuple(dict.fromkeys(("id", "version", "created", *listing.light, *sorted(plan.columns))))
    few = wanted and len(wanted) <= IN_CHUNK
    if few:
        statement = _light_by_ids(table, columns, len(wanted) == 1)
        statement = statement.where(*plan.conditions) if plan.conditions else statement
        among = wanted[0] if len(wanted) == 1 else list(wanted)
        found = ctx.tx.execute(statement, {"account": ctx.account, "region": ctx.region, "among": among})
    else:
        conditions = [*_own(ctx, table), *plan.conditions]
        if after:
            created, last = _place(after)
            conditions.append(sa.tuple_(table.c.created, table.c.id) > sa.tuple_(created, last))
        statement = sa.select(*(table.c[name] for name in columns)).where(*conditions)
        cut = None if plan.rows or plan.views or wanted else limit
        # Asked for the order, SQLite would walk through the whole scope in it rather than use a condition's index.
        if cut is not None or not plan.conditions:
            statement = statement.order_by(table.c.created, table.c.id).limit(cut)
        found = ctx.tx.execute(statement)
    rows = [dict(zip(columns, row, strict=True)) for row in found.all()]
    rows.sort(key=lambda row: (row["created"], row["id"]))
    if wanted and not few:
        chosen = set(wanted)
        rows = [row for row in rows if row["id"] in chosen]
    return [row for row in rows if all(matches(row) for matches in plan.rows)]


def forms(ctx: Context, listing: Listing, rows: Sequence[Row]) -> list[Any]:
    """The resources as an answer has them: kept forms where there are some, views for the rest."""
    keep = ctx.forms if listing.kept and not ctx.tx.writable else None
    found: dict[str, Any] = {}
    if keep is not None:
        for row in rows:
            form = keep.get(listing.shape, row["id"], row["version"])
            if form is not None:
                found[row["id"]] = form
    missing = {row["id"]: row["version"] for row in rows if row["id"] not in found}
    for start in range(0, len(missing), IN_CHUNK):
        ids = list(missing)[start : start + IN_CHUNK]
        whole = ctx.tx.among(listing.table, "id", ids)
        for row, view in zip(whole, listing.views(ctx, whole), strict=True):
            found[row["id"]] = view if keep is None else keep.put(listing.shape, row["id"], row["version"], view)
    return [found[row["id"]] for row in rows]


def _seen(
    ctx: Context, listing: Listing, rows: Sequence[Row], plan: _Plan, enough: int | None
) -> list[tuple[Row, Any]]:
    """Those whose views meet the filters that need a view; no more than are `enough`."""
    found: list[tuple[Row, Any]] = []
    for start in range(0, len(rows), IN_CHUNK):
        chunk = rows[start : start + IN_CHUNK]
        whole = {row["id"]: row for row in ctx.tx.among(listing.table, "id", [row["id"] for row in chunk])}
        views = listing.views(ctx, [whole[row["id"]] for row in chunk])
        found += [(row, view) for row, view in zip(chunk, views, strict=True) if all(one(view) for one in plan.views)]
        if enough is not None and len(found) >= enough:
            break
    return found


def listed(ctx: Context, params: Input, listing: Listing) -> tuple[list[tuple[Row, Any]], str | None]:
    """(row's light columns, item) of the wanted page, and the next page's token. One unknown id fails the call."""
    wanted = list(dict.fromkeys(params.get(listing.ids) or ()))
    most = _page_size(params, listing.ids, listing.least)
    after = _decode_token(ctx, params["NextToken"]) if params.get("NextToken") else ""
    if wanted:
        _check_form(listing, wanted)
    plan = _plan(ctx, params, listing)
    if wanted and (plan.conditions or plan.rows):
        _require_all(ctx, listing, wanted)
    limit = most + 1 if most is not None else None
    rows = _light(ctx, listing, plan, wanted, after, limit)
    if wanted and not (plan.conditions or plan.rows) and len(rows) != len(wanted):
        _refuse_unknown(listing, wanted, {row["id"] for row in rows})
    if plan.views:
        found = _seen(ctx, listing, rows, plan, limit)
    else:
        rows = rows[:limit]
        found = list(zip(rows, forms(ctx, listing, rows), strict=True))
    if most is None or len(found) <= most:
        return found, None
    last = found[most - 1][0]
    return found[:most], _encode_token(ctx, json.dumps([last["created"], last["id"]]))


def with_named(
    ctx: Context,
    params: Input,
    listing: Listing,
    names: str,
    unknown: Callable[[Sequence[str]], CloudError],
    **equal: Any,
) -> Input:
    """Names in the parameter `names` as ids beside those that are given. Names and pages go together, unlike ids."""
    wanted = params.get(names)
    if not wanted:
        return params
    scope = {"account": ctx.account, "region": ctx.region} | equal
    known = {row["name"]: row["id"] for row in ctx.tx.among(listing.table, "name", wanted, **scope)}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise unknown(missing)
    ids = [*params.get(listing.ids, ()), *(known[name] for name in wanted)]
    if params.get("MaxResults") is None:
        return params | {listing.ids: ids}
    return params | {"$ids": ids}


def describe(ctx: Context, params: Input, listing: Listing, answer: str) -> Output:
    """The whole of a Describe whose answer is a list of the resources."""
    found, token = listed(ctx, params, listing)
    return {answer: [item for _, item in found], "NextToken": token}


def _check_form(listing: Listing, ids: Sequence[str]) -> None:
    if listing.check is not None:
        listing.check(ids)
    else:
        check_ids(listing.prefix, listing.malformed or listing.code, ids)


def _refuse_unknown(listing: Listing, wanted: Sequence[str], known: set[str]) -> None:
    unknown = [one for one in wanted if one not in known]
    if unknown:
        raise (
            listing.unknown(unknown)
            if listing.unknown
            else not_found(f"{listing.code}.NotFound", listing.what, unknown)
        )


def _require_all(ctx: Context, listing: Listing, wanted: Sequence[str]) -> None:
    known = _light(ctx, listing, _Plan(), wanted, "", None)
    _refuse_unknown(listing, wanted, {row["id"] for row in known})
