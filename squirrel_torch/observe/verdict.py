"""Which part of a stream limits it, why, and what to change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from squirrel_torch.observe.changes import (
    Change,
    by_batches,
    by_keys,
    by_map,
    by_processes,
    by_threads,
    by_workers,
    callback_of,
    into_calls,
    more_calls,
    on_all_cores,
)
from squirrel_torch.observe.figures import Figures
from squirrel_torch.observe.model import Demand, Model, Part, demands_of, model_of
from squirrel_torch.observe.report import Verdict
from squirrel_torch.observe.spelling import time_of
from squirrel_torch.observe.words import TINY, calls_of, count_of, hungry, is_tiny, named, seconds_each, share_of_cpu

__all__ = ["verdict_of"]

_SHORTEST: Final = {True: 0.2, False: 0.02}
"""Seconds below which nothing is said, of figures that were sampled and of calls that were timed."""
_WAITS: Final = 0.1
"""Share of its time that a consumer has to wait for data for there to be something to gain."""
_FULL: Final = 0.8
_GIL_FULL: Final = 0.7
_EVIDENT: Final = 0.5
_HEAVY: Final = 50e-6


def verdict_of(figures: Figures) -> Verdict:
    """What limits a stream, why, and what to change.

    The stream is taken as resources, each of which is needed for some time: threads, places of calls, the GIL, the cores and
    the consumer. The one that is used up first is the limit. What a change would give is the time that the stream would take
    if it were made, by the same rules: never more than the cores can do, and with what handing over costs.

    Args:
        figures: What was seen of it.
    """
    return _too_little(figures) or _Case(figures, model_of(figures)).verdict()


def _too_little(figures: Figures) -> Verdict | None:
    shortest = _SHORTEST[figures.sampled]
    if not figures.items:
        return Verdict("unknown", "the stream", "no item has come out of it yet: look at it for longer")
    loading = figures.loading
    if loading is not None and not loading.waited + loading.outside:
        return Verdict("unknown", "the stream", "no batch has been taken yet: look at it for longer")
    if figures.seconds < shortest:
        because = f"it was looked at for {time_of(figures.seconds)} only, at least {time_of(shortest)} are needed"
        return Verdict("unknown", "the stream", because)
    return None


@dataclass(frozen=True)
class _Case:
    figures: Figures
    model: Model

    # -- which resource ------------------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        demands = demands_of(self.model)
        return self._of_consumer() or self._of_all(demands) or self._of_gil(demands) or self._of_greatest(demands)

    def _of_consumer(self) -> Verdict | None:
        loading, model = self.figures.loading, self.model
        waits = loading.wait_share if loading is not None else 1 - model.outside / (model.seconds * model.consumers)
        if waits >= _WAITS:
            return None
        if model.unpacking > model.outside:
            return None
        waits = max(0.0, waits)
        because = (
            f"it waits for data {100 * waits:.0f} % of its time: without any waiting it would be {1 / (1 - waits):.2f}x as fast"
        )
        return Verdict("consumer", "the consumer", because)

    def _of_all(self, demands: list[Demand]) -> Verdict | None:
        cores = next(demand for demand in demands if demand.kind == "cores")
        if self._share(cores) < _FULL or not cores.parts:
            return None
        top, tiny = cores.parts[0], [part for part in cores.parts if is_tiny(part)]
        # What small items or handing over take is not work that has to be done.
        if sum(part.cpu for part in tiny) + self.model.packing + self.model.unpacking > 0.5 * cores.seconds * self.model.cores:
            return None
        used = f"{self._share(cores) * self.model.cores:.1f} of {self.model.cores} cores are used, most by {named(top)}"
        return self._said("cores", top, f"{used}: {time_of(seconds_each(top))} of CPU time for each item", None, 0.0)

    def _of_gil(self, demands: list[Demand]) -> Verdict | None:
        gil = next(demand for demand in demands if demand.kind == "gil")
        others = sum(part.cpu for part in self.model.parts) / self.model.makers
        if self._share(gil) < _GIL_FULL or not gil.parts or gil.seconds - others < 0.3 * gil.seconds:
            return None
        top = gil.parts[0]
        if top.workers <= self.model.makers:
            return None  # one at a time: no call waits for another
        because = f"{calls_of(top, self.model)} and use {self._share(gil):.2f} of a core under the GIL"
        return self._said("gil", top, because, self._beside(top), max(gil.seconds, top.wall / top.workers))

    def _of_greatest(self, demands: list[Demand]) -> Verdict:
        # The first of those that are about the same: a thread that works all the time also keeps the place before it full.
        order = {"consumer": 0, "thread": 1, "place": 2}
        demands = [demand for demand in demands if demand.kind in order]
        most = max(demand.seconds for demand in demands)
        near = [demand for demand in demands if demand.seconds >= 0.93 * most]
        limit = min(near, key=lambda demand: (order[demand.kind], -demand.seconds))
        if self._share(limit) < _EVIDENT or not (limit.parts or limit.kind == "consumer"):
            return self._hidden(limit)
        if limit.kind == "consumer":
            return self._unpacking(limit)
        return self._thread(limit) if limit.kind == "thread" else self._place(limit)

    def _share(self, demand: Demand) -> float:
        return demand.seconds / self.model.seconds

    # -- threads -------------------------------------------------------------------------------------------------------

    def _thread(self, demand: Demand) -> Verdict:
        model, top = self.model, demand.parts[0]
        own = sum(part.busy for part in demand.parts)
        if demand.thread == "main" and model.packing + model.unpacking > own and not model.inline:
            return self._packing(demand)
        if sum(part.busy for part in demand.parts if is_tiny(part)) > 0.5 * own:
            return self._overhead(demand)
        waits = top.stage.cpu is not None and top.cpu < 0.5 * top.busy
        is_map = top.stage.kind == "Map"
        if not top.stage.place:
            return self._serial(demand, waits)
        if demand.thread != "main" and (waits or not is_map):
            return self._serial(demand, waits)
        because = f"{self._alone(demand)}, {share_of_cpu(top)}"
        if waits and is_map:
            return self._said("latency", top, because, by_threads(model, top), demand.seconds)
        if waits:
            return self._serial(demand, waits)
        return self._said("cpu", top, because, self._elsewhere(top), demand.seconds)

    def _alone(self, demand: Demand) -> str:
        top = demand.parts[0]
        whose = "the thread of the consumer" if demand.thread == "main" and self.model.inline else "its thread"
        each = f"takes {time_of(seconds_each(top))} for each item" if count_of(top) else "works on items"
        return f"it {each}, one after another, and {whose} is busy {self._percent(demand)}"

    def _percent(self, demand: Demand) -> str:
        return f"{100 * min(1.0, self._share(demand)):.0f} % of the time"

    def _elsewhere(self, part: Part) -> Change | None:
        """More processes for work that is CPU-bound."""
        model = self.model
        processes = model.makers if not model.inline else 0
        if self.figures.loading is not None:
            return by_workers(self.figures, model) if processes < model.cores else None
        return by_processes(model, part) if part.stage.kind == "Map" and seconds_each(part) > _HEAVY else None

    def _beside(self, part: Part) -> Change | None:
        """The same for calls in threads."""
        model = self.model
        return by_processes(model, part) if model.makers == model.consumers else by_workers(self.figures, model)

    def _serial(self, demand: Demand, waits: bool) -> Verdict:
        model, top = self.model, demand.parts[0]
        behind = [
            part
            for part in model.parts
            if part.place and part.stage.branch == top.stage.branch and part.stage.place > top.stage.place
        ]
        change = into_calls(model, demand.parts, behind[0]) if behind else None
        if self.figures.loading is not None and change is None:
            change = by_workers(self.figures, model, waits=waits)
            if change.seconds > demand.seconds / 1.1:
                change = None
        if change is None:
            change = by_keys(model, top, waits=waits)
        starved = (
            f", while {named(behind[0])} has too little to do {100 * hungry(behind[0]):.0f} % of the time" if behind else ""
        )
        return self._said("serial", top, f"{self._alone(demand)}, {share_of_cpu(top)}{starved}", change, demand.seconds)

    def _overhead(self, demand: Demand) -> Verdict:
        model, top = self.model, demand.parts[0]
        tiny = [part for part in demand.parts if is_tiny(part)]
        cheap = [part for part in tiny if part.place and part.wall < TINY * max(1, count_of(part))]
        each = sum(part.busy for part in tiny) / max(1, max(count_of(part) for part in tiny)) / len(tiny)
        because = f"{len(tiny)} stages take {time_of(each)} for each item, as much as Python itself, and nothing waits"
        change = by_map(model, cheap[0]) if cheap else by_batches(model, demand)
        return self._said("overhead", top, because, change, demand.seconds)

    # -- places --------------------------------------------------------------------------------------------------------

    def _place(self, demand: Demand) -> Verdict:
        model, top = self.model, demand.parts[0]
        if top.carried > top.wall:
            return self._carried(top, demand.seconds)
        known = top.stage.calls is not None and top.stage.calls.cpu is not None
        because = f"{calls_of(top, model)}, of which {100 * min(1.0, demand.seconds / model.seconds):.0f} % are always busy"
        if not known or top.calls_cpu < 0.5 * top.wall:
            because += f", and compute {100 * top.calls_cpu / top.wall:.0f} % of that time" if known else ""
            return self._said("latency", top, because, more_calls(model, top), demand.seconds)
        change = on_all_cores(model, top) if top.workers < model.cores else None
        return self._said("cpu" if change else "cores", top, f"{because}, and compute all that time", change, demand.seconds)

    def _carried(self, part: Part, seconds: float) -> Verdict:
        count = max(1, count_of(part))
        waits = part.calls_cpu < 0.5 * part.wall and part.wall > TINY * count
        change = by_threads(self.model, part) if waits and part.place != "thread" else by_map(self.model, part)
        cause = "overhead" if part.place in ("thread", "coroutine") else "hand-over"
        way = f"the way to its {part.place} and back takes {time_of(part.carried / count)} for each item"
        return self._said(cause, part, f"{way}, its call {time_of(part.wall / count)}", change, seconds)

    def _packing(self, demand: Demand) -> Verdict:
        model = self.model
        batches = max(1, self.figures.loading.batches if self.figures.loading else 1)
        own = sum(part.busy for part in demand.parts)
        because = (
            f"its workers take {time_of(model.packing / batches)} to hand over a batch, and {time_of(own / batches)} to make it"
        )
        return self._handed(because, demand)

    def _unpacking(self, demand: Demand) -> Verdict:
        loading = self.figures.loading
        batches = max(1, loading.batches if loading else 1)
        taken, outside = self.model.unpacking / batches, self.model.outside / batches
        if taken < outside:
            waits = loading.wait_share if loading else 0.0
            because = f"it waits for data {100 * waits:.0f} % of its time, most of that to take over what is ready"
            return Verdict("consumer", "the consumer", because)
        return self._handed(
            f"the consumer takes {time_of(taken)} to take over a batch, and {time_of(outside)} for its own work", demand
        )

    def _handed(self, because: str, demand: Demand) -> Verdict:
        model, loading = self.model, self.figures.loading
        size = f" of {loading.size / 1e6:.1f} MB" if loading is not None and loading.size else ""
        inline = (sum(part.busy for part in model.parts if part.thread == "main") + model.outside) / model.consumers
        if 0 < inline < demand.seconds:
            change = Change("StreamLoader(..., num_workers=0)", inline)
        else:
            change = Change(
                f"batches{size} of half the bytes (smaller dtypes, converted behind the loader)", demand.seconds / 2
            )
        return Verdict("hand-over", "the loader", because, change.code, _gain(demand.seconds, change))

    def _hidden(self, limit: Demand) -> Verdict:
        """Nothing is busy most of the time: a buffer, or handing over that is not seen as such."""
        model = self.model
        for part in model.parts:
            calls = part.stage.calls
            if calls is None or not part.wall:
                continue
            if calls.buffer and calls.in_flight > 0.9 * calls.buffer and hungry(part) > 0.5:
                after = max(demand.seconds for demand in demands_of(model))
                code = f".async_map({callback_of(part)}, buffer={4 * calls.buffer // model.makers}), or ordered=False"
                because = f"{calls.in_flight:.0f} of {calls.buffer} items are in flight, most of them results behind a slow one"
                return self._said("latency", part, because, Change(code, max(after, model.seconds / 4)), model.seconds)
            if part.wall < TINY * 4 * max(1, count_of(part)) and limit.seconds < 0.5 * model.seconds:
                # What is not seen of so many short calls is how they are handed over.
                return self._carried(replace(part, carried=max(part.carried, model.seconds - part.wall)), model.seconds)
        because = f"no part of it is busy for more than {self._percent(limit)}"
        return Verdict("unknown", "the stream", because)

    # -- words ---------------------------------------------------------------------------------------------------------

    def _said(self, cause: str, part: Part, because: str, change: Change | None, now: float) -> Verdict:
        gain = _gain(now, change) if change is not None and change.seconds > 0 else 1.0
        useful = change is not None and gain > 1.05
        return Verdict(
            cause,
            named(part),
            because,
            change.code if change is not None and useful else "",
            gain if useful else 1.0,
            part.stage.place,
            part.stage.branch,
        )


def _gain(now: float, change: Change) -> float:
    # Beyond that it is about figures, not about streams.
    return now / max(change.seconds, now / 1000)
