"""A browser that opens pages without a window, where one is installed."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is installed")

_TOLD = """
<script>window.onerror = (text) => { document.title = "error: " + text }</script>
%s
<script>
const told = (() => { %s })();
const place = document.createElement("pre");
place.id = "told";
place.textContent = JSON.stringify(told);
document.body.append(place);
</script>
"""


def asked_of_browser(tmp_path, page, script):
    """What a script gives that runs in a page when it has been loaded; offline."""
    path = tmp_path / "page.html"
    path.write_text(_TOLD % (page, script), encoding="utf-8", errors="surrogatepass")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        path.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert "<title>error:" not in shown
    found = re.search(r'<pre id="told">(.*?)</pre>', shown, re.DOTALL)
    assert found is not None, shown[-2000:]
    return json.loads(unescape(found[1]))
