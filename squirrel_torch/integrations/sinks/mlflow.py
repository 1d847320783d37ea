"""Metrics for MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from squirrel_torch.errors import MissingDependencyError
from squirrel_torch.integrations.sinks.naming import Names
from squirrel_torch.metrics import accepted_by_mlflow

try:
    import mlflow
except ImportError as error:
    raise MissingDependencyError("mlflow", "mlflow") from error

__all__ = ["MLflowSink"]


class MLflowSink:
    """Logs metrics to a run of MLflow. Characters that it refuses in names, such as parentheses, are left out.

    Args:
        run_id: The run; None: the one that is active in the thread where something is to be logged, or else a new one, as
            `mlflow.log_metrics` has it.
        synchronous: Whether to wait until the server has them; None: as MLFLOW_ENABLE_ASYNC_LOGGING says.
    """

    one_process: ClassVar[bool] = True

    def __init__(self, run_id: str | None = None, *, synchronous: bool | None = None) -> None:
        self.run_id = run_id
        self.synchronous = synchronous
        self._names = Names(_allowed)
        self._calls = 0

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics. Without a `step` it is the number of the call, from 0: MLflow would have all of them at 0.

        Raises:
            ValueError: If two names differ only in what MLflow refuses.
        """
        named = {self._names[name]: float(value) for name, value in metrics.items()}
        number = self._calls if step is None else step
        mlflow.log_metrics(named, step=number, run_id=self.run_id, synchronous=self.synchronous)
        self._calls += 1

    def __repr__(self) -> str:
        return f"MLflowSink({'' if self.run_id is None else f'run_id={self.run_id!r}'})"


def _allowed(name: str) -> str:
    # It refuses paths that are not in their plain form, too.
    parts = accepted_by_mlflow(name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))
