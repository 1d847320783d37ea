"""A report as a page of HTML that needs nothing else, and as a part of a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from squirrel_torch.observe.drawing import quoted
from squirrel_torch.observe.figures import Histogram
from squirrel_torch.observe.picture import drawn
from squirrel_torch.observe.places import Place, chain_of, facts_of, headline
from squirrel_torch.observe.report import Report
from squirrel_torch.observe.spelling import bytes_of, cut, fill_of, percent, time_of, times_of
from squirrel_torch.observe.text import consumer_of

__all__ = ["fragment_of", "page_of"]

_STYLE: Final = (
    # Twice the class: a notebook's own rules for tables, which are below one of its classes, give way.
    ".sqt-report{color:#1f2328;background:#fff;font:14px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;"
    "padding:12px}"
    ".sqt-report.sqt-report code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:none;color:inherit;"
    "overflow-wrap:anywhere}"
    ".sqt-report .sqt-verdict{border-left:5px solid #c2410c;padding:4px 12px;margin:0 0 14px;max-width:70em;"
    "overflow-wrap:anywhere}"
    ".sqt-report .sqt-verdict.sqt-fine{border-color:#00735c}.sqt-report .sqt-verdict.sqt-unknown{border-color:#8c959f}"
    ".sqt-report .sqt-headline{font-size:18px;font-weight:700}.sqt-report .sqt-soft{color:#59636e}"
    ".sqt-report .sqt-scroll{overflow-x:auto;margin:12px 0}"
    ".sqt-report.sqt-report table{border-collapse:collapse;font-size:13px;margin:0;color:inherit}"
    ".sqt-report.sqt-report th,.sqt-report.sqt-report td{padding:4px 9px;text-align:right;white-space:nowrap;border:0;"
    "border-bottom:1px solid #d1d9e0;background:none;color:inherit;max-width:none}"
    ".sqt-report.sqt-report tbody tr:nth-child(n){background:none}"
    ".sqt-report.sqt-report .sqt-left{text-align:left}"
    ".sqt-report.sqt-report td.sqt-name{max-width:34em;overflow:hidden;text-overflow:ellipsis}"
    ".sqt-report.sqt-report tr.sqt-limit td{background:#fdebd8}.sqt-report.sqt-report tr.sqt-limit td.sqt-name{font-weight:700}"
    ".sqt-report .sqt-mark{background:#c2410c;color:#fff;font-size:11px;font-weight:700;border-radius:3px;padding:1px 5px;"
    "margin-right:8px}"
    ".sqt-report .sqt-bar{display:inline-block;width:80px;height:10px;border:1px solid #8c959f;margin-right:7px;"
    "text-align:left}"
    ".sqt-report .sqt-bar i{display:block;height:10px;background:#e08700}"
    ".sqt-report .sqt-times rect{fill:#0072b2}.sqt-report .sqt-times line{stroke:#1f2328}"
    ".sqt-report summary{cursor:pointer}"
    "@media (prefers-color-scheme:dark){.sqt-report{color:#e6edf3;background:#0d1117}.sqt-report .sqt-soft{color:#9da7b3}"
    ".sqt-report .sqt-verdict{border-color:#ff8a4c}.sqt-report .sqt-verdict.sqt-fine{border-color:#2fbf9b}"
    ".sqt-report.sqt-report th,.sqt-report.sqt-report td{border-color:#30363d}"
    ".sqt-report.sqt-report tr.sqt-limit td{background:#43290f}.sqt-report .sqt-bar{border-color:#6e7681}"
    ".sqt-report .sqt-times rect{fill:#58a6ff}.sqt-report .sqt-times line{stroke:#e6edf3}}"
)

_PAGE_STYLE: Final = (
    "body{margin:0;background:#fff}.sqt-report{max-width:1400px;margin:0 auto;padding:20px}th[data-sort]{cursor:pointer}"
    "@media (prefers-color-scheme:dark){body{background:#0d1117}}"
)

_SORT: Final = """
for (const head of document.querySelectorAll("th[data-sort]")) head.onclick = () => {
  const column = head.cellIndex, body = head.closest("table").tBodies[0], down = head.dataset.sort !== "down";
  for (const other of head.parentNode.cells) other.dataset.sort = "";
  head.dataset.sort = down ? "down" : "up";
  const value = row => Number(row.cells[column].dataset.value);
  body.append(...[...body.rows].sort((one, other) => (down ? 1 : -1) * (value(other) - value(one))));
};
"""


def page_of(report: Report) -> str:
    """A whole page with verdict, picture, table and the figures as JSON: nothing is loaded from anywhere.

    Args:
        report: What is shown.
    """
    title = quoted(report.title or "a stream")
    # "</script>" in a name would end the element; a JSON string may have any of its characters escaped.
    figures = report.to_json().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title>'
        f"<style>{_STYLE}{_PAGE_STYLE}</style></head>\n"
        f'<body><main class="sqt-report">{_verdict(report)}{drawn(report)}{_table(report)}{_notes(report)}'
        f'<p class="sqt-soft">the stream: <code>{title}</code></p></main>\n'
        f'<script type="application/json" id="figures">{figures}</script>\n<script>{_SORT}</script></body></html>\n'
    )


def fragment_of(report: Report) -> str:
    """What a notebook shows: verdict and picture, and the table when it is asked for. No rule of style leaves it.

    Args:
        report: What is shown.
    """
    return (
        f'<div class="sqt-report"><style>{_STYLE}</style>{_verdict(report)}{drawn(report)}'
        f"<details><summary>all figures</summary>{_table(report)}{_notes(report)}</details></div>"
    )


def _verdict(report: Report) -> str:
    verdict = report.verdict
    kind = {"consumer": " sqt-fine", "unknown": " sqt-unknown"}.get(verdict.cause, "")
    because = "" if verdict.cause == "unknown" else f"<div>{quoted(verdict.because)}</div>"
    gain = f"about {verdict.gain:.1f}x as fast with" if verdict.gain > 1 else "try"
    remedy = f"<div>{gain} <code>{quoted(verdict.remedy)}</code></div>" if verdict.remedy else ""
    return (
        f'<div class="sqt-verdict{kind}"><div class="sqt-headline">{quoted(headline(report))}</div>{because}{remedy}'
        f'<div class="sqt-soft">{quoted(facts_of(report.figures))}</div></div>'
    )


def _notes(report: Report) -> str:
    texts = [consumer_of(report.figures)]
    texts.append(
        "busy: share of the time of its thread or of its workers; cpu: of that; starved: waits for input; "
        "blocked: waits for its taker; ~ not counted exactly"
    )
    texts += [f"warning: {warning}" for warning in report.figures.warnings]
    return "".join(f'<div class="sqt-soft">{quoted(text)}</div>' for text in texts if text)


# -- the table ---------------------------------------------------------------------------------------------------------

_Cell = tuple[str, float]
"""What is in it, as HTML, and the number it is sorted by."""


def _table(report: Report) -> str:
    rows = list(chain_of(report).rows())
    if not rows:
        return ""
    places = [place for _, _, place in rows]
    columns = {title: [cell(place) for place in places] for title, cell in _COLUMNS.items()}
    shown = {title: cells for title, cells in columns.items() if any(text for text, _ in cells)}
    head = "".join(f'<th data-sort="" class="{_align(title)}">{title}</th>' for title in shown)
    body = ""
    for number, (depth, branch, place) in enumerate(rows):
        values = ((title, *cells[number]) for title, cells in shown.items())
        others = "".join(f'<td data-value="{value:.9g}" class="{_align(title)}">{text}</td>' for title, text, value in values)
        limit = ' class="sqt-limit"' if place.limits else ""
        body += f"<tr{limit}>{_name(number, depth, branch, place)}{others}</tr>"
    first = '<th data-sort="" class="sqt-left">stage</th>'
    return f'<div class="sqt-scroll"><table><thead><tr>{first}{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _align(title: str) -> str:
    return "sqt-left" if title in ("busy", "calls, p50 / p99", "where", "thread", "written at") else ""


def _name(number: int, depth: int, branch: str, place: Place) -> str:
    label = f'<span class="sqt-soft">{quoted(branch)}: </span>' if branch else ""
    planned = ' <span class="sqt-soft">(planned)</span>' if place.stage.planned else ""
    mark = '<span class="sqt-mark">THE LIMIT</span>' if place.limits else ""
    # Sorted by name, rows are as the chain has them.
    space = f'style="padding-left:{9 + 22 * depth}px"'
    return (
        f'<td class="sqt-left sqt-name" data-value="{-number}" {space} title="{quoted(place.name)}">'
        f"{mark}{label}<code>{quoted(cut(place.name, 60))}</code>{planned}</td>"
    )


def _busy(place: Place) -> _Cell:
    if place.stage.planned:
        return "", 0.0
    bar = f'<span class="sqt-bar"><i style="width:{100 * place.busy:.0f}%"></i></span>'
    return f"{bar}{percent(place.busy)}", place.busy


def _share(place: Place, share: float | None) -> _Cell:
    return ("", 0.0) if place.stage.planned or not share else (percent(share), share)


def _count(count: int) -> _Cell:
    return (f"{count:,}" if count else ""), count


def _fill(place: Place) -> _Cell:
    return ("", 0.0) if place.fill is None else (fill_of(*place.fill), place.fill[0] / place.fill[1])


def _calls(place: Place) -> _Cell:
    times = place.times
    if times is None:
        return "", 0.0
    return f"{_bars(times)} {times_of(times)}", times.quantile(0.5)


def _where(place: Place) -> _Cell:
    calls = place.stage.calls
    return ("", 0.0) if calls is None else (quoted(f"{calls.workers} x {calls.place}"), calls.workers)


def _size(place: Place) -> _Cell:
    size = place.stage.size
    return ("", 0.0) if size is None else (bytes_of(size), size)


_COLUMNS: Final[dict[str, Callable[[Place], _Cell]]] = {
    "items": lambda place: (place.items, place.stage.items or 0),
    "per s": lambda place: (place.rate_text, place.rate or 0.0),
    "bytes": _size,
    "busy": _busy,
    "cpu": lambda place: _share(place, place.cpu),
    "starved": lambda place: _share(place, place.upstream),
    "blocked": lambda place: _share(place, place.downstream),
    "in flight": _fill,
    "calls, p50 / p99": _calls,
    "retries": lambda place: _count(place.stage.retries),
    "skipped": lambda place: _count(place.stage.skipped),
    "where": _where,
    "thread": lambda place: ("" if place.stage.thread == "main" else quoted(place.stage.thread), 0.0),
    "written at": lambda place: (quoted(place.stage.site or ""), 0.0),
}


def _bars(times: Histogram) -> str:
    """How long calls took: a bar for each step of a fourth of an octave, and lines at the median and at 99 %."""
    first, last = min(times.counts), max(times.counts)
    wide, high, most = 110.0, 22.0, max(times.counts.values())
    step = wide / (last - first + 1)
    bars = ""
    for number, count in sorted(times.counts.items()):
        height = max(1.0, high * count / most)
        at = f'x="{(number - first) * step:.1f}" y="{high - height:.1f}"'
        bars += f'<rect {at} width="{max(1.0, step - 0.5):.1f}" height="{height:.1f}"/>'
    lines = ""
    for share, dashes in ((0.5, ""), (0.99, ' stroke-dasharray="2 2"')):
        taken = min(wide - 1, (_step_of(times, share) - first + 0.5) * step)
        lines += f'<line x1="{taken:.1f}" x2="{taken:.1f}" y1="0" y2="{high:g}"{dashes}/>'
    title = (
        f"calls from {time_of(times.seconds_of(first))} to {time_of(times.seconds_of(last))}, "
        f"p50 {time_of(times.quantile(0.5))}, p99 {time_of(times.quantile(0.99))}"
    )
    size = f'width="{wide:g}" height="{high:g}" viewBox="0 0 {wide:g} {high:g}" style="vertical-align:middle"'
    return f'<svg class="sqt-times" role="img" {size}><title>{title}</title>{bars}{lines}</svg>'


def _step_of(times: Histogram, share: float) -> int:
    """The step that a quantile is in."""
    seconds = times.quantile(share)
    return min(times.counts, key=lambda step: abs(times.seconds_of(step) - seconds))
