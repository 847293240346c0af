"""What an instance shows on its serial port and its display."""

from __future__ import annotations

import base64
import io

from haneul.errors import CloudError, unsupported
from haneul.services.context import Context, Input, Later, Output, ec2
from haneul.services.ec2.instances import types as instance_types
from haneul.services.ec2.instances.describe import find
from haneul.services.ec2.instances.power import incorrect
from haneul.store.rows import state_of

#: The largest display of which there is a screenshot (8K).
MOST_PIXELS = 7680 * 4320


ASK_SECONDS = 10.0


@ec2
def get_console_output(ctx: Context, params: Input) -> Later:
    """The last 64 KiB of the serial console. `Latest` is always true here: nothing is cached."""
    (row,) = find(ctx, [params["InstanceId"]])
    gone = state_of(row) == "terminated"

    def ask() -> Output:
        output = b"" if gone else ctx.ask.console_output(row["server_id"], row["id"], ASK_SECONDS)
        return {"InstanceId": row["id"], "Timestamp": ctx.time, "Output": base64.b64encode(output).decode()}

    return Later(ask)


@ec2
def get_console_screenshot(ctx: Context, params: Input) -> Later:
    (row,) = find(ctx, [params["InstanceId"]])
    kind = instance_types.find(row["instance_type"])
    if kind.generation == "paravirtual":
        raise unsupported(
            f"The instance '{row['id']}' is paravirtual ({kind.name}) and has no display to take a screenshot of; "
            "GetConsoleOutput has its console."
        )
    if state_of(row) != "running":
        raise incorrect(row, "captured")

    def ask() -> Output:
        png = ctx.ask.screenshot(row["server_id"], row["id"], ASK_SECONDS)
        return {"InstanceId": row["id"], "ImageData": base64.b64encode(_jpeg(png)).decode()}

    return Later(ask)


def _jpeg(png: bytes) -> bytes:
    """A machine that was taken over makes the PNG: its size is looked at before its pixels, and it may be anything."""
    from PIL import Image, UnidentifiedImageError

    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise CloudError("Unavailable", "The instance's display is too large for a screenshot.")
            image.convert("RGB").save(out, "JPEG", quality=80)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise CloudError("Unavailable", "The instance's display could not be read.") from error
    return out.getvalue()
