"""Train with DistributedDataParallel, be killed, and go on: each sample counts once in each epoch all the same.

    torchrun --nproc-per-node 2 examples/train_ddp.py --folder run
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --nproc-per-node 2 --max-restarts 3 examples/train_ddp.py --folder run --kill-at 25
    torchrun --nproc-per-node 3 examples/train_ddp.py --folder run --epochs 6

The second command kills one of its processes in step 25; torchrun starts all of them again, and they go on from the last
checkpoint. (The variable keeps torchrun from leaving them the addresses of processes that have ended.) The third goes on with
another number of processes. Run them one after the other, or each in a folder of its own.

The data are the 1,797 scanned digits that ship with scikit-learn. Beside the model and the state of the loader, a checkpoint
holds how often each sample was trained on, which is checked at the end.
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from squirrel_torch import IterableSource, ShardStore, StreamLoader, unpadded

BATCH = 16
CHECKPOINT_EVERY = 10


def prepare(folder: Path) -> int:
    """Write the digits into shards, all ranks together, unless they are there; how many are held out for the evaluation."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    held_out = len(order) // 5
    for name, numbers in (("train", order[held_out:]), ("held-out", order[:held_out])):
        if not (folder / name).exists():
            samples = [
                {"id": number, "image": (images[index] / 16).astype(np.float32), "label": int(labels[index])}
                for number, index in enumerate(numbers)
            ]
            dist.barrier()  # all have seen that it is not there
            IterableSource(samples).split_by_rank().sink(ShardStore(str(folder / name), mode="overwrite", shard_rows=200))
    return held_out


def with_noise(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The sample with a little noise on its image: in one epoch the same, on whichever rank, and after a resume."""
    noise = rng.standard_normal(sample["image"].shape, np.float32) * 0.05
    return {**sample, "image": sample["image"] + noise}


class Training:
    """The model, the loader, and how often each sample was trained on.

    Args:
        folder: Where the shards are, and the checkpoint.
        workers: Worker processes of each rank.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        store = ShardStore(str(folder / "train"))
        chain = IterableSource(store).shuffle(1000).map(with_noise)
        self.loader: StreamLoader[dict[str, torch.Tensor]] = StreamLoader(chain, BATCH, num_workers=workers, tail="pad")
        torch.manual_seed(0)
        self.model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2)
        self.seen = torch.zeros(len(store), dtype=torch.int64)  # by all ranks, up to the last checkpoint
        self.own = torch.zeros_like(self.seen)  # by this rank since then
        self._path = folder / "checkpoint.pt"

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """Learn from one batch. What fills it up counts for nothing."""
        losses = nn.functional.cross_entropy(self.model(batch["image"]), batch["label"], reduction="none")
        self.optimizer.zero_grad()
        (losses * batch["mask"]).mean().backward()  # type: ignore[no-untyped-call]  # torch's stubs
        self.optimizer.step()
        self.own[unpadded(batch)["id"]] += 1

    def save(self) -> None:
        """Write a checkpoint, as a whole or not at all. One rank's state of the loader is enough: the chain is planned."""
        dist.all_reduce(self.own)
        self.seen += self.own
        self.own.zero_()
        if dist.get_rank() == 0:
            state = {
                "model": self.model.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "loader": self.loader.state_dict(),
                "seen": self.seen,
            }
            torch.save(state, self._path.with_suffix(".new"))
            self._path.with_suffix(".new").replace(self._path)

    def load(self) -> str:
        """Go on from the checkpoint, if there is one; where that is, in words."""
        if not self._path.exists():
            return "from the beginning"
        state = torch.load(self._path, weights_only=True)
        self.model.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.seen = state["seen"]
        return f"from position {state['loader']['position']} of epoch {state['loader']['epoch']}"


@torch.no_grad()
def accuracy(model: nn.Module, folder: Path) -> float:
    """The share of held-out digits that are recognised; called by one rank alone, which gets all of them."""
    whole = IterableSource(ShardStore(str(folder / "held-out"))).to_torch_iterable(enforce_rank_check=False)
    right = [
        model(batch["image"]).argmax(1) == batch["label"] for batch in StreamLoader(whole, BATCH, tail="exact", report_after=0)
    ]
    return float(torch.cat(right).double().mean())


def main() -> None:
    """Train; print how often each sample counted, and the accuracy at the end."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=Path("digits-ddp"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kill-at", type=int, help="in the first launch, kill the last rank in this step")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    prepare(options.folder)
    training = Training(options.folder, options.workers)
    begin = training.load()
    if rank == 0:
        print(f"{ranks} processes go on {begin}", flush=True)
    killed = options.kill_at if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" and rank == ranks - 1 else None
    steps = 0
    while training.loader.epoch < options.epochs:
        for batch in training.loader:
            training.step(batch)
            steps += 1
            if steps == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            if steps % CHECKPOINT_EVERY == 0:
                training.save()
        training.save()
        if rank == 0:  # the others go on, and wait for it in the next step
            print(f"accuracy: {accuracy(training.model.module, options.folder):.3f}", flush=True)
    if rank == 0:
        assert bool((training.seen == options.epochs).all()), training.seen  # noqa: S101  # what the example is about
        print(f"each of {len(training.seen)} samples was trained on {options.epochs} times, by {ranks} processes at the end")
    dist.barrier()  # gives gloo the time to let go of its tensors: torch 2.13 may abort if it does so while Python ends
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
