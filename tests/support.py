"""What several tests need: scripts in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_script(code: str, folder: Path, *arguments: str, timeout: float = 100, torchrun: int = 0, **environment: str) -> str:
    """Run `code` as a script in `folder`, under torchrun with that many ranks if asked; its standard output.

    A script that hangs fails the test, and takes its children with it.
    """
    script = folder / "script.py"
    script.write_text(code)
    launch = [sys.executable]
    if torchrun:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW", "TORCHELASTIC"))}
    process = subprocess.Popen(
        [*launch, str(script), *arguments],
        cwd=folder,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(f"the script hung for {timeout} s\n--- stdout\n{out}\n--- stderr\n{err}") from None
    assert process.returncode == 0, f"exit code {process.returncode}\n--- stdout\n{out}\n--- stderr\n{err}"
    return out


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
