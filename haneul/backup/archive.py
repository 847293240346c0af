"""The format of a backup: a tar of regular files, plain or gzip, whose first member says what the others are.

Nothing of a file is believed before it is checked. The reader takes only what `make` writes: no links, no long names,
no extensions of tar. So it reads headers itself, and a hostile one costs 512 bytes.
"""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from haneul.errors import SettingsError

FORMAT = 1
MANIFEST, STORE = "manifest.json", "store.jsonl"
#: Files of the identity -> their modes. `known_hosts` belongs to the machine that logs in.
IDENTITY = {
    "secret": 0o600,
    "credentials": 0o600,
    "ssh_key": 0o600,
    "ssh_key.pub": 0o644,
    "identity.key": 0o600,
    "identity.pem": 0o644,
    "slot": 0o600,
}
MANIFEST_BYTES, IDENTITY_BYTES = 64 << 20, 1 << 20
MEMBER_BYTES = 1 << 50
PIECE = 1 << 20
_BLOCK = 512
_VOLUME = re.compile(r"volumes/(vol-[0-9a-f]{1,40})\.qcow2")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    size: int
    sha256: str


@dataclass(frozen=True)
class Volume:
    """A volume that had a file when the backup was made; `image` is what it is an overlay on, if any."""

    size: int
    image: str
    backing: str
    included: bool


@dataclass(frozen=True)
class Manifest:
    """`images` has the SHA-256 of each image's disk that an included volume needs."""

    haneul: str
    schema: str
    made: str
    database: str
    data: str
    rows: dict[str, int]
    members: dict[str, Member]
    volumes: dict[str, Volume] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def text(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


class Damaged(SettingsError):
    """The file is no backup that this haneul takes."""


def volume_member(volume_id: str) -> str:
    return f"volumes/{volume_id}.qcow2"


def volume_of(member: str) -> str | None:
    """The id of the volume whose file this is."""
    found = _VOLUME.fullmatch(member)
    return found[1] if found else None


# --- what is believed -----------------------------------------------------------------------------------


def parse_json(text: bytes | str) -> Any:
    """Strict JSON. Raises ValueError also for what is nested too deeply, or no number."""

    def no(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text, parse_constant=no)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_manifest(text: bytes) -> Manifest:
    """Raises `Damaged`."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise Damaged(f"its {MANIFEST} cannot be read: {error}") from None
    if not isinstance(value, dict) or type(value.get("format")) is not int:
        raise Damaged(f"its {MANIFEST} is not that of a backup")
    if value["format"] != FORMAT:
        raise Damaged(f"it has the format {value['format']}, this haneul reads {FORMAT}: restore with a newer haneul")
    try:
        return _manifest(value)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"its {MANIFEST} is not that of a backup: {type(error).__name__} {error}") from None


def _manifest(value: dict[str, Any]) -> Manifest:
    texts = {name: _of(value[name], str) for name in ("haneul", "schema", "made", "database", "data")}
    dt.datetime.fromisoformat(texts["made"])
    rows = {name: _of(count, int) for name, count in _of(value["rows"], dict).items()}
    members = {name: _member(name, one) for name, one in _of(value["members"], dict).items()}
    volumes = {name: _volume(name, one) for name, one in _of(value["volumes"], dict).items()}
    images = {name: _matching(_DIGEST, one) for name, one in _of(value["images"], dict).items()}
    needed = {STORE, *(f"identity/{name}" for name in IDENTITY)}
    needed |= {volume_member(name) for name, one in volumes.items() if one.included}
    if needed != members.keys():
        raise ValueError(f"members are missing or too many: {', '.join(sorted(needed ^ members.keys()))[:200]}")
    if {one.image for one in volumes.values() if one.included and one.image} - images.keys():
        raise ValueError("images of volumes are not described")
    return Manifest(**texts, rows=rows, members=members, volumes=volumes, images=images)


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:40]!r} is no {kind.__name__}")
    return value


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if not pattern.fullmatch(_of(value, str)):
        raise ValueError(f"{value[:80]!r}")
    return str(value)


def _member(name: str, value: Any) -> Member:
    most = IDENTITY_BYTES if name.startswith("identity/") else MEMBER_BYTES
    size = _of(_of(value, dict)["size"], int)
    if not 0 <= size <= most:
        raise ValueError(f"{name} has {size} bytes")
    return Member(size, _matching(_DIGEST, value["sha256"]))


def _volume(name: str, value: Any) -> Volume:
    if volume_of(volume_member(name)) is None:
        raise ValueError(f"{name[:80]!r} is no volume")
    image = _of(_of(value, dict)["image"], str)
    if image:
        _matching(_IMAGE, image)
    return Volume(_of(value["size"], int), image, _of(value["backing"], str), _of(value["included"], bool))


# --- reading --------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[tuple[Manifest, Iterator[tuple[str, Iterator[bytes]]]]]:
    """The manifest, and each other member with its bytes, to be taken in order. Checked while they are read.

    Raises `Damaged`, whatever is wrong with the file's content, and OSError.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: IO[bytes] = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]
        try:
            name, size = _header(stream)
            if name != MANIFEST or size > MANIFEST_BYTES:
                raise Damaged("it does not begin with a manifest: it is no backup of haneul's")
            manifest = read_manifest(b"".join(_content(stream, size)))
            yield manifest, _members(stream, manifest)
        except Damaged as error:
            raise Damaged(f"{path}: {error}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(f"{path}: it is damaged or cut off ({error or 'no more data'})") from None


def _members(stream: IO[bytes], manifest: Manifest) -> Iterator[tuple[str, Iterator[bytes]]]:
    left = dict(manifest.members)
    while (header := _next(stream)) is not None:
        name, size = header
        said = left.pop(name, None)
        if said is None:
            raise Damaged(f"it has {name[:80]!r}, which its manifest does not name (or names once)")
        if said.size != size:
            raise Damaged(f"{name} has {size} bytes, its manifest says {said.size}")
        checked = _checked(name, _content(stream, size), said.sha256)
        yield name, checked
        for _ in checked:  # what the caller left
            pass
    # To the end of gzip's own checksum; tar fills its last record with zeros.
    rest = stream.read(2 * tarfile.RECORDSIZE)
    if len(rest) > tarfile.RECORDSIZE or rest.strip(b"\0"):
        raise Damaged("something stands behind its end")
    if left:
        raise Damaged(f"it is cut off: {', '.join(sorted(left)[:3])} is not there")


def _checked(name: str, content: Iterator[bytes], wanted: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != wanted:
        raise Damaged(f"{name} is damaged: its checksum is another one")


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _next(stream: IO[bytes]) -> tuple[str, int] | None:
    block = _exactly(stream, _BLOCK)
    return _parse(block) if block.strip(b"\0") else None


def _header(stream: IO[bytes]) -> tuple[str, int]:
    return _parse(_exactly(stream, _BLOCK))


def _parse(block: bytes) -> tuple[str, int]:
    """(name, size) of a regular file; anything else is refused."""
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        raise Damaged("it is no tar file, or damaged") from None
    if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise Damaged(f"it has {found.name[:80]!r}, which is no regular file")
    if not 0 <= found.size <= MEMBER_BYTES:
        raise Damaged(f"{found.name[:80]!r} claims {found.size} bytes")
    return found.name, found.size


def _content(stream: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = _exactly(stream, min(left, PIECE))
        left -= len(piece)
        yield piece
    _exactly(stream, -size % _BLOCK)


# --- writing --------------------------------------------------------------------------------------------


@contextmanager
def writing(file: IO[bytes], zipped: bool) -> Iterator[tarfile.TarFile]:
    """A tar that goes to `file`."""
    if not zipped:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            yield tar
        return
    with (
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=4, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        yield tar


def add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int, made: float) -> None:
    """Raises OSError if the content is shorter than that."""
    about = tarfile.TarInfo(name)
    about.size, about.mode, about.mtime = size, 0o600, int(made)
    tar.addfile(about, content)


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes, made: float) -> None:
    add(tar, name, io.BytesIO(content), len(content), made)


def member(content: IO[bytes], say: Callable[[int], None] = lambda done: None) -> Member:
    """Size and checksum of what is left of a file."""
    digest, size = hashlib.sha256(), 0
    while piece := content.read(PIECE):
        digest.update(piece)
        size += len(piece)
        say(size)
    return Member(size, digest.hexdigest())
