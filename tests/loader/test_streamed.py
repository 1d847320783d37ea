"""StreamLoader over chains that are not planned: each sample once, whatever ranks, workers and stops there are."""

import json
import logging
import random

import pytest

from squirrel_torch import IterableSource, PipelineError, ReplayMismatch, ShardingError, StateError, StreamLoader, unpadded
from tests.loader.support import as_rank, batches_of, flat, loaders_of


def numbers():
    yield from range(101)


CHAINS = {
    "filter": lambda b: IterableSource(range(103)).filter(lambda x: x % 3).batched(b),
    "buffer": lambda b: (
        IterableSource(range(103))
        .flat_map(lambda x: range(x * 10, x * 10 + x % 4))
        .shuffle(20)
        .async_map(lambda x: x, max_workers=1)
        .batched(b)
    ),
    "generator": lambda b: IterableSource(numbers).map(lambda x: x * 3).shuffle(6).batched(b),
    "windows": lambda b: IterableSource(range(103)).sliding(3, deepcopy=False).map(tuple).batched(b),
    "numbered": lambda b: IterableSource(range(103)).filter(lambda x: x % 3).zip_index().map(lambda pair: pair).batched(b),
    "cut": lambda b: IterableSource(range(103)).filter(lambda x: x % 3).take(50).filter(lambda x: x % 2).batched(b),
    "unordered": lambda b: IterableSource(range(103)).async_map(lambda x: x, ordered=False, max_workers=2).batched(b),
}
DEALT = ("generator", "windows", "numbered", "cut")
"""In these all ranks are at one position, as in planned chains."""


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("squirrel_torch").setLevel(logging.ERROR)


@pytest.mark.parametrize("name", CHAINS)
def test_all_items_come_once(name):
    assert sorted(flat(batches_of(CHAINS[name](4)))) == sorted(flat(CHAINS[name](1)))


@pytest.mark.parametrize("name", [name for name in CHAINS if name != "unordered"])
def test_the_batches_do_not_depend_on_workers(name):
    expected = batches_of(CHAINS[name](4))
    for workers in (1, 2, 5):
        assert batches_of(CHAINS[name](4), num_workers=workers) == expected
    if name in DEALT:
        assert flat(expected) == flat(CHAINS[name](1))


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("seed", range(3))
def test_any_number_of_ranks_and_workers(name, seed):
    rng = random.Random(seed)
    whole, given, states = sorted(flat(CHAINS[name](1))), [], None
    for hop in range(6):
        ranks, workers, together, batch = rng.randint(1, 3), rng.choice([0, 0, 1, 2]), rng.randrange(4), rng.choice([3, 4])
        made = loaders_of(lambda b=batch, w=workers: StreamLoader(CHAINS[name](b), num_workers=w), ranks, states)
        for _, batches in made:
            steps = 10**9 if hop == 5 else together if name in DEALT else rng.randrange(4)
            while steps and (one := next(batches, None)) is not None:
                given += one
                steps -= 1
        if len(given) >= len(whole):
            break
        states = json.loads(json.dumps([loader.state_dict() for loader, _ in made]))
    assert sorted(given) == whole


def test_resume_at_every_batch():
    chain = CHAINS["buffer"]
    expected = [batches_of(chain(5)), None]
    loader = StreamLoader(chain(5))
    list(loader)
    expected[1] = list(loader)
    for stop in range(0, len(expected[0]) + 1, 4):
        loader = StreamLoader(chain(5), num_workers=stop % 3)
        batches = iter(loader)
        first = [next(batches) for _ in range(stop)]
        again = StreamLoader(chain(5))
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert first + list(again) == expected[0]
        assert list(again) == expected[1]


def test_parts_that_are_missing_are_named():
    made = loaders_of(lambda: StreamLoader(CHAINS["filter"](4)), 2)
    states = [loader.state_dict() for loader, _ in made]
    loader = StreamLoader(CHAINS["filter"](4))
    before = loader.state_dict()
    with pytest.raises(StateError, match="streams 1, 3, 5, 7, 9, 11 of 12 are in none of the 1 states"):
        loader.load_state_dict(states[0])
    assert loader.state_dict() == before
    loader.load_state_dict(states)
    other = StreamLoader(CHAINS["filter"](4))
    next(iter(other))
    with pytest.raises(StateError, match="two states tell of stream 0"):
        loader.load_state_dict([*states, other.state_dict()])


def test_a_source_that_changes_is_noticed():
    source = [list(range(50))]
    chain = IterableSource(lambda: iter(source[0])).map(lambda x: x).batched(4)
    loader = StreamLoader(chain)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    source[0] = [*range(5), 99, *range(6, 50)]
    again = StreamLoader(chain)
    again.load_state_dict(loader.state_dict())
    with pytest.raises(ReplayMismatch, match="gives other items among its first 12"):
        next(iter(again))


def test_what_is_not_known_before():
    loader = StreamLoader(CHAINS["filter"](4))
    with pytest.raises(TypeError, match="it has no length"):
        len(loader)
    with as_rank(0, 2), pytest.raises(ShardingError, match=r"torch\.distributed is not initialized"):
        next(iter(StreamLoader(CHAINS["filter"](4), tail="pad")))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["filter", "take behind filter"])
def test_smaller_batches_are_filled_up(name, workers):
    chain = CHAINS[name](4) if name in CHAINS else IterableSource(range(50)).filter(lambda x: x % 3).take(27).batched(4)
    exact = flat(StreamLoader(chain, tail="exact"))
    padded = list(StreamLoader(chain, num_workers=workers, tail="pad"))
    assert all(len(batch) == len(mask) == 4 for batch, mask in padded)
    assert any(not bool(mask.all()) for _, mask in padded)
    assert sorted(one for batch in padded for one in unpadded(batch)) == sorted(exact)


def test_a_mask_that_would_not_fit_is_refused():
    chain = IterableSource(range(50)).filter(lambda x: x % 3).batched(4).flatten()
    with pytest.raises(ValueError, match=r"Flatten.* stands behind batched\(\)"):
        StreamLoader(chain, tail="pad")


def test_a_function_that_can_not_be_divided():
    def twice(items):
        for item in items:
            yield from (item, item)

    chain = IterableSource(range(9)).to(twice).batched(2)
    assert sorted(flat(batches_of(chain))) == sorted([*range(9), *range(9)])
    with as_rank(0, 2), pytest.raises(PipelineError, match="can't be split automatically"):
        batches_of(chain)
    with as_rank(0, 2):
        first = flat(batches_of(IterableSource(range(9)).split_by_rank().to(twice).batched(2)))
    with as_rank(1, 2):
        second = flat(batches_of(IterableSource(range(9)).split_by_rank().to(twice).batched(2)))
    assert sorted(first + second) == sorted([*range(9), *range(9)])
