"""Replicas of tensor or pipeline parallel ranks get the same data."""

import pytest

from tests.support import run_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CODE = """
import logging
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader
from squirrel_torch import IterableSource, StreamLoader

logging.getLogger("squirrel_torch").setLevel(logging.ERROR)

def main():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    rank = dist.get_rank()
    chains = {
        "planned": lambda group: IterableSource(range(23)).shuffle(23).split_by_rank(group),
        "streamed": lambda group: IterableSource(range(23)).shuffle(23).split_by_rank(group).filter(lambda x: x % 5),
    }
    for name, chain in chains.items():
        for group, start in ((mesh["dp"], "spawn"), (mesh.get_group("dp"), "fork"), (mesh, "")):
            in_workers = name == "streamed" and start  # what is taken along of a group is the same for all chains
            workers = {"num_workers": 1, "multiprocessing_context": start} if in_workers else {}
            loader = StreamLoader(chain(group), 2, tail="drop", **workers)
            own = [batch.tolist() for batch in loader]
            plain = chain(group).split_by_worker().to_torch_iterable()
            plain.set_epoch(0)
            items = [item for item in DataLoader(plain, None, **workers)]
            every = [None] * 4
            dist.all_gather_object(every, (own, items))
            if rank == 0:
                owns, plains = ([each[place] for each in every] for place in (0, 1))
                given = [sum(batches, []) for batches in owns]
                whole = sorted(x for x in range(23) if name == "planned" or x % 5)
                if group is mesh:  # all four
                    assert sorted(sum(plains, [])) == whole, plains
                    assert len({tuple(map(tuple, batches)) for batches in owns}) == 4
                else:
                    assert owns[0] == owns[1] and owns[2] == owns[3] and not set(given[0]) & set(given[2]), owns
                    assert plains[0] == plains[1] and plains[2] == plains[3], plains
                    assert sorted(plains[0] + plains[2]) == whole, plains
                assert len({len(batches) for batches in owns}) == 1
    if rank == 0:
        print("the same data")
    dist.destroy_process_group()

if __name__ == "__main__":
    main()
"""


def test_ranks_along_another_dimension_get_the_same(tmp_path):
    assert run_script(CODE, tmp_path, torchrun=4).strip() == "the same data"
