"""Every stage keeps the promises of `check_stage`: found by walking subclasses, so that none can be forgotten."""

import operator
from dataclasses import dataclass
from inspect import isabstract

import pytest

import squirrel_torch
from squirrel_torch import IterableSource, Shard, Stage
from squirrel_torch.iterstream.stages import (
    AsyncMap,
    AutoSplit,
    Batched,
    DaskMap,
    Filter,
    FlatMap,
    Flatten,
    Loop,
    Map,
    Monitored,
    NumbaMap,
    Piped,
    RankSplit,
    Shuffled,
    Skip,
    Sliding,
    Take,
    Tqdm,
    WorkerSplit,
    ZipIndex,
)
from squirrel_torch.testing import check_resume, check_stage


def every_second(items, offset=0):
    for index, item in enumerate(items):
        if index % 2 == offset:
            yield item


def every_third_is_missing(item):
    return item % 3


def ignore(metrics):
    pass


EXAMPLES = [
    Map(lambda x: x + 1),
    Map(operator.neg),
    FlatMap(lambda x: [x] * (x % 3)),
    Filter(lambda x: x % 2),
    NumbaMap(lambda x: x * 2),
    Take(3),
    Skip(3),
    Batched(3),
    Batched(4, sum, drop_last=False),
    Sliding(3, deepcopy=False),
    Sliding(4, deepcopy=True, stride=2, drop_last=False, min_size=2),
    Sliding(4, deepcopy=True, stride=3, drop_last=False, fill=True),
    Shuffled(4, initial=2),
    Shuffled(100, seed="another"),
    Shuffled(2, initial=2),
    Loop(2),
    ZipIndex(),
    ZipIndex(pad_length=5),
    Piped(every_second, (1,)),
    Tqdm({"disable": True}),
    Monitored(ignore),
    Monitored(ignore, prefix="here ", window_size=1, every=0),
    AsyncMap(lambda x: x + 1, buffer=3, max_workers=2),
    AsyncMap(lambda x: x + 1, executor="numba"),
    AsyncMap(lambda x: x + 1, max_workers=2, executor="process"),
    AsyncMap(lambda x: x + 1, buffer="auto", max_workers="auto", chunksize=2, timeout=20, retries=0),
    RankSplit(),
    WorkerSplit(),
    AutoSplit(Shard(1, 3)),
]


def all_stages(kind: type[Stage]) -> set[type[Stage]]:
    # Those of tests are local or their own.
    below = {stage for child in kind.__subclasses__() for stage in all_stages(child)}
    ours = kind.__module__.startswith(squirrel_torch.__name__) and not kind.__name__.startswith("_")
    return below | {kind} if ours and not isabstract(kind) else below


@pytest.mark.parametrize("stage", EXAMPLES, ids=lambda stage: stage.describe())
def test_stage_keeps_its_promises(stage):
    check_stage(stage, range(9))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_run_can_be_gone_on_with_behind_every_stage():
    def source(count=9):
        return IterableSource(range(count)).filter(every_third_is_missing)

    others = [Flatten(), DaskMap(lambda x: x + 1)]
    # Each state of a stage with processes takes new ones, which have to import torch.
    chains = [source(3 if getattr(stage, "executor", None) == "process" else 9).then(stage) for stage in EXAMPLES]
    check_resume(*chains, *(source().batched(2).then(stage) for stage in others), epoch=1)


def test_flatten_keeps_its_promises():
    check_stage(Flatten(), [[1, 2], [], (3,), "ab"])


def test_dask_map_keeps_its_promises():
    check_stage(DaskMap(lambda x: x + 1), range(5), read=lambda delayed: delayed.compute(scheduler="synchronous"))


def test_stages_of_a_function_body_can_be_pickled():
    @dataclass(frozen=True)
    class Local(Stage):
        factor: int

        def apply(self, items):
            for item in items:
                yield self.factor * item

    check_stage(Local(3), range(4))


def test_every_stage_has_an_example():
    tried = {type(stage) for stage in EXAMPLES} | {Flatten, DaskMap}
    assert all_stages(Stage) - tried == set()
