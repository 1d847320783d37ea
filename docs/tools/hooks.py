"""What the site has beside `docs/`: the maps of the code's folders, the examples, and pictures that follow its colours.

Links to these are written as they are in the repository, so they work there too.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[#)])")
_PICTURE = re.compile(r'<img alt="([^"]*)" src="[^"]*?pictures/([\w-]+\.svg)"\s*/?>')


def _beside() -> dict[str, str]:
    """Files of the repository that are pages of the site: from their path to that of the page."""
    maps = {path: f"code/{path.parent.name}.md" for path in sorted(ROOT.glob("squirrel_torch/*/README.md"))}
    maps[ROOT / "tests/benchmarks/README.md"] = "code/benchmarks.md"
    maps[ROOT / "README.md"] = "code/readme.md"
    maps |= {ROOT / f"{name}.md": f"code/{name.lower()}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG")}
    maps[ROOT / "examples/README.md"] = "examples/index.md"
    maps |= {path: f"examples/{path.stem}.md" for path in sorted(ROOT.glob("examples/*.[pi][yp]*"))}
    return {path.relative_to(ROOT).as_posix(): page for path, page in maps.items()}


BESIDE = _beside()
_HOME = {page: path for path, page in BESIDE.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of `docs/`."""
    for path, page in BESIDE.items():
        text = (ROOT / path).read_text()
        if path.endswith(".ipynb"):
            text = _of_notebook(text)
        elif path.endswith(".py"):
            text = f"# {posixpath.basename(path)}\n\n```python\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    return files


def _of_notebook(text: str) -> str:
    """Its cells one below the other, code with what it has printed."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", ()):
            printed = "".join(output.get("text") or output.get("data", {}).get("text/plain", ()))
            parts += [f"```text\n{printed.rstrip()}\n```"] if printed else []
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links as the repository has them to pages of the site."""
    here = page.file.src_uri
    home = posixpath.dirname(_HOME.get(here, f"docs/{here}"))

    def pointed(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(home, match[1]))
        target = BESIDE.get(path) or (path.removeprefix("docs/") if here in _HOME and path.startswith("docs/") else None)
        return match[1] if target is None else posixpath.relpath(target, posixpath.dirname(here) or ".")

    return _LINK.sub(pointed, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Put a script of ours where the theme would fetch one from the network, for the search in pages opened as files."""
    script = posixpath.relpath("pictures/worker.js", posixpath.dirname(page.url) or ".")
    return output.replace("https://unpkg.com/iframe-worker/shim", script)


def on_page_content(html: str, **_: Any) -> str:
    """Put pictures into the page itself, where its colours reach them."""

    def drawn(match: re.Match[str]) -> str:
        svg = (ROOT / "docs/pictures" / match[2]).read_text()
        if "class=" in svg.partition(">")[0]:  # a report's own picture has colours of its own
            return match[0]
        return svg.replace("<svg ", f'<svg class="picture" role="img" aria-label="{match[1]}" ', 1)

    return _PICTURE.sub(drawn, html)
