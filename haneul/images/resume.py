"""The resume unit of an image: what makes a clone of a booted machine an instance of its own (`resume.c`).

A machine that is booted to be a template has `haneul.template` on its kernel's command line. Its guest boots as far as nothing of one
instance matters: no network, no SSH server. Then the unit waits. What it was kept from, a clone does after it has answered, in
the background. `tiny` has it; Debian's images, where cloud-init's stages have to wait too, do not yet.
"""

from __future__ import annotations

from pathlib import Path

#: Of the words between the server and the unit (`resume.c`); image.json has it as `resume`.
PROTOCOL = 1

TINY_SCRIPTS = {
    "lib/haneul/resumed": """\
#!/bin/sh
# The instance has answered; the rest is what a boot does anyway.
exec /lib/haneul/boot resumed
""",
}


def source() -> str:
    return Path(__file__).with_name("resume.c").read_text()
