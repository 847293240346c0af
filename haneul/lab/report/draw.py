"""A drawing as data: lines, boxes, marks and words. Written as SVG here, as a PNG by `haneul.lab.picture`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

from haneul.lab.report.texts import Text

Shape = Literal["circle", "square", "diamond", "triangle"]
Anchor = Literal["start", "middle", "end"]

INK, FAINT, GRID, PAPER, BAND = "#1f2933", "#5b6775", "#e3e7ed", "#ffffff", "#f6f8fa"


@dataclass(frozen=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float
    colour: str = GRID
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Box:
    """`title` is told to who points at it."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: Text | None = None


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    shape: Shape
    colour: str
    size: float = 5.0
    title: Text | None = None


@dataclass(frozen=True)
class Words:
    x: float
    y: float
    text: Text
    size: float = 13.0
    colour: str = INK
    anchor: Anchor = "start"
    bold: bool = False


Item = Line | Box | Mark | Words


@dataclass(frozen=True)
class Drawing:
    """`y` of words is their middle. `title` says in a sentence what is drawn."""

    width: float
    height: float
    items: tuple[Item, ...]
    title: Text


def moved(item: Item, x: float, y: float) -> Item:
    if isinstance(item, Line):
        return replace(item, x1=item.x1 + x, x2=item.x2 + x, y1=item.y1 + y, y2=item.y2 + y)
    return replace(item, x=item.x + x, y=item.y + y)


def corners(mark: Mark) -> list[tuple[float, float]]:
    """Of a mark that is no circle. All shapes have about the same area."""
    x, y, size = mark.x, mark.y, mark.size
    if mark.shape == "square":
        half = size * 0.9
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if mark.shape == "diamond":
        half = size * 1.25
        return [(x, y - half), (x + half, y), (x, y + half), (x - half, y)]
    half = size * 1.2
    return [(x, y - half), (x + half, y + half * 0.8), (x - half, y + half * 0.8)]


def svg(drawing: Drawing, name: str) -> str:
    """For a page in which `.en` and `.ko` are shown by turns. `name` is its id there."""
    size = f'viewBox="0 0 {_number(drawing.width)} {_number(drawing.height)}"'
    head = f'<svg id="{escape(name)}" xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{_both(drawing.title)}">'
    return "\n".join([head, *_written(drawing.items), "</svg>"])


def _written(items: Iterable[Item]) -> Iterable[str]:
    for item in items:
        if isinstance(item, Line):
            yield _line(item)
        elif isinstance(item, Box):
            yield _box(item)
        elif isinstance(item, Mark):
            yield _mark(item)
        else:
            yield from _words(item)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _both(text: Text) -> str:
    """Both languages in one attribute, where none can be hidden."""
    return escape(text.en if text.en == text.ko else f"{text.en} / {text.ko}")


def _line(line: Line) -> str:
    places = " ".join(
        f'{name}="{_number(value)}"'
        for name, value in zip(("x1", "y1", "x2", "y2"), (line.x1, line.y1, line.x2, line.y2), strict=True)
    )
    dashed = ' stroke-dasharray="4 3"' if line.dashed else ""
    return (
        f'<line {places} stroke="{line.colour}" stroke-width="{_number(line.width)}" stroke-linecap="round"{dashed}/>'
    )


def _titled(title: Text | None) -> str:
    return f"<title>{_both(title)}</title>" if title else ""


def _box(box: Box) -> str:
    place = f'x="{_number(box.x)}" y="{_number(box.y)}" width="{_number(box.width)}" height="{_number(box.height)}"'
    return f'<rect {place} fill="{box.colour}">{_titled(box.title)}</rect>'


def _mark(mark: Mark) -> str:
    look = f'fill="{mark.colour}" stroke="{PAPER}" stroke-width="1"'
    if mark.shape == "circle":
        place = f'cx="{_number(mark.x)}" cy="{_number(mark.y)}" r="{_number(mark.size)}"'
        return f"<circle {place} {look}>{_titled(mark.title)}</circle>"
    points = " ".join(f"{_number(x)},{_number(y)}" for x, y in corners(mark))
    return f'<polygon points="{points}" {look}>{_titled(mark.title)}</polygon>'


def _words(words: Words) -> Iterable[str]:
    bold = ' font-weight="600"' if words.bold else ""
    look = f'font-size="{_number(words.size)}" fill="{words.colour}" text-anchor="{words.anchor}" dominant-baseline="central"{bold}'
    place = f'x="{_number(words.x)}" y="{_number(words.y)}"'
    if words.text.en == words.text.ko:
        yield f"<text {place} {look}>{escape(words.text.en)}</text>"
        return
    for language, text in (("en", words.text.en), ("ko", words.text.ko)):
        yield f'<text class="{language}" lang="{language}" {place} {look}>{escape(text)}</text>'
