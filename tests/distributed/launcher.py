"""Launch a training job, kill it somewhere, launch it again on other ranks and workers, and so on: what a cluster does to it.

Ranks are forks of this process, which has imported torch already: a launch takes a fraction of a second instead of several.
They are processes with a process group, workers, and a death of their own all the same.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # what DistributedDataParallel would import in each rank
import torch.distributed as dist

from tests.distributed.trainer import Options, prepare, train
from tests.support import children

_PATIENCE = 60.0


class Rank:
    """One process of a job."""

    def __init__(self, folder, generation, rank, ranks):
        self.name = f"{generation:04d}-{rank}"
        self.code = None
        self._log = folder / "logs" / self.name
        self.pid = os.fork()
        if not self.pid:
            os._exit(_be_rank(folder, self._log, generation, rank, ranks))

    def poll(self):
        """Its exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self):
        """End it, as the kernel does when memory is short."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def workers(self):
        """The processes that it has started, which make its batches."""
        return [pid for pid in children(self.pid) if "resource_tracker" not in _command(pid)]

    def log(self):
        """What it printed."""
        return self._log.read_text(errors="replace")


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid):
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def _be_rank(folder, log, generation, rank, ranks):
    """The exit code of a rank, whose traceback goes into its log."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{generation}", rank=rank, world_size=ranks)
        train(folder)
        dist.destroy_process_group()
    except Exception:  # noqa: BLE001  # it is the main function of a process
        traceback.print_exc()
        return 1
    return 0


def until(condition, what):
    """Wait for it."""
    end = time.monotonic() + _PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {_PATIENCE} s for {what}")
        time.sleep(0.001)
    return found


class Launcher:
    """A job and what befalls it.

    Args:
        folder: Its own.
        chain: Which one.
        tails: Those that are taken, one in each launch.
        seed: Of all that is drawn.
    """

    def __init__(self, folder, chain, tails, seed):
        self._folder, self._chain, self._tails = folder, chain, tails
        self._rng = random.Random(seed)
        self._generation = 0
        self.killed = {"rank": 0, "worker": 0, "all": 0}

    def _launched(self, epochs):
        rng = self._rng
        method = rng.choice(["fork"] * 11 + ["spawn"])
        options = Options(
            generation=self._generation,
            chain=self._chain,
            tail=rng.choice(self._tails),
            batch=rng.randint(2, 5),
            workers=rng.choice([0, 1, 2, 2, 3]),
            method=method,
            persistent=method == "spawn" or rng.random() < 0.5,  # seconds for each worker
            every=rng.randint(1, 5),
            epochs=epochs,
        )
        options.write(self._folder)
        ranks = rng.choice([1, 2, 2, 3])
        self._generation += 1
        return [Rank(self._folder, options.generation, rank, ranks) for rank in range(ranks)]

    def run_and_kill(self):
        """One launch, ended by a kill somewhere."""
        ranks = self._launched(10**9)
        try:
            self._wait_for_lines(ranks, self._rng.choice([0, *range(1, 50)]))
            time.sleep(self._rng.random() * 0.01)  # anywhere within a step
            self._kill(ranks)
        finally:
            # As torchrun does when one of its processes has failed.
            workers = [pid for rank in ranks for pid in rank.workers()]
            for rank in ranks:
                rank.kill()
        until(lambda: not any(map(alive, workers)), "the workers to end with their ranks")

    def _wait_for_lines(self, ranks, count):
        prefix = ranks[0].name.split("-")[0]

        def enough():
            for rank in ranks:
                if rank.poll() is not None:
                    raise AssertionError(f"rank {rank.name} ended by itself, with {rank.code}:\n{rank.log()}")
            return sum(path.read_bytes().count(b"\n") for path in (self._folder / "ledger").glob(f"{prefix}-*")) >= count

        until(enough, f"{count} lines in the ledger")

    def _kill(self, ranks):
        kind = self._rng.choice(["rank", "rank", "worker", "worker", "all"])
        victim = self._rng.choice(ranks)
        workers = victim.workers()
        if kind == "worker" and workers:
            pid = self._rng.choice(workers)
            os.kill(pid, signal.SIGKILL)
            if self._fell(victim, pid):
                self.killed["worker"] += 1
                return
            kind = "rank"
        victims = ranks if kind == "all" else [victim]
        for rank in victims:
            os.kill(rank.pid, signal.SIGKILL)
        if victims[0].kill() != -signal.SIGKILL:  # the others may have fallen with it
            raise AssertionError(f"rank {victims[0].name} had ended by itself:\n{victims[0].log()}")
        self.killed[kind] += 1

    def _fell(self, victim, pid):
        """Whether the rank ended because of its worker; one whose work was done already is missed by nobody."""
        path = self._folder / "ledger" / f"{victim.name}.jsonl"

        def passes():
            return path.read_bytes().count(b'"after"') if path.exists() else 0

        at_first = passes()
        until(lambda: victim.poll() is not None or passes() > at_first + 1, "a rank to miss its worker")
        if victim.code is None:
            return False
        log = victim.log()
        if "WorkerDiedError" not in log or f"(pid {pid}) died: signal SIGKILL" not in log:
            raise AssertionError(f"rank {victim.name} did not say that worker {pid} was killed:\n{log}")
        return True

    def run_to_the_end(self):
        """One launch that is left alone: the rest of the epoch, and one more. How many epochs there were."""
        checkpoint = self._folder / "checkpoint.pt"
        epochs = 2 + (torch.load(checkpoint, weights_only=True)["epoch"] if checkpoint.exists() else 0)
        epochs += epochs % 2  # an odd epoch saves at its end: the model's last weights are there
        ranks = self._launched(epochs)
        try:
            until(lambda: all(rank.poll() is not None for rank in ranks), "the job to end")
        finally:
            for rank in ranks:
                rank.kill()
        for rank in ranks:
            if rank.code:
                raise AssertionError(f"rank {rank.name} failed with {rank.code}:\n{rank.log()}")
        return epochs


def main():
    """`launcher.py FOLDER CHAIN TAILS SEED KILLS`; prints what was done."""
    folder, chain, tails, seed, kills = Path(sys.argv[1]), *sys.argv[2:]
    for name in ("ledger", "logs"):
        (folder / name).mkdir()
    torch.set_num_threads(1)
    prepare(folder)
    launcher = Launcher(folder, chain, tails.split(), int(seed))
    for _ in range(int(kills)):
        launcher.run_and_kill()
    epochs = launcher.run_to_the_end()
    print(json.dumps({"epochs": epochs, **launcher.killed}))


if __name__ == "__main__":
    main()
