"""The command that measures this project beside its peers: its table, its page, its pictures."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from tests.support import ROOT

FOLDER = ROOT / "tests" / "benchmarks"


def table(limit, seconds, **more):
    """A table as the scripts write it, of times in nanoseconds."""
    times = {name: [one * 1e-9 for one in rounds] for name, rounds in seconds.items()}
    empty = {"title": "", "unit": ["ns/item", 1e9], "bases": {}, "told": {}, "absent": [], "failed": {}, "claims": []}
    empty["told"] = {name: {} for name in times}
    return {"limit": limit, "seconds_per_item": times, **empty, **more}


def results(**broken):
    counters = {
        "squirrel_torch, not monitored": [10, 20],
        "by hand: counters": [20, 40],
        "squirrel_torch.monitor(noop)": [40, 60],
    }
    core = {"squirrel-core, not monitored": [20, 20], "squirrel-core.monitor(noop)": [500, 500]}
    ways = {
        "by hand, rows, 90 %": [10, 10],
        "squirrel_torch, 90 %": [20, 20],
        "HF Dataset, 90 %": [5, 5],
        "litdata, 90 %": [9, 9],
        "litdata, 10 %": [1, 1],
    }
    told = {name: {"exact": "NO" if "HF" in name else "yes"} for name in ways}
    bases = {
        "by hand: counters": "squirrel_torch, not monitored",
        "squirrel_torch.monitor(noop)": "squirrel_torch, not monitored",
    }
    chain = {"plain generators": [100, 200, 100], "squirrel_torch": [110, 200, 120], "squirrel-core": [1200, 2400, 1200]}
    missed = [{"text": "squirrel_torch 1.10 x (target at most 1.05)", "holds": False}]
    return {
        "environment": dict.fromkeys(("date", "cpu", "cores", "memory", "system", "python"), "?")
        | {"torch": "2", "grain": "absent"},
        "rounds": {"stream.py": 3},
        "tables": {
            "chain": table("plain generators", chain, absent=["grain"], claims=missed, failed=broken),
            "monitor-dicts": table(
                "", counters | core, bases=bases | {"squirrel-core.monitor(noop)": "squirrel-core, not monitored"}
            ),
            "resume": table("", ways, told=told),
        },
    }


def run(path):
    done = subprocess.run([sys.executable, FOLDER, "--read", path], capture_output=True, text=True, check=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("|")]
    return done, {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def shown(row):
    return {column: cell for column, cell in row.items() if cell and column not in ("x limit", "limit")}


def test_a_table_of_ratios_says_who_is_absent_and_who_is_wrong(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results()))
    done, rows = run(path)
    assert done.returncode == 0, done.stderr
    assert list(rows) == ["map, filter, batch of 64", "go on at 90 % of an epoch", "monitor dicts of 1 kB"]
    assert shown(rows["map, filter, batch of 64"]) == {"squirrel_torch": "1.10", "squirrel-core": "12.0", "grain": "absent"}
    assert rows["map, filter, batch of 64"]["limit"] == "plain generators: 100 ns/item"
    assert shown(rows["go on at 90 % of an epoch"]) == {
        "squirrel_torch": "2.00",
        "litdata": "0.90",
        "HF datasets": "loses samples",
    }
    # What monitors cost is compared: 35 and 480 ns more, and 15 by hand.
    assert shown(rows["monitor dicts of 1 kB"]) == {"squirrel_torch": "2.33", "squirrel-core": "32.0"}
    assert "absent: grain\n" in done.stdout
    assert "faster than we are, go on at 90 % of an epoch: litdata\n" in done.stdout
    assert "missed, chain: squirrel_torch 1.10 x (target at most 1.05)\n" in done.stdout

    path.write_text(json.dumps(results(webdataset="AssertionError: order")))
    done, rows = run(path)
    assert done.returncode == 1
    assert rows["map, filter, batch of 64"]["webdataset"] == "failed"
    assert "wrong output, webdataset: AssertionError: order" in done.stdout


def test_a_page_is_made_anew_between_its_marks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import beside
    import beside_jobs
    import beside_page
    import beside_table

    found = beside.Results(**results())
    rows = beside_table.rows_of(beside_jobs.JOBS, found.tables)
    page = tmp_path / "page.md"
    page.write_text("above")
    with pytest.raises(ValueError, match="needs the lines"):
        beside_page.write_page(page, tmp_path, rows, found)
    page.write_text(f"above\n{beside_page.BEGIN}\nold\n{beside_page.END}\nbelow")
    for _ in range(2):
        beside_page.write_page(page, tmp_path, rows, found)
        text = page.read_text()
        assert text.startswith(f"above\n{beside_page.BEGIN}\n\n?: ?, ")
        assert text.endswith(f"{beside_page.END}\nbelow")
        assert "old" not in text
    assert re.findall(r"\((.*\.svg)\)", text) == ["../pictures/beside-stream.svg", "../pictures/beside-training.svg"]
    assert "* go on at 90 % of an epoch: litdata\n" in text
    assert beside_page.unexplained(page, rows, found) == ["map, filter, batch of 64", "go on at 90 % of an epoch"]
    page.write_text(text.replace("below", "**go on at 90 % of an epoch**: because"))
    assert beside_page.unexplained(page, rows, found) == ["map, filter, batch of 64"]

    bars = [bar.get("class") for bar in ET.parse(tmp_path / "beside-training.svg").iter("{http://www.w3.org/2000/svg}rect")]
    assert bars == ["bo", "bp"] * 2


def test_a_peer_whose_output_is_wrong_has_no_figure_and_ours_ends_the_run(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import rig

    def check(contender, made, n):
        assert list(made) == [0, 1, 2], contender.name

    def of(*contenders):
        return rig.Table("numbers", "", 3, "limit", contenders, check, lambda times: [])

    limit = rig.Contender("limit", range)
    right, wrong = rig.Contender("right", range, needs="torch"), rig.Contender("wrong", lambda n: range(n + 1), needs="torch")
    absent = rig.Contender("absent", range, needs="nobody_has_this")
    table = of(limit, right, wrong, absent)
    times = rig.measure(table, 2)
    assert {name: len(rounds) for name, rounds in times.items()} == {"limit": 2, "right": 2}
    assert times.failed == {"wrong": "AssertionError: wrong"}
    assert re.search(r"^\| wrong +\| failed .* AssertionError: wrong +\|$", rig.report(table, times), re.MULTILINE)
    with pytest.raises(AssertionError, match="ours"):
        rig.measure(of(limit, rig.Contender("ours", lambda n: range(1))), 1)


@pytest.mark.slow
def test_one_table_is_measured_with_whoever_is_installed():
    command = [sys.executable, FOLDER, "--only", "chain", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = r"^\| map, filter, batch of 64 \| plain generators: [\d.,]+ [nu]s/item +\| \d+\.\d+ "
    assert re.search(row, done.stdout, re.MULTILINE), done.stdout
