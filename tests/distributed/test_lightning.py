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


@pytest.mark.parametrize(
    ("launcher", "chain", "workers", "epoch"), [("torchrun", "planned", 2, 1), ("lightning", "streamed", 0, 0)]
)
def test_a_killed_job_goes_on_where_its_checkpoint_was(launcher, chain, workers, epoch, tmp_path):
    said = {"chain": chain, "workers": workers}
    whole = [trained(lines) for lines in launched(launcher, tmp_path, name="whole", **said)]
    assert len({len(lines) for lines in whole}) == 1, "all ranks make the same steps"
    steps = len([1 for epoch, _, _ in whole[0] if epoch == 0])
    for each in range(2):
        given = [sample for rank in whole for at, _, ids in rank if at == each for sample in ids]
        assert len(set(given)) == len(given)
        assert set(given) <= set(CHAINS[chain]())
    (tmp_path / "checkpoints").rename(tmp_path / "checkpoints-whole")
    kill_at = epoch * steps + 5
    killed = [trained(lines) for lines in launched(launcher, tmp_path, name="killed", kill_at=kill_at, fails=True, **said)]
    assert [lines[:kill_at] for lines in killed] == [lines[:kill_at] for lines in whole]
    last = max((tmp_path / "checkpoints").glob("step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    at = int(last.stem.split("=")[1])
    assert kill_at - 3 <= at <= kill_at
    again = launched(launcher, tmp_path, name="resumed", resume=str(last), **said)
    assert [trained(lines) for lines in again] == [lines[at:] for lines in whole]


def test_on_another_number_of_processes(tmp_path):
    whole = launched("torchrun", tmp_path, name="whole", chain="planned")
    order = woven([trained(lines) for lines in whole], 0)
    assert order == list(CHAINS["planned"]().run(0))[: SAMPLES // 2 * 2]
    following = list(CHAINS["planned"]().run(1))
    for line in whole:
        evaluated = [line["evaluated"] for line in line if "evaluated" in line]
        assert len(evaluated) == 2 * 2, "a step of eight and one of three in each epoch"
    for epoch in range(2):
        every = [one for lines in whole for line in lines if line["epoch"] == epoch for one in line.get("evaluated", [])]
        assert sorted(every) == list(range(EVALUATED)), "each sample is evaluated once"
    checkpoint = str(tmp_path / "checkpoints" / "step=6.ckpt")
    lines = launched("torchrun", tmp_path, name="on-3", chain="planned", resume=checkpoint, devices=3)
    rest = woven([trained(of_rank) for of_rank in lines], 0)
    assert rest == list(CHAINS["planned"]().run(0))[48 : 48 + len(rest)]
    assert len(rest) == (SAMPLES - 48) // 3 * 3, "what no rank has more of than another"
    assert woven([trained(of_rank) for of_rank in lines], 1) == following[: SAMPLES // 3 * 3]
