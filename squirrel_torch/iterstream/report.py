"""What a run can say of its stages while it goes on and when it is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from squirrel_torch.execution import Tally

__all__ = ["StageReport"]


@dataclass
class StageReport:
    """What one stage has seen in a run so far.

    Args:
        stage: The stage, as in its `repr`.
        items: Items that were dealt with, those that failed included.
        skipped: How many of them failed and were left out.
        kinds: How often each type of exception was the reason.
        chosen: What "auto" stands for now, by argument: it can be written into the code instead.
        about: The stage itself.
        calls: Of its callback, if it runs in a place of its own.
    """

    stage: str
    items: int = 0
    skipped: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, int] = field(default_factory=dict)
    about: object = field(default=None, repr=False, compare=False)
    calls: Tally | None = field(default=None, repr=False, compare=False)

    def what_failed(self) -> str:
        """`ValueError 2, KeyError 1`."""
        return ", ".join(f"{kind} {count}" for kind, count in self.kinds.items())

    def __str__(self) -> str:
        parts = [f"{self.stage}: {self.items} items"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped ({self.what_failed()})")
        if self.chosen:
            parts.append("chose " + ", ".join(f"{name}={value}" for name, value in self.chosen.items()))
        return ", ".join(parts)
