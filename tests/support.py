"""What several tests need: scripts in processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PYARROW = int(version("pyarrow").partition(".")[0])


@contextmanager
def started(
    script: Path | str, *arguments: object, torchrun: int = 0, restarts: int = 0, cwd: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A script that runs, under torchrun with that many ranks if asked. At the end nothing is left of it."""
    launch = [sys.executable]
    if torchrun:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)]
        launch += ["--max-restarts", str(restarts)]
    if restarts:
        # Torchrun's store keeps the addresses of ranks that have ended, which those that are started again would call.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW", "TORCHELASTIC"))}
    process = subprocess.Popen(
        [*launch, str(script), *map(str, arguments)],
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_all(process.pid)
        process.communicate()


def ended(process: subprocess.Popen[str], timeout: float = 100, fails: bool = False) -> tuple[str, str]:
    """Wait for a script: its standard output, and its errors. It fails the test if it hangs, or does not end as expected."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_all(process.pid)
        out, err = process.communicate()
        raise AssertionError(f"the script hung for {timeout} s\n--- stdout\n{out}\n--- stderr\n{err}") from None
    told = f"exit code {process.returncode}\n--- stdout\n{out}\n--- stderr\n{err}"
    assert (process.returncode != 0) == fails, told
    return out, err


def run_script(code: str, folder: Path, *arguments: str, timeout: float = 100, torchrun: int = 0, **environment: str) -> str:
    """Run `code` as a script in `folder`, under torchrun with that many ranks if asked; its standard output."""
    script = folder / "script.py"
    script.write_text(code)
    with started(script, *arguments, torchrun=torchrun, cwd=folder, **environment) as process:
        return ended(process, timeout)[0]


def children(pid: int) -> list[int]:
    """The pids of the children of a process."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def kill_all(pid: int) -> None:
    """Kill a process, and then its children with theirs: those of torchrun have sessions of their own."""
    left = children(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in left:
        kill_all(child)


def error_of(loader: Iterable[object]) -> Exception:
    """What a DataLoader raises; its workers are gone afterwards, which the traceback of the error would keep."""
    iterator = iter(loader)
    try:
        for _ in iterator:
            pass
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the test asks for
        getattr(iterator, "_shutdown_workers", lambda: None)()
        return error.with_traceback(None)
    raise AssertionError("the loader raised nothing")


def wandb_records(path: Path) -> Iterator[Any]:
    """What an offline run has written: records of protobuf in a log of LevelDB's format (github.com/google/leveldb)."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of it, or its end
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record
