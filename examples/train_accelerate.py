"""Train a classifier of handwritten digits with Hugging Face Accelerate, alone or in several processes.

    python examples/train_accelerate.py
    torchrun --nproc-per-node 2 examples/train_accelerate.py

Stop it, and start it again with as many processes as you like: it goes on with the next batch behind its last checkpoint.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import default_collate

from squirrel_torch import IterableSource, StreamLoader

Sample = dict[str, Any]


def read_digits() -> tuple[list[Sample], list[Sample]]:
    """The samples to train on, and one in five held out.

    A sample is {"number": int, "image": float32 tensor [64], values from 0 to 1, "label": int}.
    """
    images, labels = load_digits(return_X_y=True)
    samples = [
        {"number": number, "image": torch.from_numpy((images[number] / 16).astype(np.float32)), "label": int(labels[number])}
        for number in np.random.default_rng(0).permutation(len(images)).tolist()
    ]
    return [sample for sample in samples if sample["number"] % 5], [sample for sample in samples if not sample["number"] % 5]


def with_noise(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with a little noise on its image; the generator belongs to the sample."""
    noise = torch.from_numpy(rng.normal(0, 0.05, sample["image"].shape).astype(np.float32))
    return {**sample, "image": sample["image"] + noise}


def evaluate(accelerator: Accelerator, model: nn.Module, loader: StreamLoader[Any]) -> tuple[int, int]:
    """How many of the digits are found, and how many there are. The mask is False for what fills up the last batches."""
    model.eval()
    right = counted = 0
    with torch.no_grad():
        for batch in loader:
            found = model(batch["image"]).argmax(dim=1) == batch["label"]
            found, mask = accelerator.gather((found, batch["mask"]))
            right, counted = right + int(found[mask].sum()), counted + int(mask.sum())
    return right, counted


def main() -> None:
    """Train, and print what came and how well the model does on digits that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="samples of a step, over all processes together")
    parser.add_argument("--checkpoint", default="checkpoint", help="folder, the same for all processes")
    parser.add_argument("--stop-after", type=int, help="end after so many steps, as if the job had been killed")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # under torchrun it has to be told to use CPUs
    training, held_out = read_digits()
    size = arguments.batch_size // accelerator.num_processes
    stream = IterableSource(training).shuffle(2000).map(with_noise).batched(size, default_collate, drop_last_if_not_full=False)
    loader = StreamLoader(stream, num_workers=1, device=accelerator.device)
    held_out_stream = IterableSource(held_out).batched(100, default_collate, drop_last_if_not_full=False)
    held_out_loader = StreamLoader(held_out_stream, tail="pad", device=accelerator.device)

    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if Path(arguments.checkpoint, "dl_state_dict.bin").exists():
        accelerator.load_state(arguments.checkpoint)

    steps = 0
    while loader.epoch < arguments.epochs:
        epoch, left_out, numbers = loader.epoch, loader.dropped, []
        model.train()
        for batch in loader:
            numbers += batch["number"].tolist()
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(batch["image"]), batch["label"]))
            optimizer.step()
            steps += 1
            if steps % 20 == 0:
                accelerator.save_state(arguments.checkpoint)
            if steps == arguments.stop_after:
                accelerator.print(f"stopped in epoch {epoch}")
                return
        times = Counter(gather_object(numbers))
        accelerator.print(f"epoch {epoch}: {len(times)} samples, each {max(times.values())} time, {left_out} left out")
    right, counted = evaluate(accelerator, model, held_out_loader)
    accelerator.print(f"held-out accuracy: {right / counted:.3f} on {counted} digits")


if __name__ == "__main__":
    main()
