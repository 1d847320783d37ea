"""SVG by hand: text that fits where it is put, whatever font a reader has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final
from unicodedata import combining, east_asian_width

from squirrel_torch.observe.spelling import clean

__all__ = ["STYLE", "Pen", "Style", "fitted", "lines_of", "quoted", "width_of"]

_MONO: Final = 0.615
_NARROW: Final = frozenset("fijlrtI.,:;!|/\\()[]{}'`\" -")
_WIDE: Final = frozenset("mwMWOQGD@%&+=<>#~_^")

_SANS_FONTS: Final = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
_MONO_FONTS: Final = "ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace"

STYLE: Final = (
    # Every rule is below one class: a notebook's own elements are left alone.
    f".sqt-picture{{font-family:{_SANS_FONTS};background:#fff}}"
    ".sqt-picture .card{fill:#fff}.sqt-picture .ink{fill:#1f2328}.sqt-picture .soft{fill:#59636e}"
    f".sqt-picture .mono{{font-family:{_MONO_FONTS}}}.sqt-picture .bold{{font-weight:700}}"
    ".sqt-picture .white{fill:#fff}"
    ".sqt-picture .box{fill:#f6f8fa;stroke:#8c959f}.sqt-picture .limit{stroke:#c2410c;stroke-width:3}"
    ".sqt-picture .fine{stroke:#00735c;stroke-width:3}.sqt-picture .tab-limit{fill:#c2410c}.sqt-picture .tab-fine{fill:#00735c}"
    ".sqt-picture .busy{fill:#e08700}.sqt-picture .rest{fill:#fff;stroke:#8c959f}.sqt-picture .wait{stroke:#59636e}"
    ".sqt-picture .edge{stroke:#8c959f;fill:none}.sqt-picture .tip{fill:#8c959f}"
    ".sqt-picture .level{fill:#0072b2}.sqt-picture .frame{fill:#0072b2;fill-opacity:.06;stroke:#0072b2;stroke-opacity:.5}"
    "@media (prefers-color-scheme:dark){"
    ".sqt-picture{background:#0d1117}.sqt-picture .card{fill:#0d1117}.sqt-picture .ink{fill:#e6edf3}"
    ".sqt-picture .soft{fill:#9da7b3}"
    ".sqt-picture .box{fill:#161b22;stroke:#6e7681}.sqt-picture .limit{stroke:#ff8a4c}.sqt-picture .fine{stroke:#2fbf9b}"
    ".sqt-picture .rest{fill:#0d1117;stroke:#6e7681}.sqt-picture .wait{stroke:#9da7b3}"
    ".sqt-picture .edge{stroke:#6e7681}.sqt-picture .tip{fill:#6e7681}.sqt-picture .level{fill:#58a6ff}}"
)


@dataclass(frozen=True)
class Style:
    """How text is set.

    Args:
        size: Of the font, in pixels.
        color: Class that says its colour.
        mono: Whether letters are all of one width.
        bold: Whether they are bold.
    """

    size: float
    color: str = "ink"
    mono: bool = False
    bold: bool = False

    @property
    def classes(self) -> str:
        """Of the element."""
        return " ".join([self.color, *(["mono"] if self.mono else []), *(["bold"] if self.bold else [])])


def width_of(text: str, style: Style) -> float:
    """Pixels that a text takes at most, in the widest of the fonts that readers have (DejaVu, Verdana)."""
    return sum(_width_of_letter(letter, style.mono) for letter in text) * style.size * (1.12 if style.bold else 1.0)


def _width_of_letter(letter: str, mono: bool) -> float:
    if east_asian_width(letter) in "WF":
        return 1.4
    if ord(letter) > 0x24F:  # from whatever font has it
        return 0.0 if combining(letter) else 1.1
    if mono:
        return _MONO
    if letter in _NARROW:
        return 0.47
    if letter in _WIDE:
        return 1.03
    return 0.79 if letter.isupper() else 0.66


def fitted(text: str, width: float, style: Style) -> str:
    """The text, or as much of it as takes so many pixels, with an ellipsis."""
    if width_of(text, style) <= width:
        return text
    # The ellipsis is three dots: one sign for it may come from a font that is wider.
    left = width - width_of("...", style)
    for number, letter in enumerate(text):
        left -= width_of(letter, style)
        if left < 0:
            return text[:number] + "..."
    return text


def lines_of(text: str, width: float, style: Style, most: int) -> list[str]:
    """The text in at most so many lines, which end with an ellipsis if that is not all of it."""
    words, lines = text.split(), list[str]()
    while words and len(lines) < most:
        line = words.pop(0)
        while words and width_of(f"{line} {words[0]}", style) <= width:
            line = f"{line} {words.pop(0)}"
        whole = line
        if width_of(line, style) > width:  # one long word
            line = fitted(line, width + width_of("...", style), style).removesuffix("...")
            words.insert(0, whole[len(line) :])
        lines.append(line)
    if words:
        lines[-1] = fitted(f"{lines[-1]} {' '.join(words)}", width, style)
    return lines


def quoted(text: str) -> str:
    """As XML, in text and in attributes."""
    return escape(clean(text), quote=True)


@dataclass
class Pen:
    """Writes elements.

    Args:
        parts: What it has written.
    """

    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, style: Style, width: float, anchor: str = "start") -> None:
        """One line that takes at most so many pixels; what it was cut from is shown by a pointer that rests on it."""
        shown = fitted(clean(text), width, style)
        if not shown:
            return
        title = "" if shown == clean(text) else f"<title>{quoted(text)}</title>"
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        at = f'x="{x:.1f}" y="{y:.1f}" font-size="{style.size:g}"'
        self.parts.append(f'<text class="{style.classes}" {at}{where}>{title}{escape(shown)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, classes: str, **attributes: object) -> None:
        """A rectangle; attributes are written with `-` for `_`."""
        where = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect class="{classes}" {where}{_attributes(attributes)}/>')

    def path(self, points: Sequence[tuple[float, float]], classes: str, **attributes: object) -> None:
        """Straight lines through points."""
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{classes}" points="{way}"{_attributes(attributes)}/>')

    def shares(self, x: float, y: float, width: float, height: float, shares: tuple[float, float, float]) -> None:
        """A bar of what is busy (filled), starved (striped) and blocked (dotted)."""
        busy, starved, blocked = (round(share * width, 1) for share in shares)
        self.rect(x, y, width, height, "rest")
        middle = y + height / 2
        # Stripes and dots are dashes of a line: a pattern needs an id, and pictures in one notebook would share it.
        for start, length, dashes, thick in ((busy, starved, "2 3", height - 2), (busy + starved, blocked, "2 8", 2)):
            if length >= 3:
                line = [(x + start + 1, middle), (x + min(width, start + length) - 1, middle)]
                self.path(line, "wait", stroke_width=f"{thick:g}", stroke_dasharray=dashes)
        if busy:
            self.rect(x, y, min(width, busy), height, "busy")

    def group(self, classes: str, title: str) -> None:
        """Begin a group, whose title is shown by a pointer that rests on it."""
        self.parts.append(f'<g class="{classes}"><title>{quoted(title)}</title>')

    def end(self) -> None:
        """End a group."""
        self.parts.append("</g>")


def _attributes(values: dict[str, object]) -> str:
    return "".join(f' {name.replace("_", "-")}="{value}"' for name, value in values.items())
