"""Key pairs. Private keys are given out once and never kept.

Fingerprints: AWS, "Check the fingerprint of your key pair": a created RSA key has the SHA-1 of its private
key in DER (PKCS#8), an imported one the MD5 of its public key in DER; ED25519 keys have the SHA-256 of OpenSSH.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from haneul.errors import CloudError, invalid, missing, not_found
from haneul.model.times import moment
from haneul.services import quotas
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import Listing, describe, with_named
from haneul.services.ec2 import tags
from haneul.store import tables
from haneul.store.database import Row


def _colons(digest: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in digest)


def _openssh_fingerprint(public_key: str) -> str:
    blob = base64.b64decode(public_key.split()[1])
    return base64.b64encode(hashlib.sha256(blob).digest()).decode()


def _create_rsa() -> tuple[str, str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    material = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.TraditionalOpenSSL, s.NoEncryption()).decode()
    der = key.private_bytes(s.Encoding.DER, s.PrivateFormat.PKCS8, s.NoEncryption())
    return material, _public_text(key.public_key()), _colons(hashlib.sha1(der).digest())  # noqa: S324


def _create_ed25519() -> tuple[str, str, str]:
    key = ed25519.Ed25519PrivateKey.generate()
    material = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()).decode()
    public = _public_text(key.public_key())
    return material, public, _openssh_fingerprint(public)


def _public_text(key: Any) -> str:
    return str(key.public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH).decode())


def _rfc4716(text: str) -> bytes:
    """The OpenSSH form of a key in the SSH2 form (RFC 4716): headers go, the rest is the blob."""
    lines = text.splitlines()[1:-1]
    while lines and (":" in lines[0] or lines[0].endswith("\\")):
        continued = lines.pop(0).endswith("\\")
        while continued and lines:
            continued = lines.pop(0).endswith("\\")
    blob = "".join(lines)
    raw = base64.b64decode(blob)
    kind = raw[4 : 4 + int.from_bytes(raw[:4], "big")].decode("ascii")
    return f"{kind} {blob}".encode()


def read_public_key(material: bytes) -> tuple[str, str, str]:
    """(kind, OpenSSH text, fingerprint) of OpenSSH, PEM or base64-DER material. Raises InvalidKey.Format."""
    text = material.decode("ascii", "replace").strip()
    try:
        if text.startswith("-----BEGIN"):
            key: Any = s.load_pem_public_key(material)
        elif text.startswith("---- BEGIN SSH2 PUBLIC KEY ----"):
            key = s.load_ssh_public_key(_rfc4716(text))
        elif text.startswith(("ssh-", "ecdsa-")):
            key = s.load_ssh_public_key(" ".join(text.split()[:2]).encode())
        else:
            key = s.load_der_public_key(base64.b64decode(text, validate=True))
    except Exception:
        raise CloudError("InvalidKey.Format", "Key is not in valid OpenSSH public key format") from None
    if isinstance(key, rsa.RSAPublicKey):
        if not 1024 <= key.key_size <= 16384:
            raise CloudError("InvalidKey.Format", "RSA keys have 1024 to 16384 bits")
        der = key.public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)
        return "rsa", _public_text(key), _colons(hashlib.md5(der).digest())  # noqa: S324
    if isinstance(key, ed25519.Ed25519PublicKey):
        public = _public_text(key)
        return "ed25519", public, _openssh_fingerprint(public)
    raise CloudError("InvalidKey.Format", "Only RSA and ED25519 keys are supported")


def find(ctx: Context, name: str) -> Row:
    rows = ctx.own(tables.key_pairs, name=name)
    if not rows:
        raise CloudError("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")
    return rows[0]


def _insert(ctx: Context, params: Input, kind: str, public: str, fingerprint: str) -> Output:
    name = params["KeyName"]
    if not name or len(name) > 255 or not name.isascii() or not name.isprintable():
        raise invalid(name[:260], "KeyName", "It has 1 to 255 printable ASCII characters.")
    if ctx.own(tables.key_pairs, name=name):
        raise CloudError("InvalidKeyPair.Duplicate", f"The keypair '{name}' already exists.")
    wanted = tags.specified(params, "key-pair").get("key-pair", {})
    most = ctx.settings.quota_key_pairs
    quotas.check_room(ctx, tables.key_pairs, most, "KeyPairLimitExceeded", "key pairs", "quota_key_pairs")
    key_id = ctx.add(
        tables.key_pairs, "key", name=name, kind=kind, fingerprint=fingerprint, public_key=f"{public} {name}"
    )
    tags.put(ctx, key_id, wanted)
    shown = [{"Key": key, "Value": value} for key, value in wanted.items()]
    return {"KeyName": name, "KeyPairId": key_id, "KeyFingerprint": fingerprint, "Tags": shown}


@ec2
def create_key_pair(ctx: Context, params: Input) -> Output:
    kind = params.get("KeyType", "rsa")
    if params.get("KeyFormat", "pem") != "pem":
        raise CloudError("UnsupportedOperation", "haneul gives private keys in the format pem only.")
    material, public, fingerprint = _create_rsa() if kind == "rsa" else _create_ed25519()
    return _insert(ctx, params, kind, public, fingerprint) | {"KeyMaterial": material}


@ec2
def import_key_pair(ctx: Context, params: Input) -> Output:
    kind, public, fingerprint = read_public_key(params["PublicKeyMaterial"])
    return _insert(ctx, params, kind, public, fingerprint)


@ec2
def delete_key_pair(ctx: Context, params: Input) -> Output:
    """Deleting a name that does not exist succeeds, as on EC2; an unknown id does not."""
    name, key_id = params.get("KeyName"), params.get("KeyPairId")
    if not name and not key_id:
        raise missing("KeyName or KeyPairId")
    rows = ctx.own(tables.key_pairs, **({"name": name} if name else {"id": key_id}))
    if not rows and key_id and not name:
        raise not_found("InvalidKeyPair.NotFound", "key pair", [key_id])
    for row in rows:
        ctx.tx.delete(tables.key_pairs, id=row["id"])
        tags.remove_all(ctx, row["id"])
    return {"Return": True} | ({"KeyPairId": rows[0]["id"]} if rows else {})


def _view(row: Row, labels: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "KeyPairId": row["id"],
        "KeyName": row["name"],
        "KeyType": row["kind"],
        "KeyFingerprint": row["fingerprint"],
        "CreateTime": moment(row["created"]),
        "PublicKey": row["public_key"],
        "Tags": labels,
    }


def _views(ctx: Context, rows: list[Row]) -> list[dict[str, Any]]:
    labels = tags.of(ctx, [row["id"] for row in rows])
    return [_view(row, labels[row["id"]]) for row in rows]


def _unknown(names: Sequence[str]) -> CloudError:
    return CloudError("InvalidKeyPair.NotFound", f"The key pair '{names[0]}' does not exist")


_KEYS = Listing(
    tables.key_pairs, "KeyPairInfo", "KeyPairIds", "key", "InvalidKeyPair", "key pair", _views,
    {"key-pair-id": "KeyPairId", "fingerprint": "KeyFingerprint", "key-name": "KeyName"},
    columns={"key-pair-id": "id", "fingerprint": "fingerprint", "key-name": "name"},
    unknown=_unknown, check=lambda ids: None, kept=False,
)  # fmt: skip


@ec2
def describe_key_pairs(ctx: Context, params: Input) -> Output:
    params = with_named(ctx, params, _KEYS, "KeyNames", _unknown)
    items = describe(ctx, params, _KEYS, "KeyPairs")["KeyPairs"]
    if not params.get("IncludePublicKey"):
        items = [{name: value for name, value in item.items() if name != "PublicKey"} for item in items]
    return {"KeyPairs": sorted(items, key=lambda item: str(item["KeyName"]))}
