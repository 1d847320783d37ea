"""Tracked runs: the items of the plain run, and from between any two of them exactly the rest."""

import json
import logging
import threading
from collections import OrderedDict
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squirrel_torch import (
    Composable,
    ExhaustedSourceError,
    IterableSamplerSource,
    IterableSource,
    Multiplexer,
    MultiplexingStrategy,
    ReplayMismatch,
    StateError,
    TooManyFailuresError,
)
from squirrel_torch.iterstream.digest import digest_of
from squirrel_torch.iterstream.tracking import check_state, track

UNIFORM, SAMPLING, IN_TURN = (
    MultiplexingStrategy.UNIFORM_WITH_REPLACEMENT,
    MultiplexingStrategy.SAMPLING,
    MultiplexingStrategy.ROUND_ROBIN,
)


class Pair(NamedTuple):
    one: int
    other: int


def numbers():
    yield from range(40)


def twice(items):
    for item in items:
        yield item
        yield -item


class Raised(Composable):
    def __iter__(self):
        for item in self.source:
            yield item + 1


async def plus_one(item):
    return item + 1


def source(count=40):
    return IterableSource(range(count))


def odd(count=40):
    return source(count).filter(lambda x: x % 2)


CHAINS = {
    "map": source().map(lambda x: x * 2),
    "filter": source().filter(lambda x: x % 3),
    "flat_map": source().flat_map(lambda x: range(x % 4)),
    "flatten": source().map(lambda x: [x] * (x % 3)).flatten(),
    "batched": source().batched(7, drop_last_if_not_full=False),
    "batched dropping": source().batched(7),
    "sliding": source().sliding(5, deepcopy=False, stride=2, drop_last_if_not_full=False),
    "sliding filled": source().sliding(5, deepcopy=True, stride=3, drop_last_if_not_full=False, fill_nan_on_partial=True),
    "planned shuffle": source().map(lambda x: -x).shuffle(10).skip(3),
    "buffer": odd().shuffle(10, initial=3),
    "buffer filled at once": odd().shuffle(10, initial=30),
    "buffer larger than all": source().flat_map(lambda x: range(x % 4)).shuffle(100),
    "two buffers": source()
    .flat_map(lambda x: range(x % 4))
    .shuffle(7, initial=2)
    .filter(lambda x: x % 2)
    .shuffle(9, initial=4),
    "take": odd().take(9),
    "skip": odd().skip(4).take(9),
    "zip_index": odd().zip_index(3),
    "loop": source().filter(lambda x: x % 7 == 0).shuffle(4, initial=2).loop(3),
    "planned loop": source().shuffle(4).take(6).loop(3),
    "loops": source(5).filter(bool).shuffle(3, initial=1).loop(2).shuffle(4, initial=2).loop(3),
    "an empty loop": source(5).filter(lambda x: x > 9).loop(),
    "async_map": source().async_map(lambda x: x + 1, buffer=7).batched(3),
    "async_map behind a buffer": odd().shuffle(5).async_map(lambda x: x + 1, buffer=7, max_workers=3),
    "async_map of many": odd(400).async_map(lambda x: x + 1, buffer=50).async_map(lambda x: x * 3, buffer=20).batched(9),
    "async_map skipping": source().async_map(lambda x: 1 / (x % 5), on_error="skip").shuffle(6, initial=2),
    "async_map in chunks": odd().async_map(lambda x: x + 1, chunksize=4, buffer=9),
    "coroutines": odd().async_map(plus_one, buffer=5).shuffle(4, initial=1),
    "numba": odd().async_map(lambda x: x + 1, executor="numba"),
    "numba_map": odd().numba_map(lambda x: x + 1).shuffle(3, initial=1),
    "generator": IterableSource(numbers).map(lambda x: x * 3).shuffle(6),
    "to": source().to(twice).shuffle(6, initial=2).filter(lambda x: x % 3).shuffle(3, initial=1),
    "own class": source().compose(Raised).shuffle(6),
    "loop over a generator": IterableSource(numbers).take(5).loop(3).shuffle(4, initial=1),
    "sampler": IterableSamplerSource(
        [source(20).filter(lambda x: x % 3), IterableSource(numbers), [100]], probs=[0.5, 0.3, 0.2]
    ),
    "multiplexer": Multiplexer([odd(10).shuffle(3, initial=1), [7, 8, 9, 10]], UNIFORM).shuffle(5, initial=2),
    "multiplexer of generators": Multiplexer([odd(10), IterableSource(numbers).take(4)], UNIFORM).shuffle(5, initial=2),
    "multiplexer in turn": Multiplexer([odd(10), IterableSource(numbers).take(4), []], IN_TURN).map(str),
    "multiplexer by weights": Multiplexer([odd(10), source(4)], SAMPLING, sampling_probas=[0.2, 0.8], max_reinits=3),
    "planned mix": Multiplexer([source(10).shuffle(4).async_map(lambda x: -x), source(4)], UNIFORM).take(25),
    "batches shuffled": source().batched(4).shuffle(3, initial=1).filter(len).flatten(),
    "indices shuffled": odd().zip_index().shuffle(4, initial=2),
    "windows shuffled": source().sliding(3, deepcopy=False).shuffle(4, initial=2),
    "watched": odd().monitor(lambda report: None).tqdm(disable=True).shuffle(3, initial=1),
    "a set": IterableSource({1, 2, 3, 4, 5}).shuffle(3),
    "a chain in a function": IterableSource(lambda: odd(20)).shuffle(3, initial=1),
    "nothing": IterableSource([]).filter(bool).batched(2),
}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("squirrel_torch").setLevel(logging.ERROR)


def through_json(state):
    return json.loads(json.dumps(state))


def check_everywhere(chain, epoch=0):
    """The run gives what the plain one does; from between any two items on, the rest."""
    links, plain = chain._links(), list(chain.run(epoch=epoch))
    run = track(links, epoch)
    states, items = [run.snapshot()], []
    for _, item in run:
        items.append(item)
        states.append(through_json(run.snapshot()))
    assert items == plain
    for number, state in enumerate(states):
        check_state(links, state)
        assert [item for _, item in track(links, epoch, state)] == plain[number:], f"behind item {number}: {state}"


@pytest.mark.parametrize("name", CHAINS)
def test_every_stage_goes_on_from_everywhere(name):
    check_everywhere(CHAINS[name])
    check_everywhere(CHAINS[name], epoch=3)


def test_what_goes_on_can_be_stopped_again():
    chain = CHAINS["two buffers"].async_map(lambda x: x, buffer=4)
    plain, items, state = list(chain.run(epoch=0)), [], None
    while len(items) < len(plain):
        run = track(chain._links(), 0, through_json(state))
        items += [next(run)[1] for _ in range(min(3, len(plain) - len(items)))]
        state = run.snapshot()
        run.close()
    assert items == plain


stages = st.sampled_from(
    [
        lambda chain: chain.map(lambda x: (x, 1)),
        lambda chain: chain.filter(lambda x: hash(x) % 3),
        lambda chain: chain.flat_map(lambda x: [x] * (hash(x) % 3)),
        lambda chain: chain.shuffle(5, initial=2),
        lambda chain: chain.shuffle(3, seed=4),
        lambda chain: chain.take(17),
        lambda chain: chain.skip(2),
        lambda chain: chain.loop(2),
        lambda chain: chain.zip_index(),
        lambda chain: chain.batched(3, tuple, drop_last_if_not_full=False),
        lambda chain: chain.sliding(3, deepcopy=False, stride=2).map(tuple),
        lambda chain: chain.async_map(lambda x: (x,), buffer=4, max_workers=2),
        lambda chain: chain.to(list_of_itself),
    ]
)


def list_of_itself(items):
    for item in items:
        yield (item, item)


@given(st.lists(stages, min_size=1, max_size=5), st.sampled_from([range(13), numbers, [5, 6]]), st.integers(0, 2))
@settings(max_examples=40)
def test_any_chain_goes_on_from_everywhere(several, items, epoch):
    chain = IterableSource(items)
    for stage in several:
        chain = stage(chain)
    check_everywhere(chain.take(30), epoch)


def test_unordered_keeps_the_set():
    links = source(60).async_map(lambda x: x, ordered=False, max_workers=3, buffer=9)._links()
    run = track(links, 0)
    given = [next(run)[1] for _ in range(23)]
    state = through_json(run.snapshot())
    run.close()
    assert sorted(given + [item for _, item in track(links, 0, state)]) == list(range(60))


def test_executors():
    for executor in ("thread", "process"):
        chain = odd(30).shuffle(4).async_map(lambda x: np.full(3, x), executor=executor, max_workers=2)
        links, run = chain._links(), track(chain._links(), 0)
        first = [next(run)[1].tolist() for _ in range(5)]
        state = through_json(run.snapshot())
        run.close()
        rest = [item.tolist() for _, item in track(links, 0, state)]
        assert first + rest == [item.tolist() for item in chain.run(epoch=0)]


def test_only_what_is_needed_is_made_again():
    made = []

    def make(x):
        made.append(x)
        return x

    chain = IterableSource(range(1000)).map(make).filter(lambda x: True).shuffle(10)
    run = track(chain._links(), 0)
    for _ in range(700):
        next(run)
    state = run.snapshot()
    made.clear()
    next(track(chain._links(), 0, state))
    assert len(made) == 11  # what the buffer held, and one more


def test_the_state_of_a_buffer_is_small_and_quick():
    run = track(IterableSource(range(10_000)).filter(lambda x: True).shuffle(1000).batched(64)._links(), 0)
    for _ in range(20):
        next(run)
    state = run.snapshot()
    assert len(json.dumps(state)) < 7_000
    next(run)
    assert state != run.snapshot()  # a copy, which later items do not change


class TestSources:
    def test_a_generator_is_run_again_and_says_so(self, caplog):
        logging.getLogger("squirrel_torch").setLevel(logging.WARNING)
        links = IterableSource(numbers).map(str)._links()
        run = track(links, 0)
        for _ in range(7):
            next(run)
        assert next(track(links, 0, run.snapshot()))[1] == "7"
        assert "IterableSource(numbers) is run again from the beginning to go on: 7 items are dropped" in caplog.text

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            (lambda: iter(range(3)), "ends after 3 items"),
            (lambda: iter([0, 1, 2, 9, 4, 5, 6, 7, 8]), "gives other items among its first 5"),
            (lambda: iter([1, 0, 2, 3, 4, 5, 6, 7, 8]), "gives other items"),
            (lambda: iter([0, 1, 2, 3, "4", 5, 6]), "gives other items"),
        ],
    )
    def test_a_generator_that_comes_out_differently(self, changed, said):
        run = track(IterableSource(numbers).map(str)._links(), 0)
        for _ in range(5):
            next(run)
        with pytest.raises(ReplayMismatch, match=said):
            next(track(IterableSource(changed).map(str)._links(), 0, run.snapshot()))

    def test_what_arrays_and_tensors_hold_counts(self):
        def of(*values):
            return IterableSource(lambda: iter([{"x": value} for value in values]))._links()

        for one, other in (
            (np.arange(3), np.array([0, 1, 3])),
            (np.arange(3), np.arange(3.0)),
            (torch.arange(3), torch.tensor([0, 1, 3])),
            (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
            ([1, [2]], [[1], 2]),
            (b"ab", "ab"),
        ):
            run = track(of(one, one), 0)
            next(run)
            assert len(list(track(of(one, one), 0, run.snapshot()))) == 1
            with pytest.raises(ReplayMismatch):
                next(track(of(other, one), 0, run.snapshot()))

    def test_an_iterator_can_be_read_once(self):
        run = track(IterableSource(iter(range(9)))._links(), 0)
        next(run)
        links = IterableSource(iter(range(9)))._links()
        assert [item for _, item in track(links, 0, run.snapshot())] == list(range(1, 9))
        with pytest.raises(ExhaustedSourceError):
            next(track(links, 0, run.snapshot()))

    def test_an_iterator_behind_which_several_stages_hold_items(self):
        def chain():
            return (
                IterableSource(iter(range(40)))
                .filter(lambda x: x % 3)
                .shuffle(4)
                .map(str)
                .shuffle(5)
                .sliding(3, deepcopy=False)
            )

        run = track(chain()._links(), 0)
        for _ in range(7):
            next(run)
        state = through_json(run.snapshot())
        assert [item for _, item in track(chain()._links(), 0, state)] == [item for _, item in run]

    @pytest.mark.parametrize(
        ("first", "other"),
        [
            ({1, 2}, {1, 3}),
            (frozenset("a"), frozenset("b")),
            (Pair(1, 2), Pair(1, 3)),
            (OrderedDict(a=1), OrderedDict(a=2)),
            (bytearray(b"a"), bytearray(b"b")),
            (torch.tensor([1.0]).bfloat16(), torch.tensor([2.0]).bfloat16()),
        ],
    )
    def test_what_containers_hold_counts(self, first, other):
        def digest(item):
            return digest_of((item, item), 5)

        assert digest(first) == digest(deepcopy(first)) != digest(other)

    def test_the_order_in_a_set_does_not_count(self):
        assert digest_of({0, 8, 16}) == digest_of({16, 8, 0})

    def test_a_callback_that_changes_its_mind(self):
        agrees = [True]
        chain = source().filter(lambda x: agrees[0]).shuffle(5, initial=2)
        run = track(chain._links(), 0)
        next(run)
        state = run.snapshot()
        agrees[0] = False
        with pytest.raises(ReplayMismatch, match="leaves out"):
            next(track(chain._links(), 0, state))

    def test_a_flat_map_that_gives_less(self):
        several = [3]
        chain = source().flat_map(lambda x: range(several[0]))
        run = track(chain._links(), 0)
        for _ in range(5):
            next(run)
        several[0] = 1
        with pytest.raises(ReplayMismatch, match="made at least 2 items of sample 1"):
            next(track(chain._links(), 0, run.snapshot()))


class TestStates:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda state: state[1:],
            lambda state: {},
            lambda state: "x",
            lambda state: [*state, {}],
            lambda state: [None, *state[1:]],
            lambda state: [{"at": -1}, *state[1:]],
            lambda state: [{"at": 1.5}, *state[1:]],
            lambda state: [{"at": True}, *state[1:]],
            lambda state: [{"at": 2**70}, *state[1:]],
            lambda state: [{"other": 1}, *state[1:]],
            lambda state: [*state[:-1], {**state[-1], "held": 5}],
            lambda state: [*state[:-1], {**state[-1], "held": ["x"]}],
            lambda state: [*state[:-1], {**state[-1], "held": [-1]}],
            lambda state: [*state[:-1], {**state[-1], "full": 1}],
        ],
    )
    def test_what_is_not_sound_is_refused(self, damage):
        links = odd().shuffle(5, initial=2)._links()
        run = track(links, 0)
        next(run)
        state = through_json(run.snapshot())
        track(links, 0, state).close()
        with pytest.raises(StateError):
            track(links, 0, damage(state))

    def test_ids_that_can_not_be(self):
        links = source().flat_map(lambda x: [x]).shuffle(5, initial=2)._links()
        run = track(links, 0)
        next(run)
        state = through_json(run.snapshot())
        for wrong in (7, [1, 2, 3], [999, 0], [[1, 2], 0]):
            with pytest.raises(StateError):
                next(track(links, 0, [*state[:-1], {**state[-1], "held": [wrong]}]))

    @pytest.mark.parametrize(
        ("chain", "damage"),
        [
            (odd().shuffle(4, initial=4), {"held": [1] * 500_000}),
            (odd().shuffle(4, initial=4), {"held": [1]}),
            (odd().shuffle(4, initial=4), {"held": [1, 3, 5, 10**9]}),
            (odd().shuffle(4, initial=4), {"held": [1, 3, 5, [5, 0]]}),
            (odd().shuffle(4, initial=4), {"held": [[[]]] * 4}),
            (odd().sliding(3, deepcopy=False), {"held": [1] * 4}),
            (odd().take(3), {"given": 4}),
            (odd().loop(2), {"pass": 2}),
            (odd().flat_map(lambda x: [x]), {"open": None}),
            (odd().flat_map(lambda x: [x]), {"open": [1, 2]}),
            (odd().batched(2).shuffle(2), {"held": [[1, 3], [5, 7, 9]]}),
            (odd().zip_index().shuffle(2), {"held": [1, 3]}),
            (odd().loop(2).shuffle(2), {"held": [1, 3]}),
            (odd().async_map(str, ordered=False), {"missing": [3, 2]}),
            (odd().async_map(str), {"since": 9}),
            (odd().async_map(str, on_error="skip"), {"kinds": {"ValueError": -1}}),
            (IterableSamplerSource([odd(), odd()]).shuffle(2), {"held": [[0, 1], [2, 0, 1]]}),
            (IterableSamplerSource([odd(), odd()]).shuffle(2), {"held": [[0, 0, 1], [2, 0, 1]]}),
            (IterableSource(numbers).filter(lambda x: True).shuffle(2), {"held": [0, 2**40]}),
        ],
    )
    def test_what_does_not_fit_is_refused_before_anything_is_opened(self, chain, damage):
        links = chain._links()
        run = track(links, 0)
        next(run)
        state = through_json(run.snapshot())
        run.close()
        check_state(links, state)
        state[-1].update(damage)
        with pytest.raises(StateError):
            check_state(links, state)

    @pytest.mark.parametrize("depth", [100, 100_000])
    def test_what_is_nested_deeply(self, depth):
        ident = 1
        for _ in range(depth):
            ident = [ident]
        with pytest.raises(StateError):
            check_state(odd().shuffle(4)._links(), [{"at": 1}, {}, {"held": [ident]}])

    def test_a_state_is_a_fresh_copy(self):
        chain = odd(400).shuffle(4, initial=4).async_map(str, max_workers=1)
        run = track(chain._links(), 0)
        for _ in range(150):
            next(run)
        before = through_json(run.snapshot())
        assert len(before[2]["held"]) == 4
        for memory in run.snapshot():
            for value in memory.values():
                if isinstance(value, list):
                    value.append(7)
            memory.clear()
        assert through_json(run.snapshot()) == before
        run.close()


class TestAsyncMap:
    def test_many_overtake_one(self):
        """What has overtaken an item that takes its time is told by what is missing: the state stays small."""
        go_on = threading.Event()

        def slow(x):
            if x == 5:
                go_on.wait(60)
            return x

        links = (
            source(5000).filter(lambda x: True).async_map(slow, buffer=20, max_workers=3, ordered=False, chunksize=1)._links()
        )
        run = track(links, 0)
        given = [next(run)[1] for _ in range(4000)]
        state = through_json(run.snapshot())
        go_on.set()
        run.close()
        assert 5 not in given
        assert len(json.dumps(state)) < 200
        assert sorted(given + [item for _, item in track(links, 0, state)]) == list(range(5000))

    def test_failures_are_counted_on(self):
        def fail(x):
            if x % 4 == 0:
                raise ValueError(x)
            return x

        links = source().async_map(fail, on_error="skip", max_failures=6, max_workers=1, buffer=2)._links()
        stopped, given = track(links, 0), []
        with pytest.raises(TooManyFailuresError) as caught:
            list(track(links, 0))
        said = str(caught.value)
        given += [next(stopped)[1] for _ in range(12)]
        state = through_json(stopped.snapshot())
        stopped.close()
        with pytest.raises(TooManyFailuresError) as caught:
            given.extend(item for _, item in track(links, 0, state))
        assert str(caught.value) == said
        assert given == [x for x in range(24) if x % 4]

    def test_what_is_made_again_is_not_reported(self):
        chain = odd().async_map(lambda x: x, max_workers=1).shuffle(4, initial=4)
        run = track(chain._links(), 0)
        for _ in range(3):
            next(run)
        again = track(chain._links(), 0, through_json(run.snapshot()))
        run.close()
        assert len([item for _, item in again]) == 17
        assert len(again._lifetime.reports) == 1


class TestLife:
    def test_a_loop_leaves_no_threads_of_passes_before(self):
        before, most = threading.active_count(), 0
        for _ in track(odd().async_map(str, max_workers=2).take(2).loop(20)._links(), 0):
            most = max(most, threading.active_count() - before)
        assert most <= 3  # a feeder and two workers

    def test_an_error_has_its_note_and_comes_again(self):
        def fail(x):
            if x == 7:
                raise KeyError("seven", {"x": x})
            return x

        for chain in (odd().map(fail).shuffle(3, initial=1), odd().async_map(fail).batched(2)):
            run = track(chain._links(), 0)
            for _ in range(2):
                with pytest.raises(KeyError) as caught:
                    list(run)
                assert caught.value.args == ("seven", {"x": 7})
                (note,) = caught.value.__notes__
                assert note.startswith("squirrel_torch: in stage 2 of 3, ")

    def test_closing_leaves_nothing(self):
        threads = set(threading.enumerate())
        run = track(odd().async_map(lambda x: x).shuffle(3).async_map(lambda x: x)._links(), 0)
        next(run)
        run.close()
        assert set(threading.enumerate()) == threads

    def test_abandoned(self):
        run = track(odd().async_map(lambda x: x)._links(), 0)
        next(run)
        del run  # the fixture of all tests looks for threads


class TestGenerators:
    """Callbacks that ask for a generator."""

    @staticmethod
    def numpys(x, rng):
        return x, float(rng.random())

    @staticmethod
    def torchs(x, *, generator: torch.Generator):
        return x, float(torch.rand((), generator=generator))

    @staticmethod
    def by_annotation(x, source_of_noise: "np.random.Generator", scale=1.0):
        return x, float(source_of_noise.random()) * scale

    @pytest.mark.parametrize("name", ["numpys", "torchs", "by_annotation"])
    def test_the_same_everywhere(self, name):
        callback, shuffled = getattr(self, name), IterableSource(range(30)).shuffle(8, seed=5)
        one = shuffled.map(callback)
        expected = list(one.run(epoch=2))
        assert len({number for _, number in expected}) == 30
        assert expected != list(one.run(epoch=3))
        for same in (
            shuffled.async_map(callback, max_workers=3),
            shuffled.async_map(callback, executor="process", max_workers=2),
            shuffled.map(callback).take(99),
            IterableSource(list(range(30))).shuffle(8, seed=5).map(callback),
        ):
            assert list(same.run(epoch=2)) == expected
        unshuffled = IterableSource(range(30)).filter(lambda x: True).shuffle(8, seed=5).map(callback)
        assert sorted(unshuffled.run(epoch=2)) == sorted(expected)
        check_everywhere(one, 2)
        check_everywhere(odd().map(callback).shuffle(5, initial=2).flat_map(lambda x: [x, x]))

    def test_the_seed_is_that_of_the_shuffle_before(self):
        def values(chain):
            return dict(chain.map(self.numpys).run(epoch=0))

        assert values(source().shuffle(9, seed=1)) != values(source().shuffle(9, seed=2))
        assert values(source()) == values(source(40))
        assert values(source().shuffle(9, seed=1)) == values(source().map(int).shuffle(5, seed=1))

    def test_two_callbacks_have_numbers_of_their_own(self):
        chain = source().map(self.numpys).map(lambda pair, rng: (*pair, float(rng.random())))
        assert all(first != second for _, first, second in chain)

    def test_filter_and_flat_map(self):
        chain = source(400).filter(lambda x, rng: rng.random() < 0.5)
        assert 120 < len(chain.collect()) < 280
        assert list(chain.run(epoch=0)) == list(chain.run(epoch=0)) != list(chain.run(epoch=1))
        several = source().flat_map(lambda x, rng: rng.random(2).tolist()).batched(2)
        assert list(several.run(epoch=0)) == list(several.run(epoch=0))
        check_everywhere(several)

    def test_a_value_that_was_given_is_left_alone(self):
        chain = source(3).map(lambda x, rng: (x, rng), rng="mine")
        assert chain.collect() == [(0, "mine"), (1, "mine"), (2, "mine")]

    def test_of_batches(self):
        chain = source(8).batched(4).map(lambda batch, rng: float(rng.random()))
        assert list(chain.run(epoch=0)) == list(chain.run(epoch=0))
        assert len(set(chain.run(epoch=0))) == 2

    def test_each_pass_draws_its_own_and_is_made_again_as_it_was(self):
        looped = odd().map(self.numpys).loop(3)
        assert len(set(looped.collect())) == 60
        check_everywhere(looped.shuffle(7, initial=2), 1)
        again = Multiplexer([odd(20).map(self.numpys), source(4).filter(bool).map(self.numpys)], UNIFORM)
        check_everywhere(again.shuffle(6, initial=2), 1)
        several = odd(20).flat_map(lambda x, rng: rng.random(2).tolist()).shuffle(4)
        check_everywhere(IterableSamplerSource([several, IterableSource(numbers)]).shuffle(6), 1)

    def test_behind_a_loop_it_is_refused(self):
        from squirrel_torch import PipelineError

        with pytest.raises(PipelineError, match=r"stands behind Loop\(.*which may read what is before it several times"):
            source(3).loop(2).map(self.numpys).collect()
        assert len(source(3).map(self.numpys).loop(2).collect()) == 6

    def test_an_error_names_the_stage(self):
        with pytest.raises(ZeroDivisionError) as caught:
            source().map(str).map(lambda x, rng: 1 / 0).collect()
        assert caught.value.__notes__[0].startswith("squirrel_torch: in stage 2 of 2, Map(")
