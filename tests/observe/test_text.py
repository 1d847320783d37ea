import re
import sys

import pytest

from squirrel_torch.observe.spelling import amount_of, bytes_of, cells, cut, fill_of, percent, time_of, times_of, wrapped
from squirrel_torch.observe.text import columns_of, line_of, table_of
from tests.observe.reports import HANDOVER, LONG, MIX, NOTHING, PLAIN, REPORTS, UNKNOWN, ZERO, took


@pytest.fixture(params=["rich", "plain"])
def with_and_without_rich(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich", None)  # as if it was not installed
    return request.param


def titles(report):
    return [column.title for column in columns_of(report)]


def test_table_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert table_of(PLAIN, 120).splitlines() == [
        "map(decode): it computes 97 % of the time; StreamLoader(..., num_workers=4) would give about 3.5x",
        "",
        "stage                     items  per s  busy            cpu  starved  blocked      p50 / p99",
        "--------------------------------------------------------------------------------------------",
        "  IterableSource(paths)  80,000     8k  .......... 2%   90%               98%",
        "> map(decode)            80,000     8k  #########. 90%  97%       2%       8%  93.9 / 376 us",
        "  batched(32)             2,500    250  .......... 4%   90%      92%       4%",
        "",
        "> limits the stream",
        "busy: share of the time of its thread or of its workers; cpu: of that; starved: waits for input; "
        "blocked: for its taker",
    ]


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_rich_draws_the_same_table(report, monkeypatch):
    drawn = table_of(report, 130)
    monkeypatch.setitem(sys.modules, "rich", None)
    signs = str.maketrans({"█": "#", "░": ".", "─": "-"})
    assert drawn.translate(signs) == table_of(report, 130)


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
@pytest.mark.parametrize("width", [105, 120, 200])
def test_it_is_never_wider_than_the_terminal_and_has_all_figures(report, width, with_and_without_rich):
    text = table_of(report, width)
    assert max(map(cells, text.splitlines())) <= width
    for column in columns_of(report)[1:]:
        assert [value for value in column.values if value.lstrip("#.") not in text] == []


def test_names_get_lines_of_their_own_where_there_is_no_room_for_them(with_and_without_rich):
    lines = table_of(LONG, 80).splitlines()
    at = lines.index("> async_map(fetch, workers=16)")
    assert lines[at + 1].split()[:2] == ["80,000", "8k"]
    assert lines[at + 1].split()[-2:] == ["12", "3"]


def test_columns_that_are_empty_everywhere_are_left_out():
    assert titles(PLAIN) == ["stage", "items", "per s", "busy", "cpu", "starved", "blocked", "p50 / p99"]
    assert titles(LONG) == [
        "stage",
        "items",
        "per s",
        "busy",
        "cpu",
        "starved",
        "blocked",
        "in flight",
        "p50 / p99",
        "retries",
        "skipped",
    ]
    assert titles(ZERO) == ["stage", "items", "per s", "busy", "in flight"]
    assert titles(NOTHING) == ["stage"]


def column(report, title):
    return next(column.values for column in columns_of(report) if column.title == title)


def test_workers_of_calls_are_busy_and_not_the_thread_that_asks_them():
    assert column(LONG, "busy")[3] == "########## 96%"
    assert column(LONG, "starved")[3] == "3%"
    assert column(LONG, "blocked")[3] == "1%"
    assert column(LONG, "cpu")[3] == "1%"


def test_shares_are_those_of_all_workers_of_a_loader():
    assert column(HANDOVER, "busy") == (".......... 2%", "####...... 40%", ".......... 2%")
    assert column(HANDOVER, "starved") == ("", "10%", "50%")
    assert column(HANDOVER, "blocked") == ("98%", "50%", "48%")


def test_branches_are_indented_below_their_mix_and_the_limit_is_marked():
    assert column(MIX, "stage") == (
        "  mix(images, text, audio)",
        "    images: FilePathGenerator(images)",
        ">     map(decode)",
        "    text: ParquetSource(text)",
        "    audio: ListSource(audio)",
        "  batched(30)",
    )


def test_what_is_planned_and_what_was_not_counted_is_marked():
    assert column(LONG, "stage")[1] == "  split_by_rank() (planned)"
    assert column(LONG, "busy")[1] == ""
    assert column(MIX, "items") == ("90,000", "60,000", "60,000", "20,000", "~10,000", "3,000")
    assert column(MIX, "per s") == ("9k", "6k", "6k", "2k", "~1k", "300")
    assert column(UNKNOWN, "items") == ("", "~5,000")


def test_the_consumer_comes_before_the_table_and_warnings_come_last(with_and_without_rich):
    lines = table_of(HANDOVER, 200).splitlines()
    assert lines[1] == (
        "the consumer waits 70% of its time for data; 2,500 batches (250 a second); 0.2/8 ready; "
        "4 workers; packing 75%; unpacking 30%"
    )
    assert table_of(UNKNOWN).splitlines()[-2:] == [
        "warning: items of datapipe(Opaque) are not counted",
        "warning: 1.2 s belong to no stage",
    ]


def test_threads_are_told_where_there_are_several():
    threads = [line for line in table_of(LONG, 400).splitlines() if line.startswith("thread ")]
    steps = ", ".join(f"map(step_{place})" for place in range(4, 12))
    assert threads == [
        "thread feeder 3, busy 3%: FilePathGenerator(bucket), split_by_rank(), shuffle(10000)",
        f"thread main, busy 65%: async_map(fetch, workers=16), {steps}",
    ]
    assert "thread" not in table_of(PLAIN).partition("> limits")[0].partition("\n")[2]


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_nothing_steers_the_terminal(report, with_and_without_rich):
    text = table_of(report) + line_of(report)
    assert re.findall(r"[^\x20-\x7e\n\u4e00-\u9fff█░─]", text) == []


def test_one_line():
    assert line_of(HANDOVER) == (
        "10 s, 250 items a second, the consumer waits 70% of its time; "
        "the loader: its workers take 12 ms to hand over a batch; smaller batches would give about 1.9x"
    )
    assert "\n" not in line_of(REPORTS["evil"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.756, "0.76"),
        (9.994, "9.99"),
        (61.26, "61.3"),
        (999.4, "999"),
        (999.6, "1k"),
        (97_531, "97.5k"),
        (1.234e6, "1.23M"),
    ],
)
def test_amounts(value, text):
    assert amount_of(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 ns"), (3e-9, "3 ns"), (1e-6, "1 us"), (9.996e-4, "1 ms"), (0.0123, "12.3 ms"), (75.0, "75 s")]
)
def test_times(seconds, text):
    assert time_of(seconds) == text


def test_other_spellings():
    assert [percent(share) for share in (0, 0.001, 0.005, 0.5, 1)] == ["0%", "<1%", "<1%", "50%", "100%"]
    assert [bytes_of(size) for size in (12, 602_112, 1.5e9)] == ["12 B", "602 kB", "1.5 GB"]
    assert [fill_of(3.14, 8), fill_of(31.2, 32)] == ["3.1/8", "31/32"]
    assert times_of(took((1e-4, 98), (1e-3, 2))) == "93.9 us / 1.06 ms"


def test_names_are_cut_in_the_middle_and_text_is_wrapped_by_the_cells_it_takes():
    assert cut("async_map(fetch, workers=16)", 20) == "async_map(fe...s=16)"
    assert cells(cut("画像" * 20, 21)) <= 21
    assert wrapped("one two three", 7) == ["one two", "three"]
    assert wrapped("abcdefghij k", 4) == ["abcd", "efgh", "ij k"]
