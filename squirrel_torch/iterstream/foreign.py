"""Our methods on torch's own pipes, where torch has no name for them."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from squirrel_torch.iterstream.base import Composable
from squirrel_torch.iterstream.datapipe import register
from squirrel_torch.iterstream.iterable import IterableSource

__all__ = ["NAMES", "register_all"]

# Not among them: what torch calls map, filter and shuffle; and `to`, by which others recognize tensors and modules.
NAMES = (
    "async_map",
    "batched",
    "collect",
    "compose",
    "dask_map",
    "explain",
    "profile",
    "flat_map",
    "flatten",
    "join",
    "loop",
    "materialize_dask",
    "monitor",
    "numba_map",
    "prefetch",
    "sink",
    "skip",
    "sliding",
    "split_by_rank",
    "split_by_rank_pytorch",
    "split_by_worker",
    "split_by_worker_pytorch",
    "take",
    "then",
    "to_torch_iterable",
    "tqdm",
    "zip_index",
)


def register_all() -> None:
    """Give the methods in `NAMES` to every pipe of torch; the result is a composable over the pipe."""
    for name in NAMES:
        register(name, _on_foreign_pipe(name))


def _on_foreign_pipe(name: str) -> Callable[..., Any]:
    method = getattr(Composable, name)

    @wraps(method)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        return partial(method, IterableSource(pipe))(*args, **kwargs)

    return call
