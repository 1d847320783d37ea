"""What a job that was killed again and again has trained on: read from its ledger, and compared with the plan."""

import json
from collections import defaultdict
from dataclasses import dataclass, field

import torch

from tests.distributed.trainer import chain_of


@dataclass
class Launch:
    """What the ranks of one launch wrote.

    Args:
        begins: The step from which it went on.
        ranks: How many there were.
        steps: For each step, what each rank was given that was given something: {rank: (epoch, ids)}.
        dropped: For each epoch, how many samples no rank was to get.
    """

    begins: int
    ranks: int
    steps: dict = field(default_factory=lambda: defaultdict(dict))
    dropped: dict = field(default_factory=dict)


def launches_of(folder):
    """The launches that came to write something, in their order.

    A launch may be killed when only some ranks have begun.
    """
    found = defaultdict(list)
    for path in sorted((folder / "ledger").iterdir()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if lines:
            found[path.name.split("-")[0]].append(lines)
    return [_launch(found[name]) for name in sorted(found)]


def _launch(files):
    head = files[0][0]
    launch = Launch(head["begins"], head["ranks"])
    for own, *lines in files:
        assert (own["begins"], own["ranks"]) == (launch.begins, launch.ranks), "all ranks load the same checkpoint"
        for line in lines:
            if "step" in line:
                assert own["rank"] not in launch.steps[line["step"]]
                launch.steps[line["step"]][own["rank"]] = line["epoch"], line["ids"]
            else:
                assert launch.dropped.setdefault(line["epoch"], line["dropped"]) == line["dropped"]
    return launch


@dataclass
class Kept:
    """What counts: of each launch, the steps up to the checkpoint from which the next one went on.

    Args:
        steps: (epoch, ranks, {rank: ids}) of all steps, in their order.
        cut: How many steps were cut off, which a rank had been given something of.
        dropped: For each epoch, how many samples no rank was to get, as the last launch that was in it said.
    """

    steps: list
    cut: int
    dropped: dict


def kept_of(launches):
    """Cut off what came after the last checkpoint, as the model was set back too."""
    steps, cut, dropped = [], 0, {}
    for launch, following in zip(launches, [*launches[1:], None], strict=True):
        last = max(launch.steps, default=launch.begins) if following is None else following.begins
        for step in range(launch.begins + 1, last + 1):
            given = launch.steps[step]
            (epoch,) = {epoch for epoch, _ in given.values()}
            steps.append((epoch, launch.ranks, {rank: ids for rank, (_, ids) in given.items()}))
        cut += sum(step > last for step in launch.steps)
        dropped.update(launch.dropped)
    return Kept(steps, cut, dropped)


def in_order(steps):
    """The ids of the steps of one epoch, by position: each rank has every ranks-th one, of those that are not given yet."""
    ids = []
    for _, ranks, given in steps:
        start, placed = len(ids), {}
        for rank, own in given.items():
            first = start + (rank - start) % ranks
            for place, number in enumerate(own):
                placed[first + place * ranks] = number
        assert sorted(placed) == list(range(start, start + len(placed))), f"positions are missing in a step at {start}"
        ids += [placed[position] for position in sorted(placed)]
    return ids


def check(folder, chain, epochs, *, ordered):
    """Compare with the plain runs of the chain.

    Args:
        folder: Of the job.
        chain: Its name.
        epochs: How many it was to do.
        ordered: Whether the order is that of the plain run; if not, only what came is compared, with how often it came.

    Returns:
        What counted.
    """
    kept = kept_of(launches_of(folder))
    assert [epoch for epoch, _, _ in kept.steps] == sorted(epoch for epoch, _, _ in kept.steps)
    everything = []
    for epoch in range(epochs):
        expected = list(chain_of(chain, folder).run(epoch=epoch))
        dropped = kept.dropped[epoch]
        expected = expected[: len(expected) - dropped]
        steps = [step for step in kept.steps if step[0] == epoch]
        if ordered:
            assert in_order(steps) == expected, f"epoch {epoch}"
        else:
            assert sorted(number for _, _, given in steps for own in given.values() for number in own) == sorted(expected)
        everything += expected
    assert {epoch for epoch, _, _ in kept.steps} == set(range(epochs))
    _check_model(folder, everything)
    return kept


def _check_model(folder, ids):
    """The model has learnt from each sample that counts, once: its weights are sums over them."""
    (weights,) = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]["weight"].round().tolist()
    assert weights == [len(ids), sum(ids), sum(number**2 for number in ids)]
