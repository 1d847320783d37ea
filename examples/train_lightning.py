"""Train a classifier of handwritten digits with Lightning's Trainer, which is killed, and goes on from its own checkpoint.

    python examples/train_lightning.py

The training runs in a process of its own, is killed in the middle of its third epoch, and started anew; then it goes on with
the batch behind its last checkpoint. The model counts beside its weights how often it has learned from each of the 1,437
digits, so that the counts go back with the weights. At the end each has been learned from once in each epoch. The other 360 of
scikit-learn's digits are evaluated.
"""

import argparse
import logging
import os
import signal
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn

from squirrel_torch import IterableSource, StreamDataModule, unpadded

Batch = dict[str, torch.Tensor]

TRAINING, BATCH, CHECKPOINT_EVERY = 1437, 32, 10


def read_digits() -> list[dict[str, Any]]:
    """All samples, in any order: {"id": int, "image": float32 [64], values from 0 to 1, "label": int}."""
    images, labels = load_digits(return_X_y=True)
    return [
        {"id": number, "image": (images[index] / 16).astype(np.float32), "label": int(labels[index])}
        for number, index in enumerate(np.random.default_rng(0).permutation(len(images)).tolist())
    ]


def with_noise(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The sample with a little noise on its image; the same after a resume."""
    return {**sample, "image": sample["image"] + rng.standard_normal(64, np.float32) * 0.05}


class Classifier(lightning.LightningModule):
    """Three layers, and how often they have learned from each sample.

    Args:
        samples: How many there are.
        kill_at: Kill this process in this step; None: don't.
    """

    def __init__(self, samples: int, kill_at: int | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        self.register_buffer("learned", torch.zeros(samples, dtype=torch.int64))  # a checkpoint holds it, as the weights
        self.learned: torch.Tensor
        self._kill_at = kill_at

    def on_train_start(self) -> None:
        """Say where the training begins."""
        print(f"the training begins in epoch {self.current_epoch}, step {self.global_step}", flush=True)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of one batch; it is counted, too."""
        if self.global_step == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.learned[batch["id"]] += 1
        return nn.functional.cross_entropy(self.layers(batch["image"]), batch["label"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the digits that are found. What only fills up the last batch does not count."""
        batch = unpadded(batch)
        right = self.layers(batch["image"]).argmax(dim=1) == batch["label"]
        if len(right):
            self.log("accuracy", right.float().mean(), batch_size=len(right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def train(folder: Path, epochs: int, workers: int, kill_at: int | None = None) -> None:
    """Train from the last checkpoint on, if there is one, and print what came of it."""
    samples = read_digits()
    training, held_out = samples[:TRAINING], samples[TRAINING:]
    data = StreamDataModule(
        IterableSource(training).shuffle(2000).map(with_noise),
        val=IterableSource(held_out),
        batch_size=BATCH,
        num_workers=workers,
        train_options={"tail": "exact"},  # one process: the last batch of an epoch may be smaller
    )
    torch.manual_seed(0)
    model = Classifier(len(training), kill_at)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[ModelCheckpoint(folder, "last", every_n_train_steps=CHECKPOINT_EVERY, enable_version_counter=False)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    checkpoint = folder / "last.ckpt"
    resume: dict[str, Any] = {"ckpt_path": checkpoint, "weights_only": True} if checkpoint.exists() else {}
    trainer.fit(model, data, **resume)
    if not bool((model.learned == epochs).all()):
        raise RuntimeError(f"not each sample was learned from {epochs} times: {model.learned.bincount().tolist()}")
    print(f"each of {len(training)} digits was learned from {epochs} times")
    print(f"held-out accuracy: {trainer.callback_metrics['accuracy']:.3f} on {len(held_out)} digits", flush=True)


def main() -> None:
    """Start the training, have it killed, and start it again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("digits-lightning"), help="for the checkpoint; there must be none")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kill-at", type=int, default=117, help="the step in which the first start is killed")
    options = parser.parse_args()

    warnings.filterwarnings("ignore", module="lightning")  # its advice on small trainings
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if (options.folder / "last.ckpt").exists():
        parser.error(f"there is a checkpoint in {options.folder} already")
    processes = get_context("fork")
    first = processes.Process(target=train, args=(options.folder, options.epochs, options.workers, options.kill_at))
    first.start()
    first.join()
    if first.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"it was not killed in step {options.kill_at}, and ended with exit code {first.exitcode}")
    print(f"it was killed in step {options.kill_at}")
    train(options.folder, options.epochs, options.workers)


if __name__ == "__main__":
    main()
