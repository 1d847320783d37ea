"""The only module that touches torch's machinery of IterDataPipes.

A torch without it would cost this file alone: `DataPipe` would become `IterableDataset`.

What torch does that a fast stream can't have, and what stands here instead:

* Its metaclass wraps every `__iter__` in a hook that costs 1 to 5 µs an item and stage, rewrites the arguments of
  exceptions, and invalidates an iterator when a second one is made. `DataPipe` takes the hook off again.
* To find the graph of pipes it pickles every attribute that is a collection. `graph_state` shows it the pipes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import IterableDataset, IterDataPipe, get_worker_info
from torch.utils.data.datapipes.datapipe import _IterDataPipeSerializationWrapper

__all__ = [
    "DataPipe",
    "dealt_out_again",
    "graph_state",
    "is_datapipe",
    "iterated_by_dataloader",
    "iterated_by_stateful_loader",
    "pipes_behind",
    "pipes_in",
    "plain_state",
    "register",
]

T_co = TypeVar("T_co", covariant=True)

if TYPE_CHECKING:
    # torch's stubs declare its functional names on IterDataPipe; typed methods of the same names would be bad overrides.
    DataPipe = IterableDataset
else:

    class DataPipe(IterDataPipe[T_co]):
        """IterDataPipe, with every `__iter__` and `__next__` of its subclasses as it was written."""

        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            for name in ("__iter__", "__next__"):
                if name in cls.__dict__:
                    setattr(cls, name, _unhooked(cls.__dict__[name]))


_FRAMES = 6
_BOOKKEEPING = frozenset(
    ("_valid_iterator_id", "_snapshot_state", "_fast_forward_iterator", "_profile_name", "_number_of_samples_yielded")
)


def _unhooked(method: Callable[..., Any]) -> Callable[..., Any]:
    """The `__iter__` or `__next__` that a class body wrote, without torch's hook around it."""
    hook = getattr(method, "__code__", None)
    from_torch = hook is not None and hook.co_filename.endswith("_hook_iterator.py")
    return method.__wrapped__ if from_torch else method  # type: ignore[attr-defined]  # functools.wraps


def is_datapipe(thing: object) -> bool:
    """Whether `thing` is a pipe of torch, ours included."""
    return isinstance(thing, IterDataPipe)


def graph_state(attributes: dict[str, Any]) -> dict[str, Any] | None:
    """What torch may see of a pipe while it walks the graph; None when it does not walk but really pickles."""
    hook = IterDataPipe.getstate_hook
    if hook is None:
        return None
    return dict(hook({name: value for name, value in attributes.items() if _holds_pipes(value)}))


def pipes_behind(pipe: Any) -> Iterator[Any]:
    """The pipes that a pipe of torch is made of, itself first, found without pickling anything."""
    yield pipe
    for inner in pipes_in(pipe):
        yield from pipes_behind(inner)


def pipes_in(pipe: Any) -> Iterator[Any]:
    """The pipes that a pipe of torch holds itself."""
    for value in vars(pipe).values():
        if _holds_pipes(value):
            yield from [value] if is_datapipe(value) else value


def _holds_pipes(value: object) -> bool:
    # A list of pipes holds nothing else; looking at each item of a list of data would take long.
    return is_datapipe(value) or (isinstance(value, list | tuple) and len(value) > 0 and is_datapipe(value[0]))


def plain_state(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes without those that torch keeps on a pipe for itself."""
    return {name: value for name, value in attributes.items() if name not in _BOOKKEEPING}


def iterated_by_dataloader(pipe: Any, caller: FrameType | None) -> bool:
    """Whether `caller`, the frame that asks a pipe for its iterator, is a DataLoader's wrapper around that pipe.

    In a worker of a DataLoader it is enough that the pipe is part of the pipe that the DataLoader was given.
    """
    # Looking at the locals of a frame keeps them alive with it: never at those of a user.
    wrapper = _IterDataPipeSerializationWrapper
    own = caller if caller is not None and caller.f_globals.get("__name__") == wrapper.__module__ else None
    if own is not None and isinstance(own.f_locals.get("self"), wrapper):
        return True
    worker = get_worker_info()
    if worker is None or not isinstance(worker.dataset, _IterDataPipeSerializationWrapper):
        return False
    return any(part is pipe for part in pipes_behind(worker.dataset._datapipe))


def iterated_by_stateful_loader(caller: FrameType | None) -> bool:
    """Whether `caller`, the frame that asks a dataset for its iterator, does so for torchdata's StatefulDataLoader."""
    for _ in range(_FRAMES):
        if caller is None:
            return False
        if caller.f_globals.get("__name__", "").startswith("torchdata.stateful_dataloader"):
            return True
        caller = caller.f_back
    return False


def dealt_out_again(caller: FrameType | None) -> bool:
    """Whether `caller`, which uses a dataset, is of those who divide it among ranks: Accelerate's, and transformers' copy."""
    return caller is not None and caller.f_code.co_qualname.startswith(("IterableDatasetShard.", "DataLoaderDispatcher."))


def register(name: str, function: Callable[..., Any]) -> None:
    """Give every pipe of torch the method `name`, unless torch or somebody else has taken the name."""
    if name not in IterDataPipe.functions:
        IterDataPipe.register_function(name, function)
