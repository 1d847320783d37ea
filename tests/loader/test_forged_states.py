"""States that were damaged, or made up by somebody who knows how: refused with StateError, and the loader is as it was."""

import copy
import json
import pickle
import random

import pytest

from squirrel_torch import FingerprintMismatch, IterableSource, StateError, StreamLoader
from squirrel_torch.plan.state import seal, unseal

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def numbers():
    yield from range(60)


CHAINS = {
    "planned": lambda: IterableSource(range(60)).shuffle(20).batched(4),
    "streamed": lambda: IterableSource(range(60)).filter(lambda x: x % 3).shuffle(8).batched(4),
    "dealt": lambda: IterableSource(numbers).shuffle(8).map(lambda x: x).batched(4),
    "windows": lambda: IterableSource(range(60)).sliding(3, deepcopy=False).map(tuple).batched(4),
    "unordered": lambda: IterableSource(range(60)).async_map(lambda x: x, ordered=False, max_workers=1).batched(4),
}

NUMBERS = (-1, 0, 1, 3, 1 << 31, (1 << 62) + 1, -(1 << 63))
ODD = (None, True, False, *NUMBERS, "", "x", "0", "9" * 30, [], [[]], [None], [0, 0, 0], {}, {"a": 1})


def begun(name, steps=3):
    loader = StreamLoader(CHAINS[name]())
    batches = iter(loader)
    return loader, batches, [next(batches) for _ in range(steps)]


@pytest.fixture(scope="module")
def epochs():
    return {name: list(StreamLoader(CHAINS[name]())) for name in CHAINS}


@pytest.mark.parametrize("name", CHAINS)
def test_every_character_counts(name, epochs):
    loader, batches, had = begun(name)
    state = loader.state_dict()
    text, rng = json.dumps(state), random.Random(0)
    places, tried = range(len(text)) if len(text) < 2000 else rng.sample(range(len(text)), 2000), 0
    for at in places:
        for new in rng.sample('0123456789abcxyz "{}[]:,-', 2):
            try:
                damaged = json.loads(text[:at] + new + text[at + 1 :])
            except ValueError:
                continue
            if json.dumps(damaged) != text:
                tried += 1
                with pytest.raises(StateError):
                    loader.load_state_dict(damaged)
    assert tried > 200
    assert loader.state_dict() == state
    assert had + list(batches) == epochs[name]


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_no_state(name, epochs):
    loader, batches, had = begun(name)
    state = loader.state_dict()
    for other in (
        None,
        7,
        "state",
        [],
        [None],
        {},
        pickle.dumps(state),
        json.dumps(state),
        {**state, "more": "x" * 10_000_000},
        {**state, "x" * 20_000_000: 1},
        {**state, "epoch": 1 << 70},
        {**state, "epoch": 0.0},
        {**state, "epoch": b"0"},
        {**state, 1: 1},
        {**state, "squirrel_torch": 2},
        {**state, "squirrel_torch": "1"},
        {**state, "check": None},
        *({key: value for key, value in state.items() if key != left_out} for left_out in state),
    ):
        with pytest.raises(StateError):
            loader.load_state_dict(other)
    for other in CHAINS:
        if other != name:
            with pytest.raises(FingerprintMismatch):
                loader.load_state_dict(begun(other)[0].state_dict())
    assert loader.state_dict() == state
    assert had + list(batches) == epochs[name]


def places_in(value, path=()):
    """The paths of all that is inside of a nested value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*path, key)
        yield from places_in(part, (*path, key))


def with_other(value, path, new):
    """A copy in which something else is at `path`."""
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = with_other(value[path[0]], path[1:], new)
    return value


def at_path(value, path):
    for key in path:
        value = value[key]
    return value


def near(value):
    """What is almost the value."""
    if type(value) is int:
        return [value + 1, value - 1, value * 1000]
    if isinstance(value, list):
        return [value[:-1], [*value, 0], value + value, value[::-1]]
    if isinstance(value, dict):
        return [{name: one for name, one in value.items() if name != left_out} for left_out in value]
    return []


@pytest.mark.parametrize("name", CHAINS)
def test_forged_with_the_right_checksum(name, epochs):
    """A checksum is no seal: whoever changes a state can make it anew. What is loaded then may be another place, no more."""
    loader, batches, had = begun(name)
    state = loader.state_dict()
    content, rng, refused = unseal(state), random.Random(0), 0
    paths = [path for path in places_in(content) if path[0] not in ("chain", "data", "mode")]
    for path in paths if len(paths) < 25 else rng.sample(paths, 25):
        now = at_path(content, path)
        for new in (*ODD, *near(now)):
            if json.dumps(new) == json.dumps(now):
                continue
            forged = seal(with_other(content, path, new))
            try:
                other = StreamLoader(CHAINS[name]())
                other.load_state_dict(forged)
            except StateError:
                refused += 1
                with pytest.raises(StateError):
                    loader.load_state_dict(forged)
                continue
            try:
                assert sum(1 for _, _ in zip(range(60), other, strict=False)) <= 60
            except StateError:
                refused += 1
    assert refused > len(paths[:25]) * 5
    assert loader.state_dict() == state
    assert had + list(batches) == epochs[name]
