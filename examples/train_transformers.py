"""Train a classifier of handwritten digits with the Trainer of transformers, alone or in several processes.

    python examples/train_transformers.py
    torchrun --nproc-per-node 2 examples/train_transformers.py

Stop it, and start it again with as many processes as you like: it goes on with the next batch behind its last checkpoint.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import default_collate
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.integrations.huggingface import StreamTrainer

Sample = dict[str, Any]


class Classifier(nn.Module):
    """Three layers. A Trainer wants a dict with the loss, and calls the model with the entries of a batch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """From pixels [batch, 64] and labels [batch] to the loss and the logits [batch, 10]."""
        logits = self.layers(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def read_digits() -> tuple[list[Sample], list[Sample]]:
    """The samples to train on, and one in five held out.

    A sample is {"pixels": float32 tensor [64], values from 0 to 1, "labels": int}.
    """
    images, labels = load_digits(return_X_y=True)
    samples = [
        {"pixels": torch.from_numpy((image / 16).astype(np.float32)), "labels": int(label)}
        for image, label in zip(images, labels, strict=True)
    ]
    return [sample for n, sample in enumerate(samples) if n % 5], samples[::5]


def accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    """The share of digits that were found, and how many there are."""
    right = np.argmax(evaluated.predictions, axis=1) == evaluated.label_ids
    return {"accuracy": float(right.mean()), "digits": len(right)}


def main() -> None:
    """Train, and print how well the model does on digits that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="samples of a step, over all processes together")
    parser.add_argument("--output", default="digits-trainer", help="folder for the checkpoints")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    training, held_out = read_digits()
    size = arguments.batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    stream = IterableSource(training).shuffle(2000).batched(size, default_collate, drop_last_if_not_full=False)
    held_out_stream = IterableSource(held_out).batched(100, default_collate, drop_last_if_not_full=False)
    trainer = StreamTrainer(
        model=Classifier(),
        args=TrainingArguments(
            arguments.output,
            use_cpu=not torch.cuda.is_available(),  # under torchrun it has to be told
            num_train_epochs=arguments.epochs,
            learning_rate=3e-3,
            per_device_train_batch_size=size,
            per_device_eval_batch_size=100,
            save_steps=20,
            save_total_limit=2,
            eval_strategy="epoch",
            logging_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=StreamLoader(stream, num_workers=1),
        eval_dataset=StreamLoader(held_out_stream, tail="pad"),
        compute_metrics=accuracy,
    )
    exists = Path(arguments.output).exists()
    last = get_last_checkpoint(arguments.output) if exists else None  # type: ignore[no-untyped-call]  # transformers'
    trainer.train(resume_from_checkpoint=last)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"held-out accuracy: {metrics['eval_accuracy']:.3f} on {metrics['eval_digits']} digits")


if __name__ == "__main__":
    main()
