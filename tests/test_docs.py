"""The documentation as a site: it builds without a warning, nothing in it leads nowhere, and all that is public is in it."""

import re
import sys
from collections import Counter
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from subprocess import run
from urllib.parse import unquote, urlsplit

import pytest

import squirrel_torch
from squirrel_torch import testing
from squirrel_torch.storage import formats
from tests.support import ROOT

needs_mkdocs = pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")


class Page(HTMLParser):
    """Where the tags of a page point, and what can be pointed at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets, self.names = [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names += [found[name] for name in ("id", "name") if found.get(name)]
        self.targets += [(tag, found[name]) for name in ("href", "src") if found.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "error", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in sorted(folder.rglob("*.html")) if path.name != "404.html"}


@needs_mkdocs
@pytest.mark.slow
def test_everything_leads_somewhere(site):
    assert len(site) > 50
    lost = []
    for path, page in site.items():
        for _, target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            fragment = unquote(url.fragment)
            if not file.is_file() or (fragment and file.suffix == ".html" and fragment not in site[file].names):
                lost.append(f"{path.name}: {target}")
    assert lost == []


@needs_mkdocs
@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    fetched = {
        (path.name, target)
        for path, page in site.items()
        for tag, target in page.targets
        if tag != "a" and urlsplit(target).netloc
    }
    assert fetched == set()


@needs_mkdocs
@pytest.mark.slow
def test_all_that_is_public_is_in_the_reference_once(site):
    there = Counter(name for path, page in site.items() if path.parent.name == "reference" for name in page.names)
    wanted = [f"squirrel_torch.{name}" for name in (*squirrel_torch.__all__, "plan.Deal")]
    wanted += [f"squirrel_torch.Composable.{name}" for name in vars(squirrel_torch.Composable) if not name.startswith("_")]
    wanted += [f"squirrel_torch.storage.formats.{name}" for name in formats.__all__ if name != "FORMATS"]
    wanted += [f"squirrel_torch.testing.{name}" for name in testing.__all__]
    assert {name: there[name] for name in wanted if there[name] != 1} == {
        "squirrel_torch.Composable.source": 0,
        "squirrel_torch.Composable.needs_whole": 0,
    }


def test_every_block_of_python_is_one_that_tests_run():
    # tests/test_package.py runs those that begin a line with exactly this.
    for path in (ROOT / "docs").rglob("*.md"):
        for fence in re.findall(r"^[ \t>]*(?:```|~~~).*$", path.read_text(), re.MULTILINE):
            assert not re.match(r"[ \t>]*(```|~~~)\s*\{?\.?py", fence) or fence == "```python", f"{path.name}: {fence!r}"
