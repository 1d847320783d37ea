"""What a chain is in for, in words, before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.layout import Layout, Mode, layout_of
from squirrel_torch.iterstream.stages import AsyncMap, Shuffled, Sliding

__all__ = ["Explanation", "explain"]

_MODES = {
    Mode.PLANNED: (
        "the order of an epoch is arithmetic: a position says where it is",
        "opening the source, and making again what was in flight; the same at 10 % and at 90 % of an epoch",
        "usually under a kilobyte, the same on all ranks: the state of any rank is enough",
        "on any number of ranks and workers, with any batch size: each sample once, in the same order",
    ),
    Mode.STREAMED: (
        "the source is started where it was left, and what stages hold is made again",
        "opening the source, and making again what stages held ({held}) and what was in flight",
        "some bytes for each item that a stage holds; each rank has a part, and all parts are needed",
        "on any number of ranks and workers: each sample once, in an order that depends on the number of streams",
    ),
    Mode.REPLAYED: (
        "what can't be started in the middle is run again from the beginning",
        "running again all that was run up to there, {again}; a warning says how much that is",
        "a count and a digest; each rank has a part, and all parts are needed",
        "on any number of ranks and workers, if the source gives the same items again; if not, ReplayMismatch is raised",
    ),
}


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Args:
        chain: The chain, in words.
        mode: "planned", "streamed" or "replayed".
        decided_by: The stage that decided it, and where it is written; empty if none stands in the way.
        because: What that stage does.
        resume: What going on after a stop costs.
        state: How large the state is, and whose is needed.
        elsewhere: Where and how it can be gone on with.
        remedy: What to change to get a better mode; empty if there is nothing.
    """

    chain: str
    mode: str
    decided_by: str
    because: str
    resume: str
    state: str
    elsewhere: str
    remedy: str

    def __str__(self) -> str:
        what = _MODES[Mode(self.mode)][0]
        decided = f"decided by   {self.decided_by}: {self.because}\n" if self.decided_by else ""
        remedy = f"\nbetter if    {self.remedy}" if self.remedy else ""
        return (
            f"{self.chain}\n"
            f"mode         {self.mode}: {what}\n"
            f"{decided}"
            f"a resume     costs {self.resume}\n"
            f"its state    has {self.state}\n"
            f"goes on      {self.elsewhere}{remedy}"
        )


def explain(chain: Composable[Any]) -> Explanation:
    """See `Composable.explain`."""
    layout = layout_of(chain)
    _, resume, state, elsewhere = _MODES[layout.mode]
    cause = layout.cause
    site = "" if cause is None or cause._site is None else f", written at {cause._site}"
    return Explanation(
        chain=repr(chain),
        mode=layout.mode.value,
        decided_by="" if cause is None else f"{cause._describe()}{site}",
        because=layout.why,
        resume=resume.format(held=_held(layout), again="without its stages" if _is_source(layout) else "callbacks included"),
        state=state,
        elsewhere=elsewhere,
        remedy=layout.remedy,
    )


def _held(layout: Layout) -> str:
    """How many items the stages of a chain hold at most."""
    held = []
    for link in layout.links:
        stage = link._stage
        if isinstance(stage, Shuffled | Sliding):
            held.append(f"{stage.size} items in {type(stage).__name__}")
        elif isinstance(stage, AsyncMap):
            held.append(f"{stage.buffer} items in {type(stage).__name__}")
    return ", ".join(held) or "nothing"


def _is_source(layout: Layout) -> bool:
    return layout.cause is layout.links[0]
