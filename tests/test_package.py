"""The package as a whole: its names, its imports, its documents and its examples."""

import html
import importlib
import os
import pkgutil
import re
import subprocess
import sys

import pytest

import squirrel_torch
from squirrel_torch import iterstream
from squirrel_torch.iterstream import foreign
from tests.support import ROOT, kill_all, run_script

MODULES = [
    module.name
    for module in pkgutil.walk_packages(squirrel_torch.__path__, "squirrel_torch.")
    if not module.name.endswith("__main__")
]
OPTIONAL = (
    *("accelerate", "dask", "distributed", "numba", "wandb", "mlflow", "lightning", "opentelemetry", "s3fs", "tensorboard"),
    "transformers",
)
LAZY = ("pyarrow", "fsspec", "cloudpickle", "tqdm", "pandas", "sklearn")


@pytest.mark.parametrize("name", ["squirrel_torch", *MODULES])
def test_public_names_exist_and_are_sorted(name):
    module = importlib.import_module(name)
    names = module.__all__
    assert len(set(names)) == len(names)
    # As ruff sorts them: constants, classes, functions.
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    for public in names:
        assert hasattr(module, public), public


def test_the_paths_that_were_asked_for():
    from squirrel_torch.iterstream.base import Composable
    from squirrel_torch.iterstream.source import IterableSamplerSource, IterableSource
    from squirrel_torch.iterstream.torch_composables import SplitByRank, SplitByWorker, TorchIterable
    from squirrel_torch.metrics import MetricsConf
    from squirrel_torch.storage import MemoryStore

    for thing in (
        Composable,
        IterableSamplerSource,
        IterableSource,
        SplitByRank,
        SplitByWorker,
        TorchIterable,
        MetricsConf,
        MemoryStore,
    ):
        assert getattr(squirrel_torch, thing.__name__) is thing


def test_everything_public_can_be_imported_from_the_top():
    missing = set(iterstream.__all__) - set(squirrel_torch.__all__)
    assert not missing


def test_methods_registered_on_foreign_pipes_exist():
    assert all(callable(getattr(squirrel_torch.Composable, name)) for name in foreign.NAMES)
    methods = {name for name in vars(squirrel_torch.Composable) if not name.startswith("_")}
    by_torch = {"map", "filter", "shuffle"}
    assert methods - set(foreign.NAMES) == {"needs_whole", "run", "set_epoch", "source", "source_", "to"} | by_torch


@pytest.mark.slow
def test_importing_it_needs_and_brings_no_optional_package(tmp_path):
    code = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # importing it is an ImportError
import torch.distributed, torch.utils.data  # they bring some of these by themselves
before = set(sys.modules)
import squirrel_torch
brought = {{name.partition(".")[0] for name in set(sys.modules) - before}}
assert not brought & set({LAZY!r}), brought & set({LAZY!r})
from squirrel_torch import IterableSource, MemoryStore
store = MemoryStore()
IterableSource(range(4)).sink(store)
print(sorted(IterableSource(store.keys()).shuffle(3).prefetch(store).batched(2).flatten().collect()))
"""
    assert run_script(code, tmp_path, PYTHONWARNINGS="error").strip() == "[0, 1, 2, 3]"


DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "squirrel_torch").rglob("*.md"),
        *(ROOT / "examples").glob("*.md"),
    ]
)


def blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def runner():
    """A process that runs scripts."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "documents.py")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        kill_all(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path)], ids=lambda path: path.name)
def test_the_code_of_a_document_runs(path, tmp_path, runner):
    script = tmp_path / "script.py"
    script.write_text("\n".join(blocks(path)))
    runner.stdin.write(f"{script}\n")
    runner.stdin.flush()
    assert runner.stdout.readline() == "0\n", (tmp_path / "output.txt").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_project_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_what_the_readme_shows_of_a_profile_is_what_its_picture_shows():
    picture = (ROOT / "docs" / "pictures" / "verdict.svg").read_text()
    printed = re.search(r"\$ squirrel-torch profile .*\n((?:.+\n)+?)\.\.\.\n", (ROOT / "README.md").read_text())
    assert html.escape(printed[1].replace("\n", " ").strip(), quote=False) in picture
    assert not re.search(r">[^<]*(?:; |^)/", picture), "a path of somebody's machine"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [0, 2])
def test_the_digits_example(ranks, tmp_path):
    out = run_script((ROOT / "examples" / "train_digits.py").read_text(), tmp_path, torchrun=ranks, timeout=280)
    *epochs, last = out.splitlines()
    assert len(epochs) == 10
    parts = "rank 0: 719, rank 1: 718" if ranks else "rank 0: 1437"
    for number, line in enumerate(epochs):
        assert line == f"epoch {number}: each of the 1437 training samples reached exactly one rank ({parts})"
    found = re.fullmatch(r"held-out accuracy: ([\d.]+) on 360 digits", last)
    assert found is not None
    assert float(found[1]) >= 0.95


def test_no_warnings_on_import(tmp_path):
    run_script("import squirrel_torch", tmp_path, PYTHONWARNINGS="error")
