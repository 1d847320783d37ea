"""Train a classifier of handwritten digits, alone or in several processes.

    python examples/train_digits.py
    torchrun --nproc-per-node 2 examples/train_digits.py

The data are the 1,797 scanned digits that ship with scikit-learn. All ranks together write them into shards, once; then one
chain brings them from there to the model. Each rank notes which samples it got, and the notes of all ranks are counted together
at the end of each epoch.
"""

import argparse
import os
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate

from squirrel_torch import IterableSource, ShardStore, TorchIterable

Sample = dict[str, Any]


def read_digits() -> tuple[list[Sample], list[Sample]]:
    """The samples to train on, and one in five held out.

    A sample is {"key": text, "image": float32 tensor [64], values from 0 to 1, "label": int}.
    """
    images, labels = load_digits(return_X_y=True)
    training: list[Sample] = []
    held_out: list[Sample] = []
    for number in np.random.default_rng(0).permutation(len(images)).tolist():
        image = torch.from_numpy((images[number] / 16).astype(np.float32))
        sample = {"key": f"digit-{number}", "image": image, "label": int(labels[number])}
        (training if number % 5 else held_out).append(sample)
    return training, held_out


def write_shards(samples: list[Sample], folder: str) -> ShardStore:
    """The samples in a dataset of shards: each rank writes its share, and all of it is there at once."""
    IterableSource(samples).split_by_rank().sink(ShardStore(folder, mode="overwrite", shard_rows=200))
    return ShardStore(folder)


def with_noise(sample: Sample) -> Sample:
    """The sample with a little noise on its image."""
    noise = torch.randn(sample["image"].shape) * 0.05
    return {**sample, "image": sample["image"] + noise}


def training_stream(store: ShardStore, batch_size: int) -> TorchIterable[dict[str, Any]]:
    """From the keys of the store to batches: the order of all ranks is the same, then each takes its share."""
    return (
        IterableSource(store.keys())
        .shuffle(2000, initial=2000)
        .split_by_rank()
        .async_map(store.get, max_workers=2)
        .map(with_noise)
        .split_by_worker()
        .batched(batch_size, default_collate, drop_last_if_not_full=False)
        .to_torch_iterable()
    )


def uneven_ranks(model: nn.Module) -> AbstractContextManager[Any]:
    """Let a rank that has one batch more go on alone."""
    return Join([model]) if isinstance(model, DistributedDataParallel) else nullcontext()


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[dict[str, Any]]) -> list[str]:
    """Train on one pass over the loader; the keys of the samples that came."""
    keys: list[str] = []
    model.train()
    with uneven_ranks(model):
        for batch in loader:
            keys += batch["key"]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs
            optimizer.step()
    return keys


def counted(keys: list[str], store: ShardStore) -> str:
    """What the ranks together received, compared with what there is."""
    received: list[list[str]] = [keys]
    if dist.is_initialized():
        received = [[]] * dist.get_world_size()
        dist.all_gather_object(received, keys)
    times = Counter(key for rank in received for key in rank)
    missing, repeated = {sample["key"] for sample in store} - set(times), [key for key, count in times.items() if count > 1]
    ranks = ", ".join(f"rank {rank}: {len(own)}" for rank, own in enumerate(received))
    if missing or repeated or len(times) != len(store):
        raise RuntimeError(f"{len(missing)} samples missing, {len(repeated)} repeated ({ranks})")
    return f"each of the {len(store)} training samples reached exactly one rank ({ranks})"


@torch.no_grad()
def accuracy(model: nn.Module, samples: list[Sample]) -> float:
    """The share of samples whose label the model finds."""
    model.eval()
    images = torch.stack([sample["image"] for sample in samples])
    labels = torch.tensor([sample["label"] for sample in samples])
    return float((model(images).argmax(dim=1) == labels).float().mean())


def main() -> None:
    """Train, and print what came where and how well the model does on digits that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of each rank")
    parser.add_argument("--data", default="digits", help="folder for the shards, the same for all ranks")
    arguments = parser.parse_args()

    launched_by_torchrun = "RANK" in os.environ
    if launched_by_torchrun:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    training, held_out = read_digits()
    store = write_shards(training, arguments.data)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    model = DistributedDataParallel(network) if launched_by_torchrun else network
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = DataLoader(training_stream(store, arguments.batch_size), batch_size=None, num_workers=arguments.workers)

    first = not launched_by_torchrun or dist.get_rank() == 0
    for epoch in range(arguments.epochs):
        report = counted(train_epoch(model, optimizer, loader), store)
        if first:
            print(f"epoch {epoch}: {report}")
    if first:
        print(f"held-out accuracy: {accuracy(network, held_out):.3f} on {len(held_out)} digits")
    if launched_by_torchrun:
        dist.barrier()  # gives gloo the time to let go of its tensors: torch 2.13 may abort if it does so while Python ends
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
