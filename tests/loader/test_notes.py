"""What workers have to say beside the batches."""

import os
import threading

import pytest
import torch

from squirrel_torch import WorkerDiedError
from squirrel_torch.loader.workers import END, Workers
from squirrel_torch.reporting import home


@pytest.fixture
def passes():
    opened = []

    def make(serve, count=1, **options):
        opened.append(Workers(serve, count, **{"start_method": "fork", **options}))
        return opened[-1]

    yield make
    for workers in opened:
        workers.close()


def talking(work, worker, count):
    """A note before each batch, behind the last, and when the pass is closed."""
    try:
        for number in range(work):
            home().send("count", {"worker": worker, "number": number, "text": "é\n"})
            yield number, torch.full((3,), number)
        home().send("count", {"worker": worker, "number": "last"})
    finally:
        home().send("closed", None)


def heard(workers):
    """All that handlers are called with, in order, beside what is received."""
    log = []
    workers.handlers["count"] = lambda worker, payload: log.append((worker, payload["number"]))
    workers.handlers["closed"] = lambda worker, payload: log.append((worker, "closed"))
    return log


def test_notes_come_before_what_they_belong_to(passes):
    workers = passes(talking, 2)
    log = heard(workers)
    for _ in range(2):
        workers.start(3, [1, 2])
        for number in range(3):
            for worker in range(2):
                assert workers.receive(worker)[0] == number
                assert (worker, number) in log
        assert [workers.receive(worker) for worker in range(2)] == [END, END]
        for worker in range(2):
            assert [said for who, said in log if who == worker] == [0, 1, 2, "last", "closed"]
        log.clear()


def test_payloads_arrive_as_they_were_sent(passes):
    workers, payloads = passes(talking), []
    workers.handlers["count"] = lambda worker, payload: payloads.append(payload)
    workers.handlers["closed"] = lambda worker, payload: payloads.append(payload)
    workers.start(1, [1])
    while workers.receive(0) is not END:
        pass
    assert payloads == [{"worker": 0, "number": 0, "text": "é\n"}, {"worker": 0, "number": "last"}, None]


def test_notes_of_a_pass_that_was_left_are_dropped(passes):
    workers = passes(talking, prefetch=1)
    log = heard(workers)
    workers.start(100, [1])
    assert workers.receive(0)[0] == 0
    log.clear()
    workers.start(0, [1])
    assert workers.receive(0) is END
    assert log == [(0, "last"), (0, "closed")]


def chatting(work, worker, count):
    """More than the line holds, for one batch."""
    for _ in range(work):
        home().send("count", {"number": "x" * 1000})
    yield 0, 1
    for _ in range(work):
        home().send("count", {"number": "y" * 1000})


@pytest.mark.parametrize("prefetch", [1, 3])
def test_many_notes_block_nothing(passes, prefetch):
    workers = passes(chatting, prefetch=prefetch)
    log = heard(workers)
    workers.start(3000, [1])
    assert workers.receive(0) == (0, 1)
    assert workers.receive(0) is END
    assert [said[0] for _, said in log] == ["x"] * 3000 + ["y"] * 3000
    workers.start(3000, [1])
    workers.start(1, [1])  # nobody has listened: it hears of the next pass all the same
    assert workers.receive(0) == (0, 1)


def failing(work, worker, count):
    home().send("count", {"number": "first"})
    yield 0, 0
    home().send("count", {"number": "second"})
    if work == "die":
        yield 1, 1
        os._exit(3)
    raise ZeroDivisionError


def test_notes_come_before_an_error(passes):
    workers = passes(failing)
    log = heard(workers)
    workers.start("raise", [1])
    assert workers.receive(0) == (0, 0)
    with pytest.raises(ZeroDivisionError):
        workers.receive(0)
    assert log == [(0, "first"), (0, "second")]


def test_notes_of_a_worker_that_dies(passes):
    workers = passes(failing)
    log = heard(workers)
    workers.start("die", [1])
    assert [workers.receive(0), workers.receive(0)] == [(0, 0), (1, 1)]
    with pytest.raises(WorkerDiedError):
        workers.receive(0)
    assert log == [(0, "first"), (0, "second")]


def test_a_handler_that_raises_loses_nothing(passes):
    workers = passes(talking)
    log = heard(workers)

    def refuse(worker, payload):
        workers.handlers["count"] = lambda worker, payload: log.append((worker, payload["number"]))
        raise KeyError("refused")

    workers.handlers["count"] = refuse
    workers.start(2, [1])
    with pytest.raises(KeyError, match="refused"):
        workers.receive(0)
    assert [workers.receive(0)[0], workers.receive(0)[0], workers.receive(0)] == [0, 1, END]
    assert log == [(0, 1), (0, "last"), (0, "closed")]


def test_a_kind_that_nobody_handles_is_said_once(passes, caplog):
    workers = passes(talking)
    workers.handlers["closed"] = lambda worker, payload: None
    workers.start(5, [1])
    while workers.receive(0) is not END:
        pass
    assert [record.getMessage() for record in caplog.records] == [
        "worker 0 has sent a note of the kind 'count', which nothing in the main process handles"
    ]


def unserializable(work, worker, count):
    home().send("count", object())
    yield 0, 0


def test_what_is_no_json_fails_where_it_is_sent(passes):
    workers = passes(unserializable)
    workers.start(None, [1])
    with pytest.raises(TypeError, match="not JSON serializable"):
        workers.receive(0)


def from_threads(work, worker, count):
    def send(thread):
        for number in range(work):
            home().send("count", {"number": (thread, number)})

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for number in range(3):
        yield number, number
    for thread in threads:
        thread.join()


def test_any_thread_may_send(passes):
    workers = passes(from_threads)
    log = heard(workers)
    workers.start(500, [1])
    while workers.receive(0) is not END:
        pass
    for thread in range(4):
        assert [number for _, (own, number) in log if own == thread] == list(range(500))


def in_a_fork(work, worker, count):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if home() is None else 1)
    yield 0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_only_a_worker_has_a_way_home(passes):
    assert home() is None
    workers = passes(in_a_fork)
    workers.start(None, [1])
    assert workers.receive(0) == (0, 0), "a process that a worker has forked has none"
