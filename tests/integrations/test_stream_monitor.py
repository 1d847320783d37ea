"""How long a training waits for its data: counted by the loader, logged by a callback of Lightning."""

import csv
import logging
import time
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from squirrel_torch import IterableSource, Padded, PipelineError, StreamDataModule, StreamLoader
from squirrel_torch.integrations.lightning import StreamMonitor
from squirrel_torch.integrations.lightning.monitor import samples_of
from squirrel_torch.loader import Waited

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Lightning's own imports
    import lightning
    from lightning.pytorch.loggers import CSVLogger

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:lightning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


made = []


def slowly(item):
    begin = time.monotonic()
    busy(0.002)
    made.append((begin, time.monotonic()))
    return torch.full((3,), float(item))


class TestWaited:
    def test_before_the_first_pass(self):
        loader = StreamLoader(IterableSource(range(4)).batched(2))
        assert loader.waited == Waited(0, 0, 0, 0)
        assert loader.waited.share == 0

    @pytest.mark.parametrize("workers", [0, 1])
    def test_all_the_time_of_a_pass_is_in_it(self, workers):
        # Nobody else takes the time of this thread.
        quiet = {"num_workers": workers, "observe": False, "report_after": 0}
        loader = StreamLoader(IterableSource(range(40)).map(slowly).batched(4), **quiet)
        iterator = iter(loader)
        begin, waiting = time.monotonic(), 0.0
        for number in range(10):
            asked = time.monotonic()
            next(iterator)
            waiting += time.monotonic() - asked
            busy(0.01)
            waited = loader.waited
            assert waited.batches == number + 1
        seconds = time.monotonic() - begin
        # A busy machine may stop this thread between two clocks.
        assert waited.waiting == pytest.approx(waiting, rel=0.03, abs=0.01)
        assert waited.waiting + waited.working == pytest.approx(seconds, rel=0.03, abs=0.01)
        assert waited.share == pytest.approx(waiting / seconds, rel=0.03, abs=0.04)
        asked = time.monotonic()
        assert next(iterator, None) is None
        end = time.monotonic() - asked
        over = loader.waited
        assert waiting - 0.01 <= over.waiting <= waiting + end + 0.01
        busy(0.02)
        assert loader.waited == over, "the clock stands still behind the end"

    def test_each_pass_by_itself(self):
        loader = StreamLoader(IterableSource(range(6)).batched(2))
        first = [loader.waited for _ in loader][-1]
        assert loader.waited.since == first.since
        iterator = iter(loader)
        next(iterator)
        second = loader.waited
        assert second.batches == 1
        assert second.since > first.since
        iterator.close()
        assert loader.waited.batches == 1


class Model(lightning.LightningModule):
    """Notes how long its training took."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.stamps = []

    def training_step(self, batch, batch_idx):
        self.stamps.append(time.monotonic())
        busy(0.01)
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        busy(0.05)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def trained(folder, data, monitor, **arguments):
    """The lines that were logged, each (step, loss or None, share or None, batches/s, samples/s)."""
    model = Model()
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[monitor],
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **arguments,
    )
    if isinstance(data, StreamDataModule):
        trainer.fit(model, datamodule=data)
    else:
        trainer.fit(model, data)
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open(newline="") as file:
        lines = [{name: value for name, value in line.items() if value} for line in csv.DictReader(file)]
    return model, lines


def chain(batches, batch=4):
    return IterableSource(range(batch * batches)).map(slowly).batched(batch, torch.stack)


class TestStreamMonitor:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_beside_the_loss(self, workers, tmp_path):
        model, lines = trained(tmp_path, StreamLoader(chain(8), num_workers=workers), StreamMonitor(4), max_epochs=2)
        losses = [int(line["step"]) for line in lines if "loss" in line]
        assert losses == list(range(16))
        figures = [line for line in lines if "data wait share" in line]
        assert [int(line["step"]) for line in figures] == [3, 7, 11, 15]
        for number, line in enumerate(figures):
            assert 0 < float(line["data wait share"]) < 1
            assert float(line["samples/s"]) == pytest.approx(4 * float(line["batches/s"]))
            if number in (1, 3):  # within an epoch
                begin, end = model.stamps[4 * number - 1], model.stamps[4 * number + 3]
                assert float(line["batches/s"]) == pytest.approx(4 / (end - begin), rel=0.15)

    def test_stages_beside_the_loss(self, tmp_path):
        _, lines = trained(tmp_path, StreamLoader(chain(30)), StreamMonitor(10), max_epochs=1)
        figures = [line for line in lines if "data wait share" in line]
        assert len(figures) == 3
        for line in figures[1:]:
            seen = {name: float(value) for name, value in line.items() if name.startswith("stage ") and value}
            (busy,) = (value for name, value in seen.items() if "slowly" in name and name.endswith("busy"))
            (rate,) = (value for name, value in seen.items() if "slowly" in name and name.endswith("items/s"))
            assert 0.05 < busy < 1
            assert rate == pytest.approx(float(line["samples/s"]), rel=0.35)
        _, lines = trained(tmp_path / "without", StreamLoader(chain(20)), StreamMonitor(10, stages=False), max_epochs=1)
        assert not [name for line in lines for name in line if name.startswith("stage ")]

    def test_the_share_is_that_of_the_clock(self, tmp_path):
        # 8 ms for a batch, 10 ms and what Lightning takes for a step; more where the machine is busy.
        made.clear()
        model, lines = trained(tmp_path, StreamLoader(chain(30)), StreamMonitor(10), max_epochs=1)
        figures = [line for line in lines if "data wait share" in line]
        assert len(figures) == 3
        for number, line in enumerate(figures[1:], start=1):
            begin, end = model.stamps[10 * number - 1], model.stamps[10 * number + 9]
            waiting = sum(after - before for before, after in made if begin < before < end)
            assert float(line["data wait share"]) == pytest.approx(waiting / (end - begin), rel=0.1)

    def test_validation_does_not_count(self, tmp_path):
        data = StreamDataModule(train=chain(8), val=chain(2))
        _, lines = trained(tmp_path, data, StreamMonitor(8, prefix="p "), max_epochs=1, val_check_interval=2)
        (line,) = [line for line in lines if "p data wait share" in line]
        # Three validations of 100 ms and more are between the first batch and the last.
        assert 8 / float(line["p batches/s"]) < 0.3

    def test_several_streams(self, tmp_path):
        class Pair(Model):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch["a"], batch_idx)

        trainer = lightning.Trainer(
            accelerator="cpu",
            callbacks=[StreamMonitor(2, samples=lambda batch: len(batch["a"]))],
            logger=CSVLogger(tmp_path),
            max_epochs=3,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Pair(), {"a": StreamLoader(chain(2)), "b": StreamLoader(chain(1))})
        with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["data wait share"]]
        assert [int(line["step"]) for line in lines] == [1, 3, 5]
        assert all(0.3 < float(line["data wait share"]) < 1 for line in lines)

    def test_a_training_without_streams(self, tmp_path):
        with pytest.raises(PipelineError, match="this training has none: give the Trainer a StreamDataModule"):
            trained(tmp_path, DataLoader([torch.zeros(3)] * 4), StreamMonitor(), max_epochs=1)

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
            StreamMonitor(0)
        with pytest.raises(TypeError, match="samples must be callable"):
            StreamMonitor(samples=3)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(4, 2), 4),
        (np.zeros((5, 2)), 5),
        (torch.tensor(1.0), 1),
        ({"a": torch.zeros(3), "b": torch.zeros(3)}, 3),
        ((torch.zeros(6, 1), torch.zeros(6)), 6),
        ([torch.zeros(6, 1), torch.zeros(6)], 6),
        (["a", "b"], 2),
        ({"a": {"b": [1, 2, 3]}}, 3),
        (Padded(["a", "b"], torch.tensor([True, False])), 2),
        ("text", 1),
        ({}, 0),
        ([], 0),
    ],
)
def test_samples_of(batch, samples):
    assert samples_of(batch) == samples
