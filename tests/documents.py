"""Runs scripts in forks of a process that has imported what they need: paths come in, a line each, and exit codes go out.

To import torch takes longer than most documents; so does Lightning, and what the first optimizer of torch imports.
"""

import atexit
import os
import runpy
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np  # noqa: F401
import torch

import squirrel_torch  # noqa: F401

with warnings.catch_warnings(), suppress(ImportError):
    warnings.simplefilter("ignore")
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    import lightning  # noqa: F401


def run(path: str) -> int:
    """The exit code of a script that runs in its folder; what it writes goes to `output.txt` there."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    folder = str(Path(path).parent)
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv, sys.stdin, sys.path[0] = [path], None, folder
    code = 0
    try:
        runpy.run_path(path, run_name="__main__")
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # to take torch apart would take a second


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(run(line.rstrip("\n")), flush=True)
