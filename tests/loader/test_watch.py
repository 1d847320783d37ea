"""A rank that waits says for whom: real gloo ranks under torchrun, of which one hangs."""

import re

import pytest

from tests.support import run_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100)]

HEAD = """
import logging, os, signal, sys, threading, time
import torch
import torch.distributed as dist
from squirrel_torch import IterableSource, StreamLoader

logging.basicConfig(format="%(message)s", stream=sys.stdout)
dist.init_process_group("gloo")
rank = dist.get_rank()

def slow_decode(x):
    if rank == 1 and x == 25:
        time.sleep(3)
    return x

def train(loader, stop_at=None):
    for step, batch in enumerate(loader):
        if rank == 1 and step == stop_at:
            work_long()
        dist.all_reduce(torch.zeros(1))

def work_long():
    time.sleep(3)
"""
TAIL = """
dist.destroy_process_group()
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slow_stage_of_another_rank_is_named(workers, tmp_path):
    code = f"train(StreamLoader(IterableSource(range(32)).map(slow_decode).batched(4), num_workers={workers}, report_after=1))"
    out = run_script(HEAD + code + TAIL, tmp_path, torchrun=2)
    (first, *_) = [line for line in out.splitlines() if line.startswith("rank 0 has been at step 4 of epoch 0")]
    assert "it works outside of the loader, in train (" in first, out
    assert "rank 1 is at step 3 of epoch 0 and " in first
    assert (
        "rank 1 waits for step 3 of epoch 0, which " + ("worker 1 (pid " if workers else "hangs in stage 1 of 2, Map(") in out
    )
    if workers:
        assert "waits in the loader for worker 1, which is in stage map, at File" in first
        assert "in slow_decode" in first
    else:
        assert "makes a batch, in Map(callback=slow_decode at script.py:" in first
        assert "in slow_decode (" in first


def test_a_slow_trainer_is_named(tmp_path):
    code = "train(StreamLoader(IterableSource(range(32)).batched(4), report_after=1), stop_at=2)"
    out = run_script(HEAD + code + TAIL, tmp_path, torchrun=2)
    assert "rank 1 is at step 3 of epoch 0 and works outside of the loader, in work_long (" in out


def test_a_process_that_is_stopped_is_named(tmp_path):
    code = """
if rank == 1:
    def stop():
        os.kill(os.getpid(), signal.SIGSTOP)
    for step, batch in enumerate(StreamLoader(IterableSource(range(32)).batched(4), report_after=1)):
        if step == 2:
            pid = os.getpid()
            if not os.fork():
                time.sleep(6)
                os.kill(pid, signal.SIGCONT)
                os._exit(0)
            stop()
        dist.all_reduce(torch.zeros(1))
else:
    train(StreamLoader(IterableSource(range(32)).batched(4), report_after=1))
"""
    out = run_script(HEAD + code + TAIL, tmp_path, torchrun=2)
    assert "rank 1 is at step " in out
    assert "has not been heard of for " in out
    assert "has died, or is stopped" in out


def test_who_is_waited_for_to_agree_is_named(tmp_path):
    code = """
loader = StreamLoader(IterableSource(range(32)).filter(lambda x: True).batched(4), report_after=1)
for batch in loader:
    if rank == 1 and loader.state_dict()["step"] == 1:
        time.sleep(3)
"""
    out = run_script(HEAD + code + TAIL, tmp_path, torchrun=2)
    assert "it waits in the loader for the others to say how many steps they make. rank 1 is at step 1 of epoch 0" in out


def test_nothing_is_said_where_nothing_waits(tmp_path):
    code = """
threads = threading.active_count()
loader = StreamLoader(IterableSource(range(32)).batched(4), report_after=0.4)
for epoch in range(3):
    for batch in loader:
        time.sleep(0.2)
        dist.all_reduce(torch.zeros(1))
batches = iter(loader)
next(batches)
del batches
time.sleep(0.5)
assert threading.active_count() == threads, threading.enumerate()
print("quiet")
"""
    out = run_script(HEAD + code + TAIL, tmp_path, torchrun=2)
    assert out.count("quiet") == 2
    assert "rank" not in out


def test_what_one_rank_does_alone_concerns_no_other(tmp_path):
    code = """
if rank == 0:
    slow = IterableSource(range(2)).map(lambda x: (time.sleep(0.7), x)[1])
    alone = StreamLoader(slow.to_torch_iterable(enforce_rank_check=False), 2, report_after=1)
    print("alone", [len(batch) for batch in alone])
    next(iter(StreamLoader(IterableSource(range(32)), 4, report_after=1)))
dist.barrier()
train(StreamLoader(IterableSource(range(32)).map(slow_decode).batched(4), report_after=1))
"""
    out = run_script(HEAD + code + TAIL, tmp_path, torchrun=2)
    lines = out.splitlines()
    begun = next(place for place, line in enumerate(lines) if line == "alone [2]")
    assert not [line for line in lines[:begun] if line.startswith("rank")], out
    assert "rank 0 has been at step 4 of epoch 0" in out
    assert "rank 1 is at step 3 of epoch 0 and makes a batch" in out
    assert "has not begun this pass" not in out


def test_how_the_pass_of_another_rank_has_ended_is_told(tmp_path):
    code = """
def broken(x):
    if rank == 1 and x == 25:
        raise ValueError("no image in 25")
    return x

try:
    train(StreamLoader(IterableSource(range(32)).map(broken).batched(4), report_after=1))
except ValueError:
    time.sleep(3)
    dist.all_reduce(torch.zeros(1))
dist.barrier()
for step, batch in enumerate(StreamLoader(IterableSource(range(32)).batched(4), report_after=1)):
    if rank == 1 and step == 2:
        break
    dist.all_reduce(torch.zeros(1))
if rank == 1:
    time.sleep(3)
    for _ in range(2):
        dist.all_reduce(torch.zeros(1))
"""
    out = run_script(HEAD + code + TAIL, tmp_path, torchrun=2)
    failed = "rank 1 is at step 3 of epoch 0 and has ended its pass by an error (ValueError: no image in 25), for "
    left = "rank 1 is at step 3 of epoch 0 and has left its pass before its last batch, for "
    for words in (failed, left):
        told = [int(seconds) for seconds in re.findall(rf"{re.escape(words)}(\d+) s", out)]
        assert told, out
        assert min(told) > 0
