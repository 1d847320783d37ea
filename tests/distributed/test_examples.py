"""The examples that train in several processes, as their users start them."""

import re

import pytest

from tests.support import ROOT, ended, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def torchrun(ranks, *arguments, restarts=0):
    """The output of the example."""
    script = ROOT / "examples/train_ddp.py"
    with started(script, *arguments, torchrun=ranks, restarts=restarts, PYTHONPATH=str(ROOT)) as process:
        return ended(process)[0]


def test_a_ddp_training_is_killed_and_goes_on_and_changes_its_size(tmp_path):
    folder = ("--folder", tmp_path / "run")
    out = torchrun(2, *folder, "--epochs", 2, "--kill-at", 65, restarts=1)
    begun = re.findall(r"2 processes go on (.*)", out)
    assert begun == ["from the beginning", "from position 480 of epoch 1"], out  # steps 46 to 60 of 32 samples
    assert out.splitlines()[-1] == "each of 1438 samples was trained on 2 times, by 2 processes at the end"
    accuracies = [float(found) for found in re.findall(r"accuracy: (.*)", out)]
    assert len(accuracies) == 2
    assert accuracies[-1] > 0.8
    out = torchrun(3, *folder, "--epochs", 3)
    assert "3 processes go on from position 1438 of epoch 1" in out
    assert out.splitlines()[-1] == "each of 1438 samples was trained on 3 times, by 3 processes at the end"
