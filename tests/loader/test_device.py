"""Batches on their way to a device, as far as there is no CUDA: what is moved, and what is left as it is."""

from collections import namedtuple

import pytest
import torch

from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.loader.device import moved, on_device

Pair = namedtuple("Pair", "x name")


def test_tensors_are_found_wherever_they_are():
    batch = {
        "a": torch.ones(2),
        "list": [torch.ones(1), "text", None],
        "tuple": (torch.ones(1), 3),
        "named": Pair(torch.ones(3), "name"),
        "deep": {"er": [{"x": (torch.zeros(1),)}]},
    }
    kept = str(batch)
    doubled = moved(batch, lambda tensor: tensor * 2 + 1)
    assert str(batch) == kept, "a batch that was given is not changed"
    assert doubled["a"].tolist() == [3, 3]
    assert (doubled["list"][0].tolist(), doubled["list"][1:]) == ([3], ["text", None])
    assert (type(doubled["tuple"]), doubled["tuple"][0].tolist(), doubled["tuple"][1]) == (tuple, [3], 3)
    assert (type(doubled["named"]), doubled["named"].x.tolist(), doubled["named"].name) == (Pair, [3, 3, 3], "name")
    assert doubled["deep"]["er"][0]["x"][0].tolist() == [1]
    other = object()
    assert moved(other, lambda tensor: tensor * 2) is other


def test_on_a_cpu_it_is_the_same_iterator():
    batches = iter([(0, torch.ones(1))])
    assert on_device(batches, torch.device("cpu"), pin_memory=False) is batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_states_tell_of_batches_that_were_given(device, workers):
    chain = IterableSource(torch.arange(23)).shuffle(9).batched(4, torch.stack, drop_last_if_not_full=False)
    plain, loader = StreamLoader(chain), StreamLoader(chain, num_workers=workers, device=device, pin_memory=False)
    batches = iter(loader)
    for expected in plain:
        batch = next(batches)
        assert (batch.device.type, batch.shape) == (device, expected.shape)
        assert device == "meta" or torch.equal(batch, expected)
        assert loader.state_dict() == plain.state_dict()
    assert next(batches, None) is None
