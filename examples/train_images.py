"""Tell from a small part of a photograph which photograph it is: JPEG files, a dataset of shards, a convolutional network.

    python examples/train_images.py

The two photographs that ship with scikit-learn are cut into 520 tiles, and written as JPEG files with a folder for each class,
as such datasets often come. One in five is held out. The files are put into shards as they are; threads decode them while the
model learns. Each tile is shifted, mirrored, and made lighter or darker by a generator of its own, so it is the same
on any number of workers, and another one in the next epoch; both are checked.
"""

import argparse
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from squirrel_torch import Composable, IterableSource, ShardStore, StreamLoader, unpadded
from squirrel_torch.storage.formats import ImageFolder

Sample = dict[str, Any]

TILE, CROP, BATCH = 32, 28, 32


def write_tiles(folder: Path) -> None:
    """Cut the photographs into JPEG files: FOLDER/train/china/0001.jpg, FOLDER/held-out/flower/0005.jpg and so on."""
    photographs = load_sample_images()
    for path, pixels in zip(photographs.filenames, photographs.images, strict=True):
        rows, columns = (size // TILE for size in pixels.shape[:2])
        tiles = pixels[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
        for number, tile in enumerate(tiles.reshape(-1, TILE, TILE, 3)):
            target = folder / ("train" if number % 5 else "held-out") / Path(path).stem / f"{number:04}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tile).save(target, quality=90)


def write_shards(folder: Path) -> None:
    """Put the files, undecoded, into one dataset for the training and one of what is held out."""
    for part in ("train", "held-out"):
        IterableSource(ImageFolder(folder / part)).sink(ShardStore(str(folder / f"{part}-shards"), mode="overwrite"))


def decode(sample: Sample) -> Sample:
    """The sample with its image decoded: uint8, [height, width, 3]."""
    with Image.open(io.BytesIO(sample["image"])) as image:
        return {**sample, "image": np.asarray(image.convert("RGB"))}


def augment(sample: Sample, rng: np.random.Generator) -> Sample:
    """Some window of the image, perhaps mirrored, lighter or darker: float32, [3, CROP, CROP], about -1 to 1."""
    top, left = rng.integers(0, TILE - CROP + 1, 2)
    image = sample["image"][top : top + CROP, left : left + CROP]
    mirrored = image[:, ::-1] if rng.random() < 0.5 else image
    return {**sample, "image": as_input(mirrored, brightness=rng.uniform(0.7, 1.3))}


def middle(sample: Sample) -> Sample:
    """The window in the middle, as it is."""
    at = slice((TILE - CROP) // 2, (TILE + CROP) // 2)
    return {**sample, "image": as_input(sample["image"][at, at])}


def as_input(image: np.ndarray[Any, np.dtype[np.uint8]], brightness: float = 1.0) -> torch.Tensor:
    """From uint8 [height, width, 3] to float32 [3, height, width], 0 to 255 as -1 to 1."""
    return torch.from_numpy((image * (brightness / 127.5) - 1).astype(np.float32).transpose(2, 0, 1).copy())


def training_chain(folder: Path) -> Composable[Sample]:
    """The tiles of the training, in a new order and newly augmented in each epoch."""
    store = ShardStore(str(folder / "train-shards"))
    return IterableSource(store).shuffle(1000).async_map(decode, max_workers=2).map(augment)


def digest(folder: Path, workers: int, epoch: int) -> str:
    """What all batches of an epoch hold, in few letters."""
    loader = StreamLoader(training_chain(folder), BATCH, num_workers=workers, tail="exact")
    loader.set_epoch(epoch)
    found = hashlib.sha256()
    for batch in loader:
        found.update(batch["image"].numpy().tobytes())
    return found.hexdigest()


def check_augmentation(folder: Path) -> str:
    """Compare epochs that different processes have augmented; what came out, in words."""
    here, elsewhere, next_epoch = digest(folder, 0, 1), digest(folder, 2, 1), digest(folder, 0, 2)
    if here != elsewhere or here == next_epoch:
        raise RuntimeError(f"epoch 1 is {here[:8]}, by two workers {elsewhere[:8]}, and epoch 2 is {next_epoch[:8]}")
    return f"epoch 1 is {here[:8]}, by two workers too; epoch 2 is {next_epoch[:8]}"


def network() -> nn.Module:
    """From images [batch, 3, CROP, CROP] to logits [batch, 2]."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


@torch.no_grad()
def accuracy(model: nn.Module, folder: Path) -> tuple[float, int]:
    """The share of held-out tiles that are told apart, and how many there are."""
    model.eval()
    chain = IterableSource(ShardStore(str(folder / "held-out-shards"))).async_map(decode, max_workers=2).map(middle)
    right: list[torch.Tensor] = []
    for padded in StreamLoader(chain, BATCH, tail="pad"):
        batch = unpadded(padded)
        right.append(model(batch["image"]).argmax(dim=1) == batch["label"])
    found = torch.cat(right)
    return float(found.double().mean()), len(found)


def main() -> None:
    """Prepare, train, and print how well the model does on tiles that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("tiles"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()

    write_tiles(options.folder)
    write_shards(options.folder)
    print(check_augmentation(options.folder))
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = StreamLoader(training_chain(options.folder), BATCH, num_workers=options.workers)
    for epoch in range(options.epochs):
        model.train()
        losses: list[float] = []
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, {loader.waited.share:.0%} of the time waited for data")
    share, count = accuracy(model, options.folder)
    print(f"held-out accuracy: {share:.3f} on {count} tiles")


if __name__ == "__main__":
    main()
