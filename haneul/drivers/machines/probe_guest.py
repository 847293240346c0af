"""The smallest guest: an initramfs whose init says that it ran, and powers off. Pure."""

from __future__ import annotations

MARKER = b"haneul: a guest ran"


def _init() -> bytes:
    """A static x86-64 ELF: write(1, MARKER), reboot(RB_POWER_OFF), pause(). Written by hand, 64 + 56 + code."""
    text = MARKER + b"\n"
    code = bytes.fromhex(
        "b801000000"  # mov eax, 1 (write)
        "bf01000000"  # mov edi, 1
        "488d3524000000"  # lea rsi, [rip + 0x24]
    )
    code += b"\xba" + len(text).to_bytes(4, "little") + b"\x0f\x05"  # mov edx, len; syscall
    code += bytes.fromhex(
        "b8a9000000"  # mov eax, 169 (reboot)
        "bfaddee1fe"  # mov edi, LINUX_REBOOT_MAGIC1
        "be69191228"  # mov esi, LINUX_REBOOT_MAGIC2
        "bafedc2143"  # mov edx, LINUX_REBOOT_CMD_POWER_OFF
        "0f05"
        "b822000000"  # mov eax, 34 (pause)
        "0f05"
    )
    assert len(code) == 17 + 0x24, "the displacement of lea is the distance to the text"
    base, start = 0x400000, 64 + 56
    size = (start + len(code) + len(text)).to_bytes(8, "little")
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + bytes.fromhex("02003e0001000000")
    header += (base + start).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(8) + bytes(4)
    header += bytes.fromhex("400038000100400000000000")
    segment = bytes.fromhex("0100000005000000") + bytes(8) + base.to_bytes(8, "little") * 2 + size * 2
    return header + segment + (0x1000).to_bytes(8, "little") + code + text


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member of a cpio archive in the `newc` format (Linux, initramfs buffer format)."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


def initramfs() -> bytes:
    members = [
        _entry("dev", 0o040755),
        _entry("dev/console", 0o020600, device=(5, 1)),
        _entry("init", 0o100755, _init()),
        _entry("TRAILER!!!", 0),
    ]
    return b"".join(members)
