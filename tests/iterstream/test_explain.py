"""What `explain` advises: never what is there already, and it helps."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from squirrel_torch import IterableSamplerSource, IterableSource, ShardStore
from squirrel_torch.storage.formats import ParquetFiles


def parquet(folder):
    pyarrow.parquet.write_table(pa.table({"x": list(range(10))}), folder / "a.parquet")
    return IterableSource(ParquetFiles(folder))


def in_shards(folder):
    store = ShardStore(folder / "shards")
    parquet(folder).sink(store)
    return IterableSource(store)


@pytest.mark.parametrize(
    ("written", "because", "remedy", "advised"),
    [
        (
            lambda folder: parquet(folder).map(str).shuffle(5),
            "the source reads many samples for each one",
            "into a ShardStore",
            lambda folder: in_shards(folder).map(str).shuffle(5),
        ),
        (
            lambda folder: IterableSamplerSource([range(3), range(4)]).shuffle(5),
            "the streams of a mix are read side by side",
            "shuffle each stream of the mix",
            lambda folder: IterableSamplerSource([IterableSource(range(n)).shuffle(5) for n in (3, 4)]),
        ),
        (
            lambda folder: IterableSource(range(9)).loop().shuffle(5),
            "the stream has no end",
            "shuffle before `loop`",
            lambda folder: IterableSource(range(9)).shuffle(5).loop(),
        ),
        (
            lambda folder: IterableSource(range(9)).batched(2).shuffle(5),
            "not every stage before it makes one item of each",
            "shuffle right behind the source",
            lambda folder: IterableSource(range(9)).shuffle(5).batched(2),
        ),
    ],
)
def test_a_shuffle_through_a_buffer(written, because, remedy, advised, tmp_path):
    told = written(tmp_path).explain()
    assert (told.mode, told.decided_by.split(",")[0]) == ("streamed", "Shuffled(size=5)")
    assert because in told.because
    assert remedy in told.remedy
    better = advised(tmp_path).explain()
    assert (better.mode, better.remedy) == ("planned", "")
