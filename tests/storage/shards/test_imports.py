"""Reading shards imports little: what is imported is imported in each worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from squirrel_torch import IterableSource
from squirrel_torch.storage import ShardStore

READ = """
import sys
from squirrel_torch.storage import ShardStore
store = ShardStore(sys.argv[1])
rows = list(store) + list(store.select([1, 0]))
assert len(rows) == 5 and rows[0]["flag"] is True and rows[0]["text"] == "0"
print(*sorted({"pandas", "pyarrow.compute"} & set(sys.modules)))
"""


def test_reading_imports_neither_pandas_nor_arrows_functions(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    samples = [
        {"x": np.arange(n, n + 4), "half": np.float16(n), "flag": True, "text": str(n), "tensor": torch.ones(2), "list": [n]}
        for n in range(3)
    ]
    IterableSource(samples).sink(ShardStore(tmp_path))
    found = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []
