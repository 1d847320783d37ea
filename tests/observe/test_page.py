import json
import re
from html.parser import HTMLParser

import pytest

from squirrel_torch.observe.page import fragment_of, page_of
from tests.observe.browser import asked_of_browser, needs_a_browser
from tests.observe.reports import EVILS, HANDOVER, LOADER, LONG, MIX, NESTED, PLAIN, REPORTS, UNKNOWN

every_report = pytest.mark.parametrize("shown", REPORTS.values(), ids=REPORTS)

TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "div",
    "span",
    "code",
    "details",
    "summary",
    "p",
    "i",
    "script",
}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td", "svg", "g", "rect", "text", "polyline", "line", "desc"}


class Reader(HTMLParser):
    """Tags, attributes, and the text in each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag):
        return [text for one, text in self.texts if one == tag]


@every_report
@pytest.mark.parametrize("made", [page_of, fragment_of])
def test_it_is_whole_and_loads_nothing(shown, made):
    text = made(shown)
    read = Reader(text)
    assert read.open == []
    assert set(read.tags) <= TAGS
    names = {name for name, _ in read.attributes}
    assert names & {"src", "href", "onclick", "onload", "action"} == set()
    styles = "".join(read.of("style"))
    assert "url(" not in styles
    assert "@import" not in styles
    assert read.tags.count("script") == (2 if made is page_of else 0)


@every_report
def test_the_figures_are_in_the_page_as_json(shown):
    (figures, _) = Reader(page_of(shown)).of("script")
    assert set(figures) & {"<", ">", "&"} == set()
    assert json.loads(figures) == json.loads(shown.to_json())


def test_names_can_not_end_the_script():
    assert page_of(EVILS).count("</script>") == 2
    assert "<script>alert" not in page_of(EVILS)
    assert "script>alert" not in fragment_of(EVILS)


@every_report
def test_no_rule_of_style_leaves_a_fragment(shown):
    for style in Reader(fragment_of(shown)).of("style"):
        rules = re.sub(r"@media[^{]*\{((?:[^{}]*\{[^{}]*\})*)\}", r"\1", style)
        selectors = [one for rule in re.findall(r"([^{}]+)\{", rules) for one in rule.split(",")]
        assert len(selectors) > 10
        assert [one for one in selectors if not one.startswith((".sqt-report", ".sqt-picture"))] == []


def rows(text):
    """The cells of the table, as text."""
    body = re.search(r"<tbody>(.*)</tbody>", text)[1]
    kept = re.sub(r"<svg.*?</svg>", "", body)
    return [
        [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td.*?>(.*?)</td>", row)]
        for row in re.findall(r"<tr.*?>(.*?)</tr>", kept)
    ]


def test_the_table():
    text = page_of(PLAIN)
    assert re.findall(r"<th .*?>(.*?)</th>", text) == [
        "stage",
        "items",
        "per s",
        "bytes",
        "busy",
        "cpu",
        "starved",
        "blocked",
        "calls, p50 / p99",
    ]
    assert rows(text) == [
        ["IterableSource(paths)", "80,000", "8k", "", "2%", "90%", "", "98%", ""],
        ["THE LIMITmap(decode)", "80,000", "8k", "600 kB", "90%", "97%", "2%", "8%", "93.9 / 376 us"],
        ["batched(32)", "2,500", "250", "19.2 MB", "4%", "90%", "92%", "4%", ""],
    ]


def test_branches_and_what_is_planned_are_told_in_the_table():
    assert [row[0] for row in rows(page_of(MIX))] == [
        "mix(images, text, audio)",
        "images: FilePathGenerator(images)",
        "THE LIMITmap(decode)",
        "text: ParquetSource(text)",
        "audio: ListSource(audio)",
        "batched(30)",
    ]
    assert rows(page_of(LONG))[1][0] == "split_by_rank() (planned)"
    deep = re.findall(r"padding-left:(\d+)px", page_of(NESTED))
    assert deep == ["9", "31", "53", "53", "53", "31", "31", "9"]


def test_how_long_calls_took_is_drawn():
    (drawn,) = re.findall(r'<svg class="sqt-times".*?</svg>', page_of(PLAIN))
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', drawn)]
    assert heights == [22.0, 1.0]  # 79,000 calls, and 1,000, which are still seen
    places = [float(x) for x in re.findall(r'x1="([\d.]+)"', drawn)]
    bars = [float(x) for x in re.findall(r'<rect x="([\d.]+)"', drawn)]
    assert bars[0] <= places[0] < places[1]
    assert bars[1] <= places[1]
    assert "<title>calls from 93.9 us to 376 us, p50 93.9 us, p99 376 us</title>" in drawn


def test_the_verdict_comes_first():
    read = Reader(page_of(PLAIN))
    shown = [text for tag, text in read.texts if tag in ("div", "code")]
    assert shown[:4] == [
        "map(decode) is the limit: it computes on one core",
        "it computes 97 % of the time",
        "about 3.5x as fast with ",
        "StreamLoader(..., num_workers=4)",
    ]
    assert 'class="sqt-verdict sqt-fine"' in page_of(LOADER)
    assert 'class="sqt-verdict"' in page_of(HANDOVER)
    assert 'class="sqt-verdict sqt-unknown"' in page_of(UNKNOWN)
    assert "warning: 1.2 s belong to no stage" in page_of(UNKNOWN)


def test_a_notebook_shows_the_fragment_and_a_file_is_the_page(tmp_path):
    assert PLAIN._repr_html_() == fragment_of(PLAIN)
    assert PLAIN.save(tmp_path / "report.html").read_text(encoding="utf-8") == page_of(PLAIN)
    for suffix in (".svg", ".txt", ".json"):  # names may have letters that no encoding has
        assert EVILS.save(tmp_path / f"report{suffix}").stat().st_size > 1000


_ASKED = """
const names = () => [...document.querySelectorAll("tbody tr td:first-child code")].map(code => code.textContent);
const head = [...document.querySelectorAll("th")];
const click = title => { head.find(one => one.textContent === title).click(); return names(); };
const alone = document.querySelectorAll("script:not([type])").length;
return {
  first: names(), busy: click("busy"), again: click("busy"), stage: click("stage"), items: click("items"), scripts: alone,
  figures: JSON.parse(document.getElementById("figures").textContent).title,
  wide: document.documentElement.scrollWidth <= window.innerWidth,
};
"""


@needs_a_browser
@pytest.mark.slow
def test_a_browser_sorts_the_table(tmp_path):
    told = asked_of_browser(tmp_path, page_of(LONG), _ASKED)
    assert told["wide"]
    names = [one.name for one in LONG.figures.stages]
    busy = [0.01, 0, 0.02, 0.96, *(0.01 * place for place in range(4, 12))]
    by_busy = [name for _, name in sorted(zip(busy, names, strict=True), key=lambda one: -one[0])]
    assert told["first"] == names
    assert told["busy"] == by_busy
    assert told["again"] == by_busy[::-1]
    assert told["stage"] == names
    assert sorted(told["items"]) == sorted(names)


@needs_a_browser
@pytest.mark.slow
def test_a_browser_runs_nothing_that_users_wrote(tmp_path):
    told = asked_of_browser(tmp_path, page_of(EVILS), _ASKED)
    assert told["scripts"] == 3  # that of the page, and two of this test
    assert told["figures"] == EVILS.title
    assert told["first"][1].startswith("map(<script>alert(")
    assert told["wide"]


@needs_a_browser
@pytest.mark.slow
def test_a_fragment_leaves_the_rest_of_a_notebook_as_it_is(tmp_path):
    asked = """
    const layout = /size|height|width|origin|inline|block/;
    const seen = one => [...getComputedStyle(one)].filter(name => !layout.test(name))
      .map(name => name + getComputedStyle(one)[name]).join();
    const others = [...document.querySelectorAll(".other, .other *")];
    const before = others.map(seen), part = document.querySelector(".sqt-report");
    part.remove();
    return [others.length, others.map(seen).every((one, number) => one === before[number])];
    """
    other = '<div class="other"><table><tr><th>a</th><td><code>b</code></td></tr></table><svg><text>c</text><rect/></svg></div>'
    assert asked_of_browser(tmp_path, fragment_of(PLAIN) + other, asked) == [10, True]
