"""Hugging Face Accelerate and transformers take a StreamLoader as it is: real processes, and lists of what each of them got."""

import json
import re
from itertools import chain

import pytest
import torch

from squirrel_torch import IterableSource
from tests.support import ROOT, run_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SAMPLES, STEP, EPOCHS = 104, 8, 3  # 13 steps of 8 samples, over all ranks together, in each epoch
STOPPED_IN, STOPPED_AFTER = 1, 8  # the epoch, from 0, and how many steps of it: an update was just made


def ledgers(folder, name):
    """What each rank noted: a list of steps, each [epoch or update, ids]."""
    paths = sorted(folder.glob(f"{name}-*.json"))
    assert paths
    return [json.loads(path.read_text()) for path in paths]


def in_order(ranks):
    """The samples in the order in which they were dealt out: of each step one of each rank in turn."""
    assert len({len(steps) for steps in ranks}) == 1, "the ranks made as many steps"
    samples = []
    for parts in zip(*ranks, strict=True):
        samples += chain.from_iterable(zip(*(ids for _, ids in parts), strict=True))
    return samples


def order_of(epochs):
    """The samples as the chain has them."""
    shuffled = IterableSource(range(SAMPLES)).shuffle(SAMPLES)
    return [sample for epoch in epochs for sample in shuffled.run(epoch=epoch)]


# Scripts end without taking anything down. torch 2.13 hangs or aborts now and then after destroy_process_group if a DDP model
# keeps the group of gloo: its end waits, with the GIL, for a thread that needs the GIL to release a tensor.
LEAVE = """
import os, sys

def leave(accelerator):
    accelerator.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)
"""


# -- Accelerate -----------------------------------------------------------------------------------------------------------

ACCELERATE = f"""{LEAVE}
import json, sys
import torch
from accelerate import Accelerator
from torch.utils.data import default_collate
from squirrel_torch import IterableSource, StreamLoader

def main(mode, name, workers):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    samples = [{{"id": i, "x": torch.full((2,), i / {SAMPLES})}} for i in range({SAMPLES})]
    stream = IterableSource(samples).shuffle({SAMPLES}).batched({STEP} // accelerator.num_processes, default_collate)
    given = StreamLoader(stream, num_workers=int(workers))
    model = torch.nn.Linear(2, 1)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01), given)
    assert loader is given
    seen, updates = [], []
    if mode == "resume":
        accelerator.load_state("state")
    while loader.epoch < {EPOCHS}:
        epoch = loader.epoch
        for number, batch in enumerate(loader, 1):
            with accelerator.accumulate(model):
                accelerator.backward(model(batch["x"]).sum())
                optimizer.step()
                optimizer.zero_grad()
            seen.append([epoch, batch["id"].tolist()])
            updates.append(accelerator.sync_gradients)
            if mode == "stop" and (epoch, number) == ({STOPPED_IN}, {STOPPED_AFTER}):
                accelerator.save_state("state")
                next(iter(loader))  # what is done behind the checkpoint is lost
                break
        if mode == "stop" and epoch == {STOPPED_IN}:
            break
    for what, notes in ((name, seen), ("updates", updates)):
        with open(f"{{what}}-{{accelerator.process_index}}.json", "w") as file:
            json.dump(notes, file)
    leave(accelerator)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize(("ranks", "workers"), [(0, 2), (2, 1)])
def test_accelerate_delivers_each_sample_once_in_the_order_of_the_loader(ranks, workers, tmp_path):
    run_script(ACCELERATE, tmp_path, "through", "all", str(workers), torchrun=ranks)
    assert in_order(ledgers(tmp_path, "all")) == order_of(range(EPOCHS))
    # `accumulate` makes an update with every fourth batch, and with the last one of an epoch.
    of_epoch = [number % 4 == 0 or number == 13 for number in range(1, 14)]
    assert ledgers(tmp_path, "updates") == [of_epoch * EPOCHS] * max(1, ranks)


@pytest.mark.parametrize(("before", "after"), [(2, 0)])
def test_accelerate_goes_on_behind_a_saved_state_on_any_number_of_processes(before, after, tmp_path):
    run_script(ACCELERATE, tmp_path, "stop", "first", "1", torchrun=before)
    saved = torch.load(tmp_path / "state" / "dl_state_dict.bin", weights_only=True)
    assert saved["position"] == STOPPED_AFTER * STEP
    run_script(ACCELERATE, tmp_path, "resume", "second", "0", torchrun=after)
    first, second = in_order(ledgers(tmp_path, "first")), in_order(ledgers(tmp_path, "second"))
    assert first + second == order_of(range(EPOCHS))
    assert len(first) == STOPPED_IN * SAMPLES + STOPPED_AFTER * STEP


REFUSED = """
def refused(kind, what, *words):
    try:
        what()
    except kind as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"not refused: {words}")
"""

REFUSED_BY_ACCELERATE = (
    LEAVE
    + REFUSED
    + """
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, gather_object
from torch.utils.data import DataLoader, default_collate
from squirrel_torch import IterableSource, PipelineError, ShardingError, StateError, StreamLoader

numbers = IterableSource(range(100)).batched(4, default_collate)
loader = StreamLoader(numbers)
for option in ("dispatch_batches", "split_batches"):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**{option: True}))
    refused(ValueError, lambda: accelerator.prepare(loader), f"leave {option}=True out")
    assert accelerator._dataloaders == []

accelerator = Accelerator(cpu=True)
accelerator.prepare(loader)
refused(PipelineError, lambda: list(accelerator.skip_first_batches(loader, 2)), "use the StreamLoader itself", "state_dict()")
accelerator.free_memory()

thirds = IterableSource(range(100)).filter(lambda x: x % 3).batched(4, default_collate)
accelerator.prepare(StreamLoader(thirds))
refused(StateError, lambda: accelerator.save_state("state"), "each rank has its own")
accelerator.free_memory()

# A plain DataLoader, which Accelerate makes anew: it divides the stream among the ranks itself.
for dispatch in (True, False):
    for workers in (0, 1):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
        def made_anew(dataset):
            return accelerator.prepare(DataLoader(dataset, batch_size=4, num_workers=workers, drop_last=True))
        plain = IterableSource(range(96))
        words = "samples would be lost", "enforce_rank_check=False"
        whole = plain.to_torch_iterable(enforce_rank_check=False)
        own = [int(x) for batch in made_anew(whole) for x in batch]
        assert sorted(gather_object(own)) == list(range(96)), own
        refused(ShardingError, lambda: list(made_anew(plain.to_torch_iterable())), *words)
        split = plain.split_by_rank().split_by_worker().to_torch_iterable(enforce_rank_check=False)
        refused(ShardingError, lambda: list(made_anew(split)), *words)
print("refused")
leave(accelerator)
"""
)


def test_accelerate_what_would_lose_samples_is_refused(tmp_path):
    assert run_script(REFUSED_BY_ACCELERATE, tmp_path, torchrun=2).count("refused") == 2


COUNTED_OTHERWISE = """
from accelerate import Accelerator
from squirrel_torch import IterableSource, StreamLoader
loader = StreamLoader(IterableSource(range(100)).batched(4))
accelerator = Accelerator()
assert accelerator.num_processes == 1, "Accelerate does not count processes without GPUs"
try:
    accelerator.prepare(loader)
except ValueError as error:
    assert "among 2 ranks" in str(error) and "Accelerator(cpu=True)" in str(error), error
    print("refused")
accelerator.prepare(StreamLoader(IterableSource(range(100)).batched(4).to_torch_iterable(enforce_rank_check=False)))
"""


def test_accelerate_that_counts_other_ranks_is_refused(tmp_path):
    out = run_script(COUNTED_OTHERWISE, tmp_path, torchrun=2, CUDA_VISIBLE_DEVICES="")
    assert out.count("refused") == 2


# -- transformers ---------------------------------------------------------------------------------------------------------

TRAINER = f"""{LEAVE}
import json, os, sys
import torch
from torch.utils.data import default_collate
from transformers import TrainerCallback, TrainingArguments
from squirrel_torch import IterableSource, StreamLoader
from squirrel_torch.integrations.huggingface import StreamTrainer

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
    def forward(self, x, labels, id, boxes=None):
        assert boxes is None or [len(one) for one in boxes] == [5 - i % 2 for i in id.tolist()]
        logits = self.layer(x)
        return {{"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits, "id": id}}

class Noting(StreamTrainer):
    seen = ()
    def training_step(self, model, inputs, *args, **kwargs):
        self.seen = [*self.seen, [self.state.global_step, inputs["id"].tolist()]]
        return super().training_step(model, inputs, *args, **kwargs)

class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step

def samples(count):
    return IterableSource([{{"id": i, "x": torch.tensor([i / count, 1.0]), "labels": i % 3}} for i in range(count)])

def made(stop_after=0, stream=None, held_out=None, tail="pad", step={STEP}, **arguments):
    torch.manual_seed(0)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if stream is None:
        stream = samples({SAMPLES}).shuffle({SAMPLES}).batched(step // ranks, default_collate)
    held_out = samples(23).batched(5, default_collate, drop_last_if_not_full=False) if held_out is None else held_out
    kinds = {{"gradient_accumulation_steps": 2, "per_device_eval_batch_size": 5, "save_steps": 1, **arguments}}
    return Noting(
        Model(),
        TrainingArguments(
            "out", use_cpu=True, num_train_epochs={EPOCHS}, learning_rate=0.1, report_to=[], disable_tqdm=True,
            logging_strategy="no", ddp_find_unused_parameters=False, label_names=["labels"], **kinds,
        ),
        train_dataset=StreamLoader(stream, num_workers=1),
        eval_dataset=StreamLoader(held_out, tail=tail),
        compute_metrics=lambda of: {{"ids": of.predictions[1].tolist(), "labels": of.label_ids.tolist()}},
        callbacks=[StopAfter(stop_after)] if stop_after else [],
    )
"""

TRAIN = (
    TRAINER
    + """
def main(name, stop_after, resume_from, *flags):
    trainer = made(int(stop_after), restore_callback_states_from_checkpoint="restore" in flags)
    trainer.train(resume_from_checkpoint=f"out/checkpoint-{resume_from}" if int(resume_from) else None)
    with open(f"{name}-{trainer.args.process_index}.json", "w") as file:
        json.dump(trainer.seen, file)
    if trainer.is_world_process_zero():
        print([parameter.tolist() for parameter in trainer.model.parameters()], trainer.state.epoch)
    leave(trainer.accelerator)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""
)
# 13 batches in an epoch and two in an update make 7 updates, the last one of a single batch.


@pytest.mark.parametrize(("ranks", "stop_after", "flag"), [(2, 9, ""), (0, 14, "restore")])  # in epoch 1, and at its end
def test_a_trainer_that_was_stopped_trains_as_one_that_was_not(ranks, stop_after, flag, tmp_path):
    through = run_script(TRAIN, tmp_path, "all", "0", "0", torchrun=ranks)
    assert in_order(ledgers(tmp_path, "all")) == order_of(range(EPOCHS))
    assert through.splitlines()[-1].endswith(" 3.0")
    run_script(TRAIN, tmp_path, "first", str(stop_after), "0", torchrun=ranks)
    resumed = run_script(TRAIN, tmp_path, "second", "0", str(stop_after), flag, torchrun=ranks)
    first, second, uninterrupted = (ledgers(tmp_path, name) for name in ("first", "second", "all"))
    assert [steps + rest for steps, rest in zip(first, second, strict=True)] == uninterrupted
    assert resumed.splitlines()[-1] == through.splitlines()[-1], "the weights are the same, to the last bit"
    if ranks:
        run_script(TRAIN, tmp_path, "alone", "0", str(stop_after))
        alone = ledgers(tmp_path, "alone")
        assert in_order(first) + in_order(alone) == order_of(range(EPOCHS)), "on another number of processes"
        assert alone[0][0][0] == stop_after, "updates are counted on"


EVALUATE = (
    TRAINER
    + """
from torch.nn.functional import cross_entropy

def with_boxes(some):
    return {**default_collate(some), "boxes": [torch.zeros(5 - one["id"] % 2) for one in some]}

def main():
    trainer = made()
    everything = list(samples(23))
    with torch.no_grad():
        logits = trainer.model.layer(torch.stack([sample["x"] for sample in everything]))
    expected = cross_entropy(logits, torch.tensor([sample["labels"] for sample in everything])).item()
    for _ in range(2):
        metrics = trainer.evaluate()
        assert sorted(metrics["eval_ids"]) == list(range(23)), metrics
        assert metrics["eval_labels"] == [i % 3 for i in metrics["eval_ids"]]
        assert abs(metrics["eval_loss"] - expected) < 1e-6, (metrics["eval_loss"], expected)
    loader = StreamLoader(samples(11).batched(5, default_collate, drop_last_if_not_full=False), tail="pad")
    predicted = trainer.predict(loader)
    assert sorted(predicted.predictions[1].tolist()) == list(range(11))
    boxes = samples(23).batched(5, with_boxes, drop_last_if_not_full=False)
    # Some samples have as many boxes as a batch has samples.
    assert sorted(trainer.evaluate(StreamLoader(boxes, tail="pad"))["eval_ids"]) == list(range(23))
    plain = trainer.evaluate([dict(sample) for sample in samples(20)])  # no loader, as ever
    assert sorted(plain["eval_ids"]) == list(range(20))
    if trainer.args.world_size == 3:
        uneven = samples(31).batched(5, default_collate, drop_last_if_not_full=False)
        try:
            made(tail="exact", held_out=uneven).evaluate()
        except ValueError as error:
            assert "the ranks would get [3, 2, 2] batches" in str(error), error
        else:
            raise AssertionError("a rank would wait")
    print("each once")
    leave(trainer.accelerator)

if __name__ == "__main__":
    main()
"""
)


@pytest.mark.parametrize("ranks", [0, 3])
def test_an_evaluation_counts_each_sample_once(ranks, tmp_path):
    # With 3 ranks and 23 samples in batches of 5, one rank has nothing in the last step but what fills up.
    assert run_script(EVALUATE, tmp_path, torchrun=ranks).count("each once") == max(1, ranks)


REFUSED_BY_TRAINER = (
    TRAINER
    + REFUSED
    + """
from squirrel_torch import StateError

def resumed(**arguments):
    made(**arguments).train(resume_from_checkpoint="out/checkpoint-3")

def main():
    refused(ValueError, made(auto_find_batch_size=True).get_train_dataloader, "auto_find_batch_size")
    divided = {"accelerator_config": {"dispatch_batches": True}}
    refused(ValueError, made(**divided).get_train_dataloader, "leave dispatch_batches=True out")
    full = samples(23).batched(5, default_collate)
    refused(ValueError, made(tail="drop", held_out=full).evaluate, "3 samples would be left out", 'tail="pad"')
    refused(ValueError, made(tail="exact", per_device_eval_batch_size=3).evaluate, "per_device_eval_batch_size is 3")
    pairs = samples(20).map(lambda sample: (sample["x"], sample["labels"])).batched(5, default_collate)
    refused(TypeError, made(held_out=pairs).evaluate, "Padded")
    made(stop_after=3).train()
    refused(ValueError, lambda: resumed(step=4), "7 updates in an epoch, and now there are 13")
    class Early(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == 2
    early = made(stop_after=3)
    early.add_callback(Early())
    early.train()
    refused(ValueError, resumed, "stopped in epoch 1, and Trainer counts 0")
    path = "out/checkpoint-3/trainer_state.json"
    with open(path) as file:
        state = json.load(file)
    del state["stateful_callbacks"]["StreamLoaderState"]
    with open(path, "w") as file:
        json.dump(state, file)
    refused(StateError, resumed, "checkpoint of step 3 has no state of the loader")
    print("refused")

if __name__ == "__main__":
    main()
"""
)


def test_what_a_trainer_cannot_do_is_refused(tmp_path):
    assert run_script(REFUSED_BY_TRAINER, tmp_path).splitlines()[-1] == "refused"


STREAMED = (
    TRAINER
    + """
import torch.distributed as dist

def main(name, stop_after, resume_from):
    stream = samples(104).filter(lambda sample: sample["id"] % 13).batched(4, default_collate)
    trainer = made(int(stop_after), stream, max_steps=20)
    trainer.train(resume_from_checkpoint=f"out/checkpoint-{resume_from}" if int(resume_from) else None)
    with open(f"{name}-{trainer.args.process_index}.json", "w") as file:
        json.dump(trainer.seen, file)
    leave(trainer.accelerator)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""
)


def test_a_chain_that_is_not_planned_is_gone_on_with_from_the_states_of_all_ranks(tmp_path):
    run_script(STREAMED, tmp_path, "all", "0", "0", torchrun=2)
    run_script(STREAMED, tmp_path, "first", "8", "0", torchrun=2)
    run_script(STREAMED, tmp_path, "second", "0", "8", torchrun=2)
    first, second, uninterrupted = (ledgers(tmp_path, name) for name in ("first", "second", "all"))
    assert [steps + rest for steps, rest in zip(first, second, strict=True)] == uninterrupted
    assert {len(steps) for steps in uninterrupted} == {40}


# -- examples -------------------------------------------------------------------------------------------------------------


def accuracy_in(out):
    found = re.fullmatch(r"held-out accuracy: ([\d.]+) on 360 digits", out.splitlines()[-1])
    assert found is not None, out
    return float(found[1])


def test_the_accelerate_example(tmp_path):
    code = (ROOT / "examples" / "train_accelerate.py").read_text()
    told = [f"epoch {epoch}: 1437 samples, each 1 time, 0 left out" for epoch in range(6)]
    first = run_script(code, tmp_path, "--stop-after", "115", timeout=120)
    assert first.splitlines() == [*told[:2], "stopped in epoch 2"]
    second = run_script(code, tmp_path, "--epochs", "6", timeout=120).splitlines()
    rest = 1437 - (100 - 2 * 45) * 32  # the last checkpoint is that of step 100, and an epoch has 45
    assert second[0] == f"epoch 2: {rest} samples, each 1 time, 0 left out"
    assert second[1:-1] == told[3:]
    assert accuracy_in(second[-1]) >= 0.9


def test_the_transformers_example(tmp_path):
    code = (ROOT / "examples" / "train_transformers.py").read_text()
    run_script(code, tmp_path, "--epochs", "2", torchrun=2, timeout=120)
    out = run_script(code, tmp_path, "--epochs", "4", timeout=120)
    assert accuracy_in(out) >= 0.9
