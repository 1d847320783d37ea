"""What tests of loaders share: ranks in one process, stepped together."""

import json
import os
from contextlib import contextmanager

from squirrel_torch import Padded, StreamLoader


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


class Model:
    """What ranks are to be given of one epoch, one sample at a time, in the plainest of words."""

    def __init__(self, order):
        self.order, self.position, self.steps_made = order, 0, 0

    def step(self, ranks, batch, tail, *, keep):
        """For each rank (ids, which of them count), or None; None where no rank is given anything."""
        left = len(self.order) - self.position
        if tail == "drop" and left < ranks * batch:
            left = left - left % ranks if keep else 0
        positions = range(self.position, self.position + ranks * batch)
        if tail != "pad":
            positions = positions[:left]
        if left == 0:
            return None
        given = []
        for rank in range(ranks):
            own = [position for position in positions if position % ranks == rank]
            ids = [self.order[position % len(self.order)] for position in own]
            given.append((ids, [position < len(self.order) for position in own]) if own else None)
        self.position = min(self.position + ranks * batch, len(self.order))
        self.steps_made += 1
        return given

    def ahead(self, ranks, batch, tail, *, keep):
        """How many steps each rank makes in all, and how many samples are left out."""
        copy = Model(self.order)
        copy.position, made, counted = self.position, [self.steps_made] * ranks, self.position
        while (step := copy.step(ranks, batch, tail, keep=keep)) is not None:
            for rank, own in enumerate(step):
                made[rank] += own is not None
                counted += sum(own[1]) if own else 0
        return made, len(self.order) - counted


def told(batch):
    """(ids, which of them count), or None."""
    if isinstance(batch, Padded):
        return batch.batch, batch.mask.tolist()
    return None if batch is None else (batch, [True] * len(batch))
