"""What is said of a stream: figures, and what they mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from squirrel_torch.observe.figures import Figures

__all__ = ["Report", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """Which part of a stream limits it, why, and what to change.

    Args:
        cause: One of "consumer" (nothing to gain), "gil" (CPU-bound in threads under the GIL), "cpu" (CPU-bound on one core),
            "cores" (CPU-bound on all cores), "latency" (waiting for I/O with too little in flight), "serial" (the stages
            before have one thread), "hand-over" (between processes), "overhead" (Python's, of small items), "unknown".
        stage: The place in words, such as `async_map(decode)`.
        because: Why, with numbers.
        remedy: What to change, as code where that is possible; empty if there is nothing.
        gain: How many times as fast the stream is expected to be then; 1.0 if there is nothing to gain.
        place: The place that limits it; None for the consumer.
        branch: The branch that it is in.
    """

    cause: str
    stage: str
    because: str
    remedy: str = ""
    gain: float = 1.0
    place: int | None = None
    branch: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One sentence."""
        remedy = f"; {self.remedy} would give about {self.gain:.1f}x" if self.remedy else ""
        return f"{self.stage}: {self.because}{remedy}"


@dataclass(frozen=True)
class Report:
    """What was seen of a stream, and what it means. Its text is a table; a notebook shows a picture.

    Args:
        title: The chain, in words.
        figures: What was seen.
        verdict: What it means.
    """

    title: str
    figures: Figures
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"title": self.title, "verdict": asdict(self.verdict), "figures": self.figures.to_dict()}

    def metrics(self) -> dict[str, float]:
        """For loggers, of each stage that works: its share of busy time, and its items a second as far as they are known.

        Example:
            >>> from squirrel_torch import IterableSource
            >>> list(IterableSource(range(10)).map(str).profile().metrics())[2:]
            ['stage 1 map str busy', 'stage 1 map str items/s']
        """
        from squirrel_torch.observe.places import chain_of

        found = {}
        for _, _, place in chain_of(self).rows():
            if place.stage.planned:
                continue
            branch = "".join(f" of branch {name}" for name in place.stage.branch)
            # Parentheses are not for all loggers.
            name = f"stage {place.stage.place}{branch} {place.name.replace('(', ' ').replace(')', '')}".rstrip()
            found[f"{name} busy"] = place.busy
            if place.rate is not None:
                found[f"{name} items/s"] = place.rate
        return found

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        from squirrel_torch.observe.text import table_of

        return table_of(self)

    def svg(self) -> str:
        """A picture of the chain: its places, with rates and fill on the edges between them."""
        from squirrel_torch.observe.picture import svg_of

        return svg_of(self)

    def html(self) -> str:
        """A page with picture, verdict and table, which needs nothing else."""
        from squirrel_torch.observe.page import page_of

        return page_of(self)

    def save(self, path: str | Path) -> Path:
        """Write it to a file: `.html`, `.svg`, `.json` or `.txt`.

        Raises:
            ValueError: If the name ends with none of these.
        """
        target = Path(path)
        made = {".html": self.html, ".svg": self.svg, ".json": self.to_json, ".txt": self.__str__}
        if target.suffix not in made:
            raise ValueError(f"a report can be saved as {', '.join(made)}, got {str(path)!r}")
        target.write_text(made[target.suffix](), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        from squirrel_torch.observe.page import fragment_of

        return fragment_of(self)
