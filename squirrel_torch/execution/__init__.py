"""Where callbacks run: the flow of items to a place and back, and a file in `places/` for each kind of place.

A *name* ("thread", "process", "numba"), the address of a dask scheduler, or None is a recipe: it is opened in the process
that runs the stream, and closed with it. A live executor belongs to the caller: it is used, may be shared between stages,
and is never closed.
"""

from squirrel_torch.execution.call import Call, Policy
from squirrel_torch.execution.choice import check_executor, choose_place, portable_executor
from squirrel_torch.execution.flow import Flow, in_reader
from squirrel_torch.execution.tally import Tally
from squirrel_torch.execution.tuning import Tuner
from squirrel_torch.execution.work import Chunk, ExecutorLike

__all__ = [
    "Call",
    "Chunk",
    "ExecutorLike",
    "Flow",
    "Policy",
    "Tally",
    "Tuner",
    "check_executor",
    "choose_place",
    "in_reader",
    "portable_executor",
]
