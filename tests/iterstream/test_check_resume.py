import os
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import ClassVar

import pytest

from squirrel_torch import IterableSource, Stage
from squirrel_torch.testing import check_resume


@dataclass(frozen=True)
class Sums(Stage):
    """The sum of all items so far."""

    remembers: ClassVar[dict[str, str]] = {"sum": "count"}
    forgets: bool = False

    def apply(self, items):
        total = 0
        for item in items:
            total += item
            yield total

    def follow(self, steps, memory, following):
        total = memory.get("sum", 0)
        for own, item in steps:
            total += item
            if not self.forgets:
                memory["sum"] = total
            yield own, total


@pytest.mark.slow
def test_stages_of_ones_own():
    source = IterableSource(range(1, 12))
    right = source.then(Sums()).async_map(lambda x: x, buffer=3)
    check_resume(right, source, epoch=2)
    with pytest.raises(AssertionError, match=r"the state behind 1 items of .*forgets.* gives 10 items, 10 were left"):
        check_resume(right, source.then(Sums(forgets=True)), source)


def test_nothing_to_check_is_no_success():
    for wrong in ((), (IterableSource(range(3)), 1)):
        with pytest.raises(TypeError, match=r"at least one, got .*; the epoch is given by its name"):
            check_resume(*wrong)


def end_the_process(x):
    if parent_process() is not None:
        os._exit(3)
    return x


@pytest.mark.slow
def test_a_process_that_dies_is_told_of_with_its_chain():
    source = IterableSource(range(3))
    with pytest.raises(AssertionError, match=r"was to go on with .*end_the_process.* died"):
        check_resume(source, source.map(end_the_process), source)


@pytest.mark.slow
def test_what_differs_elsewhere():
    def of_this_process():
        yield from (os.getpid(), 2)

    with pytest.raises(AssertionError, match=r"the state behind 0 items of .* gives 2 items, 2 were left; item 0 of them"):
        check_resume(IterableSource(of_this_process))
