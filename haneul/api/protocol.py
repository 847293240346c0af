"""The codec: botocore's service models are the only description of requests and answers.

`parse` turns wire parameters into the dict that boto3's user wrote; `serialise` turns such a dict into XML.
Protocols `ec2` (EC2 Query) and `query` (STS); Smithy, "AWS EC2 query protocol" and "AWS query protocol".
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import math
import re
import sys
import threading
import typing
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from botocore.model import ListShape, MapShape, OperationModel, Shape, StructureShape

from haneul.errors import CloudError, invalid, missing
from haneul.model.aws import service_model
from haneul.services.context import Form

Tree = dict[str, Any]
Parameters = list[tuple[str, str]]
_MAX_DEPTH = 24

#: Enumerations that haneul does not take from the model: its own families are instance types too, and an
#: unknown type has an error of its own.
_OPEN_ENUMS = frozenset({"InstanceType", "AccountAttributeName"})
#: Spellings that EC2 takes beside those of the model.
_SPELLINGS = {
    ("SpotAllocationStrategy", "lowestPrice"): "lowest-price",
    ("FleetOnDemandAllocationStrategy", "lowestPrice"): "lowest-price",
}
_PARAMETERS_OF_EVERY_CALL = frozenset(
    {"Action", "Version", "SignatureVersion", "SignatureMethod", "Timestamp", "AWSAccessKeyId"}
)


@cache
def operations(service: str) -> frozenset[str]:
    return frozenset(service_model(service).operation_names)


def operation_model(service: str, name: str) -> OperationModel:
    """Raises `InvalidAction` for a name that the model does not have."""
    if name not in operations(service):
        raise CloudError("InvalidAction", f"The action {name or '(none)'} is not valid for this web service.")
    return _operation(service, name)


@cache
def _operation(service: str, name: str) -> OperationModel:
    model: OperationModel = service_model(service).operation_model(name)
    return model


# --- requests ---------------------------------------------------------------------------------------


def _grow(parameters: Parameters) -> Tree:
    """`A.1.B=x` -> {"A": {"1": {"B": "x"}}}. A name that is both a value and a group is refused."""
    tree: Tree = {}
    for name, value in parameters:
        *path, leaf = name.split(".")
        if len(path) > _MAX_DEPTH:
            raise CloudError("InvalidParameter", f"The parameter {name[:80]} is nested too deeply.")
        node = tree
        for part in path:
            following = node.setdefault(part, {})
            if not isinstance(following, dict):
                raise CloudError("InvalidParameter", f"The parameter {name} is both a value and a structure.")
            node = following
        if isinstance(node.get(leaf), dict):
            raise CloudError("InvalidParameter", f"The parameter {name} is both a value and a structure.")
        node[leaf] = value
    return tree


def _wire_name(protocol: str, member: str, shape: Shape) -> str:
    serialization = shape.serialization
    if protocol == "ec2":
        if "queryName" in serialization:
            return str(serialization["queryName"])
        name = str(serialization.get("name", member))
        return name[:1].upper() + name[1:]
    return str(serialization.get("name", member))


@cache
def _members(protocol: str, service: str, shape_name: str) -> dict[str, tuple[str, Shape]]:
    shape = service_model(service).shape_for(shape_name)
    return {_wire_name(protocol, name, member): (name, member) for name, member in shape.members.items()}


class _Parser:
    def __init__(self, service: str) -> None:
        self.service = service
        self.protocol = service_model(service).protocol

    def structure(self, shape: StructureShape, node: Any, path: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            if node == "":
                return {}
            raise CloudError("InvalidParameterValue", f"The parameter {path} is a structure; a value was given.")
        members = _members(self.protocol, self.service, shape.name)
        result: dict[str, Any] = {}
        for wire, value in node.items():
            place = f"{path}.{wire}" if path else wire
            if wire not in members:
                if not path and (wire in _PARAMETERS_OF_EVERY_CALL or wire.startswith("X-Amz-")):
                    continue
                raise CloudError("UnknownParameter", f"The parameter {place[:200]} is not recognized")
            name, member = members[wire]
            if value == "" and means_nothing(shape, name, member):
                continue
            result[name] = self.value(member, value, place)
        for required in shape.required_members:
            if required not in result:
                wire = _wire_name(self.protocol, required, shape.members[required])
                raise missing(f"{path}.{wire}" if path else wire)
        return result

    def value(self, shape: Shape, node: Any, path: str) -> Any:
        kind = shape.type_name
        if kind == "structure":
            return self.structure(typing.cast(StructureShape, shape), node, path)
        if kind == "list":
            return self.list(typing.cast(ListShape, shape), node, path)
        if kind == "map":
            return self.map(typing.cast(MapShape, shape), node, path)
        if isinstance(node, dict):
            raise CloudError("InvalidParameterValue", f"The parameter {path} is a value; a structure was given.")
        return _scalar(shape, node, path)

    def map(self, shape: MapShape, node: Any, path: str) -> dict[str, Any]:
        """`Name.entry.1.key` and `.value` (query; a flattened map has no `entry`)."""
        if node == "":
            return {}
        flattened = shape.serialization.get("flattened")
        entries = node if flattened else node.get("entry") if isinstance(node, dict) else None
        if not isinstance(entries, dict) or not all(
            _INDEX.match(one) and isinstance(entries[one], dict) for one in entries
        ):
            raise CloudError("InvalidParameterValue", f"The parameter {path} is a map; something else was given.")
        key, value = (one.serialization.get("name", name) for one, name in ((shape.key, "key"), (shape.value, "value")))
        found: dict[str, Any] = {}
        for index in sorted(entries, key=int):
            entry = entries[index]
            if entry.keys() != {key, value}:
                raise CloudError(
                    "InvalidParameterValue", f"The parameter {path} has an entry without its key or value."
                )
            found[self.value(shape.key, entry[key], path)] = self.value(shape.value, entry[value], path)
        return found

    def list(self, shape: ListShape, node: Any, path: str) -> list[Any]:
        if node == "":
            return []
        if not isinstance(node, dict) and shape.member.type_name not in ("structure", "list"):
            node = {"1": node}  # libcloud sends a list of one as `KeyName=x`
        if not isinstance(node, dict):
            raise CloudError("InvalidParameterValue", f"The parameter {path} is a list; a value was given.")
        if self.protocol == "query" and set(node) == {"member"}:
            node = node["member"]
        if not isinstance(node, dict):
            raise CloudError("InvalidParameterValue", f"The parameter {path} is a list; a value was given.")
        wrong = next((index for index in node if not _INDEX.match(index)), None)
        items = sorted((int(index), index) for index in node) if wrong is None else []
        if wrong is not None:
            raise CloudError("UnknownParameter", f"The parameter {path}.{wrong[:80]} is not recognized") from None
        member = shape.member
        return [self.value(member, node[index], f"{path}.{index}") for _, index in items]


#: Members whose empty text is a value: a tag's, an attribute's, a description that is taken away.
_MAY_BE_EMPTY = frozenset({"Value", "Description", "VersionDescription", "UserData", "NoDevice"})
#: (structure, member): ModifyInstancePlacement takes an instance out of its group by an empty name.
_MAY_BE_EMPTY_THERE = frozenset({("ModifyInstancePlacementRequest", "GroupName")})


def means_nothing(shape: StructureShape, name: str, member: Shape) -> bool:
    """Whether an empty text for the member is the same as none: clients send it for what their user has left out, and EC2 takes it so."""
    if name in _MAY_BE_EMPTY or (shape.name, name) in _MAY_BE_EMPTY_THERE:
        return False
    return member.type_name == "string" and name not in shape.required_members


#: (operation, its required member) -> what EC2 says of a request without it, where that is not MissingParameter with its name.
_NONE_GIVEN = {
    **{
        (name, "InstanceIds"): ("InvalidParameterCombination", "No instances specified")
        for name in ("TerminateInstances", "StopInstances", "StartInstances", "RebootInstances")
    },
    **{
        (name, "Resources"): ("MissingParameter", "The request must contain the parameter resourceIdSet")
        for name in ("CreateTags", "DeleteTags")
    },
}


def _check_given(operation: OperationModel, tree: Tree) -> None:
    for member in operation.input_shape.required_members:
        said = _NONE_GIVEN.get((operation.name, member))
        if said and _wire_name("ec2", member, operation.input_shape.members[member]) not in tree:
            raise CloudError(*said)


_INDEX = re.compile(r"[0-9]{1,9}\Z")
_INTEGER = re.compile(r"[+-]?\d{1,19}\Z")


def _scalar(shape: Shape, text: str, path: str) -> Any:
    kind = shape.type_name
    if kind in ("string", "character"):
        return _string(shape, text, path)
    if kind in ("integer", "long"):
        if not _INTEGER.match(text):
            raise invalid(text[:100], path, "It is not an integer.")
        return _ranged(shape, int(text), path)
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise invalid(text[:100], path, "It must be true or false.")
        return text.lower() == "true"
    if kind in ("float", "double"):
        try:
            number = float(text)
        except ValueError:
            raise invalid(text[:100], path, "It is not a number.") from None
        if not math.isfinite(number):
            raise invalid(text[:100], path, "It is not a number.")
        return _ranged(shape, number, path)
    if kind == "timestamp":
        return parse_time(text, path)
    if kind == "blob":
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise invalid("…", path, "It is not valid base64.") from None
    raise CloudError("InternalError", f"The model has a type that haneul does not know: {kind}")


def _string(shape: Shape, text: str, path: str) -> str:
    text = _SPELLINGS.get((shape.name, text), text)
    allowed = getattr(shape, "enum", None)
    if allowed and shape.name not in _OPEN_ENUMS and text not in allowed:
        raise invalid(text[:100], path)
    return text


def _ranged(shape: Shape, number: Any, path: str) -> Any:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and number < low:
        raise invalid(number, path, f"Expected at least {low}.")
    if high is not None and number > high:
        raise invalid(number, path, f"Expected at most {high}.")
    if shape.type_name == "integer" and not -(2**31) <= number < 2**31:
        raise invalid(number, path, "It does not fit into 32 bits.")
    return number


def parse_time(text: str, path: str) -> dt.datetime:
    """ISO 8601 or seconds since the epoch, as the SDKs send them; the answer is in UTC."""
    try:
        if re.fullmatch(r"-?\d+(\.\d+)?", text):
            return dt.datetime.fromtimestamp(float(text), dt.UTC)
        time = dt.datetime.fromisoformat(text)
        return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
    except (ValueError, OverflowError, OSError):
        raise invalid(text[:100], path, "It is not an ISO 8601 time.") from None


def parse(service: str, operation: OperationModel, parameters: Parameters) -> dict[str, Any]:
    """The operation's input as boto3's user wrote it.

    Raises `CloudError`: UnknownParameter, MissingParameter, InvalidParameter, InvalidParameterValue.
    """
    tree = _grow(parameters)
    shape = operation.input_shape
    if shape is None:
        return {}
    _check_given(operation, tree)
    return _Parser(service).structure(shape, tree, "")


# --- JSON requests (AWS JSON 1.1 protocol) ----------------------------------------------------------


def parse_json(operation: OperationModel, body: bytes) -> dict[str, Any]:
    """Raises `CloudError`: SerializationException for what is no JSON of the operation's shape."""
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise CloudError("SerializationException", "The body is not JSON.") from None
    shape = operation.input_shape
    return typing.cast(dict[str, Any], _from_json(shape, value, "")) if shape is not None else {}


_JSON_KINDS: dict[str, tuple[type, ...]] = {
    "structure": (dict,), "map": (dict,), "list": (list,), "string": (str,), "integer": (int,), "long": (int,),
    "boolean": (bool,), "double": (int, float), "float": (int, float), "timestamp": (int, float, str), "blob": (str,),
}  # fmt: skip


def _from_json(shape: Any, value: Any, path: str) -> Any:
    kind = shape.type_name
    fits: bool = isinstance(value, _JSON_KINDS[kind])
    if not fits or (isinstance(value, bool) and kind != "boolean"):
        raise CloudError("SerializationException", f"{path or 'The body'} is not a {kind}.")
    if kind == "structure":
        found = {
            name: _from_json(member, value[name], f"{path}.{name}".lstrip("."))
            for name, member in shape.members.items()
            if value.get(name) is not None
        }
        for required in shape.required_members:
            if required not in found:
                raise CloudError("ValidationException", f"The member {f'{path}.{required}'.lstrip('.')} is required.")
        return found
    if kind == "list":
        return [_from_json(shape.member, one, path) for one in value]
    if kind == "map":
        return {str(name): _from_json(shape.value, one, path) for name, one in value.items()}
    if not isinstance(value, str):
        return _ranged(shape, value, path) if kind in ("integer", "long") else value
    if not value.isprintable() and re.search("[\ud800-\udfff]", value):
        raise CloudError("SerializationException", f"{path or 'The body'} is not text.")
    return _scalar(shape, value, path)


# --- answers ----------------------------------------------------------------------------------------

Write = Callable[[Any, list[str]], None]
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_SPECIAL = re.compile("[&<>\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")


def escape(text: str) -> str:
    """Text for XML; characters that XML 1.0 cannot hold at all become U+FFFD."""
    if not _SPECIAL.search(text):
        return text
    text = _NOT_XML.sub("\ufffd", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#xD;")


def format_time(time: dt.datetime) -> str:
    utc = time if time.tzinfo is dt.UTC else time.astimezone(dt.UTC)
    return utc.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _text_of(shape: Shape) -> Callable[[Any], str]:
    kind = shape.type_name
    if kind == "boolean":
        return lambda value: "true" if value else "false"
    if kind == "timestamp":
        return format_time
    if kind == "blob":
        return lambda value: base64.b64encode(value).decode()
    if kind in ("integer", "long"):
        return lambda value: str(int(value))
    if kind in ("float", "double"):
        return lambda value: repr(float(value))
    return lambda value: escape(value if type(value) is str else str(value))


def _is_group(shape: Shape) -> bool:
    return shape.type_name in ("structure", "list", "map")


def _leaf(text: Callable[[Any], str]) -> Write:
    return lambda value, out: out.append(text(value))


class _Serialiser:
    """Writers by shape, made once for each shape and kept."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.writers: dict[str, Write] = {}

    def writer(self, shape: Shape) -> Write:
        if shape.type_name == "structure":
            return self._named(typing.cast(StructureShape, shape))
        if shape.type_name == "list":
            return self._list(typing.cast(ListShape, shape))
        if shape.type_name == "map":
            return self._map(typing.cast(MapShape, shape))
        return _leaf(_text_of(shape))

    def _named(self, shape: StructureShape) -> Write:
        name = shape.name
        if name not in self.writers:
            # A shape may contain itself: what is written here looks the writer up when it runs.
            self.writers[name] = lambda value, out: self.writers[name](value, out)  # noqa: PLW0108
            self.writers[name] = self._structure(shape)
        return self.writers[name]

    def _structure(self, shape: StructureShape) -> Write:
        # Most members are scalars: those are one text each, without a call for the element around it.
        members = [
            (name, f"<{wire}>", f"</{wire}>", self.writer(member), None if _is_group(member) else _text_of(member))
            for name, member in shape.members.items()
            for wire in (member.serialization.get("name", name),)
        ]

        def write(value: Mapping[str, Any] | Form, out: list[str]) -> None:
            if type(value) is Form:
                out.append(value.text)
                return
            find = value.get  # type: ignore[union-attr]
            for name, opening, closing, inner, text in members:
                item = find(name)
                if item is None:
                    continue
                if text is not None:
                    out.append(opening + text(item) + closing)
                    continue
                out.append(opening)
                inner(item, out)
                out.append(closing)

        return write

    def _map(self, shape: MapShape) -> Write:
        key, value = (one.serialization.get("name", name) for one, name in ((shape.key, "key"), (shape.value, "value")))
        write_key, write_value = self.writer(shape.key), self.writer(shape.value)

        def write(entries: Mapping[str, Any], out: list[str]) -> None:
            for name, item in entries.items():
                out.append(f"<entry><{key}>")
                write_key(name, out)
                out.append(f"</{key}><{value}>")
                write_value(item, out)
                out.append(f"</{value}></entry>")

        return write

    def _list(self, shape: ListShape) -> Write:
        default = "item" if service_model(self.service).protocol == "ec2" else "member"
        wire = shape.member.serialization.get("name", default)
        opening, closing, inner = f"<{wire}>", f"</{wire}>", self.writer(shape.member)

        def write(value: list[Any], out: list[str]) -> None:
            for item in value:
                out.append(opening)
                inner(item, out)
                out.append(closing)

        return write


@cache
def _serialiser(service: str) -> _Serialiser:
    return _Serialiser(service)


class KeptForms:
    """`services.context.Forms` in `limit` bytes: the least recently used go first. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._kept: OrderedDict[tuple[str, str], tuple[int, Form, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shape: str, resource: str, version: int) -> Form | None:
        key = (shape, resource)
        with self._lock:
            found = self._kept.get(key)
            if found is None or found[0] != version:
                return None
            self._kept.move_to_end(key)
            return found[1]

    def put(self, shape: str, resource: str, version: int, item: Mapping[str, Any]) -> Form:
        out: list[str] = []
        _serialiser("ec2").writer(service_model("ec2").shape_for(shape))(item, out)
        form = Form("".join(out))
        size = sys.getsizeof(form.text) + 200
        with self._lock:
            old = self._kept.pop((shape, resource), None)
            self._size += size - (old[2] if old else 0)
            self._kept[shape, resource] = (version, form, size)
            while self._size > self._limit and len(self._kept) > 1:
                self._size -= self._kept.popitem(last=False)[1][2]
        return form


def serialise(service: str, operation: OperationModel, result: Mapping[str, Any], request_id: str) -> bytes:
    """The answer's body. Operations without an output shape answer `<return>true</return>`, as EC2 does."""
    if service_model(service).protocol == "json":
        plain = {name: value for name, value in result.items() if value is not None}
        return json.dumps(plain, default=_json_value).encode()
    out = ['<?xml version="1.0" encoding="UTF-8"?>\n']
    namespace = service_model(service).metadata.get("xmlNamespace", "")
    name = operation.name
    shape = operation.output_shape
    if service_model(service).protocol == "query":
        out.append(f'<{name}Response xmlns="{namespace}">')
        if shape is not None:
            out.append(f"<{name}Result>")
            _serialiser(service).writer(shape)(result, out)
            out.append(f"</{name}Result>")
        out.append(f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{name}Response>")
    else:
        # AWS sends the namespace with a final slash and libcloud matches it to the letter.
        out.append(f'<{name}Response xmlns="{namespace}/"><requestId>{request_id}</requestId>')
        if shape is not None and shape.members:
            _serialiser(service).writer(shape)(result, out)
        else:
            out.append("<return>true</return>")
        out.append(f"</{name}Response>")
    return "".join(out).encode()


def _json_value(value: Any) -> Any:
    """Times are seconds since the epoch in the JSON protocol, blobs base64."""
    if isinstance(value, dt.datetime):
        return value.timestamp()
    return base64.b64encode(value).decode()


def serialise_error(protocol: str, error: CloudError, request_id: str) -> bytes:
    if protocol == "json":
        return json.dumps({"__type": error.code, "message": error.message}).encode()
    code, message = escape(error.code), escape(error.message)
    if protocol == "query":
        side = "Receiver" if error.status >= 500 else "Sender"
        body = (
            f"<ErrorResponse><Error><Type>{side}</Type><Code>{code}</Code><Message>{message}</Message></Error>"
            f"<RequestId>{request_id}</RequestId></ErrorResponse>"
        )
    else:
        body = (
            f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
            f"<RequestID>{request_id}</RequestID></Response>"
        )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode()
