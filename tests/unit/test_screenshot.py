"""A machine's screen is what the machine says it is: a taken-over one says anything."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from haneul.errors import CloudError
from haneul.services.ec2.instances.console import _jpeg


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_screen_becomes_a_jpeg() -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(out, "PNG")
    assert _jpeg(out.getvalue()).startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    "png",
    [b"", b"x" * 100, _png(12000, 12000, zlib.compress(b"\0" * 1000)), _png(30000, 30000, b""), _png(10, 10, b"x"),
     _png(0, 0, b""), _png(64, 48, zlib.compress(b"\0"))],
)  # fmt: skip
def test_what_is_no_screen_is_refused(png: bytes) -> None:
    with pytest.raises(CloudError, match="Unavailable"):
        _jpeg(png)
