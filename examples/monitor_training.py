"""Watch how fast the data of a training comes, in Weights & Biases and MLflow, and read back what they were told.

    python examples/monitor_training.py

Neither needs a server here: wandb writes an offline run (`wandb sync` uploads it), MLflow a database of SQLite (`mlflow ui
--backend-store-uri sqlite:///FOLDER/mlflow.db` shows it). Two monitors stand in the chain: what passes behind the reading goes
to MLflow, what passes behind the augmentation to both. The batches are made by two worker processes; the figures of both
together are logged by this one, which logs the loss into the same runs.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("WANDB_SILENT", "true")

import mlflow
import numpy as np
import torch
import wandb
from sklearn.datasets import load_digits
from torch import nn

from squirrel_torch import Composable, IterableSource, StreamLoader

Sample = dict[str, Any]


def read_digits() -> list[Sample]:
    """The digits of scikit-learn: {"image": float32 [64], values from 0 to 1, "label": int}."""
    images, labels = load_digits(return_X_y=True)
    return [
        {"image": (image / 16).astype(np.float32), "label": int(label)} for image, label in zip(images, labels, strict=True)
    ]


def with_noise(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with a little noise on its image."""
    return {**sample, "image": sample["image"] + rng.standard_normal(64, np.float32) * 0.05}


def chain(samples: list[Sample], every: int) -> Composable[Sample]:
    """The training data, with a report of each monitor after so many samples."""
    return (
        IterableSource(samples)
        .shuffle(2000)
        .monitor("mlflow", prefix="read/", every_items=every)
        .map(with_noise)
        .monitor("mlflow", prefix="augmented/", every_items=every)
        .monitor("wandb", prefix="augmented/", every_items=every)
    )


def train(loader: StreamLoader[Any], epochs: int) -> Iterator[dict[str, float]]:
    """Train; what there is to log after each epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        losses: list[float] = []
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs
            optimizer.step()
            losses.append(loss.item())
        yield {"loss": float(np.mean(losses)), "data wait share": loader.waited.share}


def read_back(run_id: str) -> dict[str, list[float]]:
    """All that MLflow has of a run: the values of each metric, in the order of their steps."""
    client = mlflow.MlflowClient()
    names = sorted(client.get_run(run_id).data.metrics)
    histories = {name: client.get_metric_history(run_id, name) for name in names}
    return {name: [point.value for point in sorted(points, key=lambda point: point.step)] for name, points in histories.items()}


def main() -> None:
    """Train, and print what was logged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("monitored"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=600, help="samples from report to report")
    options = parser.parse_args()

    options.folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{options.folder / 'mlflow.db'}")
    loader: StreamLoader[Any] = StreamLoader(chain(read_digits(), options.every), 32, num_workers=2)
    with (
        wandb.init(project="digits", mode="offline", dir=options.folder) as run,
        mlflow.start_run() as active,
    ):
        for epoch, figures in enumerate(train(loader, options.epochs)):
            run.log(figures)
            mlflow.log_metrics(figures, step=epoch)
        summary, entries = dict(run.summary), run.step
    told = read_back(active.info.run_id)
    for name, values in told.items():
        print(f"{name}: {len(values)} times, the last is {values[-1]:.3g}")
    if summary["loss"] != told["loss"][-1]:
        raise RuntimeError(f"wandb has a loss of {summary['loss']}, and MLflow of {told['loss'][-1]}")
    rate = summary["augmented/IOPS number/s"]
    reports = ", ".join(str(len(told[f"{place}/IOPS number/s"])) for place in ("read", "augmented"))
    print(f"reports in MLflow: {reports}; in wandb: {entries - options.epochs}, the last of {rate:.0f} samples per second")


if __name__ == "__main__":
    main()
