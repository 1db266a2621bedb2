"""The page of `rmapd report` in a browser, on a screen and on a phone, light and dark.

It writes nothing to the console and makes no request.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.support import busy
from tests.support.chromium import CHROMIUM, scroll_width, visit
from tests.support.reports import written
from tracer.report import html
from tracer.report.load import from_report_file
from tracer.results import json_form

RGB = tuple[int, ...]
LIGHT, DARK = (
    ((255, 255, 255), (192, 39, 45), (47, 98, 181)),
    ((20, 23, 27), (255, 123, 118), (122, 167, 240)),
)
"""--paper, --bad, --blue of report.css."""
AMBER_AND_GOOD = {False: ((154, 98, 0), (26, 127, 69)), True: ((232, 176, 74), (92, 201, 138))}
"""--warn and --good, light and dark."""


@pytest.fixture(autouse=True)
def chromium() -> None:
    if not CHROMIUM:
        if os.environ.get("RMAPD_REQUIRE_KERNEL") == "1":
            pytest.fail("RMAPD_REQUIRE_KERNEL=1 and no chromium: make live")
        pytest.skip("no chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "r.html").write_text(html.render(from_report_file(written(folder / "r.json"))))
    return folder / "r.html"


def shares(picture: Path) -> dict[RGB, float]:
    """Return the share of each colour in a picture."""
    image = Image.open(picture).convert("RGB")
    found = image.getcolors(image.width * image.height) or []
    return {
        colour: count / (image.width * image.height)
        for count, colour in found
        if isinstance(colour, tuple)
    }


def test_requests_and_console_messages_of_a_bad_page_are_noticed(tmp_path: Path) -> None:
    """The other tests rely on it."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body style="width:900px"><img src="http://127.0.0.1:1/x">'
        '<script>console.error("oh no")</script>'
    )
    seen = visit(bad, tmp_path)
    assert seen.requests == ["http://127.0.0.1:1/x"]
    assert any("oh no" in message for message in seen.console)
    assert scroll_width(bad, tmp_path, 390) > 390


@pytest.mark.parametrize("dark", [False, True])
def test_report_page_has_its_colours_and_no_console_messages(
    page: Path, tmp_path: Path, dark: bool
) -> None:
    seen = visit(page, tmp_path, height=5000, dark=dark)
    assert (seen.console, seen.requests) == ([], [])
    found = shares(seen.screenshot)
    paper, bad, blue = DARK if dark else LIGHT
    assert found[paper] > 0.6
    assert found[bad] > 0.0005
    assert found[blue] > 0.002
    assert not {*(LIGHT if dark else DARK)[1:]} & found.keys()


@pytest.mark.parametrize("width", [320, 390, 768, 1024])
def test_report_page_fits_narrow_screens(page: Path, tmp_path: Path, width: int) -> None:
    assert scroll_width(page, tmp_path, width) == width


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_amber_report_is_drawn_in_warning_colours(tmp_path: Path, dark: bool, width: int) -> None:
    """Its border and badge have the colour of warnings, and nothing has the colour of success."""
    found = json_form.as_json(busy.tracepoints_only(), ["true"], 0) | {
        "ended_early": {"reason": "the checker was killed by SIGKILL"}
    }
    page = tmp_path / "amber.html"
    page.write_text(html.render(from_report_file(written(tmp_path / "r.json", found))))
    seen = visit(page, tmp_path, width=width, height=700, dark=dark)
    assert (seen.console, seen.requests) == ([], [])
    colours = shares(seen.screenshot)
    amber, good = AMBER_AND_GOOD[dark]
    assert colours[amber] > 0.0005
    assert colours.get(good, 0) == 0
    assert scroll_width(page, tmp_path, width) == width
