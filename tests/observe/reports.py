"""Reports of made-up streams, as simple and as odd as they come."""

from squirrel_torch.observe.figures import Calls, Figures, Histogram, Loading, StageFigures
from squirrel_torch.observe.report import Report, Verdict

SECONDS = 10.0
EVIL = "map(<script>alert('x' & \"y\")</script>" + "_decode_image_from_bytes" * 8 + ")"


def stage(place, name, busy=0.0, up=0.0, down=0.0, items=80_000, cpu=None, **more):
    """A stage, with shares of the time instead of seconds."""
    kind = name.partition("(")[0].title()
    seconds = {"busy": busy * SECONDS, "upstream": up * SECONDS, "downstream": down * SECONDS}
    return StageFigures(place, name, kind, items=items, cpu=None if cpu is None else cpu * busy * SECONDS, **seconds, **more)


def took(*times):
    """A histogram of (seconds, calls)."""
    histogram = Histogram()
    for seconds, calls in times:
        histogram.add(seconds, calls)
    return histogram


def calls(workers, busy, hungry=0.0, count=80_000, **more):
    """Calls in threads, with the share of the time in which these work."""
    return Calls("thread", workers, count, wall=busy * workers * SECONDS, cpu=0.1 * workers, hungry=hungry, **more)


def report(stages, verdict, title="a stream", **more):
    """A report on stages."""
    return Report(title, Figures(SECONDS, tuple(stages), cores=4, **more), verdict)


PLAIN = report(
    [
        stage(0, "IterableSource(paths)", 0.02, 0.0, 0.98, cpu=0.9),
        stage(1, "map(decode)", 0.9, 0.02, 0.08, cpu=0.97, times=took((1e-4, 79_000), (4e-4, 1_000)), size=6e5),
        stage(2, "batched(32)", 0.04, 0.92, 0.04, items=2_500, cpu=0.9, size=1.92e7),
    ],
    Verdict("cpu", "map(decode)", "it computes 97 % of the time", "StreamLoader(..., num_workers=4)", 3.5, 1),
    "IterableSource(paths).map(decode).batched(32)",
)

LONG = report(
    [
        stage(0, "FilePathGenerator(bucket)", 0.01, 0.0, 0.99, thread="feeder 3"),
        stage(1, "split_by_rank()", planned=True, thread="feeder 3"),
        stage(2, "shuffle(10000)", 0.02, 0.9, 0.08, thread="feeder 3"),
        stage(
            3,
            "async_map(fetch, workers=16)",
            0.05,
            0.9,
            0.05,
            calls=calls(16, 0.96, 0.03, in_flight=31.2, buffer=32, times=took((1.9e-3, 80_000))),
            retries=12,
            skipped=3,
        ),
        *(stage(place, f"map(step_{place})", 0.01 * place, 0.8, 0.1, exact=place != 5) for place in range(4, 12)),
    ],
    Verdict("latency", "async_map(fetch, workers=16)", "its calls take 1.9 ms", "async_map(fetch, workers=48)", 2.9, 3),
)

MIX = report(
    [
        stage(0, "mix(images, text, audio)", 0.03, 0.9, 0.07, items=90_000),
        stage(0, "FilePathGenerator(images)", 0.01, 0.0, 0.98, branch=("images",), items=60_000),
        stage(1, "map(decode)", 0.7, 0.1, 0.2, branch=("images",), items=60_000),
        stage(0, "ParquetSource(text)", 0.05, 0.0, 0.95, branch=("text",), items=20_000),
        stage(0, "ListSource(audio)", 0.01, 0.0, 0.99, branch=("audio",), items=10_000, exact=False),
        stage(1, "batched(30)", 0.01, 0.93, 0.06, items=3_000),
    ],
    Verdict("cpu", "map(decode)", "it computes 70 % of the time", "", 1.0, 1, ("images",)),
)

_WORKERS = 4
_IN_WORKERS = [
    StageFigures(0, "IterableSource(paths)", "IterableSource", items=80_000, busy=0.8, downstream=39.2),
    StageFigures(
        1,
        "async_map(fetch)",
        "AsyncMap",
        items=80_000,
        busy=2.0,
        upstream=30.0,
        downstream=8.0,
        calls=calls(32, 0.4, 0.1, in_flight=60.0, buffer=64),
    ),
    StageFigures(2, "batched(32)", "Batched", items=2_500, busy=1.0, upstream=20.0, downstream=19.0, size=1.92e7),
]
LOADER = report(
    _IN_WORKERS,
    Verdict("consumer", "the consumer", "it waits for data 5 % of its time"),
    loading=Loading(_WORKERS, 2_500, 80_000, 0.5, 9.5, packing=4.0, blocked=16.0, unpacking=0.2, ready=7.2, most_ready=8),
    makers=_WORKERS,
)
HANDOVER = report(
    _IN_WORKERS,
    Verdict("hand-over", "the loader", "its workers take 12 ms to hand over a batch", "smaller batches", 1.9),
    loading=Loading(_WORKERS, 2_500, 80_000, 7.0, 3.0, packing=30.0, blocked=0.1, unpacking=3.0, ready=0.2, most_ready=8),
    makers=_WORKERS,
)

UNKNOWN = report(
    [stage(0, "datapipe(Opaque)", 0.2, 0.0, 0.8, items=None), stage(1, "map(f)", 0.7, 0.2, 0.1, items=5_000, exact=False)],
    Verdict("unknown", "the stream", "nothing is busy most of the time"),
    warnings=("items of datapipe(Opaque) are not counted", "1.2 s belong to no stage"),
)

EVILS = report(
    [
        stage(0, "W" * 90, 0.1, 0.1, 0.8, site="/home/<b>/x.py:3"),
        stage(1, EVIL, 0.9, 0.05, 0.05, times=took((1e-4, 100))),
        stage(2, "map(" + "画像" * 40 + ")", 0.1, 0.9, 0.0),
        stage(3, "map(a\x1b[31mred\nline\x00\ud800\u202e)", 0.1, 0.9, 0.0),
    ],
    Verdict("cpu", EVIL, f"<b>because</b> {EVIL} is slow", f"<i>{EVIL}</i>", 2.0, 1),
    f"Source().{EVIL}]]></style></svg><script>alert(1)</script>",
    warnings=("</script><script>alert(2)</script>",),
)

ZERO = Report(
    "IterableSource([])",
    Figures(
        0.3, (stage(0, "IterableSource([])", items=0), stage(1, "async_map(f)", items=0, calls=Calls("thread", 4, buffer=8)))
    ),
    Verdict("unknown", "the stream", "no item has come out of it yet"),
)
NOTHING = Report("", Figures(0.0, (), Loading(0)), Verdict("unknown", "the stream", "no item has come out of it yet"))

BRANCHES = report(
    [
        stage(0, "mix(7 branches)", 0.03, 0.9, 0.07),
        *(stage(0, f"source({number})", 0.1 * number, 0, 0.3, branch=(f"b{number}",), items=1_000) for number in range(7)),
    ],
    Verdict("cpu", "source(0)", "it computes", "", 1.0, 0, ("b0",)),
)
NESTED = report(
    [
        stage(0, "mix(a, b)"),
        stage(0, "mix(x, y)", branch=("a",)),
        stage(0, "source(x)", branch=("a", "x")),
        stage(1, "map(g)", branch=("a", "x")),
        stage(0, "source(y)", branch=("a", "y")),
        stage(1, "map(h)", 0.6, branch=("a",)),
        stage(0, "source(b)", branch=("b",)),
        stage(1, "batched(8)", items=10_000),
    ],
    Verdict("cpu", "map(h)", "it computes", "", 1.0, 1, ("a",)),
)

REPORTS = {
    "plain": PLAIN,
    "long": LONG,
    "mix": MIX,
    "loader": LOADER,
    "hand-over": HANDOVER,
    "unknown": UNKNOWN,
    "evil": EVILS,
    "zero": ZERO,
    "nothing": NOTHING,
    "branches": BRANCHES,
    "nested": NESTED,
}
