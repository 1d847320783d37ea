"""The boxes of a picture: what is written in each, and how high that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from squirrel_torch.observe.drawing import Pen, Style, lines_of
from squirrel_torch.observe.figures import Figures, Loading
from squirrel_torch.observe.places import Place, makers_of, split_of_consumer
from squirrel_torch.observe.report import Report, Verdict
from squirrel_torch.observe.spelling import amount_of, bytes_of, clean, percent, times_of

__all__ = [
    "TAB",
    "Box",
    "Flow",
    "box_of_consumer",
    "box_of_loader",
    "box_of_more",
    "box_of_place",
    "flow_of_loader",
    "flow_of_place",
]

TAB: Final = 92.0
"""How wide the mark above the box is that limits the stream."""

_PAD: Final = 12.0
_BAR: Final = 9.0
_APART: Final = 6.0
_NAME: Final = Style(13, mono=True, bold=True)
_FACT: Final = Style(12)
_SOFT: Final = Style(11.5, "soft")
_WHY: Final = Style(12, bold=True)
_CODE: Final = Style(12, mono=True)
_TAB: Final = Style(11, "white", bold=True)


@dataclass(frozen=True)
class Flow:
    """What goes from one box to the next.

    Args:
        rate: In a second; None if that is not known.
        label: The rate in words.
        size: Bytes of an item in words.
        fill: What a buffer there holds, and how much it may hold.
        held: What it holds, in words.
    """

    rate: float | None
    label: str
    size: str = ""
    fill: tuple[float, int] | None = None
    held: str = ""


@dataclass(frozen=True)
class Box:
    """One box, as high as what is written in it.

    Args:
        width: In pixels.
        name: In the first line.
        lines: Those below it, with their style.
        title: All there is to say, for a pointer that rests on it.
        why: Lines that say why it limits the stream, and what to change.
        shares: Of the time: busy, starved, blocked; None without a bar.
        mark: "limit", or "fine" where that is as it should be; empty for all others.
        dashed: Whether it does nothing itself.
    """

    width: float
    name: str
    lines: tuple[tuple[str, Style], ...]
    title: str
    why: tuple[tuple[str, Style], ...] = ()
    shares: tuple[float, float, float] | None = None
    mark: str = ""
    dashed: bool = False

    @property
    def height(self) -> float:
        """In pixels."""
        text = sum(style.size + 5 for _, style in self.lines + self.why) + (_APART if self.why else 0)
        return 2 * _PAD + 12 + text + (_BAR + 8 if self.shares else 0)

    def draw(self, pen: Pen, x: float, y: float) -> None:
        """Draw it with its upper left corner there."""
        inner = self.width - 2 * _PAD
        pen.group(f"place {self.mark}-place" if self.mark else "place", self.title)
        dashes = {"stroke_dasharray": "4 3"} if self.dashed else {}
        pen.rect(x, y, self.width, self.height, f"box {self.mark}".strip(), rx=6, **dashes)
        if self.shares and self.shares[0] >= 0.01:
            pen.rect(x, y, self.width, self.height, "busy", rx=6, fill_opacity=f"{0.4 * self.shares[0]:.2f}")
        if self.mark:
            pen.rect(x - 1.5, y - 18, TAB, 18, f"tab-{self.mark}", rx=3)
            pen.text(x + 6, y - 5, "THE LIMIT", _TAB, 80)
        down = y + _PAD + 11
        pen.text(x + _PAD, down, self.name, _NAME, inner)
        down += 1
        if self.shares:
            pen.shares(x + _PAD, down + 7, inner, _BAR, self.shares)
            down += _BAR + 8
        for number, (text, style) in enumerate(self.lines + self.why):
            down += style.size + 5 + (_APART if number == len(self.lines) else 0)
            pen.text(x + _PAD, down, text, style, inner)
        pen.end()


def box_of_place(place: Place, verdict: Verdict, width: float) -> Box:
    """A place of the chain; with the reason, if it is the one that limits the stream."""
    facts = [] if place.stage.planned else _facts(place)
    lines = [(text, _FACT if not number else _SOFT) for number, text in enumerate(facts)]
    if place.stage.planned:
        lines.append(("planned: the order of the source does this", _SOFT))
    return Box(
        width=width,
        name=place.name,
        lines=tuple(lines),
        why=_why(verdict, width) if place.limits else (),
        title=_whole(place, facts),
        shares=None if place.stage.planned else (place.busy, place.upstream, place.downstream),
        mark="limit" if place.limits else "",
        dashed=place.stage.planned,
    )


def box_of_loader(report: Report, loading: Loading, width: float) -> Box:
    """The loader."""
    figures = report.figures
    total = figures.seconds * max(1, figures.makers)
    packing, blocked = (min(1.0, seconds / total) if total else 0.0 for seconds in (loading.packing, loading.blocked))
    whole = figures.seconds * max(1, figures.ranks)
    unpacking = percent(min(1.0, loading.unpacking / whole)) if whole else "0%"
    if loading.workers:
        facts = [f"workers: packing {percent(packing)}, blocked {percent(blocked)}", f"consumer: unpacking {unpacking}"]
    else:
        facts = ["no workers: the consumer makes its batches"]
    limits = report.verdict.place is None and clean(report.verdict.stage) == "the loader"
    name = f"loader, {makers_of(figures)}" if makers_of(figures) else "loader"
    lines = [(text, _FACT if not number else _SOFT) for number, text in enumerate(facts)]
    return Box(
        width=width,
        name=name,
        lines=tuple(lines),
        why=_why(report.verdict, width) if limits else (),
        title="; ".join([name, *facts]),
        shares=(packing, 0.0, min(blocked, 1 - packing)) if loading.workers else None,
        mark="limit" if limits else "",
    )


def box_of_consumer(report: Report, width: float) -> Box:
    """The one that takes what the stream gives."""
    works, waits = split_of_consumer(report.figures)
    verdict = report.verdict
    limits = verdict.cause == "consumer"
    known = works + waits > 0
    fact = f"its own work {percent(works)}, waits for data {percent(waits)}" if known else "it has taken nothing yet"
    return Box(
        width=width,
        name="the consumer",
        lines=((fact, _FACT),),
        why=_why(verdict, width) if limits else (),
        title=f"the consumer, such as a training step: {fact}",
        shares=(works, waits, 0.0) if known else None,
        mark="fine" if limits else "",
    )


def box_of_more(names: list[str], items: int | None, width: float) -> Box:
    """Stands for branches that are not drawn."""
    fact = "less busy than these" if items is None else f"less busy than these: {items:,} items"
    name = f"and {len(names)} more branches"
    return Box(width, name, ((fact, _FACT),), f"{name}: {', '.join(names)}", dashed=True)


def _facts(place: Place) -> list[str]:
    """The time in one line, calls and failures in others if there are any."""
    stage = place.stage
    word, waits = max((("starved", place.upstream), ("blocked", place.downstream)), key=lambda one: one[1])
    cpu = "" if place.cpu is None else f" (cpu {percent(place.cpu)})"
    first = f"busy {percent(place.busy)}{cpu}" + (f", {word} {percent(waits)}" if waits >= 0.05 else "")
    calls = [f"{stage.calls.workers} x {stage.calls.place}"] if stage.calls is not None else []
    if place.times is not None:
        calls.append(f"calls {times_of(place.times)}")
    failures = [f"{stage.retries:,} retries"] if stage.retries else []
    if stage.skipped:
        failures.append(f"{stage.skipped:,} skipped")
    return [first, *(", ".join(line) for line in (calls, failures) if line)]


def _why(verdict: Verdict, width: float) -> tuple[tuple[str, Style], ...]:
    inner = width - 2 * _PAD
    lines = [(line, _WHY) for line in lines_of(clean(verdict.because), inner, _WHY, 6)]
    if verdict.remedy:
        lines += [(line, _FACT) for line in lines_of(f"about {verdict.gain:.1f}x as fast with", inner, _FACT, 1)]
        lines += [(line, _CODE) for line in lines_of(clean(verdict.remedy), inner, _CODE, 4)]
    return tuple(lines)


def _whole(place: Place, facts: list[str]) -> str:
    stage = place.stage
    parts = [place.name, *([stage.site] if stage.site else []), f"thread {stage.thread}", *facts]
    if place.items:
        parts.append(f"{place.items} items")
    if place.fill is not None:
        parts.append(f"{place.fill[0]:.1f} of {place.fill[1]} in flight")
    return "; ".join(parts)


# -- what goes from one to the next ------------------------------------------------------------------------------------


def flow_of_place(place: Place) -> Flow:
    """What a place gives."""
    size = "" if place.stage.size is None else f"{bytes_of(place.stage.size)} each"
    label = f"{place.rate_text}/s" if place.rate is not None else "not counted"
    return Flow(place.rate, label, size, place.fill, "in flight")


def flow_of_loader(figures: Figures, loading: Loading) -> Flow:
    """The batches that a consumer takes."""
    if not figures.seconds:
        return Flow(None, "no batch yet")
    rate = loading.batches / figures.seconds
    samples = "" if loading.samples is None else f"{amount_of(loading.samples / figures.seconds)} samples/s"
    fill = (loading.ready, loading.most_ready) if loading.most_ready else None
    return Flow(rate, f"{amount_of(rate)} batches/s", samples, fill, "ready")
