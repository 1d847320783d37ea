"""Chains that are not planned, sample by sample: each item once and in the order of its stream, through stops and resizes."""

import json
import logging
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data.datapipes.iter import IterableWrapper
from torchdata.stateful_dataloader import StatefulDataLoader

from squirrel_torch import (
    FingerprintMismatch,
    IterableSamplerSource,
    IterableSource,
    Multiplexer,
    MultiplexingStrategy,
    ReplayMismatch,
    ShardingError,
    ShardStore,
    StateError,
    StreamLoader,
)
from squirrel_torch.loader.dealt import DealtCourse
from squirrel_torch.loader.streamed import StreamedCourse
from tests.loader.support import Model, as_rank, flat, loaders_of

COUNT = 101
STREAMS = 12


def generated():
    yield from range(COUNT)


def thirds(x):
    return x % 3 > 0


def several(x):
    return [10 * x + number for number in range(x % 4)]


def source():
    return IterableSource(range(COUNT))


STREAMED = {
    "filter": lambda: source().filter(lambda x: x % 7),
    "shuffled and filtered": lambda: source().shuffle(30).filter(thirds),
    "filtered and shuffled": lambda: source().filter(thirds).shuffle(40).map(lambda x: x),
    "flat map": lambda: source().flat_map(several).shuffle(25).async_map(lambda x: x, max_workers=1),
    "lists": lambda: source().map(several).flatten(),
    "looped": lambda: source().take(25).filter(thirds).map(lambda x: x),
}
"""Dealt to streams; all items differ."""

DEALT = {
    "generator": lambda: IterableSource(generated).map(lambda x: x + 1),
    "generator, shuffled": lambda: IterableSource(generated).shuffle(6),
    "windows": lambda: source().sliding(3, deepcopy=False).map(tuple),
    "numbered": lambda: source().filter(thirds).zip_index(),
    "cut": lambda: source().filter(thirds).take(50).filter(lambda x: x % 2),
    "skipped": lambda: source().filter(thirds).skip(7),
    "mix": lambda: IterableSamplerSource([source().filter(thirds), source().map(str)], probs=[0.4, 0.6]),
    "in turn": lambda: Multiplexer([source().filter(thirds), source().map(str)], MultiplexingStrategy.ROUND_ROBIN),
}
"""Read as a whole by each process: all ranks are at one position, as in planned chains."""

CHAINS = {**STREAMED, **DEALT}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("squirrel_torch").setLevel(logging.ERROR)


def batched(name, batch=4):
    return CHAINS[name]().batched(batch, drop_last_if_not_full=False)


def loader_of(name, batch=4, workers=0, **options):
    return StreamLoader(batched(name, batch), num_workers=workers, **options)


def given_by_streams(name, epoch):
    """The items of each stream, had by as many ranks as there are streams."""
    streams = []
    for rank in range(STREAMS):
        with as_rank(rank, STREAMS):
            loader = loader_of(name, streams=STREAMS)
            loader.set_epoch(epoch)
            streams.append(flat(loader))
    return streams


@pytest.mark.parametrize("name", CHAINS)
def test_they_are_what_this_says_of_them(name):
    assert type(loader_of(name)._course) is (StreamedCourse if name in STREAMED else DealtCourse)


@pytest.mark.parametrize("name", STREAMED)
def test_streams_have_each_item_once(name):
    for epoch in range(2):
        assert sorted(flat(given_by_streams(name, epoch))) == sorted(CHAINS[name]().run(epoch=epoch))


@pytest.mark.parametrize("name", DEALT)
def test_epochs_are_those_of_the_plain_run(name):
    loader = loader_of(name)
    for epoch in range(3):
        assert list(loader) == list(batched(name).run(epoch=epoch))


@pytest.mark.parametrize("name", CHAINS)
def test_resume_at_every_batch_and_two_epochs_more(name):
    loader = loader_of(name)
    epochs = [list(loader) for _ in range(3)]
    loader.set_epoch(0)
    states = [loader.state_dict()] + [loader.state_dict() for _ in loader]
    behind = loader.state_dict()
    for number, state in enumerate([*states, behind]):
        again = loader_of(name, workers=2 * (number % 5 == 2))
        again.load_state_dict(json.loads(json.dumps(state)))
        assert again.epoch == 0 or number >= len(epochs[0])
        if again.epoch == 0:
            assert again.state_dict() == state
            assert list(again) == epochs[0][number:]
        # A loader may know that the last batch was the last, as it was a small one.
        assert [list(again), list(again)] == epochs[1:]


@pytest.mark.parametrize("name", CHAINS)
def test_the_batches_of_a_rank_do_not_depend_on_workers(name):
    with as_rank(1, 2):
        expected = loader_of(name)
        epochs = [list(expected) for _ in range(2)]
        for workers in (1, 2, 5):
            loader = loader_of(name, workers=workers, persistent_workers=workers == 2)
            assert [list(loader) for _ in range(2)] == epochs
            del loader


def launched_again_and_again(name, draw, workers_of_ranks):
    """The items of one epoch, in the order in which they were given, through launches with other ranks and batches."""
    given_items, states = [], None
    for hop in range(7):
        ranks, batch, workers = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(workers_of_ranks)
        made = loaders_of(lambda b=batch, w=workers: loader_of(name, b, w, streams=STREAMS), ranks, states)
        if states is not None and made[0][0].epoch:
            break
        for _, batches in made:
            steps = draw(st.integers(0, 9)) if hop < 6 else 10**6
            while steps and (one := next(batches, None)) is not None:
                given_items += one
                steps -= 1
        states = [loader.state_dict() for loader, _ in made]
        draw(st.randoms(use_true_random=False)).shuffle(states)
    return given_items


def each_in_its_order(name, items):
    """Whether these are all items of the epoch, and those of each stream are in its order."""
    streams = given_by_streams(name, 0)
    stream_of = {item: number for number, stream in enumerate(streams) for item in stream}
    assert len(stream_of) == sum(map(len, streams))
    found = defaultdict(list)
    for item in items:
        found[stream_of[item]].append(item)
    return [found[number] for number in range(STREAMS)] == streams


@pytest.mark.parametrize("name", STREAMED)
@given(st.data())
@settings(max_examples=12)
def test_ranks_and_batches_may_change(name, data):
    assert each_in_its_order(name, launched_again_and_again(name, data.draw, st.just(0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMED)
@given(st.data())
@settings(max_examples=5)
def test_ranks_and_workers_may_change(name, data):
    assert each_in_its_order(name, launched_again_and_again(name, data.draw, st.sampled_from([1, 2, 0])))


@pytest.mark.parametrize("name", DEALT)
@pytest.mark.parametrize("seed", range(6))
def test_every_rank_gets_at_every_step_what_the_plain_run_says(name, seed):
    rng = random.Random(f"{name} {seed}")
    model, states = Model(list(CHAINS[name]().run(epoch=0))), None
    while model.position < len(model.order):
        ranks, batch, workers = rng.randint(1, 4), rng.randint(1, 6), rng.choice([0, 0, 0, 1, 2])
        made = loaders_of(lambda b=batch, w=workers: loader_of(name, b, w), ranks, states)
        for _ in range(rng.randrange(6)):
            expected = model.step(ranks, batch, "exact", keep=True) or [None] * ranks
            assert [next(batches, None) for _, batches in made] == [one and one[0] for one in expected]
        states = rng.choice([loader.state_dict() for loader, _ in made])
    again = loader_of(name)
    again.load_state_dict(states)
    assert flat(again) in ([], list(CHAINS[name]().run(epoch=1)))


def test_the_state_of_a_rank_that_is_missing():
    made = loaders_of(lambda: loader_of("filter"), 3)
    for _, batches in made:
        next(batches)
    states = [loader.state_dict() for loader, _ in made]
    loader = loader_of("filter")
    batches = iter(loader)
    had, before = next(batches), loader.state_dict()
    for rank, missing in enumerate(("0, 3, 6, 9", "1, 4, 7, 10", "2, 5, 8, 11")):
        with pytest.raises(StateError, match=f"streams {missing} of 12 are in none of the 2 states"):
            loader.load_state_dict([state for other, state in enumerate(states) if other != rank])
    with pytest.raises(StateError, match="in none of the 1 states"):
        loader.load_state_dict(states[1])
    next(made[0][1])
    with pytest.raises(StateError, match="two states tell of stream"):
        loader.load_state_dict([*states, made[0][0].state_dict()])
    assert loader.state_dict() == before
    rest = list(batches)
    assert [had, *rest] == list(loader_of("filter"))
    loader.load_state_dict([*states[::-1], states[0]])  # in any order, and one of them twice


def test_a_replay_says_how_much_it_drops(caplog):
    caplog.set_level("WARNING", "squirrel_torch")
    loader = loader_of("generator")
    batches = iter(loader)
    had = [next(batches) for _ in range(5)]
    again = loader_of("generator")
    again.load_state_dict(loader.state_dict())
    assert not caplog.records
    assert flat(had) + flat(again) == flat(batched("generator").run(epoch=0))
    (warning,) = caplog.records
    assert "is run again from the beginning to go on: 20 items are dropped" in warning.getMessage()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_that_changed_is_caught(workers):
    items = list(range(COUNT))
    chain = IterableSource(lambda: iter(items)).map(lambda x: x).batched(4)
    loader = StreamLoader(chain)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = loader.state_dict()
    for changed, message in (
        ([*items[:7], -1, *items[8:]], "gives other items among its first 20"),
        ([items[1], items[0], *items[2:]], "gives other items among its first 20"),
        (items[1:], "gives other items among its first 20"),
        (items[:19], "ends after 19 items; 20 had been delivered"),
    ):
        again = StreamLoader(IterableSource(lambda c=changed: iter(c)).map(lambda x: x).batched(4), num_workers=workers)
        again.load_state_dict(state)
        with pytest.raises(ReplayMismatch, match=message):
            list(again)
    again = StreamLoader(IterableSource(lambda: iter([*items, 7])).map(lambda x: x).batched(4), num_workers=workers)
    again.load_state_dict(state)
    assert flat(again) == [*items[20:], 7][: 4 * len(list(again))]


def test_a_dataset_that_changed_is_named(tmp_path):
    IterableSource(range(40)).map(lambda x: {"x": x}).sink(ShardStore(tmp_path, mode="append", shard_rows=10))

    def loader():
        return StreamLoader(IterableSource(ShardStore(tmp_path)).filter(lambda sample: sample["x"] % 3).batched(4))

    begun = loader()
    next(iter(begun))
    state, before = begun.state_dict(), {shard.name for shard in ShardStore(tmp_path).manifest.shards}
    loader().load_state_dict(state)
    IterableSource(range(5)).map(lambda x: {"x": x}).sink(ShardStore(tmp_path, mode="append"))
    (added,) = {shard.name for shard in ShardStore(tmp_path).manifest.shards} - before
    with pytest.raises(FingerprintMismatch, match=rf"it had 40 samples, now it has 45; added: {added}"):
        loader().load_state_dict(state)
    with pytest.raises(FingerprintMismatch, match="removed: Filter"):
        StreamLoader(IterableSource(ShardStore(tmp_path)).flat_map(lambda x: [x]).batched(4)).load_state_dict(state)


class DividesItself(IterableDataset):
    """As Hugging Face's do."""

    def __iter__(self):
        info = get_worker_info()
        return iter(range(COUNT) if info is None else range(info.id, COUNT, info.num_workers))


class TestDatasetsThatDivideThemselves:
    """Divided a second time they would lose items."""

    @pytest.mark.parametrize("mixed", [False, True])
    def test_are_refused_where_they_would_be_divided_again(self, mixed):
        chain = (IterableSamplerSource([DividesItself(), [1]]) if mixed else IterableSource(DividesItself())).batched(2)
        with pytest.raises(ShardingError, match="the dataset DividesItself, which may divide its items"):
            iter(StreamLoader(chain, num_workers=2))
        with as_rank(0, 2), pytest.raises(ShardingError, match="a StreamLoader would divide them a second time"):
            iter(StreamLoader(chain))

    @pytest.mark.parametrize("mixed", [False, True])
    @pytest.mark.parametrize(
        "source", [DividesItself, lambda: IterableSource(DividesItself()), IterableWrapper(DividesItself())]
    )
    @pytest.mark.parametrize("behind", [lambda chain: chain, lambda chain: chain.take(8), lambda chain: chain.map(drawing)])
    def test_are_refused_where_a_callable_gives_or_a_pipe_holds_them(self, mixed, source, behind):
        chain = behind(IterableSamplerSource([IterableSource(source)]) if mixed else IterableSource(source)).batched(2)
        with as_rank(0, 2), pytest.raises(ShardingError, match="source is the dataset DividesItself, which may divide its"):
            list(StreamLoader(chain))

    def test_are_refused_where_a_split_is_missing(self):
        chain = IterableSource(DividesItself()).split_by_rank().batched(2)
        with as_rank(0, 2):
            iter(StreamLoader(chain))
            with pytest.raises(ShardingError, match="a StreamLoader would divide them a second time"):
                iter(StreamLoader(chain, num_workers=2))

    @pytest.mark.filterwarnings("ignore:.set_vital.:UserWarning")
    @pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
    def test_are_refused_by_loaders_of_torch(self, loader):
        chain = IterableSource(DividesItself()).map(drawing)
        with as_rank(0, 2), pytest.raises(ShardingError, match="source is the dataset DividesItself, which may divide its"):
            list(loader(chain.to_torch_iterable(), batch_size=None))

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 1])
    def test_serve_one_process(self, workers):
        chain = IterableSource(DividesItself()).batched(2, drop_last_if_not_full=False)
        assert flat(StreamLoader(chain, num_workers=workers)) == list(range(COUNT))

    @pytest.mark.slow
    def test_a_written_split_says_that_they_do_not(self):
        chain = IterableSource(OfEverybody()).split_by_worker().batched(2, drop_last_if_not_full=False)
        assert sorted(flat(StreamLoader(chain, num_workers=2))) == list(range(COUNT))

    @pytest.mark.parametrize("source", [lambda: OfEverybody(), lambda: OfEverybody])
    def test_nor_does_it_matter_where_it_is_written(self, source):
        split = IterableSource(source()).split_by_rank().split_by_worker()
        chains = [
            split.map(drawing),
            split.shuffle(4).filter(lambda x: True),
            IterableSource(source()).take(COUNT).split_by_rank().split_by_worker(),
            IterableSamplerSource([split]),
        ]
        for chain in chains:
            given = []
            for rank in range(2):
                with as_rank(rank, 2):
                    given += flat(StreamLoader(chain.batched(2, drop_last_if_not_full=False), tail="exact"))
            assert sorted(given) == list(range(COUNT)), chain


class OfEverybody(IterableDataset):
    def __iter__(self):
        return iter(range(COUNT))


def drawing(x, rng):
    return x
