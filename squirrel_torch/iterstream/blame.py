"""Which stage, written where, on which item: the one note that an exception gains on its way out of a run.

It is found from the traceback after the fact, so no stage pays for it while items flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dis import opmap
from operator import length_hint
from types import FrameType, GeneratorType, TracebackType
from typing import Any, Protocol

from squirrel_torch.describe import describe_item

__all__ = ["NOTE_PREFIX", "NamedLink", "Opened", "add_note"]

NOTE_PREFIX = "squirrel_torch: "

_FOR_ITER = opmap["FOR_ITER"]


class NamedLink(Protocol):
    """What a message says of one place of a chain."""

    @property
    def _holds(self) -> bool:
        """Whether it pulls items ahead of those it gives."""

    @property
    def _owner(self) -> object:
        """The object that is `self` in the frames of the link's own code."""

    @property
    def _site(self) -> str | None:
        """Where the user wrote it, `file:line`."""

    def _describe(self) -> str:
        """What it is, in few words."""


@dataclass(eq=False)
class Opened:
    """A link of a run, its place in the chain, the source's being 0, and its iterator once it has one."""

    link: NamedLink
    place: int
    iterator: Iterator[Any] | None = None
    owned: bool = True

    @property
    def runs(self) -> bool:
        """Whether it is a generator that has not come to its end."""
        return isinstance(self.iterator, GeneratorType) and self.iterator.gi_frame is not None

    def runs_in(self, frame: FrameType) -> bool:
        """Whether `frame`, one that an error has left, executed this link's code."""
        if self.is_method(frame):
            return True
        if not isinstance(self.iterator, GeneratorType) or self.iterator.gi_code is not frame.f_code or self.runs:
            return False
        # A generator function, whoever wrote it; a method of another stage or source has the same code and another `self`.
        mine = frame.f_locals.get("self")
        return mine is None or (self.place == 0 and not hasattr(mine, "apply") and not hasattr(mine, "_owner"))

    def is_method(self, frame: FrameType) -> bool:
        """Whether `frame` is a method of the link's stage, source or composable."""
        mine = frame.f_locals.get("self")
        if mine is None:
            return False
        # A composable runs as a view of itself that shares its __dict__.
        return mine is self.iterator or getattr(mine, "__dict__", mine) is getattr(self.link._owner, "__dict__", None)

    def position_in(self, frame: FrameType) -> int | None:
        """The local `position` of a frame, where the word means what it means here: in stages, and in our sources.

        A stage that gives many items by one ``yield from left`` has counted them all: what is left of them is taken off.
        """
        ours = frame.f_globals.get("__name__", "").startswith("squirrel_torch.") or hasattr(self.link._owner, "apply")
        position = frame.f_locals.get("position")
        if not (ours and isinstance(position, int) and self.is_method(frame)):
            return None
        return position - length_hint(frame.f_locals.get("left"))

    @property
    def position(self) -> int | None:
        """The index of the item it gave last, where its generator keeps count."""
        frame = self.iterator.gi_frame if isinstance(self.iterator, GeneratorType) else None
        return None if frame is None else self.position_in(frame)


def add_note(error: Exception, opened: Sequence[Opened], reads: Mapping[int, Callable[[], int]], branch: str = "") -> None:
    """Add one note to `error`: the stage, its call site, the position of the item.

    Args:
        error: As it came out of the run, with its traceback.
        opened: The iterators of the run, in the order of their opening.
        reads: For each source, by its id, a function that gives the number of items read. Called once at most.
        branch: Which branch of a mix these iterators are; empty for the main chain. An error that comes from elsewhere is
            not the branch's to explain.
    """
    if not opened or _has_note(error):
        return  # a run inside this one has said it already
    found = _find(error.__traceback__, opened)
    if found is None and branch:
        return
    culprit, frame = found or (max(opened, key=lambda entry: entry.place), None)
    # Of a link that was opened several times, the latest iterator.
    chain = {entry.place: entry for entry in opened}
    where = f"in stage {culprit.place} of {max(chain)}" if culprit.place else "in the source"
    site = f", written at {culprit.link._site}" if culprit.link._site else ""
    item = _item(frame)
    which = _which_item(culprit, frame, chain, reads)
    error.add_note(f"{NOTE_PREFIX}{branch}{where}, {culprit.link._describe()}{site}{which}{item}")


def _has_note(error: Exception) -> bool:
    notes = getattr(error, "__notes__", None)
    return isinstance(notes, list) and any(isinstance(note, str) and note.startswith(NOTE_PREFIX) for note in notes)


def _find(traceback: TracebackType | None, opened: Sequence[Opened]) -> tuple[Opened, FrameType | None] | None:
    """The link whose code raised and its innermost frame; None if no code of these links ran."""
    found, innermost, last = None, None, None
    while traceback is not None:
        frame, last = traceback.tb_frame, traceback
        # Frames go from the head to the source, so one stage that stands twice in a chain is met in that order.
        inside = [entry for entry in opened if entry.runs_in(frame)]
        further = [entry for entry in inside if found is None or entry.place < found.place]
        if further:
            found = max(further, key=lambda entry: entry.place)
        if inside:
            innermost = traceback
        traceback = traceback.tb_next
    if found is None or innermost is None or last is None:
        return None
    if found.place > 0 and _asks(innermost):
        # The stage was asking for an item. If no Python code below it ran, what raised is an iterator written in C.
        below = [entry for entry in opened if entry.place == found.place - 1]
        if innermost is last and below:
            return below[-1], None
    return found, innermost.tb_frame


def _asks(traceback: TracebackType) -> bool:
    """Whether an error came from the iterator that the frame reads, of which `asking` is another sign."""
    frame = traceback.tb_frame
    return frame.f_code.co_code[traceback.tb_lasti] == _FOR_ITER or frame.f_locals.get("asking") is True


def _which_item(
    culprit: Opened, frame: FrameType | None, chain: Mapping[int, Opened], reads: Mapping[int, Callable[[], int]]
) -> str:
    source = chain.get(0)
    count = reads.get(id(source.link)) if source is not None else None
    position = None if frame is None else culprit.position_in(frame)
    if culprit.place == 0 and (position is not None or count is not None):
        return f", reading item {count() if position is None and count is not None else position}"
    if position is not None:
        return f", on item {position}"
    exact = not culprit.link._holds
    for place in range(culprit.place - 1, 0, -1):
        if place not in chain:
            return ""  # it was not open yet
        entry = chain[place]
        if place - 1 in chain and entry.iterator is chain[place - 1].iterator:
            continue  # a split that was handed to the source
        if exact and entry.position is not None:
            return f", on item {entry.position} of {entry.link._describe()}"
        exact = exact and not entry.link._holds
    if source is None or (source.position is None and count is None):
        return ""
    last = source.position if source.position is not None or count is None else count() - 1
    described = source.link._describe()
    return f", on item {last} of {described}" if exact else f", behind item {last} of {described}"


def _item(frame: FrameType | None) -> str:
    if frame is None or "item" not in frame.f_locals:
        return ""
    try:
        return f": {describe_item(frame.f_locals['item'])}"
    except Exception as error:  # noqa: BLE001  # a repr that fails must not replace the error it should explain
        return f": (its repr raises {type(error).__name__})"
