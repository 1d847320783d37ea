"""The examples, as their users start them. Those that need several processes of torchrun are in tests/distributed."""

import json
import re
import sysconfig
from pathlib import Path

import pytest

from squirrel_torch import IterableSource
from squirrel_torch.testing import check_resume, check_stage
from tests.support import ROOT, ended, started, wandb_records

EXAMPLES = ROOT / "examples"


def lines_of(name, folder, *arguments):
    """What the example prints."""
    with started(EXAMPLES / name, *arguments, cwd=folder, PYTHONPATH=str(ROOT)) as process:
        return ended(process)[0].splitlines()


def accuracy_in(line, of):
    found = re.fullmatch(rf"held-out accuracy: ([\d.]+) on {of}", line)
    assert found is not None, line
    return float(found[1])


def test_the_table_names_each_example():
    rows = re.findall(r"^\| \[(.*?)\]\((.*?)\) \|.*\| `(.*?)` \| `.+` \|$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(
        path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")
    )
    assert all(name == target and f"examples/{name}" in command for name, target, command in rows)


@pytest.mark.slow
def test_images(tmp_path):
    *_, last = lines_of("train_images.py", tmp_path, "--folder", "tiles", "--epochs", 3)
    assert accuracy_in(last, "104 tiles") >= 0.9
    assert len(list(tmp_path.glob("tiles/train/*/*.jpg"))) == 416


@pytest.mark.slow
def test_lightning_goes_on_from_its_checkpoint(tmp_path):
    *told, last = lines_of("train_lightning.py", tmp_path, "--folder", "run", "--epochs", 4, "--kill-at", 117)
    assert told == [
        "the training begins in epoch 0, step 0",
        "it was killed in step 117",
        "the training begins in epoch 2, step 110",  # 45 steps are an epoch
        "each of 1437 digits was learned from 4 times",
    ]
    assert accuracy_in(last, "360 digits") >= 0.9


class TestPacking:
    @pytest.mark.slow
    def test_a_training(self, tmp_path):
        *told, last = lines_of("pack_text.py", tmp_path, "--modules", 12, "--stop-after", 7)
        alone = re.findall(r"logits of (\d+) texts that share a sequence", "\n".join(told))
        assert len(alone) == 2
        assert all(int(count) > 1 for count in alone)
        found = re.fullmatch(r"(\d+) bytes of (\d+) texts, each trained on once, are ([\d.]+)% of the packed tokens", last)
        assert found is not None, last
        assert int(found[1]) > 20_000
        assert float(found[3]) > 90

    def test_the_stage(self, monkeypatch):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        from pack_text import Packed, Text

        stage = Packed(10, held=4)
        texts = [Text(number, 0, bytes([65 + number]) * length) for number, length in enumerate((4, 9, 3, 6, 2, 10, 1))]
        packed = IterableSource(texts).then(stage).collect()
        assert [bytes(sequence["tokens"].tolist()) for sequence in packed] == [
            b"AAAADDDDDD",  # the oldest, and the longest that fits
            b"BBBBBBBBB\0",
            b"CCCEEG\0\0\0\0",
            b"FFFFFFFFFF",
        ]
        assert packed[2]["texts"].tolist() == [2, 2, 2, 4, 4, 6, -1, -1, -1, -1]
        assert packed[2]["positions"].tolist() == [0, 1, 2, 0, 1, 0, 0, 0, 0, 0]

    @pytest.mark.slow
    def test_the_stage_keeps_what_stages_promise(self, monkeypatch):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        from pack_text import Packed, Text

        texts = [Text(number, 0, bytes(1 + number * 7 % 10)) for number in range(20)]
        check_stage(Packed(10, held=4), texts)
        check_resume(IterableSource(texts).then(Packed(10, held=4)).shuffle(3))


@pytest.mark.slow
def test_dask(tmp_path):
    *_, last = lines_of("prepare_on_dask.py", tmp_path, "--folder", "statements")
    modules = len(list(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    assert last == f"each of {modules} modules is in one of {-(-modules // 50)} shards, prepared by 2 processes"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_monitoring(tmp_path):
    *told, last = lines_of("monitor_training.py", tmp_path, "--folder", "run", "--epochs", 2)
    assert [line.partition(", ")[0] for line in told] == [
        "augmented/IOPS number/s: 6 times",
        "augmented/throughput MB/s: 6 times",
        "data wait share: 2 times",
        "loss: 2 times",
        "read/IOPS number/s: 6 times",
        "read/throughput MB/s: 6 times",
    ]
    found = re.fullmatch(r"reports in MLflow: 6, 6; in wandb: 6, the last of (\d+) samples per second", last)
    assert found is not None, last
    assert int(found[1]) > 0
    (path,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    history = [record.history.item for record in wandb_records(path) if record.WhichOneof("record_type") == "history"]
    names = [{"/".join(item.nested_key) or item.key for item in items} for items in history]
    assert ["loss" if "loss" in line else "augmented/IOPS number/s" in line for line in names] == [True] * 3 + ["loss"] + [
        True
    ] * 3 + ["loss"]


@pytest.mark.slow
def test_the_notebook(tmp_path):
    cells = [cell for cell in json.loads((EXAMPLES / "first_stream.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kept = ["".join("".join(output["text"]) for output in cell["outputs"]) for cell in cells]
    # As a notebook's, its code has no file: what other processes need goes there by value.
    code = "\nprint('---')\n".join("".join(cell["source"]) for cell in cells)
    with started("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)) as process:
        printed = ended(process)[0]
    accuracy = r"held-out accuracy: ([\d.]+)"
    assert re.sub(accuracy, "", printed) == re.sub(accuracy, "", "---\n".join(kept))
    assert float(re.search(accuracy, printed)[1]) > 0.85
    assert kept[-1].splitlines()[-1] == "each of 1437 samples was seen {1} time in the epoch"
