"""What every test may rely on: nothing is left behind, and nothing is shared with the test before."""

import gc
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Few examples and no deadline: the machines are shared. More with HYPOTHESIS_PROFILE=thorough.
settings.register_profile("default", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_PATIENCE = 5.0
# Threads and processes that libraries start once and keep by design.
_KEPT = ("pytest_timeout", "asyncio_", "Dask-", "IO loop", "Profile", "wandb", "ThreadPoolExecutor-dask", "fsspecIO", "mlflow")


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or a process."""
    if "keeps_threads" in request.keywords:
        yield
        return
    threads, processes = set(threading.enumerate()), set(multiprocessing.active_children())
    yield
    deadline = time.monotonic() + _PATIENCE
    while left := [thread for thread in set(threading.enumerate()) - threads if not _kept(thread)] + list(
        set(multiprocessing.active_children()) - processes
    ):
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {left}")
        gc.collect()  # an error that was caught may hold a pass, and that its thread, in a cycle
        time.sleep(0.01)


def _kept(thread: threading.Thread) -> bool:
    return thread.name.startswith(_KEPT) or type(thread).__name__ == "TMonitor"  # tqdm's, one for all bars


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run outside of any job, whatever started them."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def quiet_loggers() -> Iterator[None]:
    """Loggers as they were."""
    level = logging.getLogger("squirrel_torch").level
    yield
    logging.getLogger("squirrel_torch").setLevel(level)
