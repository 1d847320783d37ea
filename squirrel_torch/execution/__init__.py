"""Where callbacks run: one small protocol, a file for each kind of place.

A *name* ("thread", "numba") or None is a recipe: it is opened in the process that runs the stream, and closed with it. A
live executor belongs to the caller: it is used, may be shared between stages, and is never closed.
"""

from squirrel_torch.execution.choice import check_executor, open_work
from squirrel_torch.execution.work import ExecutorLike, Pending, Work

__all__ = ["ExecutorLike", "Pending", "Work", "check_executor", "open_work"]
