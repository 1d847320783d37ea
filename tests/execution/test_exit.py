"""The end of a process with a stream alive in it: prompt, and nothing that was queued is run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import run_script

STREAM = """
import atexit, sys, time
from squirrel_torch import IterableSource

started = []

def slow(x):
    started.append(x)
    time.sleep(0.1 if x else 0)
    return x

def stream():
    return iter(IterableSource(range(100)).async_map(slow, buffer=100, max_workers=2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alive", "held by a global", "an exception", "sys.exit"])
def test_interpreter_exit(how, tmp_path):
    ends = {
        "alive": "run = stream(); next(run)",
        "held by a global": "import builtins; builtins.kept = run = stream(); next(run)",
        "an exception": "run = stream(); next(run)\ntry:\n    raise ValueError\nexcept ValueError:\n    pass",
        "sys.exit": "run = stream(); next(run); sys.exit(0)",
    }
    code = f"{STREAM}\natexit.register(lambda: print(len(started), flush=True))\n{ends[how]}\n"
    start = time.perf_counter()
    out = run_script(code, tmp_path, timeout=60)
    # All hundred callbacks would take five seconds, and importing torch about two.
    assert int(out) < 20
    assert time.perf_counter() - start < 30


@pytest.mark.slow
def test_interrupt(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"""{STREAM}
import threading
run = stream()
first = next(run)
try:
    print(first, flush=True)
    list(run)
except KeyboardInterrupt:
    print("interrupted", len(started) < 90, [t.name for t in threading.enumerate() if t is not threading.main_thread()])
"""
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        os.kill(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert out == "interrupted True []\n"
    assert process.returncode == 0
