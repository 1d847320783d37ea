"""How others feed ranks that train together, each as its documentation says."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from ddp_files import BUFFERED, PART, Files, Place, Way, loader, sampled
from resume_peers import Columns, Records
from resume_ways import BATCH, BUFFER, FORKED
from storage_peers import CORE, GRAIN, HF, LITDATA, MDS, WEBDATASET, hf_dataset, mosaic
from storage_samples import SMALL
from torch.utils.data import default_collate

__all__ = ["PEERS"]

SLOW = 0.3
"""The part of the steps that they make who would take minutes."""


def _core(files: Files, place: Place, *, keys: bool) -> Any:
    from squirrel.driver import MessagepackDriver
    from squirrel.iterstream.torch_composables import SplitByRank, SplitByWorker

    driver = MessagepackDriver(str(files.of(CORE)))
    names = sorted(driver.keys())
    if keys:
        stream = driver.get_iter(keys_iterable=names, key_hooks=[SplitByRank, SplitByWorker])
    else:
        # Shuffled only behind the split: before it every process would shuffle in its own way.
        stream = driver.get_iter(keys_iterable=names).split_by_rank_pytorch().split_by_worker_pytorch()
    batches = stream.shuffle(BUFFER).batched(BATCH, collation_fn=default_collate, drop_last_if_not_full=False)
    return loader(batches.to_torch_iterable())


def _sample_of_tar(found: dict[str, Any]) -> dict[str, Any]:
    return {"id": int(found["__key__"]), "tokens": found["tokens.npy"], "label": found["cls"]}


def _webdataset(files: Files, place: Place) -> Any:
    import webdataset as wds

    paths = sorted(map(str, files.of(WEBDATASET).glob("*.tar")))
    samples = wds.WebDataset(paths, shardshuffle=len(paths), nodesplitter=wds.split_by_node, seed=0).shuffle(BUFFER)
    return loader(samples.decode().map(_sample_of_tar).batched(BATCH, collation_fn=default_collate, partial=True))


def _lit_files(files: Files) -> Path:
    import litdata

    def write(folder: Path) -> None:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            numbers = list(range(files.rows))
            litdata.optimize(SMALL.make, numbers, str(folder), num_workers=1, chunk_size=PART, verbose=False)

    return files.folder(LITDATA.needs, write)


def _litdata(files: Files, place: Place) -> Any:
    import litdata

    dataset = litdata.StreamingDataset(str(_lit_files(files)), shuffle=True)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, **FORKED)


def _mosaic(files: Files, place: Place) -> Any:
    dataset = mosaic().StreamingDataset(local=str(files.of(MDS)), batch_size=BATCH, shuffle=True)
    return loader(dataset, BATCH)


def _hf(files: Files, place: Place) -> Any:
    from datasets.distributed import split_dataset_by_node

    samples = hf_dataset(files.of(HF)).to_iterable_dataset(num_shards=files.rows // PART)
    return loader(split_dataset_by_node(samples.shuffle(seed=0, buffer_size=BUFFER), place.rank, place.ranks), BATCH)


PEERS = [
    Way(
        "squirrel-core, keys split",
        lambda files: files.of(CORE),
        partial(_core, keys=True),
        "squirrel",
        note=f"key_hooks; {BUFFERED}; gzip",
    ),
    Way("squirrel-core, samples split", lambda files: files.of(CORE), partial(_core, keys=False), "squirrel"),
    Way(
        "torch DistributedSampler, npy",
        lambda files: files.columns,
        lambda files, place: sampled(Columns(files.columns), place),
        "torch",
        note="map-style; mapped files",
    ),
    Way(
        "torch DistributedSampler, array_record",
        lambda files: files.of(GRAIN),
        lambda files, place: sampled(Records(files.of(GRAIN)), place),
        "grain",
        note="map-style, __getitems__",
    ),
    Way("webdataset", lambda files: files.of(WEBDATASET), _webdataset, "webdataset", SLOW, note=f"split_by_node; {BUFFERED}"),
    Way("mosaic StreamingDataset", lambda files: files.of(MDS), _mosaic, "streaming", SLOW, note="py1e"),
    Way("litdata StreamingDataset", _lit_files, _litdata, "litdata", note=f"shuffle=True, chunks of {PART:,}"),
    Way("HF split_dataset_by_node", lambda files: files.of(HF), _hf, "datasets", SLOW, note=f"Arrow; {BUFFERED}; numpy format"),
]
"""What others do, as their documentation says."""
