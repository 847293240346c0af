"""A drawing as a PNG, by Pillow: it is there already, and a plotting library is not worth its size."""

from __future__ import annotations

import io
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from haneul.lab.report.draw import PAPER, Box, Drawing, Item, Line, Mark, corners

#: Drawn so many times larger than points, then made smaller by half: that smooths the lines.
SCALE = 4
#: What Pillow's own font has no form for.
_PLAIN = str.maketrans({"×": "x", "µ": "u", "≈": "~", "–": "-", "“": '"', "”": '"', "’": "'", "≥": ">=", "·": "-"})


@cache
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def png(drawing: Drawing) -> bytes:
    """The English words of it."""
    size = round(drawing.width * SCALE), round(drawing.height * SCALE)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    for item in drawing.items:
        _draw(draw, item)
    small = image.resize((size[0] // 2, size[1] // 2), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _draw(draw: ImageDraw.ImageDraw, item: Item) -> None:
    if isinstance(item, Line):
        _line(draw, item)
    elif isinstance(item, Box):
        box = (item.x, item.y, item.x + item.width, item.y + item.height)
        draw.rectangle([value * SCALE for value in box], fill=item.colour)
    elif isinstance(item, Mark):
        _mark(draw, item)
    else:
        anchor = {"start": "lm", "middle": "mm", "end": "rm"}[item.anchor]
        place = item.x * SCALE, item.y * SCALE
        text = item.text.en.translate(_PLAIN)
        # There is one weight of the font: a stroke makes it heavier.
        stroke = SCALE * 0.12 if item.bold else 0
        draw.text(
            place,
            text,
            fill=item.colour,
            font=_font(item.size),
            anchor=anchor,
            stroke_width=stroke,
            stroke_fill=item.colour,
        )


def _line(draw: ImageDraw.ImageDraw, line: Line) -> None:
    places = [value * SCALE for value in (line.x1, line.y1, line.x2, line.y2)]
    draw.line(places, fill=line.colour, width=max(1, round(line.width * SCALE)))


def _mark(draw: ImageDraw.ImageDraw, mark: Mark) -> None:
    if mark.shape == "circle":
        box = (mark.x - mark.size, mark.y - mark.size, mark.x + mark.size, mark.y + mark.size)
        draw.ellipse([value * SCALE for value in box], fill=mark.colour, outline=PAPER, width=SCALE)
        return
    draw.polygon([(x * SCALE, y * SCALE) for x, y in corners(mark)], fill=mark.colour, outline=PAPER, width=SCALE)
