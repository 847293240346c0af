"""Curves as small multiples in a PNG, drawn with Pillow: it is there already, and a plotting library is not worth its size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

#: Drawn so many times larger and made smaller: that smooths the lines.
SCALE = 3
WIDTH, HEIGHT, COLUMNS = 470, 220, 2
LEFT, RIGHT, TOP, BOTTOM, HEAD, FOOT = 58, 16, 46, 26, 50, 14
PAPER, CARD, INK, FAINT, GRID = "#f6f7f9", "#ffffff", "#1f2933", "#6b7785", "#e6e9ee"
COLOURS = ("#2563a8", "#d9730d", "#2e8b57")


@dataclass(frozen=True)
class Panel:
    """One diagram: `lines` by their labels, over `at`."""

    title: str
    unit: str
    at: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def _step(most: float, count: int = 4) -> float:
    """1, 2 or 5 times a power of ten, so that about `count` of them make `most`."""
    raw = max(most, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)


def _number(value: float, step: float) -> str:
    return f"{value:,.0f}" if step >= 1 else f"{value:.{max(1, -math.floor(math.log10(step)))}f}"


class _Drawing:
    """Coordinates in points of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: float, colour: str = INK, anchor: str = "la") -> float:
        """Writes it and gives its width."""
        font = _font(size)
        self._draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor=anchor)
        return self._draw.textlength(text, font=font) / SCALE

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=max(1, round(width * SCALE)), joint="curve")

    def card(self, x: float, y: float, width: float, height: float) -> None:
        box = (x * SCALE, y * SCALE, (x + width) * SCALE, (y + height) * SCALE)
        self._draw.rounded_rectangle(box, radius=6 * SCALE, fill=CARD, outline=GRID, width=SCALE)

    def save(self, path: Path) -> None:
        size = (self.image.width // SCALE * 2, self.image.height // SCALE * 2)
        small = self.image.resize(size, Image.Resampling.LANCZOS)
        small.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def _panel(drawing: _Drawing, panel: Panel, x: float, y: float, along: str) -> None:
    drawing.card(x + 6, y + 6, WIDTH - 12, HEIGHT - 12)
    unit = f" ({panel.unit})" if panel.unit else ""
    drawing.text(x + 18, y + 15, panel.title + unit, 12)
    left, right, top, bottom = x + LEFT, x + WIDTH - RIGHT, y + TOP + 8, y + HEIGHT - BOTTOM - 8
    most = max((max(values) for values in panel.lines.values() if values), default=1.0) or 1.0
    step, wide = _step(most), _step(panel.at[-1], 6)
    most = math.ceil(most / step) * step
    for number in range(round(most / step) + 1):
        level = bottom - (bottom - top) * number * step / most
        drawing.line([(left, level), (right, level)], GRID, 0.7)
        drawing.text(left - 6, level, _number(number * step, step), 9, FAINT, "rm")
    for number in range(int(panel.at[-1] / wide) + 1):
        place = left + (right - left) * number * wide / panel.at[-1]
        drawing.text(place, bottom + 5, _number(number * wide, wide), 9, FAINT, "ma")
    drawing.text(right, bottom + 16, along, 8, FAINT, "ra")
    _lines(drawing, panel, (left, right, top, bottom), most)
    _labels(drawing, panel, x + 18, y + 33)


def _lines(drawing: _Drawing, panel: Panel, box: tuple[float, float, float, float], most: float) -> None:
    left, right, top, bottom = box
    for colour, values in zip(COLOURS, panel.lines.values(), strict=False):
        points = [
            (left + (right - left) * at / panel.at[-1], bottom - (bottom - top) * value / most)
            for at, value in zip(panel.at, values, strict=False)
        ]
        if len(points) > 1:
            drawing.line(points, colour, 1.4)


def _labels(drawing: _Drawing, panel: Panel, x: float, y: float) -> None:
    for colour, label in zip(COLOURS, panel.lines, strict=False):
        drawing.line([(x, y + 5), (x + 12, y + 5)], colour, 2.4)
        x += 17 + drawing.text(x + 16, y, label, 9.5, FAINT) + 14


def draw(path: Path, title: str, panels: Sequence[Panel], along: str) -> None:
    """`along` is what the horizontal axis counts."""
    rows = -(-len(panels) // COLUMNS)
    drawing = _Drawing(WIDTH * COLUMNS + 12, HEAD + HEIGHT * rows + FOOT)
    drawing.text(18, 18, title, 16)
    for number, panel in enumerate(panels):
        _panel(drawing, panel, 6 + number % COLUMNS * WIDTH, HEAD + number // COLUMNS * HEIGHT, along)
    drawing.save(path)
