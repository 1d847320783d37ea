"""Metrics for Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from squirrel_torch.errors import MissingDependencyError, PipelineError

try:
    import wandb
except ImportError as error:
    raise MissingDependencyError("wandb", "wandb") from error

__all__ = ["WandbSink"]


class WandbSink:
    """Logs metrics to a run of Weights & Biases.

    Args:
        run: The run; None: the one that is active when something is to be logged (`wandb.init()`).
        step_metric: The metric that charts of these metrics have as their x axis, such as "trainer/global_step"; it is logged
            beside them. Without it they are at the steps of the run, which each `log` of anything counts up.
    """

    one_process: ClassVar[bool] = True

    def __init__(self, run: wandb.Run | None = None, *, step_metric: str | None = None) -> None:
        self.run = run
        self.step_metric = step_metric
        self._defined: set[tuple[str, str]] = set()
        self._calls = 0

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics. With a `step_metric` but no `step`, it is the number of the call, from 0.

        Raises:
            PipelineError: If no run is active.
        """
        run = wandb.run if self.run is None else self.run
        if run is None:
            raise PipelineError(
                "wandb has no active run in this process: call wandb.init() before the stream begins, or pass "
                "WandbSink(run=...) to monitor"
            )
        if self.step_metric is None:
            run.log(dict(metrics), step=step)
            return
        for name in metrics:
            if (run.id, name) not in self._defined:
                run.define_metric(name, step_metric=self.step_metric)
                self._defined.add((run.id, name))
        run.log({**metrics, self.step_metric: self._calls if step is None else step})
        self._calls += 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "run": None}  # a run belongs to its process

    def __repr__(self) -> str:
        run = "" if self.run is None else f"run={self.run.id!r}"
        step = "" if self.step_metric is None else f"step_metric={self.step_metric!r}"
        return f"WandbSink({', '.join(filter(None, (run, step)))})"
