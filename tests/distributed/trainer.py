"""A training job that may be killed at any moment, and keeps a ledger of the samples that it was given.

One process of it is one rank. Each writes what it was given, step by step, before it trains on it; rank 0 writes the model, the
state of the loaders and the step into a checkpoint, all at once. What a process does is said in a file of options.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from squirrel_torch import IterableSamplerSource, IterableSource, Padded, ShardStore, StreamLoader

SAMPLES = 211
"""Samples of the source: a prime, so that neither ranks nor batches nor shards divide it."""

_LONG = 10**9


@dataclass(frozen=True)
class Options:
    """What one launch of the job is told.

    Args:
        generation: The how manieth launch it is.
        chain: A name in `CHAINS`.
        tail: Of the loader.
        batch: Samples of a batch.
        workers: Worker processes of each rank.
        method: How these are started.
        persistent: Whether they are kept from epoch to epoch.
        every: Steps between two checkpoints.
        epochs: Where to stop.
    """

    generation: int
    chain: str
    tail: str
    batch: int
    workers: int
    method: str
    persistent: bool
    every: int
    epochs: int = _LONG

    def write(self, folder):
        (folder / "options.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder):
        return cls(**json.loads((folder / "options.json").read_text()))


def prepare(folder):
    """What the job reads."""
    IterableSource({"id": number} for number in range(SAMPLES)).sink(ShardStore(folder / "shards", shard_rows=17))


def _generated():
    yield from range(SAMPLES)


def _identifier(sample):
    return sample["id"]


CHAINS = {
    "shards": lambda folder: IterableSource(ShardStore(folder / "shards")).shuffle(60).map(_identifier),
    "list": lambda folder: IterableSource(list(range(SAMPLES))).shuffle(60).async_map(lambda x: x, max_workers=2),
    "loop": lambda folder: IterableSource(range(SAMPLES)).shuffle(60).take(83).loop(3),
    "mix": lambda folder: IterableSamplerSource(
        [IterableSource(range(100)).shuffle(30), IterableSource(range(100, SAMPLES)).shuffle(30)], probs=[0.7, 0.3]
    ),
    "generator": lambda folder: IterableSource(_generated).shuffle(20).map(lambda x: x),
    "cut": lambda folder: IterableSource(range(SAMPLES)).filter(lambda x: x % 7).take(150),
    "filter": lambda folder: IterableSource(range(SAMPLES)).filter(lambda x: x % 3).shuffle(40).map(lambda x: x),
    "flat map": lambda folder: (
        IterableSource(ShardStore(folder / "shards")).flat_map(lambda x: [x["id"]] * (x["id"] % 3)).shuffle(20)
    ),
}


def chain_of(name, folder):
    """A chain that gives the ids of its samples."""
    return CHAINS[name](Path(folder))


class Ledger:
    """What a rank was given, a line for each step. A line is written with one call: a kill leaves all of it or nothing."""

    def __init__(self, folder, generation):
        path = folder / "ledger" / f"{generation:04d}-{dist.get_rank()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)

    def write(self, **told):
        os.write(self._file, f"{json.dumps(told)}\n".encode())


class Job:
    """One rank of a launch."""

    def __init__(self, folder, options, generation):
        self._folder, self._options = folder, options
        self._loader = StreamLoader(
            chain_of(options.chain, folder).batched(options.batch, drop_last_if_not_full=False),
            num_workers=options.workers,
            tail=options.tail,
            persistent_workers=options.persistent and options.workers > 0,
            multiprocessing_context=options.method if options.workers else None,
        )
        # Sums of whole numbers: the weights say what was trained on, whatever the number of ranks was.
        self._model = DistributedDataParallel(torch.nn.Linear(3, 1, bias=False, dtype=torch.float64))
        torch.nn.init.zeros_(self._model.module.weight)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1)
        self._step = 0
        self._resume()
        self._ledger = Ledger(folder, generation)
        self._ledger.write(begins=self._step, ranks=dist.get_world_size(), rank=dist.get_rank(), pid=os.getpid())

    def _resume(self):
        path = self._folder / "checkpoint.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self._model.module.load_state_dict(saved["model"])
            self._loader.load_state_dict(saved["loader"])
            self._step = saved["step"]

    def run(self):
        """All epochs that are asked for."""
        while (epoch := self._loader.epoch) < self._options.epochs:
            batches = iter(self._loader)
            self._ledger.write(after=self._step, epoch=epoch, dropped=self._loader.dropped)
            while self._trained(epoch, next(batches, None)):
                if self._step % self._options.every == 0:
                    self._save()
            if epoch % 2:
                self._save()  # behind the end

    def _trained(self, epoch, batch):
        """One step of all ranks; False if none of them has a batch."""
        has_batch = torch.tensor([batch is not None], dtype=torch.int32)
        dist.all_reduce(has_batch)
        if not has_batch:
            return False
        self._step += 1
        ids = _own(batch)
        if batch is not None:
            self._ledger.write(step=self._step, epoch=epoch, ids=ids)
        x = torch.tensor([[1.0, float(number), float(number**2)] for number in ids], dtype=torch.float64).reshape(-1, 3)
        self._optimizer.zero_grad()
        (-self._model(x).sum() * dist.get_world_size()).backward()  # a rank without a batch takes part with nothing
        self._optimizer.step()
        return True

    def _save(self):
        states = [None] * dist.get_world_size()
        dist.all_gather_object(states, self._loader.state_dict())
        if dist.get_rank():
            return
        # Of a planned chain the state of any rank is enough.
        planned = states[0]["mode"] == "planned"
        saved = {
            "model": self._model.module.state_dict(),
            "loader": states[self._step % len(states)] if planned else states,
            "step": self._step,
            "epoch": min(state["epoch"] for state in states),
        }
        beside = self._folder / "checkpoint.new"
        torch.save(saved, beside)
        beside.replace(self._folder / "checkpoint.pt")


def _own(batch):
    """The ids of a batch that count."""
    if isinstance(batch, Padded):
        return [number for number, is_real in zip(batch.batch, batch.mask.tolist(), strict=True) if is_real]
    return batch or []


def train(folder, generation=None):
    """Be one rank, of a process group that there is already."""
    options = Options.read(folder)
    Job(folder, options, options.generation if generation is None else generation).run()


def main():
    """Be one rank under torchrun, which may start it again and again."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    train(folder, Options.read(folder).generation + int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    dist.barrier()
    # A DDP model keeps the group's threads beyond its end. torch 2.13 aborts if one lets go of a tensor while Python ends.
    os._exit(0)


if __name__ == "__main__":
    main()
