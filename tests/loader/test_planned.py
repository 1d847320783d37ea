"""StreamLoader over planned chains: one order, whatever ranks, workers, batch sizes and stops there are."""

import io
import json
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from squirrel_torch import (
    ClosedRunError,
    FilesystemStore,
    FingerprintMismatch,
    IterableSamplerSource,
    IterableSource,
    MemoryStore,
    Multiplexer,
    MultiplexingStrategy,
    Padded,
    PipelineError,
    ShardStore,
    StateError,
    StreamLoader,
)
from tests.loader.support import as_rank, batches_of, flat, loaders_of, stepped, woven


def shuffled(count, batch, *, keep=True):
    return IterableSource(range(count)).shuffle(20).map(lambda x: x).batched(batch, drop_last_if_not_full=not keep)


class Squares:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return number**2


def stores(folder):
    samples = [{"x": number} for number in range(50)]
    shards = ShardStore(folder / "shards", shard_rows=7)
    files = FilesystemStore(folder / "files")
    memory = MemoryStore()
    for store in (shards, memory, files):
        IterableSource(samples).sink(store)
    return shards, memory, files


def sources(folder):
    shards, memory, files = stores(folder)
    return {
        "list": IterableSource([f"s{number}" for number in range(50)]),
        "dict": IterableSource({f"s{number}": 1 for number in range(50)}),
        "array": IterableSource(np.arange(50)).map(int),
        "tensor": IterableSource(torch.arange(50)).map(int),
        "text": IterableSource("the quick brown fox"),
        "map style": IterableSource(Squares(50)),
        "shards": IterableSource(shards),
        "keys": IterableSource(shards.keys()).async_map(shards.get, max_workers=2),
        "selection": IterableSource(shards.select(list(range(49, 3, -2)))),
        "memory": IterableSource(memory),
        "memory keys": IterableSource(memory.keys()).map(memory.get),
        "files": IterableSource(files),
        "numbered": IterableSource(range(50)).zip_index(),
        "mix": IterableSamplerSource([IterableSource(range(20)).shuffle(9).map(str), ["a", "b"]], probs=[0.8, 0.2]),
        "multiplexer": Multiplexer(
            [range(9), IterableSource(range(9, 14)).shuffle(3)], MultiplexingStrategy.UNIFORM_WITH_REPLACEMENT
        ),
        "in turn": Multiplexer([range(9), range(30, 34)], MultiplexingStrategy.ROUND_ROBIN),
    }


ORDERS = {
    "as it is": lambda chain: chain,
    "shuffled": lambda chain: chain.shuffle(12, seed=3),
    "cut": lambda chain: chain.shuffle(12).skip(3).take(17),
    "looped": lambda chain: chain.shuffle(12).take(9).loop(3),
    "behind a map": lambda chain: (
        chain.map(lambda x: (x,)).take(18).async_map(lambda x: x, buffer=5).batched(4, tuple, False).map(list)
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_is_that_of_the_plain_run(order, tmp_path):
    tried = 0
    for name, source in sources(tmp_path).items():
        mixed = name in ("mix", "multiplexer", "in turn", "numbered")
        if mixed and order != "as it is":
            continue  # a shuffle behind these is one of items
        chain = ORDERS[order](source)
        whole = chain if order == "behind a map" else chain.batched(4, drop_last_if_not_full=False)
        assert whole.explain().mode == "planned", (name, order)
        loader = StreamLoader(whole, tail="exact")
        for epoch in range(2):
            run = list(chain.run(epoch=epoch))
            given = list(loader)
            expected = run if order == "behind a map" else [run[at : at + 4] for at in range(0, len(run), 4)]
            assert repr(given if order != "behind a map" else flat(given)) == repr(
                expected if order != "behind a map" else flat(expected)
            ), (name, order, epoch)
        tried += 1
    assert tried >= 10


def test_the_batches_do_not_depend_on_workers():
    for chain in (shuffled(103, 4), shuffled(103, 4).map(tuple), IterableSource(range(31)).shuffle(9)):
        expected = [batches_of(chain, num_workers=0), batches_of(chain, num_workers=0)]
        for workers in (1, 2, 5):
            loader = StreamLoader(chain, num_workers=workers, prefetch_factor=3)
            assert [list(loader)] == expected[:1]
    with as_rank(1, 3):
        assert batches_of(chain, num_workers=0) == batches_of(chain, num_workers=2) != expected[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn"])
def test_the_batches_do_not_depend_on_how_workers_are_started(method):
    chain = shuffled(53, 4)
    loader = StreamLoader(chain, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    for epoch in range(3):
        assert flat(loader) == flat(chain.run(epoch=epoch))


def test_persistent_workers_go_from_epoch_to_epoch():
    chain = shuffled(53, 4)
    loader = StreamLoader(chain, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        assert flat(loader) == flat(chain.run(epoch=epoch))
    next(iter(loader))
    assert flat(loader) == flat(chain.run(epoch=4))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_batch(workers):
    chain = shuffled(26, 4)
    epochs = [list(chain.run(epoch=epoch)) for epoch in range(3)]
    for stop in range(len(epochs[0]) + 1):
        loader = StreamLoader(chain, num_workers=workers)
        batches = iter(loader)
        given = [next(batches) for _ in range(stop)]
        state = loader.state_dict()
        assert len(json.dumps(state)) < 1000
        again = StreamLoader(chain, num_workers=2 - workers)
        again.load_state_dict(json.loads(json.dumps(state)))
        if stop < len(epochs[0]):
            assert again.state_dict() == state
            assert given + list(again) == epochs[0]
        assert [list(again), list(again)] == epochs[1:]


def test_states_at_the_end_begin_the_next_epoch():
    chain = shuffled(10, 4)
    loader = StreamLoader(chain)
    batches = iter(loader)
    assert len([next(batches) for _ in range(3)]) == 3
    at_the_last_batch = loader.state_dict()
    assert next(batches, None) is None
    behind_it = loader.state_dict()
    assert (behind_it["epoch"], behind_it["position"]) == (0, 10)
    for state in (at_the_last_batch, behind_it):
        again = StreamLoader(chain)
        again.load_state_dict(state)
        assert (again.epoch, len(again)) == (1, 3)
        assert flat(again) == flat(chain.run(epoch=1))


def test_torch_saves_states():
    loader = StreamLoader(shuffled(10, 3))
    next(iter(loader))
    file = io.BytesIO()
    torch.save({"loader": loader.state_dict()}, file)
    file.seek(0)
    again = StreamLoader(shuffled(10, 3))
    again.load_state_dict(torch.load(file, weights_only=True)["loader"])
    assert flat(again) == flat(shuffled(10, 3).run(epoch=0))[3:]


def test_states_are_copies():
    loader = StreamLoader(shuffled(30, 3))
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    kept = json.loads(json.dumps(state))
    next(batches)
    assert state == kept != loader.state_dict()
    state["chain"].append("x")
    assert loader.state_dict()["chain"] == kept["chain"]


@given(st.data())
@settings(max_examples=60)
def test_any_number_of_ranks_and_any_batch_size(data):
    count = data.draw(st.integers(0, 120), "samples")
    whole = flat(shuffled(count, 1).run(epoch=0))
    given_steps, states = [], None
    for _ in range(data.draw(st.integers(0, 5), "stops")):
        ranks, batch = data.draw(st.integers(1, 5), "ranks"), data.draw(st.integers(1, 7), "batch")
        made = loaders_of(lambda batch=batch: StreamLoader(shuffled(count, batch), tail="exact"), ranks, states)
        if states is not None and made[0][0].epoch > 0:
            break
        given_steps += stepped(made, data.draw(st.integers(0, 6), "steps"))
        known = [loader.state_dict() for loader, _ in made]
        states = data.draw(st.sampled_from(known), "whose state")
        if states["position"] >= count:
            break
    else:
        given_steps += stepped(loaders_of(lambda: StreamLoader(shuffled(count, 3), tail="exact"), 2, states))
    # Within a step rank r has the positions p with p mod ranks = r, so the first position's rank comes first.
    given_samples = [sorted(flat(step), key=whole.index) for step in given_steps]
    assert flat(given_samples) == whole
    for step in given_steps:
        lengths = sorted(map(len, step))
        assert lengths[-1] - lengths[0] <= 1


def test_ranks_take_turns():
    steps = stepped(loaders_of(lambda: StreamLoader(shuffled(24, 4)), 3))
    assert flat(map(woven, steps)) == flat(shuffled(24, 4).run(epoch=0))
    assert [len(step) for step in steps] == [3, 3]


class TestTails:
    @given(st.integers(0, 60), st.integers(1, 4), st.integers(1, 6))
    @settings(max_examples=40)
    def test_drop_gives_all_ranks_the_same(self, count, ranks, batch):
        for keep in (False, True):
            made = loaders_of(lambda keep=keep: StreamLoader(shuffled(count, batch, keep=keep)), ranks)
            dropped, lengths = made[0][0].dropped, {len(loader) for loader, _ in made}
            steps = stepped(made)
            assert all(len(step) == ranks and len(set(map(len, step))) == 1 for step in steps)
            assert lengths == {len(steps)}
            given_samples = flat(flat(steps))
            assert len(given_samples) == len(set(given_samples)) == count - dropped
            assert dropped < (ranks if keep else ranks * batch)

    @given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 6))
    @settings(max_examples=40)
    def test_pad_fills_up_and_says_with_what(self, count, ranks, batch):
        made = loaders_of(lambda: StreamLoader(shuffled(count, batch), tail="pad"), ranks)
        length = len(made[-1][0])
        steps = stepped(made)
        assert all(len(step) == ranks for step in steps)
        assert len(steps) == -(-count // (ranks * batch)) == length
        real = []
        for step in steps:
            for padded in step:
                assert isinstance(padded, Padded)
                assert len(padded.batch) == len(padded.mask) == batch
                real += [sample for sample, is_real in zip(padded.batch, padded.mask.tolist(), strict=True) if is_real]
        assert sorted(real) == list(range(count))

    def test_the_mask_of_dicts(self):
        samples = IterableSource([{"x": float(x)} for x in range(5)])
        first, last = batches_of(samples.batched(3, default_collate), tail="pad")
        assert first["mask"].tolist() == [True] * 3
        assert (last["mask"].tolist(), last["x"].tolist()) == ([True, True, False], [3.0, 4.0, 0.0])
        with pytest.raises(PipelineError, match="give that field of the samples another name"):
            batches_of(IterableSource([{"mask": 1}]).batched(1, default_collate), tail="pad")

    def test_exact_overrules_drop_last(self):
        assert list(map(len, batches_of(shuffled(10, 4, keep=False)))) == [4, 4]
        assert list(map(len, batches_of(shuffled(10, 4, keep=False), tail="exact"))) == [4, 4, 2]

    def test_what_is_dropped_is_logged(self, caplog):
        caplog.set_level("INFO", "squirrel_torch")
        batches_of(shuffled(10, 4, keep=False))
        assert "2 samples of epoch 0 were left out" in caplog.text


class TestEpochs:
    def test_passes_are_epochs(self):
        loader = StreamLoader(shuffled(9, 2))
        assert [flat(loader), flat(loader)] == [flat(shuffled(9, 2).run(epoch=epoch)) for epoch in range(2)]

    def test_set_epoch(self):
        loader = StreamLoader(shuffled(9, 2))
        loader.set_epoch(5)
        assert (loader.epoch, flat(loader), loader.epoch) == (5, flat(shuffled(9, 2).run(epoch=5)), 6)
        with pytest.raises(ValueError, match="epoch must be at least 0"):
            loader.set_epoch(-1)

    def test_set_epoch_keeps_the_place_of_that_epoch(self):
        loader = StreamLoader(shuffled(9, 2))
        loader.set_epoch(3)
        next(iter(loader))
        state, rest = loader.state_dict(), flat(shuffled(9, 2).run(epoch=3))[2:]
        for epoch, expected in ((3, rest), (4, flat(shuffled(9, 2).run(epoch=4)))):
            again = StreamLoader(shuffled(9, 2))
            again.load_state_dict(state)
            again.set_epoch(epoch)
            assert flat(again) == expected

    def test_an_iterator_that_gave_nothing_takes_no_epoch(self):
        loader = StreamLoader(shuffled(9, 2))
        iter(loader)
        assert flat(loader) == flat(shuffled(9, 2).run(epoch=0))

    def test_a_pass_that_was_left_and_the_next(self):
        loader = StreamLoader(shuffled(9, 2))
        for _ in loader:
            break
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (0, 2)
        assert flat(loader) == flat(shuffled(9, 2).run(epoch=1))

    def test_of_two_iterators_the_older_is_closed(self):
        loader = StreamLoader(shuffled(9, 2))
        older = iter(loader)
        next(older)
        newer = iter(loader)
        with pytest.raises(ClosedRunError, match="another one of its loader began"):
            next(older)
        assert flat(newer) == flat(shuffled(9, 2).run(epoch=1))
        with pytest.raises(StopIteration):
            next(newer)

    def test_nothing_at_all(self):
        loader = StreamLoader(IterableSource([]).batched(3))
        assert (list(loader), list(loader), len(loader), loader.epoch) == ([], [], 0, 2)


class TestLength:
    def test_of_each_rank(self):
        with as_rank(0, 2):
            assert len(StreamLoader(shuffled(9, 4), tail="exact")) == 2
        with as_rank(1, 2):
            assert len(StreamLoader(shuffled(9, 4), tail="exact")) == 1
            assert len(StreamLoader(shuffled(9, 4), tail="pad")) == 2

    def test_of_an_epoch_that_is_gone_on_with(self):
        loader = StreamLoader(shuffled(20, 2))
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        again = StreamLoader(shuffled(20, 7))
        again.load_state_dict(loader.state_dict())
        assert (len(loader), len(again)) == (10, 3 + 2)
        assert len(list(again)) == 2

    def test_without_end(self):
        loader = StreamLoader(IterableSource(range(5)).shuffle(3).loop().batched(2), num_workers=2)
        with pytest.raises(TypeError, match="does not end"):
            len(loader)
        batches = iter(loader)
        first = [next(batches) for _ in range(20)]
        again = StreamLoader(IterableSource(range(5)).shuffle(3).loop().batched(4))
        again.load_state_dict(loader.state_dict())
        plain = iter(IterableSource(range(5)).shuffle(3).loop().run(epoch=0))
        assert flat(first) + next(iter(again)) == [next(plain) for _ in range(44)]


class TestErrors:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_a_callback(self, workers):
        def fail(x):
            if x == 17:
                raise KeyError("seventeen", x)
            return x

        loader = StreamLoader(IterableSource(range(40)).map(fail).batched(4), num_workers=workers)
        batches, given_batches = iter(loader), []
        for _ in range(2):
            with pytest.raises(KeyError) as caught:
                given_batches += batches
            assert caught.value.args == ("seventeen", 17)
            assert ", on item 17 of IterableSource(range of 40)" in caught.value.__notes__[0]
        while True:
            try:
                given_batches.append(next(batches))
            except KeyError:
                break
        assert loader.state_dict()["position"] == len(flat(given_batches)) == 0 or loader.state_dict()["position"] == 16

    def test_a_stage_that_gives_less_than_it_says(self):
        from dataclasses import dataclass
        from typing import ClassVar

        from squirrel_torch import Stage

        @dataclass(frozen=True)
        class Some(Stage):
            one_to_one: ClassVar[bool] = True

            def apply(self, items):
                return (item for item in items if item % 5)

        with pytest.raises(PipelineError, match="there are fewer batches than were planned"):
            batches_of(IterableSource(range(20)).then(Some()).batched(3))

    def test_wrong_arguments(self):
        chain = IterableSource(range(4))
        for error, arguments in (
            (ValueError, {"tail": "some"}),
            (ValueError, {"collate_fn": list}),
            (ValueError, {"drop_last": True}),
            (ValueError, {"batch_size": 0}),
            (ValueError, {"streams": 0}),
            (ValueError, {"num_workers": -1}),
        ):
            with pytest.raises(error):
                StreamLoader(chain, **arguments)
        with pytest.raises(TypeError, match="pipeline must be a chain"):
            StreamLoader([1, 2])
        with pytest.raises(ValueError, match="makes batches itself"):
            StreamLoader(chain.batched(2), batch_size=2)

    def test_batch_size(self):
        loader = StreamLoader(IterableSource(range(5)), 2)
        assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
        assert [len(batch) for batch in StreamLoader(IterableSource(range(5)), 2, collate_fn=list, drop_last=True)] == [2, 2]
        assert [batch.tolist() for batch in StreamLoader(IterableSource(range(3)).to_torch_iterable(), 2)] == [[0, 1], [2]]


class TestOtherStates:
    def state(self):
        loader = StreamLoader(shuffled(40, 4))
        next(iter(loader))
        return loader.state_dict()

    def refused(self, state, error=StateError, chain=None):
        """The loader goes on as if nothing had been tried."""
        loader = StreamLoader(shuffled(40, 4) if chain is None else chain)
        batches = iter(loader)
        first, before = next(batches), loader.state_dict()
        with pytest.raises(error) as caught:
            loader.load_state_dict(state)
        assert loader.state_dict() == before
        assert first + flat(batches) == flat((shuffled(40, 4) if chain is None else chain).run(epoch=0))
        return str(caught.value)

    def test_damaged(self):
        text = json.dumps(self.state())
        rng = random.Random(0)
        for _ in range(60):
            at = rng.randrange(len(text))
            changed = text[:at] + rng.choice('0123456789abc "{}[]:,') + text[at + 1 :]
            try:
                state = json.loads(changed)
            except ValueError:
                continue
            if state != self.state():
                loader = StreamLoader(shuffled(40, 4))
                with pytest.raises(StateError):
                    loader.load_state_dict(state)

    def test_keys_that_are_missing(self):
        for key in self.state():
            self.refused({name: value for name, value in self.state().items() if name != key})

    def test_of_other_kinds(self):
        for state in (
            None,
            5,
            "x",
            b"\x80\x04.",
            pickle.dumps(self.state()),
            [],
            [1],
            {},
            {"squirrel_torch": 2, "check": ""},
            {**self.state(), "squirrel_torch": 2},
            {**self.state(), "squirrel_torch": True},
            {**self.state(), "more": "x" * 20_000_000},
            {**self.state(), "epoch": 1.0},
            {**self.state(), 5: 5},
            {**self.state(), "epoch": object()},
        ):
            self.refused(state)
        nested = []
        for _ in range(100):
            nested = [nested]
        self.refused({**self.state(), "more": nested})

    def test_sealed_and_still_wrong(self):
        from squirrel_torch.plan.state import seal, unseal

        content = unseal(self.state())
        for changed in (
            {"position": 41},
            {"position": -1},
            {"position": 2**62},
            {"epoch": -1},
            {"epoch": 2**31},
            {"epoch": "0"},
            {"step": None},
            {"position": True},
        ):
            self.refused(seal({**content, **changed}))
        self.refused(seal({**content, "mode": "streamed"}), FingerprintMismatch)
        self.refused(seal({**content, "data": None}), FingerprintMismatch)

    def test_states_of_different_moments(self):
        loader = StreamLoader(shuffled(40, 4))
        batches = iter(loader)
        states = [loader.state_dict() for _ in range(2) if next(batches)]
        self.refused(states)
        StreamLoader(shuffled(40, 4)).load_state_dict([states[0], states[0]])

    def test_of_another_chain(self):
        other = IterableSource(range(40)).shuffle(21).batched(4)
        said = self.refused(self.state(), FingerprintMismatch, other.map(lambda x: x))
        assert "removed: Shuffled(size=20, initial=100, seed=0); added: Shuffled(size=21, initial=100, seed=0)" in said
        # What is made of the samples, and how many are a batch, may change.
        loader = StreamLoader(IterableSource(range(40)).shuffle(20).map(str).map(int).batched(9))
        loader.load_state_dict(self.state())
        assert flat(loader) == flat(shuffled(40, 4).run(epoch=0))[4:]

    def test_of_another_dataset(self, tmp_path):
        store = ShardStore(tmp_path, mode="append", shard_rows=10)
        IterableSource({"x": x} for x in range(40)).sink(store)
        loader = StreamLoader(IterableSource(ShardStore(tmp_path)).shuffle(9).batched(4))
        next(iter(loader))
        state = loader.state_dict()
        assert len(json.dumps(state)) < 1000
        before = {shard.name for shard in ShardStore(tmp_path).manifest.shards}
        IterableSource({"x": x} for x in range(5)).sink(ShardStore(tmp_path, mode="append"))
        again = StreamLoader(IterableSource(ShardStore(tmp_path)).shuffle(9).batched(4))
        (added,) = {shard.name for shard in ShardStore(tmp_path).manifest.shards} - before
        with pytest.raises(FingerprintMismatch, match=rf"it had 40 samples, now it has 45; added: {added}"):
            again.load_state_dict(state)
        IterableSource({"x": -x} for x in range(40)).sink(ShardStore(tmp_path, mode="overwrite", shard_rows=10))
        replaced = StreamLoader(IterableSource(ShardStore(tmp_path)).shuffle(9).batched(4))
        with pytest.raises(FingerprintMismatch, match=r"added: .*; removed: "):
            replaced.load_state_dict(state)

    def test_of_a_list_of_another_length(self):
        assert "it had 40 samples, now it has 41" in self.refused(self.state(), FingerprintMismatch, shuffled(41, 4))


def test_ranks_without_a_split_that_get_everything():
    chain = IterableSource(range(9)).batched(2).to_torch_iterable(enforce_rank_check=False)
    with as_rank(1, 3):
        assert flat(StreamLoader(chain, tail="exact")) == list(range(9))


def test_written_splits_are_left_out():
    chain = (
        IterableSource(range(24))
        .shuffle(9)
        .split_by_rank()
        .async_map(lambda x: x)
        .split_by_worker()
        .batched(4)
        .to_torch_iterable()
    )
    steps = stepped(loaders_of(lambda: StreamLoader(chain, num_workers=2), 2))
    assert flat(map(woven, steps)) == IterableSource(range(24)).shuffle(9).collect()
    half = [IterableSource(range(9)).split_by_rank(), IterableSource(range(9, 14)).split_by_rank()]
    mix = Multiplexer(half, MultiplexingStrategy.ROUND_ROBIN).batched(2)
    assert sorted(flat(flat(stepped(loaders_of(lambda: StreamLoader(mix, tail="exact"), 3))))) == list(range(14))


def test_on_a_cpu_device_nothing_changes():
    samples = IterableSource([{"x": torch.ones(2) * x, "name": str(x)} for x in range(4)])
    (batch,) = StreamLoader(samples, 4, device="cpu")
    assert (batch["x"].device.type, batch["name"]) == ("cpu", list("0123"))
    (batch,) = StreamLoader(samples, 4, device="meta")
    assert batch["x"].device.type == "meta"
    assert batch["name"] == list("0123")


def test_columns_are_gathered(tmp_path):
    samples = [{"x": np.full(3, x, np.int32), "t": torch.tensor([x]), "s": str(x), "p": (x, f"{x}")} for x in range(100)]
    store = ShardStore(tmp_path, shard_rows=9, writable=True)
    IterableSource(samples).sink(store)
    chain = IterableSource(store).shuffle(10)
    plain = [
        default_collate([store.row(x) for x in numbers])
        for numbers in (chain.map(lambda s: int(s["s"])).batched(8, drop_last_if_not_full=False))
    ]
    for batches in (
        list(chain.batched(8, default_collate, False).run(epoch=0)),
        batches_of(chain.batched(8, default_collate, False)),
    ):
        assert len(batches) == len(plain) == 13
        for batch, expected in zip(batches, plain, strict=True):
            assert batch["x"].dtype == torch.int32
            assert torch.equal(batch["x"], expected["x"])
            assert torch.equal(batch["t"], expected["t"])
            assert batch["s"] == expected["s"]
            assert torch.equal(batch["p"][0], expected["p"][0])
            assert batch["p"][1] == expected["p"][1]
