"""Jobs whose ranks and workers are killed, and that go on with others: each sample once per epoch, in the planned order."""

import json
import os
import re
import signal

import pytest

from tests.distributed.launcher import until
from tests.distributed.ledger import check, launches_of
from tests.distributed.trainer import Options, prepare
from tests.support import ROOT, children, ended, run_script, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LAUNCHER = "from tests.distributed.launcher import main\n\nif __name__ == '__main__':\n    main()\n"

KILLS = 6
"""In each of the jobs below: more than 50 in all."""

JOBS = {
    "shards": "exact drop pad",
    "list": "exact drop pad",
    "loop": "exact",
    "mix": "drop pad",
    "generator": "exact",
    "cut": "exact",
    "filter": "exact",
    "flat map": "exact",
}
UNORDERED = ("filter", "flat map")
"""Chains that are dealt to streams: how these interleave depends on the ranks."""


def launched(folder, chain, tails, seed, kills):
    """Run a job with that many kills; what its launcher counted."""
    out = run_script(LAUNCHER, folder, str(folder), chain, tails, str(seed), str(kills), timeout=200, PYTHONPATH=str(ROOT))
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize(("chain", "seed"), [*((chain, number) for number, chain in enumerate(JOBS)), ("shards", 100)])
def test_each_sample_counts_once_whatever_is_killed(chain, seed, tmp_path):
    said = launched(tmp_path, chain, JOBS[chain], seed, KILLS)
    assert said["rank"] + said["worker"] + said["all"] == KILLS
    check(tmp_path, chain, said["epochs"], ordered=chain not in UNORDERED)


def test_what_is_wrong_in_a_ledger_is_noticed(tmp_path):
    (tmp_path / "job").mkdir()
    said = launched(tmp_path / "job", "shards", "exact", 7, 2)
    check(tmp_path / "job", "shards", said["epochs"], ordered=True)
    last = max((tmp_path / "job" / "ledger").glob("*-0.jsonl"))
    lines = last.read_text().splitlines()
    at = next(place for place, line in enumerate(lines) if "ids" in line)
    told = json.loads(lines[at])
    first, *others = told["ids"]
    for ids in (others, [*others, first], [first, first, *others], [first + 1, *others]):
        last.write_text("\n".join([*lines[:at], json.dumps({**told, "ids": ids}), *lines[at + 1 :]]))
        with pytest.raises(AssertionError):
            check(tmp_path / "job", "shards", said["epochs"], ordered=True)
        if len(set(ids)) != len(ids) or sorted(ids) != sorted(told["ids"]):
            with pytest.raises(AssertionError):
                check(tmp_path / "job", "shards", said["epochs"], ordered=False)


def ranks_of(folder, generation, count, lines):
    """The pids of the ranks of a launch, when all of them have written that many lines."""
    paths = [folder / "ledger" / f"{generation:04d}-{rank}.jsonl" for rank in range(count)]
    until(lambda: all(path.exists() and path.read_bytes().count(b"\n") > lines for path in paths), f"launch {generation}")
    return [json.loads(path.read_text().splitlines()[0])["pid"] for path in paths]


def test_torchrun_starts_the_job_again_until_it_gives_up(tmp_path):
    (tmp_path / "ledger").mkdir()
    prepare(tmp_path)
    options = Options(0, "shards", "drop", batch=3, workers=2, method="fork", persistent=True, every=4)
    options.write(tmp_path)
    script, path = ROOT / "tests/distributed/trainer.py", {"PYTHONPATH": str(ROOT)}
    with started(script, tmp_path, torchrun=2, restarts=1, **path) as process:
        pids = ranks_of(tmp_path, 0, 2, 9)
        (victim, *_) = children(pids[1])
        os.kill(victim, signal.SIGKILL)  # a worker of rank 1
        pids = ranks_of(tmp_path, 1, 2, 30)
        os.kill(pids[0], signal.SIGKILL)
        _, err = ended(process, fails=True)
    assert re.search(rf"worker \d of 2 \(pid {victim}\) died: signal SIGKILL", err), err
    Options(2, "shards", "exact", batch=5, workers=1, method="fork", persistent=False, every=3, epochs=2).write(tmp_path)
    with started(script, tmp_path, torchrun=3, **path) as process:
        ended(process)
    assert [launch.ranks for launch in launches_of(tmp_path)] == [2, 2, 3]
    check(tmp_path, "shards", 2, ordered=True)
