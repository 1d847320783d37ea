"""What is said of figures that were made by hand, one case for each cause, and at their edges."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squirrel_torch.observe import Calls, Figures, Loading, StageFigures
from squirrel_torch.observe.verdict import verdict_of

SECONDS = 10.0


def stage(place, name, *, kind=None, busy=0.0, cpu=None, items=1000, **more):
    return StageFigures(
        place, name, kind or name.partition("(")[0].title(), busy=busy, cpu=busy if cpu is None else cpu, items=items, **more
    )


def source(busy=0.01, cpu=None, **more):
    return stage(0, "IterableSource(list)", kind="IterableSource", busy=busy, cpu=cpu, **more)


def calls(where="thread", workers=4, wall=0.0, cpu=0.0, **more):
    return Calls(where, workers, count=more.pop("count", 1000), wall=wall, cpu=cpu, buffer=more.pop("buffer", 100), **more)


def figures(*stages, cores=4, **more):
    return Figures(SECONDS, stages, cores=cores, **more)


def async_map(place=1, name="async_map(decode)", **more):
    return stage(place, name, kind="AsyncMap", busy=0.02, calls=calls(**more))


def fed(**more):
    return source(thread="feeder 1", **more)


# -- every cause -------------------------------------------------------------------------------------------------------


def test_gil():
    verdict = verdict_of(figures(fed(), async_map(wall=39.8, cpu=9.6)))
    assert (verdict.cause, verdict.place, verdict.stage) == ("gil", 1, "async_map(decode)")
    assert verdict.because == "its calls take 39.8 ms on 4 threads and use 0.96 of a core under the GIL"
    assert verdict.remedy == '.async_map(decode, executor="process")'
    assert 3.4 < verdict.gain < 4.2


def test_calls_that_use_more_than_a_core_do_not_wait_for_the_gil():
    verdict = verdict_of(figures(fed(), async_map(wall=39.8, cpu=24.0)))
    assert verdict.cause == "cores"
    verdict = verdict_of(figures(fed(), async_map(wall=39.8, cpu=24.0), cores=16))
    assert (verdict.cause, verdict.place) == ("cpu", 1)


def test_latency_of_calls():
    verdict = verdict_of(figures(fed(busy=0.5), async_map(wall=39.5, cpu=0.1, away=100.0)))
    assert (verdict.cause, verdict.stage) == ("latency", "async_map(decode)")
    assert verdict.remedy == ".async_map(decode, max_workers=81, buffer=162)"
    assert verdict.gain == pytest.approx(9.9 / 0.62, rel=0.05)  # then 0.62 s under the GIL


def test_latency_of_a_map():
    verdict = verdict_of(figures(source(), stage(1, "map(fetch)", busy=9.9, cpu=0.1)))
    assert (verdict.cause, verdict.stage) == ("latency", "map(fetch)")
    assert verdict.remedy.startswith(".async_map(fetch, max_workers=")
    assert verdict.gain > 10


def test_a_buffer_that_is_too_small_for_its_workers():
    verdict = verdict_of(figures(fed(), async_map(wall=39.6, cpu=0.1, workers=32, buffer=4)))
    assert (verdict.cause, verdict.place) == ("latency", 1)
    assert "buffer=" in verdict.remedy


def test_what_stands_before_a_map_gets_a_thread_of_its_own():
    maps = [
        stage(place, f"map({name})", busy=busy, cpu=0.05)
        for place, name, busy in ((1, "a", 3.0), (2, "fetch", 3.9), (3, "b", 3.0))
    ]
    verdict = verdict_of(figures(source(), *maps))
    assert (verdict.cause, verdict.place) == ("latency", 2)
    assert verdict.gain == pytest.approx(9.9 / 3, rel=0.05)


def test_what_waits_for_a_turn_is_not_on_its_way():
    idle = async_map(where="process", workers=4, wall=1.0, cpu=1.0, away=50.0, hungry=0.95)
    assert verdict_of(figures(fed(), idle)).cause == "unknown"


def test_more_workers_than_are_of_use_are_not_asked_for():
    slow_end = stage(2, "map(encode)", busy=5.0)
    verdict = verdict_of(figures(fed(), async_map(wall=39.5, cpu=0.1, away=9.0), slow_end))
    assert verdict.remedy == ".async_map(decode, max_workers=10)"
    assert verdict.gain == pytest.approx(2, rel=0.05)


def test_never_more_than_128_workers():
    verdict = verdict_of(figures(fed(busy=0.001), async_map(wall=39.5, cpu=0.0, count=10)))
    assert verdict.remedy == ".async_map(decode, max_workers=128, buffer=256)"


def test_cpu_of_a_map():
    verdict = verdict_of(figures(source(), stage(1, "map(decode)", busy=9.9)))
    assert (verdict.cause, verdict.stage) == ("cpu", "map(decode)")
    assert verdict.remedy == '.async_map(decode, executor="process")'
    assert 3.5 < verdict.gain <= 4


def test_cpu_of_a_loader():
    loading = Loading(1, batches=1000, waited=9.0, outside=1.0, packing=0.05, unpacking=0.05)
    verdict = verdict_of(figures(source(), stage(1, "map(decode)", busy=9.8), loading=loading))
    assert (verdict.cause, verdict.remedy) == ("cpu", "StreamLoader(..., num_workers=4)")
    assert 3 < verdict.gain <= 4


def test_a_loader_without_workers():
    loading = Loading(0, batches=1000, waited=5.0, outside=5.0, outside_cpu=0.1)
    verdict = verdict_of(figures(source(), stage(1, "map(decode)", busy=4.9), loading=loading))
    assert (verdict.cause, verdict.stage) == ("cpu", "map(decode)")
    assert "num_workers=" in verdict.remedy
    assert verdict.gain == pytest.approx(2, rel=0.05)  # its own work stays


def test_cores():
    verdict = verdict_of(figures(fed(), async_map(where="process", wall=39.9, cpu=39.0)))
    assert (verdict.cause, verdict.stage, verdict.remedy, verdict.gain) == ("cores", "async_map(decode)", "", 1.0)


def test_one_core_is_all_cores_and_no_gil():
    verdict = verdict_of(figures(fed(), async_map(wall=39.8, cpu=9.6), cores=1))
    assert (verdict.cause, verdict.gain) == ("cores", 1.0)


def test_serial_source():
    verdict = verdict_of(figures(fed(busy=9.9, cpu=0.1), async_map(wall=4.0, cpu=0.1, hungry=0.97)))
    assert (verdict.cause, verdict.place) == ("serial", 0)
    assert "async_map(decode) has too little to do 97 % of the time" in verdict.because
    assert verdict.remedy == "IterableSource(keys).async_map(lambda key: decode(read(key)))"
    assert verdict.gain == pytest.approx(9.9 / (13.9 / 4), rel=0.01)


def test_serial_map():
    before = stage(1, "map(load)", busy=9.0, cpu=0.1, thread="feeder 2")
    chain = source(thread="feeder 2"), before, async_map(2, wall=4.0, cpu=0.1, hungry=0.9)
    verdict = verdict_of(figures(*chain))
    assert (verdict.cause, verdict.place, verdict.remedy) == ("serial", 1, ".async_map(lambda item: decode(load(item)))")
    assert 2.5 < verdict.gain < 3


@pytest.mark.parametrize(
    ("dealt", "remedy"),
    [(True, "StreamLoader(..., num_workers=16)"), (False, "IterableSource(keys).async_map(read, max_workers=89, buffer=178)")],
)
def test_serial_loader(dealt, remedy):
    # A source without a plan is read from its beginning by each worker: more of them would not help.
    loading = Loading(1, batches=100, waited=9.9, outside=0.1, packing=0.01, unpacking=0.01)
    chain = source(busy=9.9, cpu=0.1), stage(1, "shuffle(10)", planned=dealt)
    verdict = verdict_of(figures(*chain, loading=loading))
    assert (verdict.cause, verdict.place, verdict.remedy) == ("serial", 0, remedy)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("batched(32, collation_fn=pad)", ".batched(32).async_map(pad, max_workers=83, buffer=166)"),
        ("flat_map(fetch)", "what flat_map(fetch) does in .async_map(f, max_workers=83, buffer=166)"),
    ],
)
def test_a_stage_that_waits_and_is_no_map(name, remedy):
    verdict = verdict_of(figures(source(), stage(1, name, busy=9.9, cpu=0.1)))
    assert (verdict.cause, verdict.place, verdict.remedy) == ("serial", 1, remedy)


def test_hand_over_of_calls():
    sent = async_map(where="process", workers=2, wall=0.5, cpu=0.5, away=30.0)
    verdict = verdict_of(figures(fed(), sent))
    assert (verdict.cause, verdict.place, verdict.remedy) == ("hand-over", 1, ".map(decode)")
    assert verdict.gain == pytest.approx(10 / 0.53, rel=0.2)


def test_hand_over_of_waiting_calls_stays_in_threads():
    sent = async_map(where="process", workers=2, wall=5.0, cpu=0.1, away=30.0)
    verdict = verdict_of(figures(fed(), sent))
    assert (verdict.cause, verdict.place) == ("hand-over", 1)
    assert verdict.remedy.startswith(".async_map(decode, max_workers=")


def test_hand_over_of_a_loader():
    loading = Loading(1, batches=1000, waited=9.5, outside=0.5, packing=8.0, unpacking=4.0, size=1e7)
    verdict = verdict_of(figures(source(), stage(1, "map(load)", busy=1.5), loading=loading))
    assert (verdict.cause, verdict.place, verdict.remedy) == ("hand-over", None, "StreamLoader(..., num_workers=0)")
    assert verdict.gain == pytest.approx(9.51 / 2.01, rel=0.05)


def test_taking_over_is_hand_over():
    loading = Loading(2, batches=1000, waited=9.5, outside=0.5, packing=6.0, unpacking=9.0, size=1e7)
    verdict = verdict_of(figures(source(), stage(1, "map(load)", busy=14.0), makers=2, loading=loading))
    assert (verdict.cause, verdict.place) == ("hand-over", None)
    assert "half the bytes" in verdict.remedy


def test_overhead():
    count = 20_000_000
    maps = [stage(place, f"map({name})", busy=2.4, items=count) for place, name in ((1, "inc"), (2, "double"))]
    last = stage(3, "batched(100)", busy=2.0, items=count // 100)
    verdict = verdict_of(figures(source(busy=3.0, items=count), *maps, last))
    assert verdict.cause == "overhead"
    assert verdict.remedy == ".batched(100).map(inc).map(double) on arrays"
    assert 1.3 < verdict.gain < 2.0


def test_overhead_of_threads():
    count = 5_000_000
    verdict = verdict_of(
        figures(fed(items=count), replace(async_map(wall=1.0, cpu=1.0, count=count), busy=9.9, cpu=9.0, items=count))
    )
    assert (verdict.cause, verdict.place, verdict.remedy) == ("overhead", 1, ".map(decode)")
    assert verdict.gain > 4


def test_consumer():
    loading = Loading(2, batches=100, waited=0.4, outside=9.6)
    verdict = verdict_of(figures(source(), stage(1, "map(decode)", busy=4.0), makers=2, loading=loading))
    assert (verdict.cause, verdict.place, verdict.remedy, verdict.gain) == ("consumer", None, "", 1.0)
    assert verdict.because == "it waits for data 4 % of its time: without any waiting it would be 1.04x as fast"


def test_consumer_of_a_stream():
    verdict = verdict_of(figures(source(), stage(1, "map(decode)", busy=0.4, downstream=9.55)))
    assert (verdict.cause, verdict.gain) == ("consumer", 1.0)


def test_results_behind_a_slow_one():
    late = async_map(wall=8.0, cpu=0.1, workers=4, buffer=8, in_flight=7.9, hungry=0.8)
    verdict = verdict_of(figures(fed(), late))
    assert (verdict.cause, verdict.remedy) == ("latency", ".async_map(decode, buffer=32), or ordered=False")


# -- at the edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seen",
    [
        Figures(0.0, ()),
        Figures(10.0, ()),
        Figures(10.0, (source(items=0),)),
        Figures(10.0, (source(items=None),)),
        Figures(0.15, (source(),)),
        Figures(10.0, (source(),), Loading(2)),
        Figures(0.01, (source(),), sampled=False),
    ],
)
def test_too_little_is_said_to_be_that(seen):
    verdict = verdict_of(seen)
    assert (verdict.cause, verdict.place, verdict.remedy, verdict.gain) == ("unknown", None, "", 1.0)
    assert "yet" in verdict.because or "only" in verdict.because


def test_nothing_busy_is_unknown():
    verdict = verdict_of(figures(source(busy=1.0), stage(1, "map(decode)", busy=2.0)))
    assert verdict.cause == "unknown"
    assert verdict.because == "no part of it is busy for more than 30 % of the time"


@pytest.mark.parametrize("loading", [None, Loading(0), Loading(2), Loading(2, batches=3, waited=1.0)])
def test_zeros(loading):
    chain = source(busy=0.0), stage(1, "map(decode)"), async_map(2), stage(3, "batched(2)", items=0)
    for some in ((*chain[:3],), chain):
        verdict = verdict_of(figures(*some, loading=loading))
        assert verdict.gain == 1.0
        assert str(verdict)


def test_two_that_are_the_same():
    one, two = stage(1, "map(first)", busy=4.9), stage(2, "map(second)", busy=4.9)
    verdict = verdict_of(figures(source(), one, two))
    assert (verdict.cause, verdict.place) == ("cpu", 1)
    assert verdict.gain == pytest.approx(2, rel=0.05)  # the other one stays
    assert verdict_of(figures(source(), one, two)) == verdict


def test_a_thread_before_the_calls_that_it_keeps_waiting():
    # Both are full: results wait in the buffer for the last thread, which is what works.
    verdict = verdict_of(figures(fed(), async_map(wall=39.0, cpu=0.1), stage(2, "map(encode)", busy=9.8)))
    assert verdict.place == 2


def test_gain_grows_with_cores_and_not_beyond():
    gains = [
        verdict_of(figures(source(), stage(1, "map(decode)", busy=9.9), cores=cores)).gain for cores in (1, 2, 3, 4, 8, 16)
    ]
    assert gains == sorted(gains)
    assert all(gain <= cores for gain, cores in zip(gains, (1, 2, 3, 4, 8, 16), strict=True))


@pytest.mark.parametrize("name", ["gil", "cpu"])
def test_less_of_the_limit_is_less_to_gain(name):
    def seen(load):
        rest = stage(2, "map(rest)", busy=9.8 - load)
        if name == "cpu":
            return figures(source(), stage(1, "map(decode)", busy=load), rest)
        return figures(fed(), async_map(wall=4 * 9.9, cpu=load), rest)

    gains = [verdict_of(seen(load)).gain for load in (5.0, 6.0, 7.0, 8.0, 9.0)]
    assert gains == sorted(gains)
    assert gains[0] > 1


def test_latency_by_waiting():
    gains = [verdict_of(figures(fed(busy=busy), async_map(wall=39.5, cpu=0.1))).gain for busy in (0.1, 1.0, 2.0, 5.0, 8.0)]
    assert gains == sorted(gains, reverse=True)


def test_workers_and_ranks_are_added_up():
    one = figures(fed(), async_map(wall=39.5, cpu=0.1))
    alone = verdict_of(one)
    stages = (
        replace(fed(), items=4000, busy=0.04, cpu=0.04),
        async_map(wall=4 * 39.5, cpu=0.4, workers=16, buffer=400, count=4000),
    )
    stages = (stages[0], replace(stages[1], items=4000, busy=0.08, cpu=0.08))
    four = verdict_of(figures(*stages, makers=4, ranks=4))
    assert four.cause == alone.cause == "latency"
    assert four.remedy == alone.remedy
    assert four.gain == pytest.approx(alone.gain)


def test_planned_places_do_nothing():
    assert verdict_of(figures(source(busy=9.0, planned=True), stage(1, "map(decode)", busy=9.0))).place == 1


def test_places_of_branches():
    inner = stage(1, "map(decode)", busy=9.8, branch=("left",))
    verdict = verdict_of(figures(source(), inner))
    assert (verdict.place, verdict.branch) == (1, ("left",))


def test_long_names_are_cut():
    name = f"map({'very_' * 30}long)"
    verdict = verdict_of(figures(source(), stage(1, name, busy=9.8)))
    assert len(verdict.stage) == 60
    assert len(verdict.remedy) < 100


@pytest.mark.parametrize(
    ("name", "written"), [("map(<lambda> at x.py:3)", "f"), ("map(a.b.decode)", "a.b.decode"), ("map", "f")]
)
def test_what_has_no_name_is_f(name, written):
    assert verdict_of(figures(source(), stage(1, name, kind="Map", busy=9.8))).remedy.startswith(f".async_map({written}, ")


seconds = st.floats(0.0, 50.0)


@st.composite
def any_figures(draw):
    """Whatever may be seen, and what may not."""
    number = draw(st.integers(1, 4))
    stages = []
    for place in range(number):
        some = (
            draw(st.none() | st.sampled_from(["thread", "process", "coroutine", "executor", "dask", "numba"]))
            if place
            else None
        )
        called = None
        if some is not None:
            cpu = draw(st.none() | seconds)
            rest = {name: draw(seconds) for name in ("wall", "away", "in_flight")}
            called = Calls(
                some, draw(st.integers(0, 40)), draw(st.integers(0, 10**6)), cpu=cpu, buffer=draw(st.integers(0, 100)), **rest
            )
        stages.append(
            StageFigures(
                place,
                draw(st.sampled_from(["map(decode)", "async_map(<lambda>)", "batched(3)", "", "("])),
                "AsyncMap" if some else draw(st.sampled_from(["Map", "Batched", "Filter"])),
                thread=draw(st.sampled_from(["main", "feeder 2"])),
                items=draw(st.none() | st.integers(0, 10**6)),
                busy=draw(seconds),
                cpu=draw(st.none() | seconds),
                downstream=draw(seconds),
                planned=draw(st.booleans()),
                calls=called,
            )
        )
    workers = draw(st.integers(0, 4))
    names = ("waited", "outside", "packing", "unpacking")
    loading = draw(st.none() | st.just(Loading(workers, draw(st.integers(0, 100)), **{name: draw(seconds) for name in names})))
    ranks = draw(st.integers(1, 3))
    return Figures(
        draw(seconds), tuple(stages), loading, ranks * max(1, workers), ranks, draw(st.integers(0, 9)), draw(st.booleans())
    )


@given(any_figures())
def test_whatever_was_seen_something_is_said(seen):
    verdict = verdict_of(seen)
    assert 1.0 <= verdict.gain <= 1000.1
    assert (verdict.gain == 1.0) == (not verdict.remedy)
    assert verdict.because
    assert verdict_of(seen) == verdict
    if "process" in verdict.remedy and verdict.cause in ("gil", "cpu"):
        assert verdict.gain <= max(1, seen.cores) * 1.001


def test_it_stays_the_same_through_json():
    seen = figures(fed(), async_map(wall=39.8, cpu=9.6), loading=Loading(0, batches=10, waited=10.0, outside_cpu=0.1))
    again = Figures.from_dict(json.loads(json.dumps(seen.to_dict())))
    assert again == seen
    assert verdict_of(again) == verdict_of(seen)
