"""Lightning's Trainer and StreamDataModule: a resumed run gets the batches of one that was not stopped."""

import logging
import warnings

import pytest
import torch

from squirrel_torch import IterableSource, Padded, StateError, StreamDataModule, StreamLoader, unpadded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Lightning's own imports
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:lightning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

SAMPLES = 53


def _generated():
    yield from range(SAMPLES)


CHAINS = {
    "planned": lambda: IterableSource(range(SAMPLES)).shuffle(SAMPLES),
    "streamed": lambda: IterableSource(range(SAMPLES)).filter(lambda x: x % 5).shuffle(20),
    "dealt": lambda: IterableSource(range(SAMPLES)).filter(lambda x: x % 5).take(37),
    "generator": lambda: IterableSource(_generated).shuffle(10),
}


class StoppedError(Exception):
    """What stops a training."""


class Model(lightning.LightningModule):
    """Notes each batch: the epoch, the index of the batch, the ids of its samples."""

    def __init__(self, stop_at=None, rates=(0.1,)):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.ledger = []
        self.evaluated = []
        self._stop_at = stop_at

    def training_step(self, batch, batch_idx):
        if len(self.ledger) == self._stop_at:
            raise StoppedError
        ids = {name: ids.tolist() for name, ids in batch.items()} if isinstance(batch, dict) else batch.tolist()
        self.ledger.append((self.current_epoch, batch_idx, ids))
        first = next(iter(batch.values())) if isinstance(batch, dict) else batch
        return self.layer(first[:, None].float() / SAMPLES).square().mean()

    def validation_step(self, batch, batch_idx):
        self.evaluated += unpadded(batch).tolist()

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch * 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(folder=None, callbacks=(), **options):
    options = {"max_epochs": 2, "enable_checkpointing": bool(callbacks), **options}
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )


def data_of(kind, val=False, **options):
    chain = CHAINS[kind]()
    return StreamDataModule(chain, IterableSource(range(7)) if val else None, **{"batch_size": 4, "tail": "exact", **options})


def numbered(folder):
    return sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))


def trained(folder, data, ckpt=None, every=None, **options):
    """The ledger of a training, the weights at its end."""
    callbacks = []
    if every is not None:
        callbacks = [ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)]
    model = Model()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.layer.reset_parameters()
    trainer(folder, callbacks, **options).fit(model, datamodule=data, ckpt_path=ckpt, weights_only=ckpt is not None or None)
    return model.ledger, torch.cat([part.detach().flatten() for part in model.parameters()])


WAYS = {
    "plain": {},
    "limited": {"limit_train_batches": 7},
    "too generous": {"limit_train_batches": 20},
    "accumulating": {"accumulate_grad_batches": 3},
    "reloading": {"reload_dataloaders_every_n_epochs": 1},
    "by steps": {"max_epochs": -1, "max_steps": 25},
    "validating": {"val_check_interval": 4, "max_epochs": 2},
    "overfitting": {"overfit_batches": 9},
    "all of it": {"val_check_interval": 4, "max_epochs": -1, "max_steps": 13, "accumulate_grad_batches": 2},
}


OVERFITTING = {"overfit_batches": 3, "max_epochs": 3, "num_sanity_val_steps": 0}


def kinds_and_ways():
    """All ways with a planned chain, and those that differ most with the others."""
    for kind in CHAINS:
        for way in WAYS if kind == "planned" else ("plain", "limited", "reloading", "all of it"):
            yield kind, way


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "way"), list(kinds_and_ways()))
@pytest.mark.filterwarnings("ignore:.*is run again:UserWarning")
def test_a_resumed_run_gets_the_batches_of_one_that_was_not_stopped(kind, way, tmp_path):
    options, val = WAYS[way], "val_check_interval" in WAYS[way]
    whole, weights = trained(tmp_path, data_of(kind, val), every=1, **options)
    epochs = [epoch for epoch, _, _ in whole]
    ends = [place + 1 for place in range(len(whole) - 1) if epochs[place + 1] != epochs[place]]
    assert ends, "there is a second epoch"
    accumulated = options.get("accumulate_grad_batches", 1)
    paths = numbered(tmp_path)
    end = next(at for at, path in enumerate(paths, 1) if at * accumulated >= ends[0])
    for at in sorted({1, 2, end - 1, end, end + 1, len(paths) - 1}):
        rest, again = trained(tmp_path, data_of(kind, val), ckpt=paths[at - 1], **options)
        assert rest == whole[len(whole) - len(rest) :], (at, rest[:3])
        assert len(whole) - len(rest) >= at
        assert torch.equal(weights, again), at


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["planned", "streamed"])
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("stop_at", [0, 5, 19])
def test_a_run_that_failed_goes_on_with_the_batch_at_which_it_did(stop_at, accumulated, kind, workers, tmp_path):
    options = {"accumulate_grad_batches": accumulated}
    whole, weights = trained(tmp_path, data_of(kind, num_workers=workers), **options)
    model = Model(stop_at)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.layer.reset_parameters()
    failing = trainer(tmp_path, [OnExceptionCheckpoint(tmp_path, "failed")], **options)
    with pytest.raises(StoppedError):
        failing.fit(model, datamodule=data_of(kind, num_workers=workers))
    rest, again = trained(tmp_path, data_of(kind), ckpt=tmp_path / "failed.ckpt", **options)
    begun = [place for place in range(stop_at + 1) if whole[place][1] % accumulated == 0][-1]
    assert rest == whole[begun:], "from the first batch on whose gradients were not applied"
    assert torch.equal(weights, again)


def test_a_checkpoint_is_plain(tmp_path):
    trained(tmp_path, data_of("planned", num_workers=0), every=5)
    checkpoint = torch.load(numbered(tmp_path)[0], weights_only=True)
    state = checkpoint["StreamDataModule"]["train"][0]
    assert (state["epoch"], state["position"]) == (0, 20)
    assert len(repr(state)) < 1000
    assert checkpoint["datamodule_hyper_parameters"] == {"batch_size": 4, "tail": "exact", "num_workers": 0}


def test_hyperparameters_make_it_again(tmp_path):
    trained(tmp_path, data_of("planned", val_options={"batch_size": 2}), every=5)
    again = StreamDataModule.load_from_checkpoint(numbered(tmp_path)[0], train=CHAINS["planned"](), weights_only=True)
    assert dict(again.hparams) == {"batch_size": 4, "tail": "exact", "val_options": {"batch_size": 2}}
    assert len(again.train_dataloader()) == 14


SHORT = {
    "planned": lambda: IterableSource(range(100, 122)).shuffle(30),
    "streamed": lambda: IterableSource(range(100, 122)).filter(lambda x: True).shuffle(8),
}


def several(long, short, mode="max_size_cycle"):
    """Streams of 14 batches, or less, and of 6."""
    streams = {"a": CHAINS[long](), "b": SHORT[short]()}
    if mode == "min_size":  # it ends before the other one is asked
        streams = {"b": streams["b"], "a": streams["a"]}
    return StreamDataModule(streams, batch_size=4, tail="exact", streams=1, mode=mode)


def behind_each_step(whole, accumulated):
    """How many batches were trained on when the weights were changed."""
    places = [(epoch, at) for epoch, at, _ in whole]
    last = dict(places)
    return [number for number, (epoch, at) in enumerate(places, 1) if (at + 1) % accumulated == 0 or at == last[epoch]]


def ways_of_several():
    """Each way with two kinds of streams, and the plain one with two of a kind."""
    for mode in ("max_size_cycle", "min_size"):
        for way in ("plain", "limited", "too generous", "accumulating", "reloading", "overfitting"):
            yield way, mode, "planned", "streamed"
        yield "plain", mode, "planned", "planned"
        yield "plain", mode, "streamed", "streamed"


@pytest.mark.slow
@pytest.mark.parametrize(("way", "mode", "long", "short"), list(ways_of_several()))
def test_several_streams_at_once(way, mode, long, short, tmp_path):
    options = WAYS[way]
    whole, weights = trained(tmp_path, several(long, short, mode), every=1, **options)
    behind = behind_each_step(whole, options.get("accumulate_grad_batches", 1))
    assert any(epoch == 1 for epoch, _, _ in whole)
    for at, path in zip(behind, numbered(tmp_path), strict=True):
        if at == len(whole):
            continue  # nothing is left
        rest, again = trained(tmp_path, several(long, short, mode), ckpt=path, **options)
        assert rest == whole[at:], path
        assert torch.equal(weights, again), path


def test_a_short_stream_begins_anew_with_each_epoch(tmp_path):
    whole, _ = trained(tmp_path, several("streamed", "streamed"))
    first, again = ([ids["b"] for at, _, ids in whole if at == epoch] for epoch in range(2))
    loader = StreamLoader(SHORT["streamed"](), 4, streams=1)
    passes = [[batch.tolist() for batch in loader] for _ in range(3)]
    assert first == [*passes[0], *passes[1]][: len(first)]
    assert again == [*passes[1], *passes[2]][: len(again)]


@pytest.mark.parametrize("given", ["chains", "loaders"])
@pytest.mark.parametrize("kind", ["planned", "streamed"])
@pytest.mark.parametrize("way", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 5}])
def test_a_second_training_begins_at_the_beginning(way, kind, given, tmp_path):
    streams = {"a": CHAINS[kind](), "b": SHORT[kind]()}
    if given == "loaders":
        streams = {name: StreamLoader(chain, 4, tail="exact") for name, chain in streams.items()}
    data = StreamDataModule(streams, batch_size=4, tail="exact")
    ledgers = [trained(tmp_path, data, every=3, **way)[0] for _ in range(2)]
    assert ledgers[1] == ledgers[0]
    rest, _ = trained(tmp_path, data, ckpt=tmp_path / "step=3.ckpt", **way)
    assert rest == ledgers[0][3:]


@pytest.mark.parametrize("given", ["chains", "loaders"])
@pytest.mark.parametrize("kind", ["planned", "streamed"])
def test_overfitting_takes_the_same_batches_in_each_epoch(kind, given, tmp_path):
    def data():
        streams = [CHAINS[kind](), CHAINS["planned"]()]
        if given == "loaders":
            streams = [StreamLoader(stream, 4, tail="exact") for stream in streams]
        return StreamDataModule(*streams, batch_size=4, tail="exact")

    model, every_second = Model(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*turning off the .* shuffling.*")
        trainer(tmp_path, [every_second], **OVERFITTING).fit(model, data())
    epochs = [[ids for at, _, ids in model.ledger if at == epoch] for epoch in range(3)]
    assert epochs == [[batch.tolist() for batch, _ in zip(StreamLoader(CHAINS[kind](), 4), range(3), strict=False)]] * 3
    looks = [model.evaluated[at : at + 12] for at in range(0, 36, 12)]
    assert looks == [list(CHAINS["planned"]().run(0))[:12]] * 3
    for at in (2, 4, 6, 8):
        assert trained(tmp_path, data(), ckpt=tmp_path / f"step={at}.ckpt", **OVERFITTING)[0] == model.ledger[at:]


def test_an_exact_evaluation(tmp_path):
    chains = {name: IterableSource(range(size)) for name, size in (("val", 10), ("test", 11), ("predict", 9))}
    data = StreamDataModule(**chains, batch_size=4)
    model, runner = Model(), trainer(tmp_path)
    runner.validate(model, datamodule=data, verbose=False)
    assert model.evaluated == list(range(10))
    model.evaluated.clear()
    runner.test(model, datamodule=data, verbose=False)
    assert model.evaluated == list(range(11))
    predicted = runner.predict(model, datamodule=data)
    assert torch.cat(predicted).tolist() == [2 * n for n in range(9)]
    assert [len(batch) for batch in predicted] == [4, 4, 1]


def test_loaders_may_be_given_to_the_trainer_itself(tmp_path):
    model, runner = Model(), trainer(tmp_path, max_epochs=1)
    loader = StreamLoader(IterableSource(range(9)), 4, tail="exact")
    runner.fit(model, loader)
    assert [ids for _, _, ids in model.ledger] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    predicted = runner.predict(model, StreamLoader(IterableSource(range(9)), 4, tail="exact"))
    assert [batch.tolist() for batch in predicted] == [[0, 2, 4, 6], [8, 10, 12, 14], [16]]
    runner.validate(model, StreamLoader(IterableSource(range(9)), 4, tail="pad"), verbose=False)
    assert model.evaluated == list(range(9))


class Usual(StreamDataModule):
    """In Lightning's usual style."""

    def __init__(self, samples):
        super().__init__(batch_size=4, tail="exact")
        self.samples = samples
        self.done = []

    def prepare_data(self):
        self.done.append("prepare_data")

    def setup(self, stage):
        self.done.append(stage)
        self.numbers = list(range(self.samples))

    def train_dataloader(self):
        return StreamLoader(IterableSource(self.numbers).filter(lambda x: True).shuffle(9), 4)

    def teardown(self, stage):
        super().teardown(stage)
        self.done.append("teardown")


class Derived(Usual):
    """Calls the method of its parent."""

    def train_dataloader(self):
        return {"one": super().train_dataloader(), "two": self.loader(IterableSource(range(3)).shuffle(3))}


@pytest.mark.parametrize("kind", [Usual, Derived])
def test_a_subclass_in_the_usual_style(kind, tmp_path):
    data = kind(31)
    whole, _ = trained(tmp_path, data, every=1)
    assert data.done == ["prepare_data", "fit", "teardown"]
    for at, path in list(enumerate(numbered(tmp_path), 1))[::4]:
        rest, _ = trained(tmp_path, kind(31), ckpt=path)
        assert rest == whole[at:]


def test_a_callable_is_asked_for_each_loader(tmp_path):
    asked = []

    def chain(epoch):
        asked.append(epoch)
        return IterableSource(range(8 * (epoch + 1)))

    data = StreamDataModule(chain, batch_size=4)
    ledger, _ = trained(tmp_path, data, reload_dataloaders_every_n_epochs=1, max_epochs=3)
    assert asked == [0, 1, 2]
    assert [sum(1 for epoch, _, _ in ledger if epoch == each) for each in range(3)] == [2, 4, 6]
    assert len(StreamDataModule(lambda: IterableSource(range(8)), batch_size=4).train_dataloader()) == 2


def test_each_epoch_has_its_own_order(tmp_path):
    ledger, _ = trained(tmp_path, data_of("planned"))
    orders = [[one for epoch, _, ids in ledger if epoch == each for one in ids] for each in range(2)]
    assert orders == [list(CHAINS["planned"]().run(epoch)) for epoch in range(2)]
    reloaded, _ = trained(tmp_path, data_of("planned"), reload_dataloaders_every_n_epochs=1)
    assert reloaded == ledger


def test_what_is_not_there_is_not_asked_for(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*does not have many workers.*|.*__len__.*|.*overrid.*|.*GPU.*")
        from lightning.pytorch.utilities.model_helpers import is_overridden
    data = StreamDataModule(CHAINS["planned"](), batch_size=4)
    assert [name for name in ("train", "val", "test", "predict") if is_overridden(f"{name}_dataloader", data)] == ["train"]


def test_what_is_wrong_is_said_when_it_is_made():
    with pytest.raises(TypeError, match=r"val must be a chain, .* got \[1\]|val must be a chain.*got 1"):
        StreamDataModule(val=[1])
    with pytest.raises(TypeError, match="StreamLoader has no arguments num_worker;"):
        StreamDataModule(num_worker=2)
    with pytest.raises(TypeError, match="StreamLoader has no arguments shuffle;"):
        StreamDataModule(val_options={"shuffle": True})
    with pytest.raises(ValueError, match="mode must be one of 'max_size_cycle', 'min_size', got 'max_size'"):
        StreamDataModule(mode="max_size")
    with pytest.raises(StateError, match="no state of a StreamDataModule"):
        StreamDataModule().load_state_dict({"train": 1})


def test_another_number_of_streams_is_refused(tmp_path):
    trained(tmp_path, data_of("planned"), every=5)
    data = StreamDataModule([CHAINS["planned"](), CHAINS["planned"]()], batch_size=4, tail="exact")
    with pytest.raises(StateError, match="states of 1 training streams, and there are 2 now"):
        trained(tmp_path, data, ckpt=numbered(tmp_path)[0])


def test_a_padded_batch_that_is_no_dict_says_so(tmp_path):
    (batch,) = StreamDataModule(val=IterableSource(range(3)), batch_size=4).val_dataloader()
    assert isinstance(batch, Padded)
    assert unpadded(batch).tolist() == [0, 1, 2]
