from dataclasses import replace

import pytest

from squirrel_torch.observe.adding import since
from squirrel_torch.observe.figures import Calls, Figures, Histogram, Loading, StageFigures


def took(**counts):
    return Histogram({int(step[1:]): count for step, count in counts.items()})


def figures(seconds, stage, calls, loading):
    source = StageFigures(0, "source", "Source", items=None)
    return Figures(seconds, (source, replace(stage, calls=calls)), loading, makers=2, cores=4, warnings=("one",))


EARLIER = figures(
    2.0,
    StageFigures(1, "f", "AsyncMap", items=100, busy=0.5, cpu=0.25, upstream=1.0, downstream=0.5, retries=1, skipped=2),
    Calls("thread", 4, 100, wall=4.0, cpu=None, away=0.5, hungry=0.5, in_flight=8.0, buffer=16, times=took(s10=90, s20=10)),
    Loading(2, 10, 320, 1.0, 0.5, 0.25, 0.125, 0.0625, ready=1.0, most_ready=8, size=100.0, outside_cpu=0.25),
)
NOW = figures(
    6.0,
    StageFigures(1, "f", "AsyncMap", items=500, busy=1.5, cpu=1.0, upstream=3.0, downstream=1.5, retries=4, skipped=2),
    Calls(
        "thread",
        4,
        500,
        wall=16.0,
        cpu=None,
        away=1.5,
        hungry=0.25,
        in_flight=12.0,
        buffer=16,
        times=took(s10=90, s20=310, s30=1),
    ),
    Loading(2, 40, 1280, 2.0, 4.5, 1.25, 1.125, 0.5625, ready=4.0, most_ready=8, size=110.0, outside_cpu=1.25),
)


def test_counts_and_seconds_are_those_between_and_averages_too():
    assert since(NOW, EARLIER) == figures(
        4.0,
        StageFigures(1, "f", "AsyncMap", items=400, busy=1.0, cpu=0.75, upstream=2.0, downstream=1.0, retries=3, skipped=0),
        Calls(
            "thread", 4, 400, wall=12.0, cpu=None, away=1.0, hungry=0.125, in_flight=14.0, buffer=16, times=took(s20=300, s30=1)
        ),
        Loading(2, 30, 960, 1.0, 4.0, 1.0, 1.0, 0.5, ready=5.0, most_ready=8, size=110.0, outside_cpu=1.0),
    )


def test_what_follows_on_it_is_the_whole_again():
    nothing = replace(
        EARLIER, seconds=0.0, stages=tuple(replace(s, items=0, calls=None, busy=0.0) for s in EARLIER.stages), loading=None
    )
    assert since(EARLIER, nothing).loading == EARLIER.loading
    assert since(EARLIER, nothing).stages[1].calls == EARLIER.stages[1].calls


def test_seconds_that_a_clock_seems_to_have_taken_back_are_none():
    less = replace(NOW, stages=(NOW.stages[0], replace(NOW.stages[1], busy=0.49)))
    assert since(less, EARLIER).stages[1].busy == 0


def test_unknown_counts_stay_unknown():
    assert since(NOW, EARLIER).stages[0].items is None
    unknown = replace(EARLIER, stages=(EARLIER.stages[0], replace(EARLIER.stages[1], items=None)))
    assert since(NOW, unknown).stages[1].items is None


@pytest.mark.parametrize(
    "other",
    [
        replace(EARLIER, seconds=6.0),  # nothing between
        replace(EARLIER, seconds=7.0),  # started again
        replace(EARLIER, stages=(EARLIER.stages[0], replace(EARLIER.stages[1], items=501))),
        replace(EARLIER, stages=(EARLIER.stages[0], replace(EARLIER.stages[1], name="g"))),
    ],
    ids=["same", "later", "fewer items", "another chain"],
)
def test_what_is_no_continuation_is_left_as_it_is(other):
    assert since(NOW, other) == NOW


def test_a_place_that_was_not_there_before_is_new():
    fewer = replace(EARLIER, stages=EARLIER.stages[1:])
    assert since(NOW, fewer).stages[0] == NOW.stages[0]
    assert since(NOW, fewer).stages[1].items == 400
