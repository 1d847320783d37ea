"""Lightning's Trainer on several processes, however they are started, and killed."""

import json

import pytest

from tests.distributed.lightning_job import CHAINS, EVALUATED, SAMPLES
from tests.support import ROOT, ended, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

JOB = ROOT / "tests/distributed/lightning_job.py"


def launched(launcher, folder, *, fails=False, **said):
    """Run the job; the lines that each rank wrote."""
    said = {"folder": str(folder), "devices": 2, **said}
    ranks = said["devices"] if launcher == "torchrun" else 0
    with started(JOB, json.dumps(said), torchrun=ranks, cwd=folder, PYTHONPATH=str(ROOT)) as process:
        ended(process, fails=fails)
    paths = [folder / f"{said['name']}-{rank}.jsonl" for rank in range(said["devices"])]
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def trained(lines):
    return [(line["epoch"], line["batch"], line["ids"]) for line in lines if "ids" in line]


def woven(ranks, epoch):
    """The samples of an epoch in the order of their positions, of which each rank has every n-th one."""
    steps = zip(*[[ids for at, _, ids in rank if at == epoch] for rank in ranks], strict=True)
    return [sample for step in steps for some in zip(*step, strict=True) for sample in some]


def goes_on(launcher, chain, workers, kill_at_epoch, folder):
    """Run the job, run it again and kill it, go on from its checkpoint; what the ranks of the first wrote."""
    said = {"chain": chain, "workers": workers}
    lines = launched(launcher, folder, name="whole", **said)
    whole = [trained(of_rank) for of_rank in lines]
    assert len({len(of_rank) for of_rank in whole}) == 1, "all ranks make the same steps"
    steps = len([1 for epoch, _, _ in whole[0] if epoch == 0])
    for each in range(2):
        given = [sample for rank in whole for at, _, ids in rank if at == each for sample in ids]
        assert len(set(given)) == len(given)
        assert set(given) <= set(CHAINS[chain]())
    (folder / "checkpoints").rename(folder / "checkpoints-whole")
    kill_at = kill_at_epoch * steps + 5
    killed = [trained(of_rank) for of_rank in launched(launcher, folder, name="killed", kill_at=kill_at, fails=True, **said)]
    assert [of_rank[:kill_at] for of_rank in killed] == [of_rank[:kill_at] for of_rank in whole]
    last = max((folder / "checkpoints").glob("step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    at = int(last.stem.split("=")[1])
    assert kill_at - 3 <= at <= kill_at
    again = launched(launcher, folder, name="resumed", resume=str(last), **said)
    assert [trained(of_rank) for of_rank in again] == [of_rank[at:] for of_rank in whole]
    return lines


def test_a_killed_job_of_lightning_goes_on(tmp_path):
    goes_on("lightning", "streamed", 0, 0, tmp_path)


def test_a_killed_job_of_torchrun_goes_on_and_one_on_another_number_of_processes(tmp_path):
    whole = goes_on("torchrun", "planned", 2, 1, tmp_path)
    assert woven([trained(lines) for lines in whole], 0) == list(CHAINS["planned"]().run(0))[: SAMPLES // 2 * 2]
    for lines in whole:
        evaluated = [line["evaluated"] for line in lines if "evaluated" in line]
        assert len(evaluated) == 2 * 2, "a step of eight and one of three in each epoch"
    for epoch in range(2):
        every = [one for lines in whole for line in lines if line["epoch"] == epoch for one in line.get("evaluated", [])]
        assert sorted(every) == list(range(EVALUATED)), "each sample is evaluated once"
    checkpoint = str(tmp_path / "checkpoints-whole" / "step=6.ckpt")
    lines = launched("torchrun", tmp_path, name="on-3", chain="planned", resume=checkpoint, devices=3)
    rest = woven([trained(of_rank) for of_rank in lines], 0)
    assert rest == list(CHAINS["planned"]().run(0))[48 : 48 + len(rest)]
    assert len(rest) == (SAMPLES - 48) // 3 * 3, "what no rank has more of than another"
    assert woven([trained(of_rank) for of_rank in lines], 1) == list(CHAINS["planned"]().run(1))[: SAMPLES // 3 * 3]
