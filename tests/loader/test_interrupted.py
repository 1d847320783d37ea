"""Loaders whose workers are killed, or whose training is interrupted: an error says so, and the state is still good."""

import gc
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from squirrel_torch import IterableSource, StreamLoader, WorkerDiedError
from tests.loader.test_workers import alive, within
from tests.support import ROOT


def numbers():
    yield from range(211)


CHAINS = {
    "planned": lambda: IterableSource(range(211)).shuffle(30).batched(4, drop_last_if_not_full=False),
    "dealt": lambda: IterableSource(numbers).map(lambda x: x).batched(4, drop_last_if_not_full=False),
    "streamed": lambda: IterableSource(range(301)).filter(lambda x: x % 3).shuffle(30).batched(4),
}


def pids_of(loader):
    """The processes of its workers."""
    return loader._pass()._hands.pids


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_a_worker_is_killed(name, persistent):
    expected = list(StreamLoader(CHAINS[name](), tail="exact"))
    for victim in (0, 1):
        loader = StreamLoader(CHAINS[name](), num_workers=2, tail="exact", persistent_workers=persistent)
        batches = iter(loader)
        had = [next(batches) for _ in range(5)]
        pids = pids_of(loader)
        os.kill(pids[victim], signal.SIGKILL)
        assert within(20, lambda pid=pids[victim]: not alive(pid))
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(WorkerDiedError, match=rf"worker {victim} of 2 \(pid {pids[victim]}\) died: signal SIGKILL"):
                had += iter(lambda batches=batches: next(batches), None)
        assert time.monotonic() - began < 5
        assert had == expected[: len(had)]
        assert len(had) < len(expected)
        # In another loader, and in the same one.
        again = StreamLoader(CHAINS[name](), num_workers=1, tail="exact")
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert had + list(again) == expected
        loader.load_state_dict(loader.state_dict())
        assert had + list(loader) == expected
        del loader, batches, again
        gc.collect()  # an error that was raised knows who raised it: workers that are kept stay until that is collected


INTERRUPTED = """
import json, sys
from squirrel_torch import IterableSource, StreamLoader

def chain():
    return IterableSource(range(100_000)).shuffle(1000).batched(4)

if __name__ == "__main__":
    loader = StreamLoader(chain(), num_workers=2, multiprocessing_context=sys.argv[1])
    had = []
    try:
        for batch in loader:
            had.append(batch)
            if len(had) == 20:
                print("begun", flush=True)
    except KeyboardInterrupt:
        print(json.dumps([loader.state_dict(), had]), flush=True)
        raise
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ctrl_c_leaves_a_state_and_nothing_else(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    with subprocess.Popen(
        [sys.executable, str(script), method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout.readline() == "begun\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all processes
        out, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT, errors
    assert errors.count("Traceback") == 1, errors
    assert within(5, lambda: not _group(process.pid))
    state, had = json.loads(out)
    chain = IterableSource(range(100_000)).shuffle(1000).batched(4)
    order = list(chain.run(epoch=0))
    # A batch that was given when the interrupt came counts as given: at most that one is not in the list of the script.
    given = state["position"] // 4
    assert had == order[: len(had)]
    assert given in (len(had), len(had) + 1)
    again = StreamLoader(chain)
    again.load_state_dict(state)
    assert list(again) == order[given:]


def _group(leader):
    """Whether a process of this group is alive."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True
