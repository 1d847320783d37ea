"""How long a training waits for its data, beside the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

from squirrel_torch.checks import require_at_least, require_callable
from squirrel_torch.errors import MissingDependencyError, PipelineError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingDependencyError("lightning", "lightning") from error

from squirrel_torch.integrations.lightning.loop import TrainingLoop
from squirrel_torch.loader import Padded, StreamLoader, Waited
from squirrel_torch.metrics import accepted_by_mlflow
from squirrel_torch.observe import Figures, since

__all__ = ["StreamMonitor", "samples_of"]


class StreamMonitor(Callback):
    """Logs how much of the training waits for data, to the loggers of the Trainer, under the steps of the loss.

    * "data wait share": the share of the time that was spent waiting for the next batch of the training streams, from 0 to 1.
      Near 0 the data is fast enough; whatever is above is what a faster stream would save.
    * "batches/s" and "samples/s", over the same time.
    * of each stage of the streams "stage 2 map decode busy", the share of the time in which it worked, and "... items/s" where
      that is known, as `StreamLoader.report` has them.

    The time is that from one report to the next, without validation in between; the first begins with the first batch. It takes
    `StreamLoader` objects, or a `StreamDataModule`, which makes them. With several training streams their waits are added. In a
    job of several ranks the figures are those of the rank that logs, rank 0.

    Args:
        every_n_steps: Batches from report to report.
        prefix: Stands before the names.
        samples: Gives the number of samples of a batch. By default `samples_of`.
        stages: Whether to log the stages.

    Raises:
        ValueError: If `every_n_steps` is below 1.
        PipelineError: When a training begins, if none of its loaders is a StreamLoader.

    Example:
        >>> from squirrel_torch.integrations.lightning import StreamMonitor
        >>> monitor = StreamMonitor(every_n_steps=100)  # Trainer(callbacks=[monitor])
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        *,
        prefix: str = "",
        samples: Callable[[Any], int] | None = None,
        stages: bool = True,
    ) -> None:
        require_at_least("every_n_steps", every_n_steps, 1)
        if samples is not None:
            require_callable("samples", samples)
        self.every_n_steps = every_n_steps
        self.prefix = prefix
        self._samples_of = samples_of if samples is None else samples
        self._stages = stages
        self._window: _Window | None = None
        self._seen: dict[StreamLoader[Any], Figures] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._window = None
        if not TrainingLoop(trainer).loaders:
            raise PipelineError(
                "StreamMonitor measures how long a StreamLoader is waited for, and this training has none: give the Trainer a "
                "StreamDataModule, or StreamLoader objects"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin the first window."""
        if self._window is None:
            self._window = _Window(TrainingLoop(trainer).loaders, monotonic())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log at the end of a window."""
        window = self._window
        if window is None:
            return
        loop = TrainingLoop(trainer)
        window.count(self._samples_of(batch), loop.loaders)
        if window.batches == self.every_n_steps:
            now = monotonic()
            metrics = window.figures(now)
            if self._stages:
                metrics |= self._stages_of(loop.loaders)
            figures = {f"{self.prefix}{name}": value for name, value in metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=loop.logged_step)
            self._window = _Window(loop.loaders, now)

    def _stages_of(self, loaders: Sequence[StreamLoader[Any]]) -> dict[str, float]:
        """Those of the time since the last report."""
        found: dict[str, float] = {}
        for number, loader in enumerate(loaders):
            report = loader.report()
            now, before = report.figures, self._seen.get(loader)
            self._seen[loader] = now
            seen = replace(report, figures=now if before is None else since(now, before)).metrics()
            of = f"stream {number} " if len(loaders) > 1 else ""
            found |= {accepted_by_mlflow(f"{of}{name}"): value for name, value in seen.items()}
        return found

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if self._window is not None:
            self._window.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        if self._window is not None:
            self._window.go_on()


class _Window:
    """What has happened since the last report.

    Args:
        loaders: The streams that are waited for.
        now: When it begins, by `time.monotonic`.
    """

    def __init__(self, loaders: Sequence[StreamLoader[Any]], now: float) -> None:
        self.batches = 0
        self._samples = 0
        self._waiting = 0.0
        self._since = self._stopped = now
        self._paused = 0.0
        self._last = {loader: loader.waited for loader in loaders}

    def count(self, samples: int, loaders: Sequence[StreamLoader[Any]]) -> None:
        """A batch has been worked on."""
        self.batches += 1
        self._samples += samples
        # Each time, as a pass may end and the next one begin within a window, perhaps of another loader.
        for loader in loaders:
            before, after = self._last.get(loader, Waited()), loader.waited
            self._waiting += after.waiting - (before.waiting if before.since == after.since else 0.0)
            self._last[loader] = after

    def figures(self, now: float) -> dict[str, float]:
        """The metrics."""
        seconds = max(now - self._since - self._paused, 1e-9)
        return {
            "data wait share": min(1.0, self._waiting / seconds),
            "batches/s": self.batches / seconds,
            "samples/s": self._samples / seconds,
        }

    def pause(self) -> None:
        """What comes now does not count."""
        self._stopped = monotonic()

    def go_on(self) -> None:
        """It counts again."""
        self._paused += monotonic() - self._stopped


def samples_of(batch: Any) -> int:
    """How many samples a batch has: the length of the first tensor or array in it, or that of a list of anything else.

    What fills up a batch (`tail="pad"`) is counted, too. A batch of which nothing has a length is one sample.

    Example:
        >>> import torch
        >>> samples_of({"image": torch.zeros(8, 3, 32, 32), "label": torch.zeros(8)})
        8
        >>> samples_of(["a", "b", "c"])
        3
    """
    if isinstance(batch, Padded):
        return samples_of(batch.mask)
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else 1
    if isinstance(batch, Mapping):
        return samples_of(next(iter(batch.values()))) if batch else 0
    if isinstance(batch, list | tuple):
        holds = bool(batch) and (isinstance(batch[0], Mapping | list | tuple) or hasattr(batch[0], "shape"))
        return samples_of(batch[0]) if holds else len(batch)
    return 1
