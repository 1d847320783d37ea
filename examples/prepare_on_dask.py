"""Prepare a dataset on a dask cluster: the heavy work and the writing of shards run there, in several processes.

    python examples/prepare_on_dask.py
    python examples/prepare_on_dask.py --scheduler tcp://host:8786

Without `--scheduler` a cluster of two processes is started on this machine, and ended. A cluster of several machines has to see
the same folder, or a bucket, for it writes there itself.

The sources are the modules of Python's own library. To parse one is work in plain Python, which threads can't do at the same
time. What comes of it are the numbers of its statements by kind. The shards are read back here, and compared with the sources:
each of these must be there once, as it is on the disk.
"""

import argparse
import ast
import hashlib
import os
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

from squirrel_torch import IterableSource, ShardStore

Sample = dict[str, Any]

KINDS = sorted(kind.__name__ for kind in ast.stmt.__subclasses__())


def prepare(path: Path) -> Sample:
    """Parse a module; runs on the cluster.

    Returns:
        {"path": text, "sha256": text, "statements": int64 [kinds], "process": int, which one did it}.
    """
    source = path.read_bytes()
    counted = Counter(type(node).__name__ for node in ast.walk(ast.parse(source)))
    return {
        "path": str(path),
        "sha256": hashlib.sha256(source).hexdigest(),
        "statements": np.array([counted[kind] for kind in KINDS]),
        "process": os.getpid(),
    }


def write(client: Client, paths: list[Path], folder: Path) -> int:
    """Write the samples of all modules into shards; how many shards there are.

    A sample comes back to this process, which puts shards together, before it goes to the one that writes it. Where samples are
    large, and compressing them is no work, leave out the `executor` of `sink`: threads of this process write them then.
    """
    store = ShardStore(folder, mode="overwrite", shard_rows=50, compression="zstd")
    written = IterableSource(paths).async_map(prepare, executor=client).sink(store, executor=client)
    return len(written.shards)


def check(paths: list[Path], folder: Path) -> tuple[list[Sample], int]:
    """Read the shards back.

    Returns:
        The samples, and how many processes have prepared them.

    Raises:
        RuntimeError: If one is missing, is there twice, or is not that of its source.
    """
    samples = IterableSource(ShardStore(folder)).collect()
    if [sample["path"] for sample in samples] != [str(path) for path in paths]:
        raise RuntimeError(f"{len(samples)} samples are not those of the {len(paths)} sources, in their order")
    for path, sample in zip(paths, samples, strict=True):
        if sample["sha256"] != hashlib.sha256(path.read_bytes()).hexdigest():
            raise RuntimeError(f"the sample of {path} is not that of its source")
    processes = {sample["process"] for sample in samples}
    if os.getpid() in processes:
        raise RuntimeError("samples were prepared in this process, not on the cluster")
    return samples, len(processes)


def main() -> None:
    """Prepare, read back, and say what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("statements"))
    parser.add_argument("--scheduler", help="address of a cluster that runs already")
    options = parser.parse_args()

    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if options.scheduler:
        with Client(options.scheduler) as client:  # type: ignore[no-untyped-call]  # dask's
            shards = write(client, paths, options.folder)
    else:
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,  # type: ignore[no-untyped-call]
            Client(cluster) as client,  # type: ignore[no-untyped-call]
        ):
            shards = write(client, paths, options.folder)
    samples, processes = check(paths, options.folder)
    total = sum(sample["statements"] for sample in samples)
    most = KINDS[int(np.argmax(total))]
    print(f"the most frequent of {total.sum()} statements is {most}")
    print(f"each of {len(paths)} modules is in one of {shards} shards, prepared by {processes} processes")


if __name__ == "__main__":
    main()
