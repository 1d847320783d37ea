import io
import sys
import threading
from dataclasses import replace

import pytest

from squirrel_torch.observe.adding import added
from squirrel_torch.observe.figures import Figures
from squirrel_torch.observe.live import watching
from squirrel_torch.observe.text import line_of
from tests.observe.reports import EVILS, LOADER, LONG, PLAIN

SOON = 0.005


class Terminal(io.StringIO):
    def isatty(self):
        return True


def after(report, steps):
    """A report on a stream that did the same `steps` times."""
    figures = added([report.figures] * steps)
    loading = figures.loading
    if loading is not None:
        loading = replace(loading, workers=report.figures.loading.workers, ready=report.figures.loading.ready)
    return replace(
        report, figures=replace(figures, seconds=steps * report.figures.seconds, makers=report.figures.makers, loading=loading)
    )


class Asked:
    """Gives a report on one step more each time, and tells when it was asked so often."""

    def __init__(self, report, until):
        self.report, self.until, self.count = report, until, 0
        self.enough = threading.Event()
        self.threads = set()

    def __call__(self):
        self.count += 1
        self.threads.add(threading.current_thread())
        if self.count >= self.until:
            self.enough.set()
        return after(self.report, self.count)


def test_where_there_is_no_terminal_it_is_a_line_each_time():
    ask, file = Asked(PLAIN, 3), io.StringIO()
    with watching(ask, every=SOON, file=file):
        assert ask.enough.wait(20)
    *lines, last = file.getvalue().splitlines()
    assert len(lines) == ask.count - 1
    # 250 batches a second, each time, not 250, 500, 750
    assert set(lines) == {line_of(PLAIN)}
    assert last == line_of(after(PLAIN, ask.count))  # all of the time
    assert ask.threads.isdisjoint({threading.current_thread()})
    assert not any(thread.is_alive() for thread in ask.threads)


def test_a_terminal_without_rich_has_lines_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    ask, file = Asked(LONG, 2), Terminal()
    with watching(ask, every=SOON, file=file):
        assert ask.enough.wait(20)
    assert set(file.getvalue().splitlines()[:-1]) == {line_of(LONG)}
    assert "\x1b" not in file.getvalue()


@pytest.fixture
def terminal(monkeypatch):
    pytest.importorskip("rich")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "60")
    return Terminal()


def test_in_a_terminal_a_table_is_drawn_again_and_again(terminal):
    ask = Asked(LOADER, 3)
    printed = sys.stdout
    with watching(ask, every=SOON, file=terminal):
        assert ask.enough.wait(20)
    text = terminal.getvalue()
    assert text.count("the consumer is the limit") >= ask.count
    assert "the consumer  ███████████████████████░  works 95%, waits for data 5%" in text
    assert "async_map(fetch)" in text
    assert "\x1b[1A" in text  # drawn over the one before
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert sys.stdout is printed


def test_a_terminal_that_can_only_write_on_has_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    ask = Asked(PLAIN, 2)
    with watching(ask, every=SOON, file=terminal):
        assert ask.enough.wait(20)
    assert set(terminal.getvalue().splitlines()[:-1]) == {line_of(PLAIN)}


def test_names_are_no_markup_and_steer_nothing(terminal):
    named = replace(PLAIN.figures.stages[1], name="map([red]f[/red])")
    report = replace(PLAIN, figures=replace(PLAIN.figures, stages=(PLAIN.figures.stages[0], named)))
    with watching(lambda: report, every=10, file=terminal):
        pass
    with watching(lambda: EVILS, every=10, file=terminal):
        pass
    assert "map([red]f[/red])" in terminal.getvalue()
    assert "\x1b[31mred" not in terminal.getvalue()


def test_what_goes_wrong_is_a_warning_at_the_end_and_stops_nothing(terminal):
    for file in (io.StringIO(), terminal):
        failed = threading.Event()

        def ask(failed=failed):
            failed.set()
            raise OSError("no report")

        worked = []

        def use(ask=ask, file=file, failed=failed, worked=worked):
            with watching(ask, every=SOON, file=file):
                worked.append(failed.wait(20))

        with pytest.warns(RuntimeWarning, match=r"no longer watched: OSError\('no report'\)"):
            use()
        assert worked == [True]
    assert terminal.getvalue().endswith("\x1b[?25h")


def test_an_error_of_what_is_watched_is_left_alone():
    file = io.StringIO()
    with pytest.raises(KeyError, match="mine"), watching(lambda: PLAIN, every=10, file=file):
        raise KeyError("mine")
    assert file.getvalue() == f"{line_of(PLAIN)}\n"


def test_it_can_be_used_again():
    file = io.StringIO()
    watch = watching(lambda: PLAIN, every=10, file=file)
    for _ in range(2):
        with watch:
            pass
    assert file.getvalue() == f"{line_of(PLAIN)}\n" * 2


@pytest.mark.parametrize("every", [0, -1.0, float("nan")])
def test_it_needs_a_time_between_views(every):
    with pytest.raises(ValueError, match="every must be"):
        watching(lambda: PLAIN, every=every)


def test_before_the_first_item():
    file = io.StringIO()
    with watching(lambda: replace(PLAIN, figures=Figures(0.0, ())), every=10, file=file):
        pass
    assert file.getvalue().startswith("0 ns; map(decode): ")
