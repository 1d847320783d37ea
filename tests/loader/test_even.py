"""Ranks with different numbers of batches make equally many steps: real gloo ranks under torchrun."""

import pytest

from tests.support import run_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100)]

HEAD = """
import json, logging, os, sys, time
import torch
import torch.distributed as dist
from squirrel_torch import IterableSource, StreamLoader, unpadded

logging.getLogger("squirrel_torch").setLevel(logging.ERROR)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()

def gathered(value):
    every = [None] * ranks
    dist.all_gather_object(every, value)
    return every

def stepped(loader, steps=None):
    # As in a training: no step without the others.
    given = []
    for batch in loader:
        dist.all_reduce(torch.zeros(1))
        given.append(batch)
        if len(given) == steps:
            break
    return given
"""


def test_all_ranks_make_the_same_steps(tmp_path):
    code = (
        HEAD
        + """
def odd(x):
    return x % 2

CHAINS = {
    "10 against 11": lambda: IterableSource(range(21)).filter(lambda x: True),
    "nothing for one": lambda: IterableSource(range(48)).filter(odd),
    "nothing for all": lambda: IterableSource(range(48)).filter(lambda x: False),
    "dealt": lambda: IterableSource(range(50)).filter(odd).take(23),
    "more than one block": lambda: IterableSource(range(300)).filter(lambda x: x % 2 or x < 100),
}
for workers in (0, 2):
    for name, chain in CHAINS.items():
        whole = sorted(chain())
        streams = 2 if name != "dealt" else None
        own = lambda tail: StreamLoader(chain(), 2, num_workers=workers, tail=tail, streams=streams)
        exact, dropping, padding = own("exact"), own("drop"), own("pad")
        counts = gathered(len(list(exact)))
        dropped = [stepped(dropping) for _ in range(2)]
        padded = [stepped(padding) for _ in range(2)]
        for epoch in range(2):
            steps = gathered((len(dropped[epoch]), len(padded[epoch])))
            if rank == 0:
                assert [own for own, _ in steps] == [min(counts)] * 2, (name, counts, steps)
                assert [own for _, own in steps] == [max(counts)] * 2, (name, counts, steps)
            every = gathered([one for batch in padded[epoch] for one in unpadded(batch).tolist()])
            assert sorted(sum(every, [])) == whole, (name, every)
            assert all(len(batch.mask) == len(batch.batch) == 2 for batch in padded[epoch]), padded[epoch]
        every = gathered([one for batch in dropped[0] for one in batch.tolist()])
        assert len(set(sum(every, []))) == len(sum(every, [])) and set(sum(every, [])) <= set(whole)
        if rank == 0:
            print(workers, name, counts)
dist.destroy_process_group()
"""
    )
    out = run_script(code, tmp_path, torchrun=2).splitlines()
    told = ["10 against 11 [6, 5]", "nothing for one [0, 12]", "nothing for all [0, 0]", "dealt [6, 6]"]
    for workers in (0, 2):
        for line in told:
            assert f"{workers} {line}" in out


def test_passes_that_are_left_do_not_get_into_each_other_s_way(tmp_path):
    code = (
        HEAD
        + """
chain = IterableSource(range(200)).filter(lambda x: x % 2 or x % 12 == 0)
loader = StreamLoader(chain, 2, tail="drop", streams=2)
whole = stepped(StreamLoader(chain, 2, tail="drop", streams=2))
for steps in (1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13):
    loader.set_epoch(0)
    assert [batch.tolist() for batch in stepped(loader, steps)] == [batch.tolist() for batch in whole[:steps]], steps
    assert len(set(gathered(len(whole)))) == 1
loader.set_epoch(0)
assert len(stepped(loader)) == len(whole)
other = StreamLoader(chain, 3, tail="pad", streams=2)
first, second = iter(loader), iter(other)
for _ in range(5):  # two at a time
    next(first), next(second)
print("done", rank, len(whole))
dist.destroy_process_group()
"""
    )
    out = run_script(code, tmp_path, torchrun=2)
    assert out.count("done") == 2  # lines of two processes may get mixed up


def test_several_passes_go_on_at_once(tmp_path):
    code = (
        HEAD
        + """
def odd(x):
    if x % 2 and rank:
        time.sleep(0.001)  # one rank is further ahead than the other
    return x % 2 or x < 100
chain = IterableSource(range(300)).filter(odd)
def dropping():
    return StreamLoader(chain, 2, tail="drop", streams=2)
def padding():
    return StreamLoader(chain, 3, tail="pad", streams=2)
def plain(batches):
    return [unpadded(batch).tolist() for batch in batches]
one, other = plain(stepped(dropping())), plain(stepped(padding()))
assert len(one) > 20 and len(other) > 20
pairs = list(zip(dropping(), padding()))
assert plain(first for first, _ in pairs) == one[: len(pairs)] and plain(second for _, second in pairs) == other[: len(pairs)]
assert len(set(gathered(len(pairs)))) == 1 and len(pairs) == min(len(one), len(other))
outer = []
for step, batch in enumerate(dropping()):
    outer.append(batch.tolist())
    if step % 6 == 0:  # an evaluation
        assert plain(padding()) == other
assert outer == one
print("done", rank)
dist.destroy_process_group()
"""
    )
    assert run_script(code, tmp_path, torchrun=2).count("done") == 2


def test_ranks_wait_no_longer_than_the_job_says(tmp_path):
    code = (
        HEAD.replace('init_process_group("gloo")', 'init_process_group("gloo", timeout=datetime.timedelta(seconds=2))')
        + """
loader = StreamLoader(IterableSource(range(100)).filter(lambda x: True), 2, tail="drop", streams=2)
begin = time.monotonic()
if rank == 0:
    try:
        list(loader)
    except RuntimeError as error:
        print("waited", time.monotonic() - begin < 8, flush=True)
    os._exit(0)  # gloo has failed, and aborts the process otherwise
next(iter(loader))
time.sleep(10)
os._exit(0)
"""
    ).replace("import json,", "import datetime, json,")
    assert "waited True" in run_script(code, tmp_path, torchrun=2)


def test_what_a_training_does_to_a_batch_is_not_seen_in_those_that_fill_up(tmp_path):
    code = (
        HEAD
        + """
chain = IterableSource(range(40)).filter(lambda x: x % 2 == 0 or x < 8).map(lambda x: {"x": x})
filling = []
for batch in StreamLoader(chain, 2, tail="pad", streams=2):
    if not batch.pop("mask").any():
        filling.append(batch["x"].tolist())
    batch["x"].add_(1000)
assert len(filling) == 8 * rank and all(own == [1, 3] for own in filling), filling
print("done", rank)
dist.destroy_process_group()
"""
    )
    assert run_script(code, tmp_path, torchrun=2).count("done") == 2


def test_ranks_in_different_passes_are_told_so(tmp_path):
    code = (
        HEAD
        + """
from squirrel_torch import PipelineError
loader = StreamLoader(IterableSource(range(100)).filter(lambda x: True), 2, tail="drop", streams=2)
told = ""
try:
    for step, _ in enumerate(loader):
        if rank == 0 and step == 6:
            break  # the other rank does not
    list(loader)
except PipelineError as error:
    told = str(error)
assert "are not in the same pass: passes 1 to 2" in told, told
loader.set_epoch(5)
assert len(set(gathered(len(stepped(loader))))) == 1  # they come together again
print("done", rank)
dist.destroy_process_group()
"""
    )
    assert run_script(code, tmp_path, torchrun=2).count("done") == 2


def test_a_resume_behind_every_second_step(tmp_path):
    code = (
        HEAD
        + """
chain = IterableSource(range(103)).filter(lambda x: x % 2 or x % 12 == 0).shuffle(8)
for tail in ("drop", "pad"):
    def new():
        return StreamLoader(chain, 2, tail=tail, streams=4)
    def plain(batches):
        return [unpadded(batch).tolist() for batch in batches]  # what fills up may be another batch
    loader = new()
    whole, following = plain(stepped(loader)), plain(stepped(loader))
    assert len(whole) > 4, whole
    for steps in range(1, len(whole) + 1, 2):
        loader, again = new(), new()
        stepped(loader, steps)
        again.load_state_dict(json.loads(json.dumps(gathered(loader.state_dict()))))
        rest = plain(stepped(again))
        assert rest == whole[steps:], (tail, steps, rest, whole)
        assert plain(stepped(again)) == following
print("resumed", rank)
dist.destroy_process_group()
"""
    )
    out = run_script(code, tmp_path, torchrun=2)
    assert out.count("resumed") == 2


def test_the_tail_is_said_in_the_log_and_join_works_without_it(tmp_path):
    code = (
        HEAD.replace("setLevel(logging.ERROR)", "setLevel(logging.WARNING)")
        + """
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

logging.basicConfig(format="%(message)s", stream=sys.stdout)
chain = IterableSource(range(40)).filter(lambda x: x % 2 == 0 or x < 8)
list(StreamLoader(chain, 2, streams=2))  # by default ranks make the same steps
model = DistributedDataParallel(nn.Linear(1, 1))
steps = 0
with Join([model]):
    for batch in StreamLoader(chain, 2, tail="exact", streams=2):
        model(batch[:, None].float()).sum().backward()
        steps += 1
steps, weights = gathered(steps), gathered(model.module.weight.tolist())
if rank == 0:
    print("steps", steps)
assert weights[0] == weights[1]
dist.barrier()
sys.stdout.flush()
os._exit(0)  # see tests/distributed/trainer.py
"""
    )
    out = run_script(code, tmp_path, torchrun=2)
    assert out.count("steps [10, 2]") == 1
    assert out.count("so this one leaves out 3") == 1, out
