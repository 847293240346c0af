"""A file or a URL, copied to where nobody else can change it; bounded, and with its SHA-256 on the way.

A copy, because what is checked has to be what is converted. Of a URL every hop is checked: its scheme, and the address
that its name has, which is the address that is then connected to (a name may have another one the next moment).
Addresses of metadata services are never asked: their answers are secrets of this machine. Proxies of the environment
are not used, because behind them no address can be checked.

Sources: RFC 9110 (redirects, Content-Length), RFC 3927 and RFC 4291 (link-local addresses), RFC 6052 (IPv4 in IPv6).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from haneul.errors import SettingsError

Say = Callable[[str], None]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PIECE = 1 << 20
REDIRECTS = 5
#: Room that an import leaves to others on the file system.
SPARE_BYTES = 1 << 30
#: Seconds for one answer of the network, and for a whole download.
SILENCE_SECONDS, DOWNLOAD_SECONDS = 30.0, 6 * 3600.0

# What clouds answer secrets on, beside the link-local networks.
_METADATA = frozenset(
    ipaddress.ip_address(one) for one in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Copied:
    """`size` in bytes, `sha256` in small hexadecimal digits."""

    size: int
    sha256: str


def is_url(source: str) -> bool:
    return "://" in source


def copy(source: str, target: Path, most: int, say: Say, *, digest: str = "") -> Copied:
    """Copy a file or a URL to `target`, at most `most` bytes. With `digest` (SHA-256) that it has to have.

    Raises `SettingsError`.
    """
    try:
        copied = (
            download(source, target, most, say, known=bool(digest))
            if is_url(source)
            else _copy_file(Path(source), target, most, say)
        )
    except OSError as error:
        raise SettingsError(f"{shown(source)} could not be read: {error}") from None
    if digest and copied.sha256 != digest.lower():
        raise SettingsError(
            f"the file's SHA-256 is {copied.sha256}, not {digest.lower()}: it is not the file that was meant"
        )
    return copied


def shown(source: str) -> str:
    """A file's name, or a URL without what may be a secret in it; printable."""
    text = Path(source).name
    if is_url(source):
        text = source.partition("?")[0].partition("#")[0]
        scheme, _, rest = text.partition("://")
        host, slash, path = rest.partition("/")
        text = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return _plain(text)


def _plain(text: str) -> str:
    """What a stranger said, for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


# --- files -------------------------------------------------------------------------------------------------


def _copy_file(source: Path, target: Path, most: int, say: Say) -> Copied:
    # O_NONBLOCK: opening a pipe must not wait for whoever writes into it.
    if source.is_symlink():
        raise SettingsError(f"{source} is a symbolic link; name the file itself")
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(f"{source}: {os.strerror(error.errno or 0)}") from None
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise SettingsError(f"{source} is no regular file")
        _need_size(before.st_size, most, target)
        copied = _pour(lambda: os.read(descriptor, PIECE), target, before.st_size, before.st_size, say, "copying")
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if copied.size != before.st_size or _version(before) != _version(after):
        raise SettingsError(f"{source} changed while it was copied")
    return copied


def _version(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _need_size(size: int, most: int, target: Path) -> None:
    if size > most:
        raise SettingsError(f"the file has {size} bytes, the limit is {most} (import_max_file_gib)")
    if size > room(target.parent):
        raise SettingsError(f"the file has {size} bytes, for which {target.parent} has no room")


def room(directory: Path) -> int:
    """Bytes that an import may still take there."""
    found = os.statvfs(directory)
    return max(0, found.f_bavail * found.f_frsize - SPARE_BYTES)


def _pour(read: Callable[[], bytes], target: Path, most: int, expected: int, say: Say, doing: str) -> Copied:
    """Write what `read` gives until it gives nothing, or one byte more than `most`. Zeros become holes."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    digest, size = hashlib.sha256(), 0
    with open(descriptor, "wb", buffering=0) as file:
        while piece := read():
            size += len(piece)
            if size > most:
                break
            digest.update(piece)
            if piece.count(0) == len(piece):
                file.seek(len(piece), os.SEEK_CUR)
            else:
                _write(file.fileno(), piece)
            say(f"{doing} {100 * size // expected} %" if expected else f"{doing} {size >> 20} MiB")
        if size <= most:
            file.truncate(size)
    return Copied(size, digest.hexdigest())


def _write(descriptor: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(descriptor, left) :]


# --- URLs --------------------------------------------------------------------------------------------------


def download(
    url: str,
    target: Path,
    most: int,
    say: Say,
    *,
    known: bool = False,
    silence: float = SILENCE_SECONDS,
    seconds: float = DOWNLOAD_SECONDS,
) -> Copied:
    """Fetch a URL. `known`: the content's digest will be checked, so that the way may be an open one."""
    deadline = time.monotonic() + seconds
    before: Address | None = None
    for _ in range(REDIRECTS + 1):
        parts = _checked_url(url)
        address = _resolve(parts)
        if before is not None and _is_public(before) and not _is_public(address):
            raise SettingsError(
                f"a redirect leads from {before} into a private network ({address}); it is not followed"
            )
        before = address
        with _asked(parts, address, silence, deadline) as answer:
            if answer.status not in (301, 302, 303, 307, 308):
                return _receive(answer, target, most, say)
            to = urljoin(url, answer.getheader("Location") or "")
        if parts.scheme == "https" and not to.lower().startswith("https:") and not known:
            raise SettingsError(f"a redirect leads from https to {shown(to)}; name the file's --sha256 to follow it")
        url = to
    raise SettingsError(f"more than {REDIRECTS} redirects")


def _checked_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"this is no URL: {_plain(str(error))}") from None
    if parts.scheme not in ("http", "https"):
        raise SettingsError(f"the URL's scheme is {_plain(parts.scheme)!r}; only http and https are fetched")
    if not parts.hostname or port == 0:
        raise SettingsError(f"the URL {shown(url)} names no host")
    if parts.username is not None or parts.password is not None:
        raise SettingsError("a URL with a password is not fetched: others of this machine would see it")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise SettingsError(f"the URL {shown(url)!r} has characters that have to be percent-encoded")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _resolve(parts: SplitResult) -> Address:
    """The address to connect to. All that the name has are checked."""
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, _port(parts), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{host} has no address: {error}") from None
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    for address in addresses:
        why = refused_address(address)
        if why:
            raise SettingsError(f"{host} is {address}, {why}; it is not asked")
    return addresses[0]


def refused_address(address: Address) -> str:
    """Why nothing is fetched from there; empty if it may be."""
    inner = _inner(address)
    if inner is not None:
        return refused_address(inner)
    if address in _METADATA:
        return "the metadata service of a cloud"
    if address.is_link_local:
        return "a link-local address, where metadata services are"
    if address.is_multicast or address.is_unspecified:
        return "no address of a host"
    return ""


def _is_public(address: Address) -> bool:
    return (_inner(address) or address).is_global


def _inner(address: Address) -> Address | None:
    """The IPv4 address that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def _connect(address: Address, port: int, seconds: float) -> socket.socket:
    """Nothing is looked up again: this is the address that was checked."""
    found = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        found.settimeout(seconds)
        found.connect((str(address), port))
    except OSError:
        found.close()
        raise
    return found


@contextmanager
def _asked(parts: SplitResult, address: Address, silence: float, deadline: float) -> Iterator[http.client.HTTPResponse]:
    """The answer's head; its socket is cut at the deadline, however slowly it drips."""
    host = parts.hostname or ""
    left = deadline - time.monotonic()
    connection = http.client.HTTPConnection(str(address), _port(parts), timeout=silence)
    raw = _connect(address, _port(parts), max(0.1, min(silence, left)))
    descriptor = socket.socket(fileno=os.dup(raw.fileno()))
    late = threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            descriptor.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, left), cut)
    timer.daemon = True
    timer.start()
    try:
        raw.settimeout(silence)
        secure = parts.scheme == "https"
        connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Host": parts.netloc, "User-Agent": "haneul", "Connection": "close"})
        yield connection.getresponse()
    except (http.client.HTTPException, ValueError) as error:
        raise SettingsError(f"{host} does not answer as HTTP says: {_plain(repr(error))}") from None
    except OSError as error:
        raise SettingsError(f"{host}: {'the download took too long' if late.is_set() else error}") from None
    finally:
        timer.cancel()
        connection.close()
        descriptor.close()
        raw.close()
    if late.is_set():
        raise SettingsError(f"{host}: the download took too long")


def _receive(answer: http.client.HTTPResponse, target: Path, most: int, say: Say) -> Copied:
    if answer.status != 200:
        raise SettingsError(f"the server answers {answer.status} {_plain(answer.reason)}")
    if answer.getheader("Content-Encoding", "identity") != "identity":
        raise SettingsError("the server packs its answer though it was not asked to")
    told = answer.getheader("Content-Length")
    if told is not None and not (told.isascii() and told.isdigit()):
        raise SettingsError(f"the server's Content-Length is {_plain(told)!r}")
    expected = int(told) if told is not None and answer.length is not None else None
    _need_size(expected or 0, most, target)
    most = min(most, room(target.parent))
    copied = _pour(lambda: answer.read(PIECE), target, most, expected or 0, say, "downloading")
    if copied.size > most:
        raise SettingsError(f"the server sends more than {most} bytes, the limit (import_max_file_gib)")
    if expected is not None and copied.size != expected:
        raise SettingsError(f"the server promised {expected} bytes and sent {copied.size}")
    return copied
