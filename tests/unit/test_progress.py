"""Progress of long work: on a terminal alone, and nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.clock import SAFETY_SECONDS
from tests.support.reports import written
from tests.support.terminal import Terminal
from tracer import progress

RMAPD = [sys.executable, "-m", "tracer"]
WAIT = [sys.executable, "-m", "tracer.progress"]
ERASED, CURSOR_BACK = b"\x1b[2K", b"\x1b[?25h"


def report(folder: Path, *more: str) -> list[str]:
    output = str(folder / "r.md")
    return [*RMAPD, "report", "--from", str(written(folder / "r.json")), "--output", output, *more]


def test_report_on_a_terminal_shows_what_it_does_and_leaves_nothing(tmp_path: Path) -> None:
    with Terminal(report(tmp_path)) as terminal:
        assert terminal.end() == 0
    for what in (b"reading what was found", b"writing the report"):
        assert what in terminal.drawn
    assert terminal.text.strip() == ""
    assert (tmp_path / "r.md").read_text()


def test_report_to_the_terminal_is_not_mixed_with_its_progress(tmp_path: Path) -> None:
    command = [*RMAPD, "report", "--from", str(written(tmp_path / "r.json"))]
    plain = subprocess.run(command, capture_output=True, check=True)
    with Terminal(command) as terminal:
        assert terminal.end() == 0
    drawn, _, after = terminal.drawn.rpartition(CURSOR_BACK)
    assert b"writing the report" in drawn
    assert plain.stderr == b""
    assert after.replace(b"\r\n", b"\n").endswith(plain.stdout)


@pytest.mark.parametrize(
    ("more", "environment"),
    [(["-q"], {}), (["--quiet"], {}), ([], {"TERM": "dumb"}), ([], {"TERM": ""})],
)
def test_nothing_is_drawn_for_q_or_where_nothing_can_be_erased(
    tmp_path: Path, more: list[str], environment: dict[str, str]
) -> None:
    with Terminal(report(tmp_path, *more), environment=environment) as terminal:
        assert terminal.end() == 0
    assert terminal.drawn == b""


def test_nothing_is_written_into_a_pipe(tmp_path: Path) -> None:
    for command in (report(tmp_path), [*WAIT, "0.1"]):
        done = subprocess.run(
            command, capture_output=True, check=True, env={**os.environ, "TERM": "xterm"}
        )
        assert (done.stdout, done.stderr) == (b"", b"")


def test_error_is_printed_below_an_erased_line(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("no report")
    source, output = str(tmp_path / "r.json"), str(tmp_path / "r.md")
    with Terminal([*RMAPD, "report", "--from", source, "--output", output]) as terminal:
        assert terminal.end() == 2
    assert b"reading what was found" in terminal.drawn
    assert terminal.lines[0].startswith("rmapd: ")


def test_wait_shows_how_much_is_over_and_ends_in_time() -> None:
    began = time.monotonic()
    with Terminal([*WAIT, "1.5"]) as terminal:
        terminal.shows("watching this kernel", "0:00:01")
        assert terminal.end() == 0
    assert 1.5 <= time.monotonic() - began < SAFETY_SECONDS
    assert terminal.text.strip() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_wait_and_erases_its_line(number: signal.Signals) -> None:
    with Terminal([*WAIT, "600"]) as terminal:
        terminal.shows("watching this kernel")
        terminal.process.send_signal(number)
        assert terminal.end() == 128 + number
    assert terminal.text.strip() == ""
    assert CURSOR_BACK in terminal.drawn


LOGGED = """
import logging, time
from tracer import logs, progress
with logs.to_stderr(), progress.on_terminal(False, animated=False) as shown:
    shown.phase("attaching")
    time.sleep(0.5)
    shown.phase("at work", total=2)
    logging.getLogger("rmapd").warning("a hook was taken away")
    for n in range(3):
        shown.done(n)
    time.sleep(1.5)
"""


def test_log_appears_above_the_line() -> None:
    with Terminal([sys.executable, "-c", LOGGED]) as terminal:
        terminal.shows("attaching")
        assert terminal.text.strip() == "attaching", "no bar and no clock that stand still"
        terminal.shows("a hook was taken away", "at work")
        at = {n for n, line in enumerate(terminal.lines) if "a hook was taken away" in line}
        assert max(at) < min(n for n, line in enumerate(terminal.lines) if "at work" in line)
        assert terminal.end() == 0
    assert "a hook was taken away" in terminal.text
    assert "at work" not in terminal.text


def test_lines_of_json_are_not_mixed_with_progress() -> None:
    code = (
        "from tracer import logs, progress\n"
        "with logs.to_stderr():\n"
        "    print(progress.is_shown(False)); logs.choose_format('json')\n"
        "    print(progress.is_shown(False))"
    )
    with Terminal([sys.executable, "-c", code]) as terminal:
        assert terminal.end() == 0
    assert re.findall(r"True|False", terminal.text) == ["True", "False"]


def test_line_without_a_terminal_does_nothing() -> None:
    line = progress.ProgressLine()
    line.phase("x", total=3)
    line.done(1)
