"""The streams of a training, for Lightning's Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from types import MethodType
from typing import Any, Final, Literal, get_args

from squirrel_torch.checks import require_one_of
from squirrel_torch.errors import MissingDependencyError, StateError
from squirrel_torch.iterstream import Composable, TorchIterable
from squirrel_torch.loader import StreamLoader
from squirrel_torch.sharding import gathered

try:
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities import CombinedLoader
except ImportError as error:
    raise MissingDependencyError("lightning", "lightning") from error

from squirrel_torch.integrations.lightning.loop import TrainingLoop, sampler_for

__all__ = ["StreamDataModule"]

Stage = Literal["train", "val", "test", "predict"]
Mode = Literal["max_size_cycle", "min_size"]

_TAILS: Final[Mapping[str, str | None]] = {"train": None, "val": "pad", "test": "pad", "predict": "exact"}
"""By default. Training: all ranks make the same steps. Evaluation: the same, and what was added is masked."""


class StreamDataModule(LightningDataModule):
    """The streams of a training, for Lightning's Trainer, which resumes exactly where a checkpoint was written.

    A checkpoint of the Trainer, also one in the middle of an epoch, holds the place in the training streams: behind the last
    batch that the weights have seen, not behind the last one that was fetched. Where gradients of several batches are
    accumulated and not applied yet, it is the place before these batches, as the checkpoint does not hold the gradients;
    Lightning's count of batches goes back with it. Planned chains go on with any number of ranks and workers and any batch
    size; others too, as the states of all ranks are gathered into the checkpoint.

    Each stream is a chain, a `StreamLoader`, a dict, list or tuple of these, or a callable that gives one. A callable is called
    when the Trainer asks for the loader, so that ranks exist already, and again for each new loader
    (`reload_dataloaders_every_n_epochs`); one with a parameter named `epoch` is told the epoch.

    In Lightning's usual style a subclass may define `train_dataloader` and the others, `prepare_data`, `setup` and `teardown`;
    `StreamLoader` objects that it returns are treated in the same way.

    Args:
        train: The training data.
        val: The data of the validation. By default all ranks make the same number of steps, and what fills up the last
            batches is marked in a mask (`tail="pad"` of `StreamLoader`; `unpadded` takes it off): each sample counts once.
        test: The same for `Trainer.test`.
        predict: The same for `Trainer.predict`; by default without padding, so each sample has one prediction.
        mode: How several training streams go together: "max_size_cycle" until the longest one ends, the others begin anew;
            "min_size" until the shortest one ends.
        train_options: Arguments of `StreamLoader` for the training alone.
        val_options: For the validation.
        test_options: For the test.
        predict_options: For predictions.
        **options: Arguments of `StreamLoader` for all of them, such as `batch_size` and `num_workers`. Plain ones become
            hyperparameters, and are written into checkpoints.

    Raises:
        TypeError: If a stream is none, or StreamLoader has no such argument.
        ValueError: If `mode` is not known.

    Example:
        >>> from squirrel_torch import IterableSource
        >>> data = StreamDataModule(IterableSource(range(10)).shuffle(10), batch_size=4)
        >>> len(data.train_dataloader())
        3
        >>> data.hparams
        "batch_size": 4
    """

    def __init__(
        self,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        predict: Any = None,
        *,
        mode: Mode = "max_size_cycle",
        train_options: Mapping[str, Any] | None = None,
        val_options: Mapping[str, Any] | None = None,
        test_options: Mapping[str, Any] | None = None,
        predict_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        require_one_of("mode", mode, get_args(Mode))
        of_stages = {"train": train_options, "val": val_options, "test": test_options, "predict": predict_options}
        for given in (options, *of_stages.values()):
            _check_options(given or {})
        self._streams: dict[str, Any] = {"train": train, "val": val, "test": test, "predict": predict}
        for stage, stream in self._streams.items():
            _check_stream(stage, stream)
            if stream is None:
                self._leave_out(stage)
        self._mode = mode
        self._options = {stage: {"tail": _TAILS[stage], **options, **(own or {})} for stage, own in of_stages.items()}
        plain = {**options, **{f"{stage}_options": dict(own) for stage, own in of_stages.items() if own}}
        self.save_hyperparameters({name: value for name, value in plain.items() if _is_plain(value)})
        self._loaders: dict[str, list[StreamLoader[Any]]] = {}
        self._resumed: Mapping[str, Any] | None = None
        self._epoch_begun: int | None = None
        self._depth = 0

    def _leave_out(self, stage: str) -> None:
        """Make Lightning see that there is no such stream, unless a subclass has one."""
        name = f"{stage}_dataloader"
        if getattr(type(self), name) is getattr(StreamDataModule, name):
            setattr(self, name, MethodType(getattr(LightningDataModule, name), self))

    # -- loaders ------------------------------------------------------------------------------------------------------

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for stage in _TAILS:
            name = f"{stage}_dataloader"
            if name in cls.__dict__:
                setattr(cls, name, _adopting(stage, cls.__dict__[name]))

    def loader(self, stream: Any, stage: Stage = "train") -> StreamLoader[Any]:
        """A loader over a chain, with the options of a stage.

        Args:
            stream: A chain. A loader is given back as it is.
            stage: One of "train", "val", "test" and "predict".
        """
        return stream if isinstance(stream, StreamLoader) else StreamLoader(stream, **self._options[stage])

    def train_dataloader(self) -> Any:
        """The loaders of the training; asked for by the Trainer."""
        loaders = self._made("train")
        return loaders if self._mode == "max_size_cycle" else CombinedLoader(loaders, self._mode)

    def val_dataloader(self) -> Any:
        """Those of the validation."""
        return self._made("val")

    def test_dataloader(self) -> Any:
        """Those of the test."""
        return self._made("test")

    def predict_dataloader(self) -> Any:
        """Those of predictions."""
        return self._made("predict")

    def _made(self, stage: Stage) -> Any:
        stream = self._streams[stage]
        if _is_callable(stream):
            stream = stream(epoch=self._epoch()) if "epoch" in inspect.signature(stream).parameters else stream()
            _check_stream(stage, stream)
        return _mapped(stream, lambda one: self.loader(one, stage))

    def _epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch

    def _adopt(self, stage: str, loaders: list[StreamLoader[Any]]) -> None:
        """Take loaders that go to the Trainer into care."""
        for old in self._loaders.get(stage, ()):
            if all(old is not loader for loader in loaders):
                old.close()
        self._loaders[stage] = loaders
        if stage in ("train", "val"):
            begin = self._begin_epoch if stage == "train" else self._begin_validation
            for loader in loaders:
                loader.__dict__["sampler"] = sampler_for(self.trainer, begin)  # through it Lightning numbers the epochs
        if stage == "train":
            self._place_at_beginning(loaders)

    def _place_at_beginning(self, loaders: list[StreamLoader[Any]]) -> None:
        """Let the training begin where the checkpoint was, or anew."""
        self._epoch_begun = None
        for loader in loaders:
            loader.taken_by(self._state_of)
        if self._resumed is not None:
            self._go_on(loaders, self._resumed)
            self._resumed = None
        elif (loop := self._loop()) is not None:
            for loader in loaders:
                loader.begin_anew(loop.of_streams(self._epoch()))

    def _begin_epoch(self, epoch: int) -> None:
        """Called by Lightning for each loader; before the first epoch, when it has begun the passes already."""
        loaders, loop = self._loaders.get("train", []), TrainingLoop(self.trainer)
        is_first, self._epoch_begun = self._epoch_begun in (None, epoch), epoch
        for loader in loaders:
            (loader.set_epoch if is_first else loader.begin_anew)(loop.of_streams(epoch))
        loop.renew_lengths(loaders, loop.of_streams(epoch))
        loop.mark_ended(loaders, loop.of_streams(epoch))

    def _begin_validation(self, epoch: int) -> None:
        for loader in self._loaders.get("val", []):
            loader.set_epoch(TrainingLoop(self.trainer).of_streams(epoch))

    def teardown(self, stage: str) -> None:
        """End worker processes that were kept. Called by the Trainer; a subclass that has its own should call this too."""
        for loaders in self._loaders.values():
            for loader in loaders:
                loader.close()

    # -- states -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The places in the training streams, for a checkpoint. The same on every rank; all ranks have to call it."""
        if self._resumed is not None:
            return dict(self._resumed)
        loaders = self._loaders.get("train", [])
        if not loaders:
            return {}
        states = [loader.state_dict() for loader in loaders]
        loop = self._loop()
        redo, ended = (0, False) if loop is None else (loop.to_redo, loop.leaves_epoch)
        return {"train": states, "redo": redo, "ended": ended}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from there with the next training; called by the Trainer.

        Raises:
            StateError: If it is not what `state_dict` gave.
        """
        trainer = self.trainer
        if trainer is not None and trainer.state.fn not in (None, TrainerFn.FITTING):
            return  # a checkpoint is evaluated: its weights are meant, not its place in the training
        states, redo, ended = (state_dict.get(name) for name in ("train", "redo", "ended"))
        if not isinstance(states, list) or type(redo) is not int or redo < 0 or type(ended) is not bool:
            raise StateError(f"this is no state of a StreamDataModule: it has the keys {list(state_dict)}")
        self._resumed = state_dict

    def _go_on(self, loaders: list[StreamLoader[Any]], resumed: Mapping[str, Any]) -> None:
        states = resumed["train"]
        if len(states) != len(loaders):
            raise StateError(
                f"the checkpoint has the states of {len(states)} training streams, and there are {len(loaders)} now"
            )
        for loader, state in zip(loaders, states, strict=True):
            loader.load_state_dict(state)
        if (loop := self._loop()) is not None:
            loop.go_back(resumed["redo"])
            if resumed["ended"]:
                loop.end_epoch(loaders)

    def _state_of(self, loader: StreamLoader[Any]) -> Any:
        """The state of a loader behind the last batch that the weights have seen."""
        loop = self._loop()
        if loop is not None and loop.leaves_epoch:
            state = loader.state_of_epoch(loop.next_epoch)
        else:
            state = loader.state_dict(held=0 if loop is None else loop.held + loop.to_redo)
        if not loader.needs_all_states:
            return state
        states = gathered(state)
        return states if len(states) > 1 else state

    def _loop(self) -> TrainingLoop | None:
        return None if self.trainer is None else TrainingLoop(self.trainer)


def _adopting(stage: str, method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The method of a data module that gives loaders, which are taken into care."""

    @wraps(method)
    def adopting(self: StreamDataModule) -> Any:
        self._depth += 1
        try:
            loaders = method(self)
        finally:
            self._depth -= 1
        if not self._depth:  # a method of a subclass may call that of its parent
            self._adopt(stage, list(_loaders_in(loaders)))
        return loaders

    return adopting


for _stage in _TAILS:
    setattr(StreamDataModule, f"{_stage}_dataloader", _adopting(_stage, getattr(StreamDataModule, f"{_stage}_dataloader")))


def _is_callable(stream: object) -> bool:
    return callable(stream) and not isinstance(stream, Composable | TorchIterable | StreamLoader)


def _mapped(streams: Any, make: Callable[[Any], Any]) -> Any:
    if isinstance(streams, Mapping):
        return {name: _mapped(stream, make) for name, stream in streams.items()}
    if isinstance(streams, list | tuple):
        return [_mapped(stream, make) for stream in streams]
    return make(streams)


def _loaders_in(loaders: Any) -> Iterator[StreamLoader[Any]]:
    if isinstance(loaders, StreamLoader):
        yield loaders
    elif isinstance(loaders, CombinedLoader):
        yield from _loaders_in(loaders.flattened)
    elif isinstance(loaders, Mapping | list | tuple):
        for one in loaders.values() if isinstance(loaders, Mapping) else loaders:
            yield from _loaders_in(one)


def _check_stream(stage: str, stream: object) -> None:
    """Raise TypeError unless it is None, a stream, several of them, or gives one when it is called."""

    def check(one: object) -> None:
        if not isinstance(one, Composable | TorchIterable | StreamLoader):
            raise TypeError(
                f"{stage} must be a chain, a StreamLoader, a dict or list of these, or a callable that gives one; got {one!r} "
                f"({type(one).__name__})"
            )

    if stream is not None and not _is_callable(stream):
        _mapped(stream, check)


def _check_options(options: Mapping[str, Any]) -> None:
    known = inspect.signature(StreamLoader.__init__).parameters.keys() - {
        "self",
        "pipeline",
        "dataset",
        "sampler",
        "batch_sampler",
    }
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"StreamLoader has no arguments {', '.join(unknown)}; it has {', '.join(sorted(known))}")


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, int | float | str | bool)
