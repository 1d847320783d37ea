"""Planned chains, sample by sample: what each rank gets at each step, through stops, resizes and loads."""

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squirrel_torch import (
    FilesystemStore,
    IterableSamplerSource,
    IterableSource,
    MemoryStore,
    Multiplexer,
    MultiplexingStrategy,
    ShardStore,
    StreamLoader,
)
from tests.loader.support import Model, as_rank, flat, loaders_of, told


class Doubles:
    def __len__(self):
        return 23

    def __getitem__(self, number):
        return 2 * number


def augmented(sample, rng):
    return sample, round(float(rng.random()), 9)


def numbers(count=23):
    return IterableSource(range(count))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    shards, files, memory = ShardStore(folder / "shards", shard_rows=5), FilesystemStore(folder / "files"), MemoryStore()
    for store in (shards, files, memory):
        IterableSource({"x": number} for number in range(23)).sink(store)
    return {"shards": shards, "files": files, "memory": memory}


CHAINS = {
    "range": lambda s: numbers(),
    "shuffled": lambda s: numbers().shuffle(9),
    "seeded": lambda s: numbers().shuffle(100, seed=5).map(str),
    "array": lambda s: IterableSource(np.arange(23)).shuffle(9).map(int),
    "tensor": lambda s: IterableSource(torch.arange(23)).shuffle(9).map(int),
    "dict": lambda s: IterableSource({f"key {number}": number for number in range(23)}).shuffle(9),
    "map style": lambda s: IterableSource(Doubles()).shuffle(9),
    "shards": lambda s: IterableSource(s["shards"]).shuffle(9),
    "keys of shards": lambda s: IterableSource(s["shards"].keys()).shuffle(9).async_map(s["shards"].get, max_workers=2),
    "selection": lambda s: IterableSource(s["shards"].select(list(range(22, 3, -2)))).shuffle(3),
    "files": lambda s: IterableSource(s["files"]).shuffle(9),
    "memory": lambda s: IterableSource(s["memory"]).shuffle(9),
    "keys of memory": lambda s: IterableSource(s["memory"].keys()).shuffle(9).map(s["memory"].get),
    "cut": lambda s: numbers(40).shuffle(9).skip(5).take(23),
    "cut before it is shuffled": lambda s: numbers(40).skip(5).take(23).shuffle(9),
    "shuffled twice": lambda s: numbers().shuffle(9).shuffle(4, seed=3),
    "loop": lambda s: numbers(7).shuffle(4).loop(3),
    "loop of a loop": lambda s: numbers(4).shuffle(3).loop(2).shuffle(5).loop(3).take(23),
    "endless, cut": lambda s: numbers(5).shuffle(3).loop().take(23),
    "behind a map": lambda s: numbers().map(lambda x: x + 1).take(20).shuffle(6).async_map(lambda x: -x, max_workers=2),
    "numbered": lambda s: numbers().shuffle(9).zip_index(),
    "numbered behind a map": lambda s: numbers().shuffle(9).map(lambda x: 3 * x).zip_index(),
    "numbered behind an async_map": lambda s: numbers().shuffle(9).async_map(lambda x: 3 * x, max_workers=2).zip_index(3),
    "drawn from": lambda s: IterableSamplerSource([numbers(9).shuffle(4), numbers(6).map(str)], probs=[0.7, 0.3]),
    "in turn": lambda s: Multiplexer([numbers(9).shuffle(4), numbers(6).map(str)], MultiplexingStrategy.ROUND_ROBIN),
    "drawn again": lambda s: Multiplexer(
        [numbers(9).shuffle(4), numbers(3).map(str)],
        MultiplexingStrategy.SAMPLING,
        sampling_probas=[0.6, 0.4],
    ).take(23),
    "mix of mixes": lambda s: IterableSamplerSource(
        [IterableSource(s["shards"]).shuffle(5).map(str), IterableSamplerSource([numbers(4), numbers(5).shuffle(3)])]
    ),
    "augmented": lambda s: numbers().shuffle(9).map(augmented),
    "augmented elsewhere": lambda s: numbers().shuffle(9).map(augmented).async_map(augmented, max_workers=2),
}


def batched(name, stores, batch=4):
    chain = CHAINS[name](stores).batched(batch, drop_last_if_not_full=False)
    assert chain.explain().mode == "planned"
    return chain


def through_json(state):
    return json.loads(json.dumps(state))


def through_torch(state):
    file = io.BytesIO()
    torch.save({"loader": state}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["loader"]


@pytest.mark.parametrize("name", CHAINS)
def test_epochs_are_those_of_the_plain_run(name, stores):
    chain = batched(name, stores)
    loader = StreamLoader(chain, tail="exact")
    for epoch in range(3):
        expected = list(chain.run(epoch=epoch))
        assert len(loader) == len(expected) > 2
        assert list(loader) == expected
    loader.set_epoch(11)
    assert list(loader) == list(chain.run(epoch=11))


def test_long_epochs_are_those_of_the_plain_run():
    """Positions are dealt with in blocks, which grow up to some thousands."""
    for chain in (numbers(10_007).shuffle(300), numbers(10_007), numbers(2_503).shuffle(9).loop(4)):
        assert flat(StreamLoader(chain.batched(61, drop_last_if_not_full=False), tail="exact")) == list(chain.run(epoch=0))


def test_passes_of_a_loop_are_shuffled_anew(stores):
    """The plain run goes by the same plan: what it gives is looked at here."""
    loader = StreamLoader(numbers().shuffle(9).loop(4).batched(23))
    passes = [*loader, *loader]
    assert [sorted(one) for one in passes] == [list(range(23))] * 8
    assert len(set(map(tuple, passes))) == 8
    kept = list(StreamLoader(numbers().loop(3).batched(23)))
    assert kept == [list(range(23))] * 3


@pytest.mark.parametrize("name", CHAINS)
def test_resume_at_every_batch_and_two_epochs_more(name, stores):
    chain = batched(name, stores)
    epochs = [list(chain.run(epoch=epoch)) for epoch in range(4)]
    loader = StreamLoader(chain, tail="exact")
    states = [loader.state_dict()]
    list(loader)  # the states are those of epoch 1
    between = loader.state_dict()
    for _ in loader:
        states.append(loader.state_dict())
    behind = loader.state_dict()
    for number, state in enumerate(states):
        assert len(json.dumps(state)) < 1000
        again = StreamLoader(chain, tail="exact")
        again.load_state_dict((through_json, through_torch)[number % 2](state))
        if number == 0:
            assert list(again) == epochs[0]
            assert list(again) == epochs[1]
        else:
            if number < len(epochs[1]):
                assert (again.state_dict(), again.epoch, len(again)) == (state, 1, len(epochs[1]))
                assert list(again) == epochs[1][number:]
            assert [list(again), list(again)] == epochs[2:]
    for state, begins in ((between, 1), (behind, 2)):
        again = StreamLoader(chain, tail="exact")
        again.load_state_dict(through_json(state))
        assert [list(again), list(again)] == epochs[begins : begins + 2]


@pytest.mark.parametrize("name", ["shards", "loop", "mix of mixes", "numbered behind an async_map", "augmented elsewhere"])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_batches_of_a_rank_do_not_depend_on_workers(name, persistent, stores):
    chain = batched(name, stores)
    with as_rank(1, 2):
        expected = StreamLoader(chain, tail="exact")
        epochs = [list(expected) for _ in range(3)]
        for workers in (1, 2, 5):
            loader = StreamLoader(chain, num_workers=workers, tail="exact", persistent_workers=persistent)
            assert [list(loader) for _ in range(3)] == epochs
            del loader


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_batches_do_not_depend_on_how_workers_are_started(method, stores):
    chain = batched("mix of mixes", stores)
    loader = StreamLoader(chain, num_workers=2, tail="exact", multiprocessing_context=method, persistent_workers=True)
    for epoch in range(2):
        assert list(loader) == list(chain.run(epoch=epoch))
    batches, expected = iter(loader), list(chain.run(epoch=2))
    assert [next(batches), next(batches)] == expected[:2]
    again = StreamLoader(chain, num_workers=1, tail="exact", multiprocessing_context=method)
    again.load_state_dict(loader.state_dict())
    assert list(again) == expected[2:]


@given(st.data())
def test_every_rank_gets_at_every_step_what_the_plan_says(data):
    _launched_again_and_again(data, st.just(0), most_ranks=6)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=20)
def test_every_rank_gets_that_from_any_number_of_workers(data):
    _launched_again_and_again(data, st.sampled_from([1, 2, 3, 0]), most_ranks=3)


def _launched_again_and_again(data, workers_of_ranks, most_ranks):
    count = data.draw(st.sampled_from([97, 61, 23, 120, 7, 2, 1, 0]), "samples")
    source, epoch, states = IterableSource(range(count)).shuffle(20), 0, None
    model = Model(list(source.run(epoch=0)))
    for _ in range(data.draw(st.integers(1, 7), "launches")):
        ranks, batch = data.draw(st.integers(1, most_ranks), "ranks"), data.draw(st.integers(1, 9), "batch")
        workers, tail = data.draw(workers_of_ranks, "workers"), data.draw(st.sampled_from(["exact", "pad", "drop"]), "tail")
        keep = data.draw(st.booleans(), "keep")
        chain = source.batched(batch, drop_last_if_not_full=not keep)
        how = {"ranks": ranks, "batch": batch, "tail": tail, "keep": keep}
        if states is not None and model.position and model.ahead(**how)[0] == [model.steps_made] * ranks:
            epoch += 1
            model = Model(list(source.run(epoch=epoch)))
        made = loaders_of(lambda c=chain, w=workers, t=tail: StreamLoader(c, num_workers=w, tail=t), ranks, states)
        steps, dropped = model.ahead(**how)
        for rank, (loader, _) in enumerate(made):
            with as_rank(rank, ranks):
                assert (loader.epoch, len(loader), loader.dropped) == (epoch, steps[rank], dropped)
        for _ in range(data.draw(st.integers(0, 6), "steps")):
            expected = model.step(**how)
            assert [told(next(batches, None)) for _, batches in made] == (expected or [None] * ranks)
            if expected is None:
                break
        states = data.draw(st.sampled_from([loader.state_dict() for loader, _ in made]), "whose state")


def test_states_that_are_loaded_again_and_again(stores):
    chain = batched("shuffled", stores)
    first, second = (list(chain.run(epoch=epoch)) for epoch in range(2))
    loader = StreamLoader(chain)
    batches = iter(loader)
    next(batches)
    early = loader.state_dict()
    next(batches), next(batches)
    late = loader.state_dict()
    loader.load_state_dict(late)
    loader.load_state_dict(early)  # the last one counts
    assert list(loader) == first[1:]
    loader.load_state_dict(late)  # back again, in the same loader
    assert list(loader) == first[3:]
    assert list(loader) == second
    loader.load_state_dict(early)
    for _ in loader:
        break
    assert loader.state_dict()["position"] == 8
    loader.load_state_dict(loader.state_dict())
    assert list(loader) == first[2:]


def test_epochs_that_are_set_before_and_behind_a_load(stores):
    chain = batched("shuffled", stores)
    first, second, ninth = (list(chain.run(epoch=epoch)) for epoch in (0, 1, 9))
    loader = StreamLoader(chain)
    next(iter(loader))
    state = loader.state_dict()
    before = StreamLoader(chain)
    before.set_epoch(9)
    before.load_state_dict(state)  # what was loaded counts
    assert [list(before), list(before)] == [first[1:], second]
    behind = StreamLoader(chain)
    behind.load_state_dict(state)
    behind.set_epoch(9)
    assert behind.state_dict()["position"] == 0
    assert list(behind) == ninth
    usual = StreamLoader(chain)  # as a training loop does it
    usual.load_state_dict(state)
    given_epochs = []
    for epoch in range(2):
        usual.set_epoch(epoch)
        given_epochs.append(list(usual))
    assert given_epochs == [first[1:], second]


def test_a_state_that_was_loaded_is_kept_until_something_is_given(stores):
    chain = batched("shuffled", stores)
    loader = StreamLoader(chain)
    next(iter(loader))
    state = loader.state_dict()
    again = StreamLoader(chain)
    again.load_state_dict(state)
    for _ in range(2):
        iter(again)
        assert again.state_dict() == state
    assert list(again) == list(chain.run(epoch=0))[1:]


def test_lengths_at_every_batch_of_every_rank():
    for tail in ("exact", "pad", "drop"):
        chain = IterableSource(range(47)).shuffle(9).batched(4, drop_last_if_not_full=False)
        made = loaders_of(lambda c=chain, t=tail: StreamLoader(c, tail=t), 3)
        for rank, (loader, batches) in enumerate(made):
            with as_rank(rank, 3):
                length, steps = len(loader), 0
                for _ in batches:
                    steps += 1
                    again = StreamLoader(chain, tail=tail)
                    again.load_state_dict(loader.state_dict())
                    assert len(loader) == length
                    if again.epoch == 0:
                        assert len(again) == length
                        # Whoever is at its end before the others has nothing left of this epoch.
                        assert len(list(again)) == length - steps
                assert steps == length


def test_flattened_batches_are_the_epoch(stores):
    chain = batched("shuffled", stores, batch=7)
    assert flat(StreamLoader(chain, tail="exact")) == list(CHAINS["shuffled"](stores).run(epoch=0))
