"""`rmapd top` in Textual's own pilot, over the real server: sizes, keys, a finding, stale and gone.

Assertions are about the text on the screen, as Textual draws it.
"""

from __future__ import annotations

import asyncio
import html
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot

from tests.support import busy
from tests.support.clock import SAFETY_SECONDS, Clock
from tests.support.served import Daemon
from tests.unit.client.test_status import rmapd
from tracer.client.address import from_url
from tracer.client.connection import Client
from tracer.client.top import text
from tracer.client.top.app import TopApp
from tracer.client.top.observer import Observer, Poller
from tracer.client.top.panels import Functions, Locks
from tracer.client.top.view import View
from tracer.errors import Defect, RmapdError, Unreachable
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Verdict
from tracer.results.snapshot import Snapshot

SMALL, LARGE = (80, 24), (200, 50)
_CHARACTER = 12.2
"""The width of a character in Textual's screenshots."""
_PIECE = re.compile(r'<text class="[^"]*-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>')
"""A text of the screen, not the title of the picture."""

EVERY = len(discover())


class Screen:
    """The view under a pilot, and what is on its screen."""

    def __init__(self, pilot: Pilot[None], daemon: Daemon, clock: Clock) -> None:
        self.pilot, self.daemon, self.clock = pilot, daemon, clock
        assert isinstance(pilot.app, TopApp)
        self.app = pilot.app

    @property
    def lines(self) -> list[str]:
        """The lines of the screen."""
        rows: dict[float, list[str]] = {}
        for x, y, content in _PIECE.findall(self.app.export_screenshot()):
            row = rows.setdefault(float(y), [])
            at = round(float(x) / _CHARACTER)
            row.extend([" "] * (at - len(row)))
            row[at:] = html.unescape(content).replace("\xa0", " ")
        return ["".join(rows[y]).rstrip() for y in sorted(rows)]

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    async def shows(self, *parts: str) -> None:
        """Wait until all of these are on the screen."""
        await self.until(lambda: all(part in self.text for part in parts), f"{parts}")

    async def until(self, holds: Callable[[], object], why: str = "") -> None:
        """Wait until this holds."""
        end = asyncio.get_running_loop().time() + SAFETY_SECONDS
        while not holds():
            assert asyncio.get_running_loop().time() < end, f"not {why}:\n{self.text}"
            await self.pilot.pause(0.05)

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)

    async def look(self) -> None:
        """Ask the daemon now, and wait for what comes of it."""
        before = self.app.view.looks
        await self.press("r")
        await self.until(lambda: self.app.view.looks > before, "another look")
        await self.pilot.pause()


def watching(
    size: tuple[int, int],
    test: Callable[[Screen], Awaitable[None]],
    snapshot: Snapshot | None = None,
    **environment: Any,
) -> None:
    """Run a test with the view of a daemon on a screen of this size."""

    async def run(daemon: Daemon, client: Client) -> None:
        clock = Clock()
        observer = Observer(client, clock.monotonic)
        first = observer.look()
        fresh = msgspec.structs.replace(first.seen, age_seconds=0.0)  # on a busy machine as well
        view = View(observer, replace(first, seen=fresh), 3600.0, clock.monotonic)
        app = TopApp(view)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await test(Screen(pilot, daemon, clock))
        assert not app.return_code

    with Daemon(snapshot) as daemon, Client(from_url(daemon.url), timeout=30.0) as client:
        asyncio.run(run(daemon, client))


@pytest.fixture
def quiet() -> Snapshot:
    return busy.well()


@pytest.mark.parametrize("size", [SMALL, (100, 30), (139, 60), LARGE, (300, 90)])
def test_everything_important_is_on_the_screen_at_every_size(size: tuple[int, int]) -> None:
    async def test(screen: Screen) -> None:
        await screen.shows(
            "RED  L1 violated",
            "live",
            "6.12.95-amd64",
            "up 1 h 6 min",
            "fidelity full",
            f"{EVERY} of {EVERY} invariants are checked here",
            "lost: locks 40",
            *("checks/s", "windows/s", "entries/s", "programs"),
            *("VIOLATED  L1", "×3", "vma_expand()", "anon_vma rwsem is taken before"),
            *("SUSPECT   M1", "migrate_pages()"),
            *("coverage", "holds", "violated", "documented lock"),
            *("Enter open", "? help", "q quit"),
        )
        assert len(screen.lines) <= size[1]
        assert max(map(len, screen.lines)) <= size[0]

    watching(size, test)


def test_large_screen_shows_all_panels_at_once() -> None:
    async def test(screen: Screen) -> None:
        await screen.shows(
            *("1 Findings", "2 Invariants", "3 Functions", "4 Locks", "5 Entries", "6 Health"),
            *("vma_merge_new_range", "mmap_lock write", "0x7f1000002000", "the audit took"),
            *("outstanding", "lost/s", "rmapd"),
        )

    watching(LARGE, test)


def test_screen_that_changes_its_size_is_arranged_again() -> None:
    async def test(screen: Screen) -> None:
        assert "vma_merge_new_range" not in screen.text
        await screen.pilot.resize_terminal(*LARGE)
        await screen.shows("vma_merge_new_range", "mmap_lock write", "the audit took", "lost/s")
        await screen.pilot.resize_terminal(*SMALL)
        await screen.shows("3 Functions   4 Locks", "VIOLATED  L1")
        assert "vma_merge_new_range" not in screen.text
        assert max(map(len, screen.lines)) <= 80
        await screen.pilot.resize_terminal(20, 6)
        await screen.shows("live")

    watching(SMALL, test)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("2", ["unverif.", "documented lock"]),
        ("3", ["longest", "vma_merge_new_range", "not sampled"[:3]]),
        ("4", ["waits/s", "mmap_lock write", "holding"]),
        ("5", ["migrating for", "0x7f1000002000", "4.2 ms", "PTE"]),
        ("6", ["1 check is suspect", "pass 422", "open doubts: 1", "missed runs 3", "86 MiB"]),
    ],
)
def test_number_shows_a_panel_and_the_findings_stay(key: str, parts: list[str]) -> None:
    async def test(screen: Screen) -> None:
        await screen.press(key)
        await screen.shows(*parts, "VIOLATED  L1", "SUSPECT   M1")

    watching(SMALL, test)


def test_enter_opens_a_finding_with_its_trail_and_escape_leads_back() -> None:
    async def test(screen: Screen) -> None:
        await screen.press("enter")
        await screen.shows(
            "L1-13ab0fff18",
            "What was seen",
            "vma_expand(): anon_vma rwsem is taken before i_mmap_rwsem",
            "Trail",
            "__split_vma[file anon moved mmap:w ok]",
            "-0.029200 s  [4711]",
            "a boundary moved between the two walks",
        )
        await screen.press("end")
        await screen.shows("How L1 is confirmed")
        await screen.press("escape")
        await screen.shows("RED  L1 violated", "unverif.")
        await screen.press("down", "enter")
        await screen.shows("M1-", "a migration entry is left behind", "0x7a00000000123456")
        await screen.press("backspace")
        await screen.shows("RED  L1 violated")

    watching((100, 40), test)


def test_finding_that_is_gone_is_an_error_on_its_screen() -> None:
    async def test(screen: Screen) -> None:
        screen.daemon.put(violations={}, checks={})
        await screen.press("enter")
        await screen.shows("there is no finding L1-13ab0fff18 any more")
        await screen.press("escape")
        screen.daemon.stop()
        await screen.press("enter")
        await screen.shows("nothing listens there")

    watching(SMALL, test)


def test_enter_on_an_invariant_opens_the_rule_with_its_coverage(quiet: Snapshot) -> None:
    async def test(screen: Screen) -> None:
        await screen.shows("No violation and no suspect in")
        await screen.press("enter")
        await screen.shows("M2: inserted under the page lock", "partial: the reason", "stated in")

    coverage = {name: (Coverage.FULL, "") for name in quiet.invariants}
    first = dict(coverage) | {"M1": (Coverage.NONE, "x"), "M2": (Coverage.PARTIAL, "the reason")}
    watching(SMALL, test, replace(quiet, coverage=first))


def test_invariants_with_findings_come_first_and_unchecked_ones_last(quiet: Snapshot) -> None:
    async def test(screen: Screen) -> None:
        await screen.press("2")
        await screen.shows("M2 ")
        found = [line.split()[0] for line in screen.lines if re.match(r" [MLVR]\d ", line)]
        assert found[:4] == ["R2", "V5", "M1", "M3"]
        assert found[-1] == "M2"

    checks = dict(quiet.checks) | {("R2", Verdict.VIOLATED): 1, ("V5", Verdict.SUSPECT): 1}
    coverage = dict(quiet.coverage) | {"M2": (Coverage.NONE, "needs x")}
    watching((100, 39), test, replace(quiet, checks=checks, coverage=coverage))


def test_new_finding_appears_and_the_cursor_stays_on_its_row() -> None:
    async def test(screen: Screen) -> None:
        await screen.press("down")
        table = screen.app.view.findings
        assert table.selected.startswith("M1-")
        one = busy.violations()[0]
        new = replace(one, first=replace(one.first, shape="another", summary="a new summary"))
        known = screen.daemon.snapshot.violations
        screen.daemon.put(violations={new.first.id: replace(new, last_seen=2e9), **known})
        await screen.look()
        await screen.shows("a new summary")
        assert table.selected.startswith("M1-")
        assert table.row_count == 3

    watching(SMALL, test)


def test_first_finding_appears_on_a_quiet_screen(quiet: Snapshot) -> None:
    checks = sum(count for (_, verdict), count in quiet.checks.items() if verdict == "holds")
    assert checks > 10**6

    async def test(screen: Screen) -> None:
        await screen.shows(f"No violation and no suspect in {checks:,} checks", "GREEN")
        one = busy.violations()[0]
        screen.daemon.put(
            violations={one.first.id: one},
            checks=dict(screen.daemon.snapshot.checks) | {("L1", Verdict.VIOLATED): 3},
        )
        await screen.look()
        await screen.shows("RED  L1 violated", "VIOLATED  L1", "vma_expand()")
        assert "No violation" not in screen.text
        await screen.press("1", "enter")
        await screen.shows("What was seen")

    watching(SMALL, test, quiet)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_many_findings_leave_room_for_the_rest(size: tuple[int, int]) -> None:
    many = {
        f"M1-{n:010x}": replace(
            one, first=replace(one.first, shape=str(n), summary=f"finding number {n}")
        )
        for n in range(300)
        for one in [busy.violations()[1]]
    }

    async def test(screen: Screen) -> None:
        await screen.shows("SUSPECT  M1", "documented lock", "q quit")
        assert 4 <= screen.text.count("finding number") <= 8
        await screen.press("1", "end")
        await screen.shows("finding number 299")
        await screen.press("home")
        await screen.shows("finding number 0")

    watching(size, test, replace(busy.snapshot(), violations=many))


def test_names_from_the_kernel_are_text_and_no_markup() -> None:
    name = "[bold red]x[/] [@click=app.quit]y[/] \x1b]0;owned\x07 \u202e"
    one = busy.violations()[0]
    hostile = replace(
        one, first=replace(one.first, summary=name, task={"comm": name, "pid": 1, "tgid": 1})
    )

    async def test(screen: Screen) -> None:
        await screen.shows(r"[bold red]x[/] [@click=app.quit]y[/] \x1b]0;owned\x07 \u202e")
        await screen.press("enter")
        await screen.shows("What was seen", r"[bold red]x[/]", r"\x1b]0;owned\x07")
        assert "\x1b" not in screen.text

    watching((160, 39), test, replace(busy.snapshot(), violations={hostile.first.id: hostile}))


def test_stale_data_are_marked_across_the_screen() -> None:
    async def test(screen: Screen) -> None:
        assert "STALE" not in screen.text
        screen.daemon.put(age=42.0)
        await screen.look()
        await screen.shows("STALE: the checker has read no tables since; what you see is 4")
        assert re.search(r"stale 4\d", screen.lines[0])
        screen.daemon.put()
        await screen.look()
        await screen.until(lambda: "STALE" not in screen.text, "live again")
        await screen.shows("live")

    watching(SMALL, test)


def test_silence_of_the_daemon_makes_the_picture_stale(quiet: Snapshot) -> None:
    """Without an answer and without an error, as while a request hangs."""

    async def test(screen: Screen) -> None:
        screen.clock.now += 30.0
        await screen.shows("STALE", "what you see is 3")

    watching(SMALL, test, quiet)


def test_daemon_that_is_gone_is_marked_and_asked_again() -> None:
    async def test(screen: Screen) -> None:
        screen.daemon.stop()
        screen.clock.now += 7.0
        await screen.look()
        await screen.shows("GONE: nothing listens there; what you see is 7 s old; asking again")
        await screen.shows("VIOLATED  L1", "gone 7 s")
        screen.clock.now += 100.0
        await screen.look()
        await screen.shows("what you see is 1 min 47 s old")
        screen.daemon.start(violations={}, checks={})
        await screen.look()
        await screen.shows("the daemon was restarted: counts begin anew", "live")
        assert "VIOLATED" not in screen.text
        screen.clock.now += 31.0
        await screen.look()
        await screen.until(lambda: "restarted" not in screen.text, "the note ends")

    watching(SMALL, test)


def test_closed_gate_is_marked() -> None:
    async def test(screen: Screen) -> None:
        screen.daemon.put(gate_open=False)
        await screen.look()
        await screen.shows("ENDING: the gate is closed, nothing is recorded any more")

    watching(SMALL, test)


def test_pause_keeps_the_picture_until_it_ends() -> None:
    async def test(screen: Screen) -> None:
        await screen.press("space")
        await screen.shows("PAUSED")
        screen.daemon.put(kernel="7.3-new")
        await screen.look()
        assert "6.12.95-amd64" in screen.text
        await screen.press("space")
        await screen.shows("7.3-new")
        assert "PAUSED" not in screen.text

    watching(SMALL, test)


def test_functions_and_locks_are_sorted_by_the_marked_column() -> None:
    async def test(screen: Screen) -> None:
        await screen.press("3")
        await screen.shows("longest")
        functions = screen.app.view.query_one(Functions)
        names = [one.function for one in screen.app.view.picture.functions]
        assert functions.keys[:3] == names[:3], "the API has the most time first"
        await screen.press("s")
        assert functions.sorted_by == ">/s"
        assert [column.label.style for column in functions.ordered_columns][:3] == [
            "",
            "reverse",
            "",
        ]
        by_count = sorted(screen.app.view.picture.functions, key=lambda one: -one.count)
        assert functions.keys[0] == by_count[0].function
        await screen.press("4", "s")
        await screen.shows("holding")
        by_hold = sorted(screen.app.view.picture.locks, key=lambda one: -one.hold.seconds)
        assert screen.app.view.query_one(Locks).keys[0] == by_hold[0].name

    watching(SMALL, test)


def test_rates_come_from_the_history_of_the_daemon() -> None:
    async def test(screen: Screen) -> None:
        s = screen.daemon.snapshot
        await screen.shows("checks/s –")
        more = {key: count + 700 for key, count in s.checks.items()}
        screen.daemon.put(checks=more, running_seconds=s.running_seconds + 10)
        await screen.look()
        await screen.shows(f"checks/s {70 * len(more):,}", "█")
        await screen.press("t")
        await screen.shows("last 10 min")
        await screen.press("t")
        await screen.shows("last 2 min")

    watching(SMALL, test)


def test_hot_functions_come_from_two_looks() -> None:
    async def test(screen: Screen) -> None:
        s = screen.daemon.snapshot
        await screen.press("3")
        screen.clock.now += 5.0
        hot = "vma_shrink"
        windows = dict(s.window_times) | {hot: s.window_times[hot] + busy.times(5000, 20)}
        screen.daemon.put(window_times=windows)
        await screen.look()
        await screen.until(lambda: screen.app.view.query_one(Functions).keys[0] == hot, hot)
        # The table widens its columns in the round after the one that has the new cells.
        rates = re.compile(rf"{hot}\s+1,000\s+[\d.]+ m?s/s")
        await screen.until(lambda: rates.search(screen.text), "the rates of the hot function")

    watching(SMALL, test)


def test_help_lists_the_keys() -> None:
    async def test(screen: Screen) -> None:
        await screen.press("question_mark")
        await screen.shows("rmapd top: keys and columns", "this help; quit", "STALE", "GONE")
        await screen.press("question_mark", "escape")
        await screen.shows("RED  L1 violated")

    watching(SMALL, test)


@pytest.mark.parametrize("keys", [["q"], ["enter", "q"], ["question_mark", "q"], ["ctrl+c"]])
def test_q_ends_the_view_from_everywhere(keys: list[str]) -> None:
    async def test(screen: Screen) -> None:
        await screen.press(*keys)
        await screen.until(lambda: not screen.app.is_running, "the end")

    watching(SMALL, test)


def test_poller_looks_again_after_an_error_and_ends() -> None:
    shown: list[object] = []
    enough, error = threading.Event(), Unreachable("gone")
    answers: Iterator[object] = iter([error, "a picture"])

    def look() -> Any:
        found = next(answers, "more")
        if isinstance(found, RmapdError):
            raise found
        return found

    def show(found: object) -> None:
        shown.append(found)
        if found == "more":
            enough.set()

    poller = Poller(look, show, 0.0)
    poller.start()
    assert enough.wait(SAFETY_SECONDS)
    poller.end()
    assert shown[:2] == [error, "a picture"]


@pytest.mark.parametrize("method", ["functions", "violation"])
def test_defect_in_a_thread_ends_the_view(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object) -> None:
        raise ValueError("a defect")

    async def test(screen: Screen) -> None:
        monkeypatch.setattr(Client, method, fails)
        await screen.press("r" if method == "functions" else "enter")
        await screen.until(lambda: screen.app.return_code == 1, "the end")

    with pytest.raises(ValueError, match="a defect"):
        watching(SMALL, test)


def test_defect_of_the_view_is_exit_70(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracer.client.top import app

    def fails(_self: object, **_named: object) -> None:
        _self.__dict__["_return_code"] = 1

    monkeypatch.setattr(app.TopApp, "run", fails)
    with Daemon() as daemon, Client(from_url(daemon.url), timeout=30.0) as client:
        with pytest.raises(Defect) as failed:
            app.run(client, 2.0)
        assert failed.value.exit_code == 70
        daemon.stop()
        with pytest.raises(Unreachable):
            app.run(client, 2.0)


def test_command_without_a_terminal_is_exit_2() -> None:
    done = rmapd("top", "--url", "http://127.0.0.1:1")
    assert done.exit_code == 2
    assert "rmapd top needs a terminal" in done.stderr


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([0, 0], "▁▁"),
        ([0, 1, 50, 100], "▁▂▅█"),
        ([5, 5], "██"),
        ([1e-9], "█"),
    ],
)
def test_lowest_bar_of_a_sparkline_is_nothing(values: list[float], line: str) -> None:
    assert text.sparkline(values) == line


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.25, "0.25"),
        (9.9, "9.9"),
        (12345.6, "12,346"),
        (123456.0, "123k"),
        (12_345_678.0, "12M"),
    ],
)
def test_rate_is_short(value: float | None, shown: str) -> None:
    assert text.rate(value) == shown
