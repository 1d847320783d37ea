"""What needs an optional package that is not installed says which, and how it is installed."""

import json

import pytest

from tests.support import run_script

MISSING = (
    *("accelerate", "dask", "distributed", "lightning", "mlflow", "numba", "opentelemetry", "PIL", "rich", "s3fs"),
    *("tensorboard", "transformers", "wandb"),
)
# What is done, by what it needs: the package of the message, and the extra.
USES = {
    ("lightning", "lightning"): [
        "squirrel_torch.StreamDataModule",
        "import squirrel_torch.integrations.lightning.monitor",
    ],
    ("transformers or accelerate", "huggingface"): ["import squirrel_torch.integrations.huggingface"],
    ("opentelemetry-api", "opentelemetry"): ["import squirrel_torch.integrations.opentelemetry"],
    ("wandb", "wandb"): ["chain.monitor('wandb')", "import squirrel_torch.integrations.sinks.wandb"],
    ("mlflow", "mlflow"): ["chain.monitor('mlflow')"],
    ("tensorboard", "tensorboard"): ["chain.monitor('tensorboard:runs')"],
    ("dask", "dask"): ["chain.dask_map(abs)", "chain.materialize_dask()", "chain.async_map(abs, executor='tcp://127.0.0.1:1')"],
    ("numba", "numba"): ["chain.numba_map(abs)", "chain.async_map(abs, executor='numba')"],
    ("s3fs", "s3"): [
        "squirrel_torch.ShardStore('s3://bucket/data')",
        "squirrel_torch.FilesystemStore('s3://bucket/data')",
        "formats.ParquetFiles('s3://bucket/data')",
        "squirrel_torch.FilePathGenerator('s3://bucket/data')",
    ],
    ("pillow", "images"): ["squirrel_torch.IterableSource(formats.ImageFolder('images', decode=True)).join()"],
}
SCRIPT = f"""
import json, sys
from pathlib import Path
for name in {MISSING!r}:
    sys.modules[name] = None  # importing it is an ImportError, and nothing finds it
import squirrel_torch
from squirrel_torch.storage import formats
Path("images/cats").mkdir(parents=True)
Path("images/cats/0.png").write_bytes(b"not looked at")
chain = squirrel_torch.IterableSource([1, 2])
for use in {[use for uses in USES.values() for use in uses]!r}:
    try:
        exec(use)
    except squirrel_torch.MissingDependencyError as error:
        print(json.dumps([use, str(error)]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = run_script(SCRIPT, tmp_path_factory.mktemp("missing"), PYTHONWARNINGS="error")
    return dict(map(json.loads, out.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize(("package", "extra"), USES)
def test_it_says_what_to_install(told, package, extra):
    message = f"{package} is not installed: pip install 'squirrel_torch[{extra}]'"
    assert {use: told.get(use) for use in USES[package, extra]} == dict.fromkeys(USES[package, extra], message)
