"""What tests of loaders share: ranks in one process, stepped together."""

import json
import os
from contextlib import contextmanager

from squirrel_torch import StreamLoader


@contextmanager
def as_rank(rank, ranks):
    """Be one rank of several, as torchrun tells it."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    try:
        yield
    finally:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]


def loaders_of(make, ranks, states=None):
    """A loader for each rank, and its iterator."""
    made = []
    for rank in range(ranks):
        with as_rank(rank, ranks):
            loader = make()
            if states is not None:
                loader.load_state_dict(json.loads(json.dumps(states)))
            made.append((loader, iter(loader)))
    return made


def stepped(made, steps=None):
    """The batches of all ranks, step by step: a list of steps, each a list with a batch of each rank that has one."""
    given = []
    while steps is None or len(given) < steps:
        step = [batch for _, batches in made if (batch := next(batches, None)) is not None]
        if not step:
            break
        given.append(step)
    return given


def woven(step):
    """The samples of a step in the order of their positions, where rank r has every ranks-th one: a step of whole batches."""
    return [batch[place] for place in range(max(map(len, step))) for batch in step if place < len(batch)]


def batches_of(chain, **arguments):
    return list(StreamLoader(chain, **arguments))


def flat(batches):
    return [sample for batch in batches for sample in batch]
