"""`rmapd top` and `rmapd status` as processes on a terminal: size, colours, keys, the end."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.served import Daemon
from tests.support.terminal import Terminal
from tests.unit.client.test_connection import Site

RMAPD = [sys.executable, "-m", "tracer"]
_COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;[25])[;m]")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as made:
        yield made


def test_top_draws_on_the_whole_terminal_and_leaves_it_as_it_was(daemon: Daemon) -> None:
    with Terminal([*RMAPD, "top", "--url", daemon.url], (100, 30)) as terminal:
        terminal.shows("RED  L1 violated", "VIOLATED  L1", "documented lock", "q quit")
        assert terminal.lines[0].endswith("s"), "the state is at the right edge"
        assert len(terminal.lines[0]) == 100
        assert terminal.lines[-1].lstrip().startswith("Enter open")
        terminal.resize(200, 50)
        terminal.shows("1 Findings", "6 Health", "mmap_lock write", "0x7f1000002000")
        terminal.resize(80, 24)
        terminal.shows("3 Functions   4 Locks", "VIOLATED  L1")
        terminal.press("\r")
        terminal.shows("What was seen", "Trail", "__split_vma[file anon moved mmap:w ok]")
        terminal.press("q")
        assert terminal.end() == 0
    assert b"\x1b[?1049h" in terminal.drawn, "the alternate screen"
    assert terminal.drawn.rindex(b"\x1b[?1049l") > terminal.drawn.rindex(b"\x1b[?1049h")
    assert terminal.drawn.rindex(b"\x1b[?25h") > terminal.drawn.rindex(b"\x1b[?25l"), "the cursor"


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
@pytest.mark.parametrize("command", ["top", "status"])
def test_colours_are_left_out_on_request(
    daemon: Daemon, command: str, environment: dict[str, str], coloured: bool
) -> None:
    with Terminal([*RMAPD, command, "--url", daemon.url], (80, 24), environment) as terminal:
        terminal.shows("L1 violated")
        if command == "top":
            terminal.shows("q quit")
            terminal.press("q")
        assert terminal.end() == (0 if command == "top" else 3)
    assert bool(_COLOUR.search(terminal.drawn)) == coloured


def test_password_is_asked_for_on_the_terminal_and_not_shown(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with Daemon(access=site.rules) as daemon:
        login = ["--user", "alice", "--ca-file", str(tmp_path / "ca.pem")]
        with Terminal([*RMAPD, "status", "--url", daemon.url, *login]) as terminal:
            terminal.shows("Password of alice:")
            terminal.press("correct horse\r")
            terminal.shows("RED: L1 violated")
            assert terminal.end() == 3
        assert b"correct" not in terminal.drawn


def test_top_without_a_daemon_draws_nothing() -> None:
    with Terminal([*RMAPD, "top", "--url", "http://127.0.0.1:1"]) as terminal:
        assert terminal.end() == 5
    assert b"nothing listens there" in terminal.drawn
    assert b"\x1b[?1049h" not in terminal.drawn


def test_top_without_textual_has_a_hint(tmp_path: Path, daemon: Daemon) -> None:
    (tmp_path / "textual.py").write_text(
        "raise ImportError(\"No module named 'textual'\", name='textual')"
    )
    given = {"PYTHONPATH": str(tmp_path)}
    with Terminal([*RMAPD, "top", "--url", daemon.url], (120, 24), given) as terminal:
        assert terminal.end() == 2
    assert b"it needs Textual" in terminal.drawn
    assert b"EXTRAS=top" in terminal.drawn


def test_daemon_that_goes_and_comes_back_is_shown() -> None:
    with Daemon() as daemon:
        command = [*RMAPD, "top", "--url", daemon.url, "--interval", "0.5"]
        with Terminal(command) as terminal:
            terminal.shows("live", "VIOLATED  L1")
            daemon.stop()
            terminal.shows("GONE: nothing listens there", "VIOLATED  L1")
            daemon.start(violations={}, checks={})
            terminal.shows("the daemon was restarted", "No violation and no suspect")
            terminal.press("q")
            assert terminal.end() == 0
