"""The types that users see, by both checkers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from squirrel_torch import Composable
from squirrel_torch.iterstream import foreign
from tests.support import ROOT

FOLDER = ROOT / "tests" / "typing"
REFUSED = {
    number for number, line in enumerate((FOLDER / "refused.py").read_text().splitlines(), start=1) if "# refused:" in line
}


def mypy(path: Path) -> dict[int, str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout
    return {int(line.split(":")[1]): line for line in out.splitlines() if ": error:" in line}


def pyright(path: Path) -> dict[int, str]:
    command = [sys.executable, "-m", "pyright", "--outputjson", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout
    found = json.loads(out[out.index("{") :])["generalDiagnostics"]
    return {entry["range"]["start"]["line"] + 1: entry["message"] for entry in found}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("check", [mypy, pyright])
def test_types(check):
    assert check(FOLDER / "accepted.py") == {}
    assert set(check(FOLDER / "refused.py")) == REFUSED


def test_each_method_of_a_chain_is_among_them():
    called = set(re.findall(r"\.(\w+)\(", (FOLDER / "accepted.py").read_text()))
    methods = {name for name in vars(Composable) if not name.startswith("_")} - {
        "needs_whole",
        "source",
    }  # these are no methods
    assert sorted({*foreign.NAMES, *methods} - called) == []
