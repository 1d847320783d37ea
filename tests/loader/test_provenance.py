"""What batches are made of, batches made again, and steps that are left out: compared with what reached the consumer."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from squirrel_torch import (
    FilePathGenerator,
    FilesystemStore,
    IterableSamplerSource,
    IterableSource,
    MemoryStore,
    Multiplexer,
    MultiplexingStrategy,
    NotPlannedError,
    Origin,
    Padded,
    PipelineError,
    ShardStore,
    StateError,
    StreamLoader,
)
from squirrel_torch.plan.state import seal, unseal
from squirrel_torch.storage.formats import ParquetFiles
from tests.loader.support import Model, as_rank, flat, loaders_of, told

ROWS = 23
TEXTS = [f"text {number}" for number in range(ROWS)]
ARRAY = np.arange(ROWS) * 10


def through_json(state):
    return json.loads(json.dumps(state))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    shards, keyed = ShardStore(folder / "shards", shard_rows=5), ShardStore(folder / "keyed", shard_rows=6)
    files, memory = FilesystemStore(folder / "files"), MemoryStore()
    for store in (shards, files, memory):
        IterableSource({"x": number} for number in range(ROWS)).sink(store)
    keyed.set_many([{"x": number} for number in range(ROWS)], [f"key {number}" for number in range(ROWS)])
    keyed.flush()
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, rows in enumerate(([0, 1, 2, 3, 4], [], [5, 6], list(range(7, ROWS)))):
        table = pa.table({"x": pa.array(rows, pa.int64())})
        pq.write_table(table, folder / f"part {number}.parquet", row_group_size=3)
    parquet = ParquetFiles([str(folder / f"part {number}.parquet") for number in range(4)])
    return {"shards": shards, "keyed": keyed, "files": files, "memory": memory, "parquet": parquet}


def of_shards(store, origin):
    """The sample, by its row, and by its shard: both ways lead to the same one."""
    names = [shard.name for shard in store.manifest.shards]
    before = sum(shard.rows for shard in store.manifest.shards[: names.index(origin.shard)])
    assert (origin.source, origin.row) == (store.url, before + origin.shard_row)
    return store.row(origin.row)


def of_parquet(reader, origin):
    assert origin.source == repr(reader)
    assert reader[origin.row] == list(reader.read_file(origin.shard))[origin.shard_row]
    return reader[origin.row]


def by_key(store, source):
    def found(stores, origin):
        assert (origin.source, list(stores[store].keys())[origin.row]) == (source(stores[store]), origin.key)
        return stores[store].get(origin.key)

    return found


def in_order(*found):
    """Of a mix: each stream has a way of its own."""

    def chosen(stores, origin):
        first, *others = origin.stream
        return found[first](stores, Origin(**{**vars(origin), "stream": tuple(others)}))

    return chosen


def numbered(stores, origin):
    assert (origin.source, origin.key, origin.shard, origin.stream) == (f"IterableSource(range of {ROWS})", None, None, ())
    return origin.row


CHAINS = {
    "shards": (
        lambda s: IterableSource(s["shards"]).shuffle(9),
        lambda s, o: (of_shards(s["shards"], o), o.key == f"{o.shard.removesuffix('.arrow')}:{o.shard_row}")[0],
    ),
    "keys of shards": (
        lambda s: IterableSource(s["keyed"].keys()).shuffle(9).map(s["keyed"].get),
        lambda s, o: of_shards(s["keyed"], o),
    ),
    "selection": (
        lambda s: IterableSource(s["shards"].select(list(range(22, 1, -1)))).shuffle(3),
        lambda s, o: of_shards(s["shards"], o),
    ),
    "parquet": (lambda s: IterableSource(s["parquet"]), lambda s, o: of_parquet(s["parquet"], o)),
    "files": (lambda s: IterableSource(s["files"]).shuffle(9), by_key("files", lambda store: store.url)),
    "memory": (lambda s: IterableSource(s["memory"].keys()).shuffle(9).map(s["memory"].get), by_key("memory", repr)),
    "array": (lambda s: IterableSource(ARRAY).shuffle(9).map(int), lambda s, o: int(ARRAY[o.row])),
    "texts": (lambda s: IterableSource(TEXTS).shuffle(9).map(str.upper), lambda s, o: o.key.upper()),
    "cut": (lambda s: IterableSource(range(ROWS)).shuffle(9).skip(2).take(19), numbered),
    "loop": (lambda s: IterableSource(range(ROWS)).take(7).shuffle(4).loop(3), numbered),
    "multiplexer": (
        lambda s: Multiplexer(
            [IterableSource(range(ROWS)).shuffle(4), TEXTS[:4]], MultiplexingStrategy.SAMPLING, sampling_probas=[0.7, 0.3]
        ),
        in_order(numbered, lambda s, o: TEXTS[o.row]),
    ),
    "in turn": (
        lambda s: Multiplexer([TEXTS, IterableSource(s["shards"]).shuffle(5)], MultiplexingStrategy.ROUND_ROBIN),
        in_order(lambda s, o: o.key, lambda s, o: of_shards(s["shards"], o)),
    ),
    "mix of mixes": (
        lambda s: IterableSamplerSource(
            [TEXTS, IterableSamplerSource([range(ROWS), IterableSource(s["memory"]).shuffle(5)])], probs=[0.3, 0.7]
        ),
        in_order(lambda s, o: o.key, in_order(numbered, by_key("memory", repr))),
    ),
}


def ledger_of(made, epochs=1):
    """What reached each rank: (items, which of them count) by epoch, step and rank."""
    ledger = {}
    for rank, (loader, batches) in enumerate(made):
        for epoch in range(epochs):
            with as_rank(rank, len(made)):
                for step, batch in enumerate(loader if epoch else batches):
                    ledger[epoch, step, rank] = told(batch)
    return ledger


def assert_told(loader, ledger, found):
    """The loader tells of each batch in the ledger, and of no more."""
    for (epoch, step, rank), (items, real) in ledger.items():
        origins = loader.samples(step, epoch, rank=rank)
        assert [found(origin) for origin in origins] == items
        assert [not origin.padding for origin in origins] == real


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("tail", ["exact", "pad", "drop"])
def test_samples_are_those_that_reach_the_consumer(name, tail, stores):
    make, found = CHAINS[name]
    for batch, keep, workers in ((4, True, 0), (3, False, 0), (5, True, 2 if name == "in turn" else 0)):
        chain = make(stores).batched(batch, drop_last_if_not_full=not keep)
        made = loaders_of(lambda c=chain, w=workers: StreamLoader(c, num_workers=w, tail=tail), 2)
        ledger = ledger_of(made, epochs=2)
        assert len(ledger) >= 8
        for rank in range(2):  # whoever asks, before and after, tells the same
            with as_rank(rank, 2):
                for loader in (StreamLoader(chain, tail=tail), made[rank][0]):
                    assert_told(loader, ledger, lambda origin: found(stores, origin))
        for epoch, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
            steps = sum(key[::2] == (epoch, rank) for key in ledger)
            with as_rank(0, 2), pytest.raises(IndexError, match=f"there is no step {steps}"):
                loader.samples(steps, epoch, rank=rank)


def test_positions_and_numbers(stores):
    """Positions are those of `zip_index`; numbers of samples are what a mix counts on from stream to stream."""
    chain = IterableSource(stores["shards"]).shuffle(9).skip(4).map(lambda sample: sample["x"]).zip_index().batched(4)
    for loader, batches in loaders_of(lambda: StreamLoader(chain, tail="exact"), 2):
        for step, batch in enumerate(batches):
            origins = loader.samples(step, 0)
            assert [(origin.position, origin.row) for origin in origins] == batch
            assert [origin.sample for origin in origins] == [origin.row for origin in origins]
    mix = StreamLoader(Multiplexer([TEXTS[:5], range(3)], MultiplexingStrategy.ROUND_ROBIN).batched(8))
    assert [(origin.stream, origin.row, origin.sample) for origin in mix.samples(0)] == [
        *(((0,), 0, 0), ((1,), 0, 5), ((0,), 1, 1), ((1,), 1, 6), ((0,), 2, 2), ((1,), 2, 7), ((0,), 3, 3), ((0,), 4, 4)),
    ]


def test_of_paths(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    paths = list(FilePathGenerator(str(tmp_path)))
    loader = StreamLoader(IterableSource(paths).shuffle(9).batched(2))
    assert [[origin.key for origin in loader.samples(step)] for step in range(2)] == list(loader)


def test_a_chain_without_batches_and_one_without_end():
    loader = StreamLoader(IterableSource(range(9)).shuffle(9))
    assert [loader.samples(step)[0].row for step in range(9)] == list(loader)
    endless = StreamLoader(IterableSource(range(5)).shuffle(3).loop().batched(4))
    batches = [batch for batch, _ in zip(endless, range(9), strict=False)]
    assert [[origin.row for origin in endless.samples(step)] for step in range(9)] == batches
    assert endless.replay(7) == batches[7]


def rows(loader, step, *epoch, **rank):
    return [origin.row for origin in loader.samples(step, *epoch, **rank)]


def source(count=61):
    return IterableSource(range(count)).shuffle(20)


def take_steps(made, steps, step, ledger):
    """Go on by some steps, or to the end; the number of the next step."""
    for _ in range(steps):
        batches = [told(next(batches, None)) for _, batches in made]
        if batches == [None] * len(made):
            break
        ledger.update({(0, step, rank): batch for rank, batch in enumerate(batches) if batch is not None})
        step += 1
    return step


@pytest.mark.parametrize("tail", ["exact", "pad", "drop"])
def test_steps_before_and_behind_stops_with_other_ranks_and_batches(tail):
    ledger, state, step = {}, None, 0
    for ranks, batch, steps in ((2, 3, 2), (3, 2, 3), (3, 2, 1), (1, 5, 1), (2, 4, 99)):
        chain = source().batched(batch, drop_last_if_not_full=False)
        made = loaders_of(lambda c=chain: StreamLoader(c, tail=tail), ranks, state)
        step = take_steps(made, steps, step, ledger)
        state = through_json(made[-1][0].state_dict())
        with as_rank(0, ranks):
            again = StreamLoader(chain, tail=tail)
            again.load_state_dict(state)
            for loader in (made[0][0], again):
                assert_told(loader, ledger, lambda origin: origin.row)
                with pytest.raises(ValueError, match="step 0 of epoch 0 is dealt to 2 ranks, there is no rank 2"):
                    loader.samples(0, 0, rank=2)
    assert step > 8
    assert {rank for _, _, rank in ledger} == {0, 1, 2}


def test_a_state_at_the_end_tells_of_its_epoch():
    loader = StreamLoader(source(10).batched(4), tail="pad")
    batches = list(loader)
    again = StreamLoader(source(10).batched(4))  # "drop" has no third step
    again.load_state_dict(through_json(loader.state_dict()))
    assert again.epoch == 1
    for step, batch in enumerate(batches):
        assert (rows(again, step, 0), again.replay(step, 0).mask.tolist()) == (batch.batch, batch.mask.tolist())
    assert again.samples(2, 0)[-1].padding


def test_another_timeline_is_forgotten():
    loader = StreamLoader(source(20).batched(4))
    begin, whole = loader.state_dict(), [list(source(20).run(epoch=epoch)) for epoch in range(2)]
    first = list(loader)
    loader.skip(0, 2)
    second = list(loader)
    assert [rows(loader, step, 1) for step in range(3)] == second
    assert second[0] == whole[1][8:12]
    loader.load_state_dict(begin)
    assert rows(loader, 0) == first[0] == whole[0][:4]
    assert rows(loader, 0, 1) == whole[1][:4]  # nothing is left out of the epoch that comes now


def test_a_pass_that_was_left_can_be_asked():
    loader = StreamLoader(source(20).batched(4))
    for _ in loader:
        break
    assert (rows(loader, 0), rows(loader, 3)) == (rows(loader, 0, 0), rows(loader, 3, 0))
    assert rows(loader, 3) == list(source(20).run(epoch=0))[12:16]
    assert rows(loader, 0, 1) == next(iter(loader))


def old(state):
    """The state as it was saved before it told how its steps were dealt."""
    content = unseal(state)
    del content["deals"]
    return seal(content)


def test_old_states():
    loader = StreamLoader(source().batched(4))
    batches = iter(loader)
    given_batches = [next(batches) for _ in range(3)]
    state = loader.state_dict()
    assert (state["squirrel_torch"], state["deals"]) == (1, [[0, 0, 1, 4, "drop", False]])
    assert old(state)["squirrel_torch"] == 1
    again = StreamLoader(source().batched(4))
    again.load_state_dict(through_json(old(state)))
    rest = iter(again)
    for step in range(3, 6):
        assert rows(again, step) == next(rest)
    with pytest.raises(StateError, match="of an earlier version, and does not tell how the steps before 3 of epoch 0"):
        again.samples(2)
    assert given_batches + [rows(again, step) for step in range(3, 6)] + list(rest) == list(StreamLoader(source().batched(4)))
    again.load_state_dict(loader.state_dict())
    assert rows(again, 2) == given_batches[2]


def augment(sample, rng: np.random.Generator):
    return {"x": torch.tensor([sample["x"], rng.random()], dtype=torch.float64), "id": sample["x"]}


def again_augmented(sample, rng: torch.Generator):
    return {**sample, "y": torch.rand(3, generator=rng)}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


class TestReplay:
    @pytest.mark.parametrize("tail", ["exact", "pad", "drop"])
    def test_is_what_was_delivered(self, tail, stores):
        chain = IterableSource(stores["shards"]).shuffle(9).map(augment).async_map(again_augmented, max_workers=2)
        chain = chain.batched(4, default_collate, drop_last_if_not_full=False)
        ledger = {}
        for rank, (loader, batches) in enumerate(
            loaders_of(lambda: StreamLoader(chain, num_workers=2, multiprocessing_context="fork", tail=tail), 2)
        ):
            for step, batch in enumerate(batches):
                ledger[step, rank] = batch
                state = loader.state_dict()
                assert same(loader.replay(step, rank=rank), batch)
                assert loader.state_dict() == state
        assert len(ledger) >= 4
        with as_rank(0, 2):
            other = StreamLoader(chain, tail=tail)
            for (step, rank), batch in ledger.items():
                assert same(other.replay(step, 0, rank=rank), batch)
                assert not same(other.replay(step, 1, rank=rank), batch)
            assert other.state_dict()["position"] == 0

    def test_of_columns(self, stores):
        loader = StreamLoader(IterableSource(stores["shards"]).shuffle(9), 4, num_workers=2)
        for step, batch in enumerate(loader):
            assert same(loader.replay(step, 0), batch)

    def test_with_the_batch_size_of_then(self):
        loader = StreamLoader(source().batched(4))
        batches = iter(loader)
        first = [next(batches), next(batches)]
        again = StreamLoader(source().batched(7))
        again.load_state_dict(loader.state_dict())
        assert [again.replay(0), again.replay(1)] == first
        assert again.replay(2) == next(iter(again))

    def test_leaves_global_generators_alone(self):
        def drawn(x):
            return x, random.random(), float(np.random.rand()), float(torch.rand(()))

        loader = StreamLoader(source(20).map(drawn).batched(4))

        def run(asks):
            random.seed(1), np.random.seed(1), torch.manual_seed(1)
            loader.set_epoch(0)
            given_batches = []
            for step, batch in enumerate(loader):
                given_batches.append(batch)
                if asks:
                    assert [one[0] for one in loader.replay(step)] == [one[0] for one in batch]
            return given_batches

        assert run(asks=True) == run(asks=False)

    def test_errors_of_callbacks(self):
        def fail(x):
            if x == 3:
                raise KeyError(x)
            return x

        loader = StreamLoader(IterableSource(range(8)).map(fail).batched(2))
        assert loader.replay(0) == [0, 1]
        with pytest.raises(KeyError):
            loader.replay(1)
        assert loader.replay(2) == [4, 5]
        assert next(iter(loader)) == [0, 1]


def epoch_of(loader):
    """The steps of the epoch by the plan, to its end."""
    return [rows(loader, step) for step in range(len(loader))]


class TestSkip:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("persistent", [False, True])
    def test_in_the_middle_of_a_pass(self, workers, persistent, caplog):
        if persistent and not workers:
            return
        loader = StreamLoader(source().batched(4), num_workers=workers, persistent_workers=persistent)
        whole = [epoch_of(loader), [rows(loader, step, 1) for step in range(15)]]
        batches = iter(loader)
        given_batches = [next(batches) for _ in range(3)]
        loader.skip(5, 8)
        assert "the steps from 5 on before 8 of epoch 0 are left out, 12 samples of all ranks" in caplog.text
        expected = whole[0][:5] + whole[0][8:]
        assert (len(loader), loader.batches_of_epoch(0), loader.batches_of_epoch(1), loader.dropped) == (12, 12, 15, 1)
        assert epoch_of(loader) == expected
        given_batches += [next(batches) for _ in range(3)]
        loader.skip(6, 7)  # counted as they are counted now
        del expected[6]
        given_batches += batches
        assert given_batches == expected
        assert [rows(loader, step, 0) for step in range(11)] == expected
        assert loader.batches_of_epoch(0) == 11
        assert list(loader) == whole[1]
        assert [rows(loader, step, 0) for step in range(11)] == expected
        loader.close()

    def test_before_a_pass_and_behind_one(self):
        loader = StreamLoader(source().batched(4))
        whole = [[rows(loader, step, epoch) for step in range(15)] for epoch in range(3)]
        loader.skip(0, 2)
        state = loader.state_dict()
        iter(loader)  # takes nothing
        assert list(loader) == whole[0][2:]
        loader.skip(13, 15)  # of the next epoch now
        assert (loader.epoch, len(loader), loader.state_dict()["left_out"]) == (1, 13, [[52, 60]])
        assert list(loader) == whole[1][:13]
        assert list(loader) == whole[2]
        again = StreamLoader(source().batched(4))
        again.load_state_dict(through_json(state))
        assert list(again) == whole[0][2:]

    def test_in_a_pass_that_has_given_nothing(self):
        loader = StreamLoader(source().batched(4), num_workers=1)
        whole = epoch_of(loader)
        batches = iter(loader)
        loader.skip(1, 3)
        iter(loader)
        batches = iter(loader)
        assert list(batches) == whole[:1] + whole[3:]
        state = loader.state_of_epoch(1)
        assert "left_out" not in state

    def test_before_the_spike_on_other_ranks(self):
        """The usual way: back to a checkpoint, leave out what did the harm, go on; stop again, on another number of ranks."""
        chain = source(200).batched(4)
        made = loaders_of(lambda: StreamLoader(chain), 2)
        for loader, batches in made:
            before = [next(batches) for _ in range(5)]
            state = through_json(loader.state_dict())
            list(batches)
        positions = {position for rank in range(2) for step in (8, 9) for position in self.positions(loader, step, rank)}
        assert positions == set(range(64, 80))
        ledger = [[], []]
        made = loaders_of(lambda: StreamLoader(chain, num_workers=1), 2, state)
        for rank, (loader, batches) in enumerate(made):
            with as_rank(rank, 2):
                loader.skip(8, 10)
            assert rows(loader, 4, rank=1) == before[4]
            ledger[rank] += [next(batches) for _ in range(2)]
            state = through_json(loader.state_dict())
        order = list(source(200).run(epoch=0))
        assert (state["squirrel_torch"], state["left_out"], state["step"]) == (2, [[64, 80]], 7)
        made = loaders_of(lambda: StreamLoader(chain), 3, state)
        rest = {}
        for rank, (loader, batches) in enumerate(made):
            for step, batch in enumerate(batches, start=7):
                rest[step, rank] = batch
            with as_rank(rank, 3):
                assert [rows(loader, step, 0, rank=one) for (step, one) in rest if one == rank] == [
                    batch for (_, one), batch in rest.items() if one == rank
                ]
                assert [rows(loader, step, 0, rank=0) for step in (5, 6)] == ledger[0]
                assert [rows(loader, step, 0, rank=1) for step in (5, 6)] == ledger[1]
                assert rows(loader, 4, 0, rank=1) == before[4]
        assert sorted(flat(rest.values())) == sorted((order[56:64] + order[80:])[: len(flat(rest.values()))])
        assert len(flat(rest.values())) == 128 - 128 % 12

    @staticmethod
    def positions(loader, step, rank):
        with as_rank(0, 2):
            return [origin.position for origin in loader.samples(step, 0, rank=rank)]

    def test_states_of_batches_that_are_held(self):
        loader = StreamLoader(source().batched(4))
        whole = epoch_of(loader)
        batches = iter(loader)
        for _ in range(4):
            next(batches)
        loader.skip(6, 9)
        for held in range(4):
            again = StreamLoader(source().batched(4))
            again.load_state_dict(loader.state_dict(held=held))
            assert list(again) == whole[4 - held : 6] + whole[9:]

    def test_all_that_is_left(self):
        loader = StreamLoader(source(10).batched(4, drop_last_if_not_full=False), tail="exact")
        loader.skip(0, 3)
        assert (len(loader), loader.dropped, list(loader), loader.epoch) == (0, 0, [], 1)
        batches = iter(loader)
        first = next(batches)
        loader.skip(1, 3)
        assert list(batches) == []
        assert first == rows(loader, 0, 1)
        state = loader.state_dict()
        again = StreamLoader(source(10).batched(4, drop_last_if_not_full=False), tail="exact")
        again.load_state_dict(state)
        assert (again.epoch, len(again)) == (2, 3)

    def test_padding_is_never_of_what_is_left_out(self):
        loader = StreamLoader(source(10).batched(4), tail="pad")
        order = list(source(10).run(epoch=0))
        loader.skip(0, 1)
        first, last = loader
        assert (first.batch, last.batch) == (order[4:8], [*order[8:], *order[4:6]])
        assert [origin.padding for origin in loader.samples(1, 0)] == [False, False, True, True]
        assert rows(loader, 1, 0) == last.batch

    def test_numbers_of_zip_index_stay(self):
        chain = IterableSource(range(20)).zip_index().batched(4)
        loader = StreamLoader(chain)
        loader.skip(1, 3)
        assert flat(loader) == [(number, number) for number in (*range(4), *range(12, 20))]

    def test_without_end(self):
        loader = StreamLoader(IterableSource(range(5)).shuffle(3).loop().batched(4))
        plain = [batch for batch, _ in zip(StreamLoader(loader.pipeline), range(9), strict=False)]
        loader.skip(2, 6)
        assert [batch for batch, _ in zip(loader, range(5), strict=False)] == plain[:2] + plain[6:9]

    def test_what_is_logged(self, caplog):
        loader = StreamLoader(source().batched(4))
        loader.skip(2, 3)
        state = loader.state_dict()
        caplog.clear()
        again = StreamLoader(source().batched(4))
        again.load_state_dict(state)
        assert "4 samples of epoch 0 were to be left out by skip: the state has it, and they are" in caplog.text
        again.set_epoch(0)
        assert "set_epoch" not in caplog.text
        again.set_epoch(1)
        assert "4 samples of epoch 0 were to be left out by skip: set_epoch(1) leaves that epoch" in caplog.text
        caplog.clear()
        batches = iter(loader)
        next(batches), next(batches), next(batches)
        again.load_state_dict(loader.state_dict())
        assert "left out" not in caplog.text  # they are behind it

    def test_what_begins_anew_says_that_they_come_after_all(self, caplog):
        loader = StreamLoader(source().batched(4))
        plain = epoch_of(loader)
        loader.skip(2, 3)
        again = StreamLoader(source().batched(4))
        again.load_state_dict(loader.state_dict())
        epoch = again.epoch
        again.begin_anew(epoch)
        assert f"4 samples of epoch {epoch} were to be left out by skip: epoch {epoch} begins anew" in caplog.text
        assert len(list(again)) == len(plain)

    def test_refused(self):
        loader = StreamLoader(source().batched(4))
        batches = iter(loader)
        given_batches = [next(batches) for _ in range(3)]
        state = loader.state_dict()
        for first, last, error, match in (
            (2, 5, PipelineError, "steps up to 2 of epoch 0 have been delivered, so steps from 2 on can't be left out: load"),
            (4, 16, ValueError, "epoch 0 has 15 steps, so the steps from 4 on before 16 can't be left out"),
            (4, 4, ValueError, "last must be at least 5, got 4"),
            (-1, 4, ValueError, "first must be at least 0, got -1"),
            (4.0, 5, TypeError, "first must be an integer"),
            (4, True, TypeError, "last must be an integer"),
        ):
            with pytest.raises(error, match=match):
                loader.skip(first, last)
        assert loader.state_dict() == state
        assert given_batches + list(batches) == list(StreamLoader(source().batched(4)))

    def test_of_a_pass_that_was_left(self):
        loader = StreamLoader(source().batched(4))
        whole = [[rows(loader, step, epoch) for step in range(15)] for epoch in range(2)]
        for _ in loader:
            break
        with pytest.raises(PipelineError, match=r"epoch 0 was left at step 1, the next one is epoch 1: .*set_epoch\(1\)"):
            loader.skip(3, 5)
        state = loader.state_dict()
        loader.set_epoch(1)
        loader.skip(3, 5)
        assert list(loader) == whole[1][:3] + whole[1][5:]
        loader.load_state_dict(state)
        loader.skip(3, 5)
        assert list(loader) == whole[0][1:3] + whole[0][5:]

    def test_after_close(self):
        loader = StreamLoader(source().batched(4), num_workers=1, persistent_workers=True)
        whole = epoch_of(loader)
        batches = iter(loader)
        next(batches)
        loader.close()
        loader.skip(2, 4)
        assert list(loader) == whole[1:2] + whole[4:]
        loader.close()


def skipped(data, made, model, how):
    """Leave out some steps that are ahead, here and in the model, which takes the samples out of its list."""
    most = max(model.ahead(**how)[0])
    if most == model.steps_made or data.draw(st.integers(0, 2), "skips"):
        return
    first = data.draw(st.integers(model.steps_made, most - 1), "first")
    last = data.draw(st.integers(first + 1, most), "last")
    for rank, (loader, _) in enumerate(made):
        with as_rank(rank, len(made)):
            loader.skip(first, last)
    low, high = (model.position + (step - model.steps_made) * how["ranks"] * how["batch"] for step in (first, last))
    if how["tail"] == "drop" and high > len(model.order):
        high = len(model.order) - (len(model.order) - low) % how["ranks"]
    del model.order[low:high]


def assert_ahead(made, model, how):
    steps, dropped = model.ahead(**how)
    for rank, (loader, _) in enumerate(made):
        with as_rank(rank, len(made)):
            assert (len(loader), loader.batches_of_epoch(0), loader.dropped) == (steps[rank], steps[rank], dropped)


@given(st.data())
@settings(max_examples=60)
def test_launched_again_and_again_with_steps_left_out(data):
    """Against a model that knows nothing of gaps."""
    count = data.draw(st.sampled_from([97, 61, 23, 7]), "samples")
    model, state, ledger = Model(list(source(count).run(epoch=0))), None, {}
    for _ in range(data.draw(st.integers(1, 5), "launches")):
        ranks, batch = data.draw(st.integers(1, 4), "ranks"), data.draw(st.integers(1, 6), "batch")
        tail, keep = data.draw(st.sampled_from(["exact", "pad", "drop"]), "tail"), data.draw(st.booleans(), "keep")
        how = {"ranks": ranks, "batch": batch, "tail": tail, "keep": keep}
        if model.position and model.ahead(**how)[0] == [model.steps_made] * ranks:
            break  # nothing is left: the next epoch
        chain = source(count).batched(batch, drop_last_if_not_full=not keep)
        made = loaders_of(lambda c=chain, t=tail: StreamLoader(c, tail=t), ranks, state)
        for _ in range(data.draw(st.integers(0, 5), "steps")):
            skipped(data, made, model, how)
            assert_ahead(made, model, how)
            number = model.steps_made
            expected = model.step(**how) or [None] * ranks
            assert [told(next(batches, None)) for _, batches in made] == expected
            ledger.update({(0, number, rank): one for rank, one in enumerate(expected) if one is not None})
            if None in expected:
                break  # for some rank the epoch is over
        state = through_json(data.draw(st.sampled_from([loader.state_dict() for loader, _ in made]), "whose state"))
        with as_rank(0, ranks):
            assert_told(made[0][0], ledger, lambda origin: origin.row)


class TestNamedErrors:
    @pytest.mark.parametrize("ask", [lambda x: x.samples(0), lambda x: x.replay(0), lambda x: x.skip(1, 2)])
    def test_of_chains_that_are_not_planned(self, ask):
        def numbers():
            yield from range(9)

        streamed = StreamLoader(IterableSource(range(9)).filter(bool).batched(2))
        with pytest.raises(NotPlannedError, match=r"is streamed: Filter\(.*it leaves out items.*better: filter once"):
            ask(streamed)
        with pytest.raises(NotPlannedError, match=r"is replayed: .*numbers.*better: pass something with numbers"):
            ask(StreamLoader(IterableSource(numbers).batched(2)))
        assert sorted(flat(streamed)) == list(range(1, 9))

    def test_of_arguments(self):
        loader = StreamLoader(source().batched(4))
        for arguments, error, match in (
            ((15,), IndexError, "rank 0 gets 15 batches in epoch 0, counted from 0: there is no step 15"),
            ((-1,), ValueError, "step must be at least 0, got -1"),
            ((1.0,), TypeError, "step must be an integer"),
            ((0, -1), ValueError, "epoch must be at least 0"),
            ((0, "1"), TypeError, "epoch must be an integer"),
        ):
            for ask in (loader.samples, loader.replay):
                with pytest.raises(error, match=match):
                    ask(*arguments)
        with pytest.raises(ValueError, match="is dealt to 1 ranks, there is no rank 1"):
            loader.samples(0, rank=1)
        with pytest.raises(TypeError, match="rank must be an integer"):
            loader.samples(0, rank="0")


def test_forged_gaps_and_deals():
    chain = source().batched(4)
    loader = StreamLoader(chain)
    batches = iter(loader)
    next(batches), next(batches)
    loader.skip(4, 6)
    content = unseal(loader.state_dict())
    good = {"left_out": [[16, 24]], "deals": [[0, 0, 1, 4, "drop", False]]}
    assert {name: content[name] for name in good} == good
    for name, values in (
        (
            "left_out",
            (None, 1, {}, [1], [[1]], [[1, 2, 3]], [[4, 4]], [[5, 4]], [[-1, 3]], [[60, 62]], [[1, True]], [["a", 3]]),
        ),
        ("left_out", ([[3, 4], [4, 5]], [[8, 9], [3, 4]], [[0, 61]], [[0, 54]], [[1 << 62, (1 << 62) + 1]])),
        ("deals", (None, [[]], [[0, 0, 1, 4, "drop"]], [[0, 0, 1, 5, "drop", False]], [[0, 0, 2, 4, "drop", False]])),
        ("deals", ([[0, 0, 1, 4, "all", False]], [[0, 0, 1, 4, "drop", 0]], [[0, -4, 1, 4, "drop", False]])),
        ("deals", ([[1, 0, 1, 4, "drop", False]], [[0, 0, 0, 4, "drop", False]], [[3, 12, 1, 4, "drop", False]])),
        ("deals", ([[0, 0, 1, 4, "drop", False], [1, 3, 1, 4, "drop", False]], [[0, 0, 1, 4, [], False]])),
    ):
        for value in values:
            again = StreamLoader(chain)
            with pytest.raises(StateError):
                again.load_state_dict(seal({**content, name: value}))
            assert again.state_dict()["position"] == 0
    again = StreamLoader(chain)
    again.load_state_dict(seal(content))
    assert list(again) == list(batches)


def test_padded_batches_of_dicts_and_devices():
    chain = IterableSource([{"x": float(x)} for x in range(5)]).batched(3, default_collate)
    loader = StreamLoader(chain, tail="pad", device="cpu")
    for step, batch in enumerate(loader):
        assert same(loader.replay(step, 0), batch)
    plain = StreamLoader(IterableSource(range(5)).batched(3), tail="pad")
    assert isinstance(plain.replay(1), Padded)
