"""What one haneul is: its slot, keys and secrets, made at the first start and kept in the data directory.

Every secret file is 0600. The slot (0-255) keeps two haneuls on one machine apart: public pool, uids and
names of interfaces derive from it.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import functools
import hashlib
import ipaddress
import os
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from haneul.errors import SettingsError
from haneul.linux import files
from haneul.model.ids import new_access_key

#: Benchmarking addresses (RFC 2544): not private, so they look public, and routed nowhere.
PUBLIC_RANGE = ipaddress.IPv4Network("198.18.0.0/15")
POOL_PREFIX = 23
FIRST_UID = 0x70000000
UIDS = 1 << 16


def write_secret(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Whole or not at all, also after a power cut."""
    files.replace(path, data, mode, durable=True)


@dataclass(frozen=True)
class Identity:
    directory: Path
    slot: int

    @property
    def pool(self) -> str:
        return str(list(PUBLIC_RANGE.subnets(new_prefix=POOL_PREFIX))[self.slot])

    @property
    def first_uid(self) -> int:
        return FIRST_UID + self.slot * UIDS

    @property
    def tag(self) -> str:
        """Part of the names of what this haneul makes on the host, short enough for an interface name."""
        return f"{self.slot:02x}"

    @property
    def credentials(self) -> Path:
        return self.directory / "credentials"

    @property
    def ssh_key(self) -> Path:
        return self.directory / "ssh_key"

    @property
    def certificate(self) -> Path:
        return self.directory / "identity.pem"

    @property
    def ssh_public(self) -> str:
        return (self.directory / "ssh_key.pub").read_text().strip()

    @property
    def secret(self) -> bytes:
        return (self.directory / "secret").read_bytes()

    @property
    def binding(self) -> Path:
        """Which server of which store this data directory is (`store.ownership.Binding`, JSON)."""
        return self.directory / "server"

    def read_credentials(self) -> tuple[str, str]:
        """(access key, secret) of the first account."""
        access_key, secret = self.credentials.read_text().split()
        return access_key, secret

    def write_credentials(self, access_key: str, secret: str) -> None:
        write_secret(self.credentials, f"{access_key} {secret}\n".encode())

    @functools.cached_property
    def _signing_key(self) -> rsa.RSAPrivateKey:
        key = s.load_pem_private_key((self.directory / "identity.key").read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key

    @functools.cached_property
    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes())

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - one identity lives as long as its process
    def sign(self, document: str) -> Mapping[str, str]:
        """The signed forms of an instance identity document (EC2 User Guide, "Instance identity documents")."""
        data = document.encode()
        raw = self._signing_key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        builder = pkcs7.PKCS7SignatureBuilder().set_data(data)
        signed = builder.add_signer(self._certificate, self._signing_key, hashes.SHA256())
        pem = signed.sign(s.Encoding.PEM, [pkcs7.PKCS7Options.Binary]).decode()
        body = "\n".join(pem.strip().splitlines()[1:-1])
        return {"signature": _lines(raw), "pkcs7": body, "rsa2048": body}


def _lines(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    return "\n".join(text[start : start + 76] for start in range(0, len(text), 76))


def load(data: Path) -> Identity | None:
    """The identity of a data directory that has been started once, or None."""
    slot = data / "identity" / "slot"
    return Identity(data / "identity", int(slot.read_text())) if slot.exists() else None


def ensure(data: Path, *, real: bool = False) -> Identity:
    """Make what is missing. The slot is written last: with it the identity is whole.

    `real`: its drivers make things on this server, which two haneuls with one slot would both claim. Raises `SettingsError` if
    another one has this one's slot.
    """
    directory = data / "identity"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    makers = {
        "secret": lambda path: write_secret(path, secrets.token_bytes(32)),
        "credentials": _make_credentials,
        "ssh_key": _make_ssh_key,
        "identity.pem": _make_certificate,
    }
    for name, make in makers.items():
        if not (directory / name).exists():
            make(directory / name)
    if not (directory / "slot").exists():
        write_secret(directory / "slot", str(_choose_slot(data, real)).encode())
    identity = load(data)
    assert identity is not None
    if real and not _take_slot(data, identity.slot):
        other = os.readlink(SLOTS / str(identity.slot))
        raise SettingsError(
            f"the haneul of {other} has the same slot ({identity.slot}) as {data}: addresses, uids and interfaces of both would be "
            f"the same. End one of them: `HANEUL_DATA={other} haneul down --purge`, or back up and restore this one, which gives it another"
        )
    return identity


def _make_credentials(path: Path) -> None:
    access_key, secret = new_access_key()
    write_secret(path, f"{access_key} {secret}\n".encode())


def _make_ssh_key(path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
    write_secret(path.with_name("ssh_key.pub"), public + b" haneul\n", 0o644)
    write_secret(path, key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()))


def _make_certificate(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "haneul instance identity")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    write_secret(path.with_name("identity.key"), pem)
    write_secret(path, certificate.public_bytes(s.Encoding.PEM), 0o644)


def _routed() -> str:
    try:
        return subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


#: Who has which slot on this server since it has booted: a link to the data directory for each.
SLOTS = Path("/run/haneul-slots")


def _choose_slot(data: Path, real: bool) -> int:
    """By the data directory's path, so that it is mostly the same after a purge; the next one if that is taken."""
    first = hashlib.sha256(str(data.absolute()).encode()).digest()[0]
    return free_slot(first, data) if real else free_slot(first)


def free_slot(first: int, data: Path | None = None) -> int:
    """The first slot from `first` on whose pool nothing on this machine has a route to; taken for `data`, if that is given."""
    routes = _routed()
    pools = [str(one) for one in PUBLIC_RANGE.subnets(new_prefix=POOL_PREFIX)]
    for step in range(256):
        slot = (first + step) % 256
        if pools[slot] not in routes and (data is None or _take_slot(data, slot)):
            return slot
    if data is not None:
        raise SettingsError(
            "all 256 slots of this server are taken by other haneuls: `haneul down --purge` some of them"
        )
    return first


def _take_slot(data: Path, slot: int) -> bool:
    """Whether the data directory has the slot now. One whose data directory is gone is free."""
    mine, entry = str(data.absolute()), SLOTS / str(slot)
    SLOTS.mkdir(mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        entry.symlink_to(mine)
        return True
    other = os.readlink(entry)
    if other == mine:
        return True
    if os.path.lexists(other):
        # The same one may have two paths.
        return data.exists() and os.path.exists(other) and os.path.samefile(other, data)
    made = SLOTS / f".{slot}.{os.getpid()}"
    made.unlink(missing_ok=True)
    made.symlink_to(mine)
    made.replace(entry)
    return os.readlink(entry) == mine


def release_slot(data: Path, slot: int) -> None:
    """The data directory is purged."""
    with contextlib.suppress(OSError):
        if os.readlink(SLOTS / str(slot)) == str(data.absolute()):
            (SLOTS / str(slot)).unlink()
        SLOTS.rmdir()  # if it was the last one
