"""A training with Lightning's Trainer on several processes, which keeps a ledger of what each of them was given.

Run by torchrun, or by itself: then Lightning starts the other processes.
"""

import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import lightning  # noqa: E402  # it warns while it is imported
import torch  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from squirrel_torch import IterableSource, StreamDataModule, unpadded  # noqa: E402

SAMPLES = 103
EVALUATED = 11

CHAINS = {
    "planned": lambda: IterableSource(range(SAMPLES)).shuffle(SAMPLES),
    "streamed": lambda: IterableSource(range(SAMPLES)).filter(lambda x: x % 4).shuffle(20),
}


class Model(lightning.LightningModule):
    """Writes what it is given before it learns from it; one rank may be killed at some step."""

    def __init__(self, ledger, kill_at):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self._ledger, self._kill_at = ledger, kill_at

    def _write(self, **line):
        with Path(f"{self._ledger}-{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def training_step(self, batch, batch_idx):
        self._write(epoch=self.current_epoch, batch=batch_idx, ids=batch.tolist())
        if self.trainer.fit_loop.total_batch_idx == self._kill_at and self.global_rank == self.trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(batch[:, None].float() / SAMPLES).square().mean()

    def validation_step(self, batch, batch_idx):
        # A collective in each step: ranks with different numbers of steps would wait for each other.
        self.log("one", 1.0, sync_dist=True, batch_size=1, on_step=True)
        self._write(epoch=self.current_epoch, evaluated=unpadded(batch).tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def main():
    """`lightning_job.py {"folder": ..., "name": ..., "chain": ..., "kill_at": ..., "resume": ..., "devices": ...}`."""
    said = json.loads(sys.argv[1])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    folder = Path(said["folder"])
    data = StreamDataModule(
        CHAINS[said["chain"]](),
        IterableSource(range(EVALUATED)),
        batch_size=4,
        num_workers=said.get("workers", 0),
    )
    checkpoints = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=3, save_top_k=-1, save_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=said["devices"],
        strategy="ddp" if said["devices"] > 1 else "auto",
        max_epochs=2,
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = Model(folder / said["name"], said.get("kill_at"))
    trainer.fit(model, data, ckpt_path=said.get("resume"), weights_only=True if said.get("resume") else None)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # as in trainer.py: a process that ends in Python's way may abort


if __name__ == "__main__":
    main()
