"""169.254.169.254, asked from inside guests."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.system.conftest import Haneul, eventually

SCRIPT = b"#!/bin/sh\necho ran >> /root/user-data-ran\n"


@pytest.fixture(scope="module")
def guest(haneul: Haneul) -> Any:
    (instance,) = haneul.launch(
        UserData=SCRIPT.decode(),
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "meta"}]}],
        MetadataOptions={"InstanceMetadataTags": "enabled"},
    )
    haneul.until_ssh(instance)
    yield instance
    haneul.terminate(instance)


@pytest.fixture(scope="module")
def get(haneul: Haneul, guest: str) -> Callable[[str], str]:
    return lambda path: haneul.ssh(guest, f"imds {path}")


def test_every_listed_key_can_be_read(get: Callable[[str], str]) -> None:
    """What cloud-init does: walk everything that is shown."""
    seen: dict[str, str] = {}

    def walk(directory: str) -> None:
        for line in get(directory).splitlines():
            name = line.split("=")[0] + "/" if "=" in line and "public-keys" in directory else line
            if name.endswith("/"):
                walk(directory + name)
            else:
                seen[directory + name] = get(directory + name)

    walk("meta-data/")
    assert len(seen) > 30
    assert all(text and "404 - Not Found" not in text for text in seen.values()), seen


def test_it_tells_the_truth(haneul: Haneul, guest: str, get: Callable[[str], str]) -> None:
    found = haneul.instance(guest)
    assert get("meta-data/instance-id") == guest
    assert get("meta-data/local-ipv4") == found["PrivateIpAddress"]
    assert get("meta-data/public-ipv4") == found["PublicIpAddress"]
    assert get("meta-data/tags/instance/Name") == "meta"
    mac = found["NetworkInterfaces"][0]["MacAddress"]
    assert get(f"meta-data/network/interfaces/macs/{mac}/subnet-id") == found["SubnetId"]
    assert haneul.ssh(guest, "cat /sys/class/net/eth0/address") == mac
    assert get("user-data") == SCRIPT.decode().strip()
    eventually("user data ran once", lambda: haneul.ssh(guest, "cat /root/user-data-ran") == "ran")


def test_the_identity_document_is_signed(haneul: Haneul, guest: str, get: Callable[[str], str]) -> None:
    document = get("dynamic/instance-identity/document")
    assert json.loads(document)["instanceId"] == guest
    certificate = x509.load_pem_x509_certificate((haneul.data / "identity" / "identity.pem").read_bytes())
    signature = base64.b64decode(get("dynamic/instance-identity/signature"))
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(signature, document.encode(), padding.PKCS1v15(), hashes.SHA256())


def _http(haneul: Haneul, guest: str, request: str) -> str:
    """The reply to a raw request from the guest."""
    text = request.replace("\n", "\\r\\n")
    return haneul.ssh(guest, f"printf '{text}\\r\\n\\r\\n' | timeout 5 nc -w 3 169.254.169.254 80 || true")


V1 = "GET /latest/meta-data/instance-id HTTP/1.1\nHost: x\nConnection: close"


def test_options_take_effect_live(haneul: Haneul, guest: str) -> None:
    ec2 = haneul.client()
    assert guest in _http(haneul, guest, V1)
    ec2.modify_instance_metadata_options(InstanceId=guest, HttpTokens="required")
    eventually("a token is demanded", lambda: "401" in _http(haneul, guest, V1).split("\n")[0], 20)
    ec2.modify_instance_metadata_options(InstanceId=guest, HttpEndpoint="disabled")
    eventually("nothing is answered", lambda: "403" in _http(haneul, guest, V1).split("\n")[0], 20)
    ec2.modify_instance_metadata_options(InstanceId=guest, HttpEndpoint="enabled", HttpTokens="optional")
    eventually("all is as it was", lambda: guest in _http(haneul, guest, V1), 20)


def test_tokens_are_bound_to_their_instance(haneul: Haneul, guest: str) -> None:
    put = "PUT /latest/api/token HTTP/1.1\nHost: x\nConnection: close\nX-aws-ec2-metadata-token-ttl-seconds: 60\nContent-Length: 0"
    token = _http(haneul, guest, put).splitlines()[-1].strip()
    with_token = V1 + f"\nX-aws-ec2-metadata-token: {token}"
    assert guest in _http(haneul, guest, with_token)
    assert "401" in _http(haneul, guest, V1 + "\nX-aws-ec2-metadata-token: stolen").split("\n")[0]
    assert "403" in _http(haneul, guest, put + "\nX-Forwarded-For: 1.2.3.4").split("\n")[0]
    (other,) = haneul.launch()
    haneul.until_ssh(other)
    try:
        assert "401" in _http(haneul, other, with_token).split("\n")[0]
    finally:
        haneul.terminate(other)
