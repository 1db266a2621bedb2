"""The daemon's pages in a real browser, on a desktop and on a phone.

They need no script, report no error on the console and request nothing from other hosts.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.live.conftest import daemon, entries_hold
from tests.support import busy
from tests.support.daemons import until
from tracer.invariants.catalogue import discover
from tracer.results.latest import LatestSnapshot
from tracer.web import Application, Server

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync""".split()
NO_SCRIPTS = {"profile.managed_default_content_settings.javascript": 2}
KNOWN = len(discover())
DESKTOP, PHONE = (1280, 900, False), (390, 844, True)
CONTRAST = """
const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const back = e => {
  for (; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const bad = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !e.checkVisibility() || e.closest('.unseen, .skip, option, svg')) continue;
  const a = light(numbers(getComputedStyle(e).color)), b = light(back(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push([e.outerHTML.slice(0, 90), ratio]);
}
return bad;
"""
"""Returns the texts whose contrast with their background is under the 4.5 of WCAG AA."""
OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true; })"


class Browser(webdriver.Chrome):
    """Chromium with a new profile."""

    def __init__(self, folder: Path, *, scripts: bool = True) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or pytest.fail(
            "no chromium: make live installs it"
        )
        for flag in [*FLAGS, f"--user-data-dir={folder}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if not scripts:
            options.add_experimental_option("prefs", NO_SCRIPTS)
        super().__init__(options=options, service=Service(shutil.which("chromedriver")))
        self.refused: list[str] = []
        """What was answered with an error, as far as requested_urls() has read the log."""

    def loader_id(self) -> str:
        """Return the loader id of the current document; every navigation has its own."""
        return str(self.execute_cdp_cmd("Page.getFrameTree", {})["frameTree"]["frame"]["loaderId"])

    def wait_for_other_than(self, document: str) -> None:
        """Wait until another document is shown.

        Staleness of an element of the old one is no sign: chromedriver sometimes answers "Node
        with given id does not belong to the document" (SeleniumHQ/selenium#15401; 156: once in
        some 200 navigations).
        """
        WebDriverWait(self, 30).until(lambda _: self.loader_id() != document)

    def click_link(self, by: str, what: str) -> None:
        """Click on an element that leads to another page, and wait for that page.

        A click returns possibly before its navigation begins.
        """
        left = self.loader_id()
        self.find_element(by, what).click()
        self.wait_for_other_than(left)

    def emulate(self, width: int, height: int, mobile: bool, scheme: str = "light") -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

    def picture(self, name: str) -> None:
        """Save the whole page as a PNG in the folder RMAPD_SCREENSHOTS, for people to look at."""
        if folder := os.environ.get("RMAPD_SCREENSHOTS"):
            size = self.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            made = self.execute_cdp_cmd(
                "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
            )
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(made["data"]))

    def console(self) -> list[Any]:
        """Return the messages on the console since the last call."""
        return list(self.get_log("browser"))  # type: ignore[no-untyped-call]

    def requested_urls(self) -> set[str]:
        """Return the URLs that were requested since the last call."""
        entries = self.get_log("performance")  # type: ignore[no-untyped-call]
        events = [json.loads(entry["message"])["message"] for entry in entries]
        self.refused += [
            event["params"]["response"]["url"]
            for event in events
            if event["method"] == "Network.responseReceived"
            and event["params"]["response"]["status"] >= 400
        ]
        return {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }


@contextlib.contextmanager
def browser(folder: Path, **how: bool) -> Iterator[Browser]:
    made = Browser(folder, **how)
    try:
        yield made
    finally:
        made.quit()


@pytest.fixture
def served() -> Iterator[str]:
    """Serve the snapshot of a host with defects by the daemon's own server."""
    with Server(("127.0.0.1", 0), Application(busy.current())) as server:
        yield f"http://127.0.0.1:{server.port}"


def pages() -> list[str]:
    return [
        "/",
        "/protocols",
        "/protocols?q=anon",
        "/hooks",
        "/invariants/L1",
        "/docs/",
        "/docs/PROTOCOLS.md",
        "/docs/runbooks/M1.md",
        *(f"/violations/{v.first.id}" for v in busy.violations()),
    ]


def test_page_checks_fail_for_a_bad_page(tmp_path: Path) -> None:
    """The other tests rely on these checks."""
    poor = (
        "<p style='color:%23999;width:3000px'>grey</p><script>document.title='owned';"
        " console.error('x'); fetch('http://127.0.0.1:9/')</script>"
    )
    with browser(tmp_path / "on") as seen:
        seen.emulate(*PHONE)
        seen.get(f"data:text/html,{poor}")
        assert seen.title == "owned"
        assert seen.execute_script(CONTRAST) != []
        assert not seen.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert seen.console() != []
        assert "http://127.0.0.1:9/" in seen.requested_urls()
    with browser(tmp_path / "off", scripts=False) as seen:
        seen.get(f"data:text/html,{poor}")
        assert seen.title != "owned"


def test_page_of_real_run_works_without_scripts(tmp_path: Path) -> None:
    """State, verdicts, rates and the search for protocols work in a browser without scripts."""
    with daemon() as (_, url), browser(tmp_path, scripts=False) as seen:
        entries_hold(url, 5000)
        seen.get(f"{url}/?refresh=5")
        seen.wait_for_other_than(seen.loader_id())  # by its refresh

        def drawn() -> list[Any]:
            seen.get(url)  # without refresh: the page is not replaced while it is read
            return seen.find_elements(By.CSS_SELECTOR, "polyline")

        until(drawn, 40, "rates are drawn")
        assert re.search(
            r"nothing violated in [\d,]+ checks", seen.find_element(By.TAG_NAME, "h1").text, re.I
        )
        row = next(
            row
            for row in seen.find_elements(By.CSS_SELECTOR, "table.rows tbody tr")
            if row.text.startswith("M1")
        )
        holds = row.find_element(By.CSS_SELECTOR, "[data-label=Holds]").text
        assert int(holds.replace(",", "")) > 5000
        assert seen.find_elements(By.CSS_SELECTOR, "polyline")
        seen.click_link(By.LINK_TEXT, "Protocols")
        seen.find_element(By.NAME, "q").send_keys("no such word")
        seen.click_link(By.TAG_NAME, "button")
        assert "q=no+such+word" in seen.current_url
        assert "0 of" in seen.find_element(By.TAG_NAME, "main").text
        seen.click_link(By.LINK_TEXT, "Hooks")
        assert "set_migration_pte" in seen.find_element(By.TAG_NAME, "table").text
        assert {
            address
            for address in seen.requested_urls()
            if not address.startswith((url, "data:", "chrome:"))
        } == set()
        assert seen.console() == []


def test_violation_page_and_protocol_search_are_reachable_by_links(
    served: str, tmp_path: Path
) -> None:
    with browser(tmp_path, scripts=False) as seen:
        seen.get(served)
        seen.click_link(By.PARTIAL_LINK_TEXT, "in vma_expand")
        text = seen.find_element(By.TAG_NAME, "main").text
        assert busy.HOSTILE in text
        assert "__mmap_region+0x5f4" in text
        steps = seen.find_elements(By.CSS_SELECTOR, ".trail > li")
        assert len(steps) == 5
        steps[0].find_element(By.TAG_NAME, "summary").click()
        assert "mprotect_fixup+0x101" in steps[0].text, "a stack opens without a script"
        seen.click_link(By.PARTIAL_LINK_TEXT, "documented lock order")
        assert "Not violations" in seen.find_element(By.TAG_NAME, "main").text
        seen.get(f"{served}/protocols")
        seen.find_element(By.NAME, "q").send_keys("LOCK(i_mmap:w) commit")
        Select(seen.find_element(By.NAME, "function")).select_by_visible_text("vma_expand")
        Select(seen.find_element(By.NAME, "ruled")).select_by_visible_text("violated")
        seen.click_link(By.TAG_NAME, "button")
        rows = seen.find_elements(By.CSS_SELECTOR, "table tbody tr")
        assert len(rows) == 1
        assert "L1 violated" in rows[0].text
        assert seen.find_element(By.NAME, "q").get_attribute("value") == "lock(i_mmap:w) commit"


def test_pages_are_readable_and_fit_the_screen_without_console_messages(
    served: str, tmp_path: Path
) -> None:
    """Also with scripts allowed no hostile script runs.

    The console is empty, other hosts are not contacted, and all text has enough contrast.
    """
    with browser(tmp_path) as seen:
        for size in (DESKTOP, PHONE):
            for scheme in ("light", "dark"):
                seen.emulate(*size, scheme)
                for path in pages():
                    seen.get(served + path)
                    assert seen.title != "owned"
                    seen.execute_script(OPEN_ALL)
                    assert seen.execute_script(
                        "return document.documentElement.scrollWidth <= innerWidth"
                    ), (path, size)
                    assert seen.execute_script(CONTRAST) == [], (path, size, scheme)
                    small = (
                        "return [...document.querySelectorAll('nav a, button, input, select')]"
                        ".filter(e => e.offsetHeight < 24).length"
                    )
                    assert seen.execute_script(small) == 0
                    assert seen.execute_script("return document.styleSheets.length") == 1
                    device = "phone" if size is PHONE else "desktop"
                    seen.picture(f"{device}-{scheme}{re.sub('[^a-zA-Z0-9]', '-', path)}")
        assert seen.console() == []
        assert {
            address
            for address in seen.requested_urls()
            if not address.startswith((served, "data:", "chrome:"))
        } == set()
        assert seen.refused == []
        seen.get(f"{served}/no-such-page")
        seen.requested_urls()
        assert seen.refused == [f"{served}/no-such-page"], "errors are noticed"


def test_violation_leads_to_its_runbook_and_to_the_legend(served: str, tmp_path: Path) -> None:
    """From the overview: what to save first, the runbook, and how to read the protocol."""
    with browser(tmp_path, scripts=False) as seen:
        seen.get(served)
        seen.click_link(By.LINK_TEXT, "What to save before a reboot")
        assert seen.current_url.endswith("/docs/runbooks/README.md#before-rebooting")
        seen.get(served)
        seen.click_link(By.PARTIAL_LINK_TEXT, "in vma_expand")
        marks = {
            side: [one.text for one in seen.find_elements(By.CSS_SELECTOR, f"mark.{side}")]
            for side in ("seen", "legal")
        }
        assert marks["seen"] == marks["legal"] == ["i_mmap↓w", "i_mmap↑w"]
        legend = seen.find_element(By.CSS_SELECTOR, "details.legend")
        assert "held for write by this task" not in legend.text
        legend.find_element(By.TAG_NAME, "summary").click()
        assert "held for write by this task" in legend.text, "it opens without a script"
        seen.click_link(By.LINK_TEXT, "Runbook of L1")
        assert "Whom to contact." in seen.find_element(By.TAG_NAME, "article").text


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_groups_of_hooks_open_by_keyboard_and_fit_the_screen(
    tmp_path: Path, size: tuple[int, int, bool]
) -> None:
    s = busy.tracepoints_only()
    current = LatestSnapshot(lambda: 0.0)
    current.put(s)
    with (
        Server(("127.0.0.1", 0), Application(current, lambda: s.taken_seconds)) as server,
        browser(tmp_path) as seen,
    ):
        seen.emulate(*size)
        seen.get(f"http://127.0.0.1:{server.port}/hooks")
        off = [hook.hook.name for hook in s.hooks if not hook.on]
        names = seen.find_element(By.CSS_SELECTOR, ".names")
        assert not names.is_displayed()
        assert "this kernel is built without CONFIG_KPROBES" in seen.page_source
        for _ in range(20):
            ActionChains(seen).send_keys(Keys.TAB).perform()
            if seen.switch_to.active_element.tag_name == "summary":
                break
        focused = seen.switch_to.active_element
        assert focused.tag_name == "summary"
        assert focused.value_of_css_property("outline-style") == "solid"
        assert focused.value_of_css_property("outline-width") == "3px"
        ActionChains(seen).send_keys(Keys.ENTER).perform()
        assert names.is_displayed()
        shown = [one.text for one in names.find_elements(By.TAG_NAME, "code")]
        assert shown == off
        assert seen.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        cut = (
            "return [...document.querySelectorAll('main :not(.unseen, thead, thead *)')]"
            ".filter(one => one.scrollWidth > innerWidth)"
        )
        assert seen.execute_script(cut) == []
        assert seen.execute_script(CONTRAST) == []


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        (
            0.0,
            f"14 of {KNOWN} invariants are checked here: 4 in full, 10 in part; {KNOWN - 14} are",
        ),
        (14.0, "The data is stale: the last update was 14 s ago."),
    ],
)
def test_amber_verdict_is_shown_in_words_and_colour(
    tmp_path: Path, age: float, reason: str
) -> None:
    """A kernel with tracepoints only, and a checker that hangs, on a desktop and on a phone."""
    s = busy.tracepoints_only() if not age else busy.well()
    current = LatestSnapshot(lambda: 0.0)
    current.put(s)
    with (
        Server(("127.0.0.1", 0), Application(current, lambda: s.taken_seconds + age)) as server,
        browser(tmp_path) as seen,
    ):
        for size in (DESKTOP, PHONE):
            for scheme, amber in (
                ("light", "rgba(122, 79, 0, 1)"),
                ("dark", "rgba(242, 192, 99, 1)"),
            ):
                seen.emulate(*size, scheme)
                seen.get(f"http://127.0.0.1:{server.port}")
                card = seen.find_element(By.CSS_SELECTOR, ".verdict")
                badge, head = (
                    card.find_element(By.CSS_SELECTOR, ".badge"),
                    card.find_element(By.TAG_NAME, "h1"),
                )
                assert badge.is_displayed()
                assert badge.text == "amber"
                assert head.text.startswith("Not all is known: nothing violated in ")
                assert {one.value_of_css_property("color") for one in (badge, head)} == {amber}
                assert any(
                    one.text.startswith(reason) for one in card.find_elements(By.TAG_NAME, "li")
                )
                assert badge.location["y"] < size[1], "without scrolling"
                assert seen.execute_script(
                    "return document.documentElement.scrollWidth <= innerWidth"
                )
                assert seen.execute_script(CONTRAST) == []
                device = "phone" if size is PHONE else "desktop"
                seen.picture(f"amber-{age:.0f}-{device}-{scheme}")


def test_accessibility_tree_has_tables_on_a_phone(served: str, tmp_path: Path) -> None:
    """On a phone rows are drawn as cards; the accessibility tree still has tables with headers."""
    with browser(tmp_path) as seen:
        seen.emulate(*PHONE)
        seen.get(served)
        nodes = seen.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
        assert roles.count("table") == 3
        assert roles.count("rowheader") >= 18
        assert roles.count("columnheader") >= 7
        for role in ("banner", "main", "navigation", "contentinfo"):
            assert roles.count(role) >= 1, role
        drawings = [
            node
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in ("image", "img")
        ]
        assert all("over the last ten minutes" in node["name"]["value"] for node in drawings)
        assert len(drawings) == 5
