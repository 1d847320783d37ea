"""Numbers and names as people read them, and how much room they take."""

from __future__ import annotations

from typing import Final
from unicodedata import combining, east_asian_width

from squirrel_torch.observe.figures import Histogram

__all__ = ["amount_of", "bytes_of", "cells", "clean", "cut", "fill_of", "padded", "percent", "time_of", "times_of", "wrapped"]

_THOUSANDS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount_of(value: float) -> str:
    """With three digits: `97.5k`, `1.23M`, `61.3`."""
    for size, letter in _THOUSANDS:
        if value >= 0.9995 * size:
            return f"{_three(value / size)}{letter}"
    return _three(value)


def bytes_of(value: float) -> str:
    """Bytes with a unit that fits."""
    amount = amount_of(value)
    return f"{amount[:-1]} {amount[-1]}B" if amount[-1].isalpha() else f"{amount} B"


def time_of(seconds: float) -> str:
    """Seconds with a unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def percent(share: float) -> str:
    """A share of 1."""
    return "<1%" if 0 < share < 0.01 else f"{100 * share:.0f}%"


def times_of(times: Histogram) -> str:
    """The median of calls and what 99 % of them stay below: `1.79 / 3 ms`."""
    half, most = time_of(times.quantile(0.5)), time_of(times.quantile(0.99))
    number, unit = half.split()
    return f"{number if most.endswith(f' {unit}') else half} / {most}"


def fill_of(held: float, room: int) -> str:
    """How much of a buffer is used: `31/32`."""
    return f"{held:.0f}/{room}" if held >= 9.95 else f"{held:.1f}/{room}"


def _three(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    text = f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    return text.rstrip("0").rstrip(".")


# -- names, which may be anything --------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """One line without characters that steer a terminal or that XML does not allow."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def cells(text: str) -> int:
    """How many columns of a terminal it takes."""
    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def cut(text: str, width: int) -> str:
    """At most so many columns of a terminal. The middle is left out, since names end with what tells them apart."""
    if cells(text) <= width:
        return text
    if width < 8:
        return _until(text, max(0, width - 1)) + "~"
    tail = _until(text[::-1], (width - 3) // 3)[::-1]
    return f"{_until(text, width - 3 - cells(tail))}...{tail}"


def _until(text: str, width: int) -> str:
    taken = 0
    for number, letter in enumerate(text):
        taken += cells(letter)
        if taken > width:
            return text[:number]
    return text


def padded(text: str, width: int, *, left: bool = False) -> str:
    """Filled with spaces, on the left side where numbers are aligned."""
    space = " " * max(0, width - cells(text))
    return space + text if left else text + space


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns; words that are longer are broken."""
    lines = [""]
    for word in text.split():
        rest = word
        while rest:
            gap = " " if lines[-1] else ""
            if cells(lines[-1] + gap + rest) <= width:
                lines[-1] += gap + rest
                break
            if lines[-1]:
                lines.append("")
                continue
            lines[-1] = _until(rest, width) or rest[0]
            rest = rest[len(lines[-1]) :]
            lines.append("")
    return [line for line in lines if line]
