"""SSH host keys for a machine that goes on from a template: made here in a millisecond, by an emulated guest in a second.

Nobody is told a secret by that: the server has the guest's memory and disk anyway. They are written down nowhere else.
Sources: sshd(8) (HostKey), PROTOCOL.key of OpenSSH.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


def made() -> list[tuple[str, bytes, bytes]]:
    """(type, private key file, public key line without a comment), of the types that cloud-init makes in haneul's images."""
    keys: list[tuple[str, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey]] = [
        ("ed25519", ed25519.Ed25519PrivateKey.generate()),
        ("ecdsa", ec.generate_private_key(ec.SECP256R1())),
    ]
    return [
        (
            name,
            key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()),
            key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH),
        )
        for name, key in keys
    ]


def lines() -> list[tuple[str, str]]:
    """As the resume unit is told them (images/resume.c)."""
    return [("host-key", f"{name} {private.hex()} {public.decode()}") for name, private, public in made()]
