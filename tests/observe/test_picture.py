import re
from dataclasses import replace
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest

from squirrel_torch.observe.drawing import Style, fitted, lines_of, width_of
from squirrel_torch.observe.picture import svg_of
from squirrel_torch.observe.report import Report
from tests.observe.browser import asked_of_browser, needs_a_browser
from tests.observe.reports import (
    BRANCHES,
    EVILS,
    HANDOVER,
    LOADER,
    LONG,
    MIX,
    NESTED,
    NOTHING,
    PLAIN,
    REPORTS,
    UNKNOWN,
    ZERO,
    report,
    stage,
)

SVG = "{http://www.w3.org/2000/svg}"
every_report = pytest.mark.parametrize("shown", REPORTS.values(), ids=REPORTS)


def tree(shown):
    return ElementTree.fromstring(svg_of(shown))


def own_text(element):
    """What is written, without what only a pointer shows."""
    return (element.text or "") + "".join(child.tail or "" for child in element)


def texts(element):
    return [own_text(text) for text in element.iter(f"{SVG}text")]


def boxes(svg):
    return [group for group in svg.iter(f"{SVG}g") if "place" in group.get("class").split()]


def named(svg, name):
    (found,) = [box for box in boxes(svg) if texts(box)[0] == name or texts(box)[1:2] == [name]]
    return found


def frame(box):
    rect = box.find(f"{SVG}rect")
    return tuple(float(rect.get(name)) for name in ("x", "y", "width", "height"))


def marked(svg):
    return [box for box in boxes(svg) if box.get("class") != "place"]


def edges(svg):
    """Where lines begin and end, and how thick they are."""
    found = []
    for line in svg.iter(f"{SVG}polyline"):
        if line.get("class") == "edge":
            points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
            found.append((points[0], points[-1], float(line.get("stroke-width"))))
    return found


def below(svg, box):
    """The texts beside the beginning of the line that leaves a box, and how thick that is."""
    x, y, width, height = frame(box)
    ((_, _, thick),) = [edge for edge in edges(svg) if edge[0] == pytest.approx((x + width / 2, y + height), abs=0.11)]
    beside = [
        own_text(text)
        for text in svg.iter(f"{SVG}text")
        if 0 < float(text.get("y")) - y - height < 40 and x < float(text.get("x")) < x + width
        if text.text != "THE LIMIT"
    ]
    return beside, thick


# -- what it is --------------------------------------------------------------------------------------------------------


@every_report
def test_it_is_a_picture_that_needs_nothing_and_does_nothing(shown):
    svg = svg_of(shown)
    tags = {element.tag.removeprefix(SVG) for element in ElementTree.fromstring(svg).iter()}
    assert tags <= {"svg", "title", "desc", "style", "rect", "text", "g", "polyline"}
    assert re.findall(r"https?://[^\s\"]*|url\(|@import|href|\son\w+=", re.sub(r">[^<]*<", "><", svg)) == [
        "http://www.w3.org/2000/svg"
    ]
    assert "id=" not in re.sub(r">[^<]*<", "><", svg)  # two of them in one page don't share one


@every_report
def test_no_rule_of_style_reaches_beyond_it(shown):
    style = tree(shown).find(f"{SVG}style").text
    rules = re.sub(r"@media[^{]*\{((?:[^{}]*\{[^{}]*\})*)\}", r"\1", style)
    assert [rule for rule in re.findall(r"([^{}]+)\{", rules) if not rule.startswith(".sqt-picture")] == []


def test_what_users_wrote_is_shown_as_they_wrote_it_and_never_as_markup():
    svg = tree(EVILS)
    name = EVILS.figures.stages[1].name
    (box,) = marked(svg)
    assert box.find(f"{SVG}title").text.startswith(name)
    assert svg.find(f"{SVG}title").text == EVILS.title
    assert "warning: </script><script>alert(2)</script>" in texts(svg)
    assert "map(a [31mred line )" in texts(svg)


# -- what it tells -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [PLAIN, LONG, MIX, NESTED], ids=["plain", "long", "mix", "nested"])
def test_the_limit_is_marked_and_says_why_and_what_to_do(shown):
    svg = tree(shown)
    (box,) = marked(svg)
    verdict = shown.verdict
    assert box.get("class") == "place limit-place"
    assert texts(box)[:2] == ["THE LIMIT", verdict.stage]
    assert verdict.because in " ".join(texts(box))
    if verdict.remedy:
        assert texts(box)[-2:] == [f"about {verdict.gain:.1f}x as fast with", verdict.remedy]
    assert texts(svg)[0].startswith(f"{verdict.stage} is the limit")


def test_it_may_be_the_consumer_or_the_loader_or_nothing():
    (consumer,) = marked(tree(LOADER))
    assert texts(consumer)[:3] == ["THE LIMIT", "the consumer", "its own work 95%, waits for data 5%"]
    assert consumer.get("class") == "place fine-place"
    (loader,) = marked(tree(HANDOVER))
    assert texts(loader)[:4] == [
        "THE LIMIT",
        "loader, 4 workers",
        "workers: packing 75%, blocked <1%",
        "consumer: unpacking 30%",
    ]
    assert loader.get("class") == "place limit-place"
    for shown in (UNKNOWN, ZERO, NOTHING):
        assert marked(tree(shown)) == []
        assert " ".join(texts(tree(shown))).startswith(f"no limit is known: {shown.verdict.because}")


def test_edges_tell_the_rates_of_the_figures_and_are_as_thick_as_these():
    svg = tree(PLAIN)
    found = [below(svg, named(svg, one.name)) for one in PLAIN.figures.stages]
    assert [beside for beside, _ in found] == [["8k/s"], ["8k/s", "600 kB each"], ["250/s", "19.2 MB each"]]
    assert found[0][1] == found[1][1] > found[2][1]
    svg = tree(UNKNOWN)
    assert below(svg, named(svg, "datapipe(Opaque)"))[0] == ["not counted"]
    assert below(svg, named(svg, "map(f)"))[0] == ["~500/s"]


def test_gauges_tell_how_full_buffers_are():
    svg = tree(LOADER)
    gauges = [group for group in svg.iter(f"{SVG}g") if group.get("class") == "gauge"]
    held = [gauge.find(f"{SVG}title").text for gauge in gauges]
    assert held == ["60.0 of 64 in flight, on average", "7.2 of 8 ready, on average"]
    for gauge in gauges:
        whole, level = (float(rect.get("width")) for rect in gauge.findall(f"{SVG}rect"))
        held, _, room = gauge.find(f"{SVG}title").text.split()[:3]
        assert level / whole == pytest.approx(float(held) / float(room), abs=0.01)


def test_bars_tell_how_busy_a_place_is():
    svg = tree(PLAIN)
    for one, share in zip(PLAIN.figures.stages, (0.02, 0.9, 0.04), strict=True):
        bar = [rect for rect in named(svg, one.name).iter(f"{SVG}rect") if rect.get("class") in ("rest", "busy")][-2:]
        assert [rect.get("class") for rect in bar] == ["rest", "busy"]
        assert float(bar[1].get("width")) / float(bar[0].get("width")) == pytest.approx(share, abs=0.01)


def test_workers_are_told_and_framed():
    svg = tree(LOADER)
    frames = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("class") == "frame"]
    assert len(frames) == 1
    assert "each of 4 workers" in texts(svg)
    y, height = (float(frames[0].get(name)) for name in ("y", "height"))
    inside = [texts(box)[-2] for box in boxes(svg) if y < frame(box)[1] and frame(box)[1] + frame(box)[3] < y + height]
    assert len(inside) == len(LOADER.figures.stages)
    assert [rect for rect in tree(PLAIN).iter(f"{SVG}rect") if rect.get("class") == "frame"] == []


def test_branches_lie_beside_each_other_above_their_mix():
    svg = tree(MIX)
    last = [frame(named(svg, name)) for name in ("map(decode)", "ParquetSource(text)", "ListSource(audio)")]
    mix = frame(named(svg, "mix(images, text, audio)"))
    assert len({y + height for _, y, _, height in last}) == 1  # they end at one height
    assert all(one[0] + one[2] < other[0] for one, other in pairwise(last))
    assert max(y + height for _, y, _, height in last) < mix[1]
    joined = [edge for edge in edges(svg) if edge[1] == pytest.approx((mix[0] + mix[2] / 2, mix[1] - 8), abs=0.11)]
    assert sorted(start for start, _, _ in joined) == [(x + width / 2, y + height) for x, y, width, height in last]


def test_of_many_branches_those_are_drawn_that_matter_and_the_rest_is_told():
    svg = tree(BRANCHES)
    names = [texts(box)[0 if box.get("class") == "place" else 1] for box in boxes(svg)]
    assert names == ["source(0)", "source(5)", "source(6)", "and 4 more branches", "mix(7 branches)", "the consumer"]
    assert "less busy than these: 4,000 items" in texts(svg)
    assert below(svg, named(svg, "and 4 more branches"))[0] == ["400/s"]


@pytest.mark.parametrize("count", [1, 3, 7, 8, 14, 20, 60])
def test_a_chain_of_any_length_has_all_its_places_in_order_in_few_columns(count):
    svg = tree(report([stage(place, f"map(f{place})") for place in range(count)], PLAIN.verdict))
    found = [box for box in boxes(svg) if texts(box)[-2].startswith("map(") or texts(box)[1].startswith("map(")]
    assert len(found) == count
    assert len(boxes(svg)) == count + 1
    columns = sorted({frame(box)[0] for box in boxes(svg)})
    assert len(columns) <= 4
    assert (len(columns) == 1) == (count < 8)
    assert [(frame(box)[0], frame(box)[1]) for box in boxes(svg)] == sorted(
        (frame(box)[0], frame(box)[1]) for box in boxes(svg)
    )
    assert len(edges(svg)) == count


# -- nothing overlaps, and nothing is cut off --------------------------------------------------------------------------


@every_report
def test_boxes_lie_apart_and_inside_the_picture(shown):
    svg = tree(shown)
    wide, high = float(svg.get("width")), float(svg.get("height"))
    frames = [frame(box) for box in boxes(svg)]
    assert [one for one in frames if one[0] < 0 or one[1] < 0 or one[0] + one[2] > wide or one[1] + one[3] > high] == []
    for (x, y, width, height), (left, top, across, down) in combinations(frames, 2):
        assert x + width < left or left + across < x or y + height < top or top + down < y


@every_report
def test_letters_of_an_average_font_stay_inside_their_boxes(shown):
    # Not by the widths that the picture is made with: 0.6 is what fixed widths take, and more than others on average.
    for box in boxes(tree(shown)):
        x, y, width, height = frame(box)
        for text in box.iter(f"{SVG}text"):
            letters = sum(2 if ord(letter) > 0x2E7F else 1 for letter in own_text(text))
            assert float(text.get("x")) + 0.602 * letters * float(text.get("font-size")) <= x + width - 6
            assert float(text.get("y")) <= y + height - 6


_MEASURED = """
const found = [], near = 0.5;
const picture = document.querySelector("svg.sqt-picture").getBoundingClientRect();
for (const text of document.querySelectorAll("svg.sqt-picture text")) {
  const at = text.getBoundingClientRect(), group = text.closest("g.place");
  const tab = text.textContent === "THE LIMIT";
  const room = group && !tab ? group.querySelector("rect").getBoundingClientRect() : picture;
  if (at.left < room.left + near || at.right > room.right - near || at.top < room.top || at.bottom > room.bottom)
    found.push([text.textContent, at.left, at.right, room.left, room.right]);
}
const all = [...document.querySelectorAll("svg.sqt-picture text")].map(text => [text, text.getBoundingClientRect()]);
for (const [one, a] of all) for (const [other, b] of all)
  if (one !== other && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 5 && b.top < a.bottom - 5)
    found.push([one.textContent, "over", other.textContent]);
return [all.length, found];
"""


@needs_a_browser
@pytest.mark.slow
@every_report
def test_a_browser_finds_no_text_outside_of_its_box_or_over_another(shown, tmp_path):
    count, found = asked_of_browser(tmp_path, svg_of(shown), _MEASURED)
    assert count > 4
    assert found == []


@needs_a_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "family"), [("text:not(.mono)", "DejaVu Sans"), ("text:not(.mono)", "serif"), ("text.mono", "DejaVu Sans Mono")]
)
def test_nor_with_other_fonts(which, family, tmp_path):
    style = f"<style>svg.sqt-picture.sqt-picture {which}{{font-family:{family}!important}}</style>"
    everything = Report(
        EVILS.title, replace(EVILS.figures, stages=(*EVILS.figures.stages, *LONG.figures.stages[4:])), EVILS.verdict
    )
    _, found = asked_of_browser(tmp_path, style + svg_of(everything), _MEASURED)
    assert found == []


def test_the_picture_of_a_report_is_always_the_same():
    assert svg_of(MIX) == svg_of(MIX) == MIX.svg()


# -- text in a given width ---------------------------------------------------------------------------------------------


def test_text_is_cut_to_a_width():
    style = Style(10)
    assert fitted("short", 100, style) == "short"
    for text in ("m" * 50, "画像" * 30, "a b " * 30):
        shown = fitted(text, 100, style)
        assert shown.endswith("...")
        assert text.startswith(shown[:-3])
        assert 70 < width_of(shown, style) <= 100


def test_text_is_wrapped_into_a_number_of_lines():
    style = Style(10)
    assert lines_of("one two three", 50, style, 3) == ["one two", "three"]
    long = lines_of("w" * 30, 100, style, 9)
    assert "".join(long) == "w" * 30
    assert all(width_of(line, style) <= 100 for line in long)
    two = lines_of("word " * 40, 100, style, 2)
    assert len(two) == 2
    assert two[-1].endswith("...")
    assert lines_of("", 100, style, 2) == []
