"""How a chain can be gone on with after a stop: what decides it, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from fractions import Fraction
from typing import Any

from squirrel_torch.errors import FingerprintMismatch, ShardingError
from squirrel_torch.iterstream.base import Composable, chained, copied
from squirrel_torch.iterstream.datapipe import is_datapipe
from squirrel_torch.iterstream.mix import Mix
from squirrel_torch.iterstream.planned import Planned, is_opaque, makes_one, planned_prefix
from squirrel_torch.iterstream.splits import splits_of
from squirrel_torch.iterstream.stage import Context, Split
from squirrel_torch.iterstream.stages import (
    Batched,
    RankSplit,
    Shuffled,
    SplitStage,
    ZipIndex,
)

__all__ = ["Layout", "Mode", "layout_of", "require_same_chain", "signature"]

Links = list[Composable[Any]]

_TOLD_OF_MIXES = ("seed", "probs", "sampling_probas", "max_reinits")
_PLAIN = (int, float, str, bytes, bool, type(None), Fraction, list)


class Mode(Enum):
    """How the place in a stream is found again."""

    PLANNED = "planned"
    """Which item comes at which position is arithmetic: a state is a position, the same on all ranks."""

    STREAMED = "streamed"
    """The source is started where it was left; what the stages held is made again from its ids."""

    REPLAYED = "replayed"
    """The source, or a part of the chain, is run again from its beginning, and what was delivered is dropped."""


@dataclass(frozen=True)
class Layout:
    """A chain without its splits, and what can be done with it.

    Args:
        mode: How the place in it is found again.
        links: Its places, from the source on.
        cause: The place that decided the mode; None if nothing stands in the way of the best one.
        why: What that place does, in words.
        remedy: What to change to get a better mode; empty if there is nothing.
        split: The split by rank that was written into it, if one was.
        splits: The axes along which it was divided.
        split_at: The index in `links` before which the first split was written, if one was.
        ordering: Of a planned chain, the source and the stages that order and choose.
        data: Of a planned chain, all other stages.
        batch: The stage that makes batches, if a planned chain has one.
    """

    mode: Mode
    links: tuple[Composable[Any], ...]
    cause: Composable[Any] | None = None
    why: str = ""
    remedy: str = ""
    split: RankSplit[Any] | None = None
    splits: Split = Split.NONE
    split_at: int | None = None
    ordering: tuple[Composable[Any], ...] = ()
    data: tuple[Composable[Any], ...] = ()
    batch: Batched[Any] | None = field(default=None)

    def planned(self, epoch: int) -> Planned:
        """The order of an epoch of a planned chain."""
        planned = planned_prefix(self.ordering, Context(epoch))
        if planned is None or planned.count < len(self.ordering):
            raise AssertionError("a planned chain is planned in each epoch")
        return planned


def signature(links: Sequence[Composable[Any]]) -> list[str]:
    """What decides the order of a stream, a text for each place: stages and their plain arguments, no callables."""
    return [_signed(link) for link in links]


def require_same_chain(saved: object, own: list[str]) -> None:
    """Raise FingerprintMismatch, with what differs, unless a signature that was saved is the own one."""
    if saved == own:
        return
    names = [str(name) for name in saved] if isinstance(saved, list) else []
    kinds = (("removed", [name for name in names if name not in own]), ("added", [name for name in own if name not in names]))
    changes = "; ".join(f"{word}: {', '.join(some)}" for word, some in kinds if some) or "its stages are in another order"
    raise FingerprintMismatch(
        f"the state was saved by another chain; {changes} (saved: {' > '.join(names)}; now: {' > '.join(own)})"
    )


def _signed(link: Composable[Any]) -> str:
    if isinstance(link, Mix):
        inside = " | ".join(" > ".join(signature(branch._links())) for branch in link.branches)
        told = {name: value for name, value in vars(link).items() if name in _TOLD_OF_MIXES and isinstance(value, _PLAIN)}
        strategy = getattr(link, "mux_strategy", None)
        return f"{type(link).__name__}({inside}; {told}{'' if strategy is None else strategy.name})"
    stage = link._stage
    arguments = fields(stage) if hasattr(stage, "__dataclass_fields__") else ()  # type: ignore[arg-type]  # by that
    names = [one.name for one in arguments if one.metadata.get("signed", True)]
    told = {name: getattr(stage, name) for name in names if not name.startswith("_")}
    plain = ", ".join(f"{name}={value!r}" for name, value in told.items() if isinstance(value, _PLAIN))
    name = type(link if stage is None else stage).__name__
    return f"{name}({plain})" if names else name


def layout_of(chain: Composable[Any]) -> Layout:
    """What can be done with a chain. Its source is looked at, and perhaps counted.

    Raises:
        ShardingError: If it is split in a place where the splits can't be taken over, inside a pipe of torch, or if it is
            split where it is split already.
    """
    links, split, split_at = _without_splits(chain)
    return replace(_decided(links), split=split, splits=splits_of(chain), split_at=split_at)


def _decided(links: Links) -> Layout:
    planned = planned_prefix(links, Context())
    if planned is None:
        return _not_planned(links, 0, _why_streamed(links[0]))
    batch: Batched[Any] | None = None
    for place, link in enumerate(links[planned.count :], start=planned.count):
        stage = None if link._custom else link._stage
        if isinstance(stage, Batched) and batch is None:
            batch = stage
        elif stage is None or not (stage.one_to_one or (isinstance(stage, ZipIndex) and batch is None)):
            ordered = planned if all(map(makes_one, links[planned.count : place])) else None
            return _not_planned(links, place, _why_streamed(link, ordered))
    made = (*planned.data, *links[planned.count :])
    return Layout(Mode.PLANNED, tuple(links), ordering=planned.ordering, data=made, batch=batch)


def _not_planned(links: Links, place: int, why: tuple[str, str]) -> Layout:
    """The layout of a chain that is not planned because of the place `place`, for the reason `why`, or of one before it."""
    for link in links:
        if told := _opaque(link):
            return Layout(Mode.REPLAYED, tuple(links), link, *told)
    return Layout(Mode.STREAMED, tuple(links), links[place], *why)


def _why_streamed(link: Composable[Any], ordered: Planned | None = None) -> tuple[str, str]:
    """Why a place is not planned, and what to do about it.

    Args:
        link: The place.
        ordered: All that stands before it, if the order of that is arithmetic.
    """
    if isinstance(link, Mix):
        return _STREAMED["mix"]
    if ordered is not None and isinstance(link._stage, Shuffled):
        what = "endless" if ordered.order.length is None else "mix" if isinstance(ordered.ordering[0], Mix) else "groups"
        return _SHUFFLED[what]
    return _STREAMED.get(type(link._stage).__name__, _OTHERWISE)


_SHUFFLED = {
    "endless": ("it shuffles items through a buffer, since the stream has no end", "shuffle before `loop`"),
    "mix": (
        "it shuffles items through a buffer, since the streams of a mix are read side by side",
        "shuffle each stream of the mix",
    ),
    "groups": (
        "it shuffles items through a buffer, since the source reads many samples for each one that is asked for",
        "write its samples into a ShardStore, which reads them in any order",
    ),
}
_STREAMED = {
    "Filter": (
        "it leaves out items, so which items make up a batch depends on all before",
        "filter once, and write what is left into a ShardStore",
    ),
    "FlatMap": ("it gives any number of items for each", "flatten once, and write what comes out into a ShardStore"),
    "Flatten": ("it gives any number of items for each", "flatten once, and write what comes out into a ShardStore"),
    "Shuffled": (
        "it shuffles items, since not every stage before it makes one item of each",
        "shuffle right behind the source, or behind stages that make one item of each",
    ),
    "AsyncMap": (
        "it gives items as they are done, or leaves out some that fail",
        'take ordered=True and on_error="raise"',
    ),
    "Batched": ("it makes batches of batches", "make batches once"),
    "Sliding": ("its windows share items", "write the windows into a ShardStore"),
    "mix": ("one of its streams is not planned", "make each stream one that is planned by itself"),
}
_OTHERWISE = (
    "it may give any number of items for each",
    "say one_to_one = True in its class, if it gives exactly one for each",
)


def _opaque(link: Composable[Any]) -> tuple[str, str] | None:
    """Why a place has to be run again from the beginning, and what to do about it; None if it has not."""
    if link._custom:
        return "what it remembers is not known", "write it as a Stage with `follow`, see squirrel_torch.Stage"
    if isinstance(link, Mix):
        return next((told for branch in link.branches for inner in branch._links() if (told := _opaque(inner))), None)
    stage = link._stage
    if stage is None:
        if planned_prefix([link], Context()) is not None:
            return None
        return (
            "it gives its items one after another, and can't be started in the middle",
            "pass something with numbers: a ShardStore, a list, a dataset with __len__ and __getitem__",
        )
    if not is_opaque(link):
        return None
    return "what it remembers is not known", "implement `follow` in its class, or say one_to_one = True"


def _without_splits(chain: Composable[Any]) -> tuple[Links, RankSplit[Any] | None, int | None]:
    """The places of a chain that do not divide it, its split by rank, and before which of these places it is first split."""
    links: Links = []
    split: RankSplit[Any] | None = None
    split_at: int | None = None
    for link in chain._links():
        if isinstance(link, Mix):
            link, split = _mix_without_splits(link)
        elif is_datapipe(link.source) and not isinstance(link.source, Composable) and splits_of(link):
            raise ShardingError(
                f"{link._describe()} is divided inside a pipe of torch, where the split can't be taken over: "
                "split behind the pipe"
            )
        if link._custom or not isinstance(link._stage, SplitStage):
            links.append(link)
            continue
        split_at = len(links) if split_at is None else split_at
        if isinstance(link._stage, RankSplit):
            split = link._stage
    return links, split, split_at


def _mix_without_splits(mix: Mix[Any]) -> tuple[Mix[Any], RankSplit[Any] | None]:
    if not splits_of(mix):
        return mix, None
    stripped = [_without_splits(branch) for branch in mix.branches]
    mix = copied(mix)
    mix.branches = [chained(links) for links, _, _ in stripped]
    return mix, next((split for _, split, _ in stripped if split), None)
