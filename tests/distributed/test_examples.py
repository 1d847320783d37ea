"""The examples that train in several processes, as their users start them."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def torchrun(ranks, script, *arguments, restarts=0):
    """Its output; a job that hangs fails the test."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    process = subprocess.Popen(
        [*command, "--max-restarts", str(restarts), str(ROOT / "examples" / script), *map(str, arguments)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise AssertionError(f"it hung:\n{process.communicate()[0]}") from None
    assert process.returncode == 0, out
    return out


def test_a_ddp_training_is_killed_and_goes_on_and_changes_its_size(tmp_path):
    folder = ("--folder", tmp_path / "run")
    out = torchrun(2, "train_ddp.py", *folder, "--epochs", 2, "--kill-at", 65, restarts=1)
    begun = re.findall(r"2 processes go on (.*)", out)
    assert begun == ["from the beginning", "from position 480 of epoch 1"], out  # steps 46 to 60 of 32 samples
    assert out.splitlines()[-1] == "each of 1438 samples was trained on 2 times, by 2 processes at the end"
    accuracies = [float(found) for found in re.findall(r"accuracy: (.*)", out)]
    assert len(accuracies) == 2
    assert accuracies[-1] > 0.8
    out = torchrun(3, "train_ddp.py", *folder, "--epochs", 3)
    assert "3 processes go on from position 1438 of epoch 1" in out
    assert out.splitlines()[-1] == "each of 1438 samples was trained on 3 times, by 3 processes at the end"
