"""The commands that run a pipeline."""

import json

import pytest

from squirrel_torch.cli import main

PIPELINES = """
import time
from squirrel_torch import IterableSource, StreamLoader

def fetch(number):
    time.sleep(0.002)
    return number

chain = IterableSource(range(400)).map(fetch).batched(4)
iterable = chain.to_torch_iterable()

def loader():
    return StreamLoader(chain, num_workers=1)

class Inside:
    chain = chain

number = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "pipelines.py").write_text(PIPELINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "pipelines.py"
    import sys

    sys.modules.pop("pipelines", None)


@pytest.fixture
def call(capsys):
    def called(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return called


@pytest.mark.parametrize("name", ["chain", "iterable", "Inside.chain"])
def test_profile_of_a_chain(name, file, call):
    code, out, err = call("profile", f"pipelines:{name}", "-n", "20")
    assert (code, err) == (0, "")
    assert out.startswith("map(fetch): it takes ")
    assert ".async_map(fetch, max_workers=" in out
    assert "batched(4)" in out


def test_profile_of_a_loader_as_json(file, call):
    code, out, _ = call("profile", f"{file}:loader", "--json", "--seconds", "0.8")
    report = json.loads(out)
    assert code == 0
    assert (report["verdict"]["cause"], report["verdict"]["place"]) == ("latency", 1)
    assert report["figures"]["loading"]["workers"] == 1
    assert 0 < report["figures"]["loading"]["batches"] < 100


def test_profile_with_workers_is_saved(file, call, tmp_path):
    code, out, _ = call("profile", "pipelines:chain", "--workers", "2", "--save", tmp_path / "report.html")
    assert code == 0
    assert "2 workers" in out
    assert "map(fetch)" in (tmp_path / "report.html").read_text()


def test_a_gain_that_is_too_large_is_an_exit_code(file, call):
    code, _, err = call("profile", "pipelines:chain", "-n", "20", "--most-gain", "1.5")
    assert code == 3
    assert "is expected to give" in err
    assert call("profile", "pipelines:chain", "-n", "20", "--most-gain", "1000")[0] == 0


def test_bench(file, call):
    code, out, _ = call("bench", "pipelines:chain", "-n", "10", "--rounds", "2", "--json")
    (seen,) = json.loads(out)
    assert code == 0
    assert (seen["workers"], seen["items"], len(seen["rates"])) == (None, [10, 10], 2)
    assert 20 < seen["rate"] < 125


def test_bench_with_workers(file, call):
    code, out, err = call("bench", "pipelines:chain", "-n", "10", "--rounds", "1", "--workers", "0,2", "--at-least", "1e6")
    assert code == 3
    assert [line.partition(":")[0] for line in out.splitlines()] == ["0 workers", "2 workers"]
    assert "fewer than --at-least 1e+06" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipelines", "a pipeline is named as module:name"),
        ("pipelines:nothing", "pipelines has no nothing"),
        ("pipelines:number", "is a int, and neither a chain"),
        ("no_such_module:chain", "No module named 'no_such_module'"),
        ("no_such_file.py:chain", "there is no file"),
    ],
)
def test_what_is_no_pipeline(name, message, file, call):
    code, _, err = call("profile", name)
    assert code == 1
    assert message in err


@pytest.mark.parametrize("wrong", [["-n", "0"], ["--seconds", "0"], ["--seconds", "x"], ["--most-gain", "-1"]])
def test_wrong_usage(wrong, file, call):
    with pytest.raises(SystemExit) as exit_of:
        call("profile", "pipelines:chain", *wrong)
    assert exit_of.value.code == 2
