"""Real ranks under torchrun with gloo, each with real DataLoader workers, however these are started."""

import pytest

from tests.support import run_script

pytestmark = pytest.mark.slow

LEDGER = """
import logging, sys
from collections import Counter
import torch.distributed as dist
from torch.utils.data import DataLoader
from squirrel_torch import IterableSource

logging.basicConfig(format="%(message)s")
logging.getLogger("squirrel_torch").setLevel(logging.INFO)

def chain(kind):
    factor = 1
    stream = IterableSource(range(101)).shuffle(50)
    if kind == "explicit":
        stream = stream.split_by_rank().async_map(lambda x: x * factor, max_workers=2).split_by_worker()
    elif kind == "by rank":
        stream = stream.split_by_rank()
    else:
        stream = stream.map(lambda x: x * factor)
    return stream.batched(8, drop_last_if_not_full=False).to_torch_iterable()

def gathered(own):
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return every

def main(start, kind):
    dataset = chain(kind)
    dist.init_process_group("gloo")
    workers = 2 if start == "fork" else 1  # others import torch, which takes most of the time
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=start)
    orders = []
    for epoch in range(2):
        every = gathered([item for batch in loader for item in batch])
        assert Counter(every[0] + every[1]) == Counter(range(101)), Counter(every[0] + every[1])
        assert abs(len(every[0]) - len(every[1])) <= 1, list(map(len, every))
        orders.append(every)
    assert orders[0] != orders[1]
    if dist.get_rank() == 0:
        print("each item once, new order:", kind, start)
    dist.destroy_process_group()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize(("start", "kind"), [("fork", "explicit"), ("spawn", "automatic")])
def test_each_item_reaches_one_rank_and_worker(start, kind, tmp_path):
    out = run_script(LEDGER, tmp_path, start, kind, torchrun=2)
    assert out.strip() == f"each item once, new order: {kind} {start}"


def test_a_missing_split_is_named(tmp_path):
    code = LEDGER.replace(
        "main(*sys.argv[1:])",
        """
    try:
        main("fork", "by rank")
    except Exception as error:
        # In one piece: torchrun's ranks write without a buffer, between the words of each other.
        print(f"{type(error).__name__} {'Add .split_by_worker()' in str(error)}")
""",
    )
    assert run_script(code, tmp_path, torchrun=2).count("ShardingError True") == 2


def test_spawned_workers_know_a_rank_that_no_variable_says(tmp_path):
    code = """
import os
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader
from squirrel_torch import IterableSource

def rank(index, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    assert "RANK" not in os.environ
    for stream in (IterableSource(range(20)), IterableSource(range(20)).split_by_rank().split_by_worker()):
        loader = DataLoader(stream.to_torch_iterable(), batch_size=None, num_workers=1, multiprocessing_context="spawn")
        every = [None, None]
        dist.all_gather_object(every, list(loader))
        assert sorted(every[0] + every[1]) == list(range(20)), every
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(rank, (os.getcwd(),), nprocs=2)
    print("right")
"""
    assert run_script(code, tmp_path).strip() == "right"


def test_evaluation_on_rank_0_alone_does_not_hang(tmp_path):
    code = """
import torch.distributed as dist
from torch.utils.data import DataLoader
from squirrel_torch import IterableSource

if __name__ == "__main__":
    dist.init_process_group("gloo")
    dataset = IterableSource(range(20)).map(str).to_torch_iterable(enforce_rank_check=False)
    if dist.get_rank() == 0:
        print(len(list(DataLoader(dataset, batch_size=None, num_workers=2))))
    dist.barrier()
    dist.destroy_process_group()
"""
    assert run_script(code, tmp_path, torchrun=2).strip() == "20"


def test_a_group_of_ranks_shares_its_own_copy(tmp_path):
    code = """
import torch.distributed as dist
from torch.utils.data import DataLoader
from squirrel_torch import IterableSource, ShardingError

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    stream = IterableSource(range(10)).split_by_rank(pairs[rank // 2]).split_by_worker()
    for start, workers in (("fork", 2), ("spawn", 1)):
        loader = DataLoader(stream.to_torch_iterable(), batch_size=None, num_workers=workers, multiprocessing_context=start)
        every = [None] * 4
        dist.all_gather_object(every, sorted(loader))
        assert every == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]] * 2, every
    try:
        IterableSource(range(10)).split_by_rank(pairs[1 - rank // 2]).collect()
    except ShardingError as error:
        assert "not a member" in str(error)
        print("right")
    dist.destroy_process_group()
"""
    assert run_script(code, tmp_path, torchrun=4).count("right") == 4  # lines of ranks may run into each other
