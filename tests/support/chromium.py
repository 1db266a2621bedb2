"""Load a page in headless Chromium: its picture, console messages, requests and width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium")
_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync
--hide-scrollbars --enable-logging=stderr --allow-file-access-from-files""".split()
_NOWHERE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
_ITSELF = "not an origin"  # the initiator of the browser's own requests
_WRAPPER = """<!doctype html><body style="margin:0">
<iframe id="f" style="border:0;width:{width}px;height:{height}px" src="{url}"></iframe>
<script>onload = () => document.body.dataset.wide =
document.getElementById("f").contentDocument.documentElement.scrollWidth</script>"""


@dataclass(frozen=True)
class Visit:
    """A loaded page; console: its messages, requests: the URLs that it requested."""

    screenshot: Path
    console: list[str]
    requests: list[str]


def visit(
    page: Path, folder: Path, width: int = 1200, height: int = 1600, *, dark: bool = False
) -> Visit:
    """Load a page in a window of this size in pixels and take a screenshot of it."""
    picture, log = folder / f"{page.stem}-{width}{'-dark' if dark else ''}.png", folder / "net.json"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    output = _run(
        folder,
        f"--window-size={width},{height}",
        scheme,
        f"--log-net-log={log}",
        f"--screenshot={picture}",
        page.as_uri(),
    )
    console = re.findall(r":CONSOLE:\d+\] (.*)", output)
    events = json.loads(log.read_text())["events"]
    asked = {
        event["params"]["url"]
        for event in events
        if event.get("params", {}).get("initiator", _ITSELF) != _ITSELF
    }
    return Visit(picture, console, sorted(asked))


def scroll_width(page: Path, folder: Path, width: int) -> int:
    """Return the width of the page in a viewport of `width` pixels; more means scrolling."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(_WRAPPER.format(width=width, height=3000, url=page.as_uri()))
    done = _run(folder, "--window-size=1200,3200", "--dump-dom", wrapper.as_uri())
    found = re.search(r'data-wide="(\d+)"', done)
    assert found, done
    return int(found[1])


def _run(folder: Path, *arguments: str) -> str:
    assert CHROMIUM
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [CHROMIUM, *_FLAGS, _NOWHERE, f"--user-data-dir={profile}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + done.stderr
