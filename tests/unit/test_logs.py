"""The log: levels as syslog has them, text and JSON, one record a line, errors at every level."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.native import ROOT
from tests.unit.test_screen import terminal
from tracer import logs, outcome
from tracer.cli import main
from tracer.cli_common import LogChoice, load_settings
from tracer.errors import RmapdError

SYSLOG = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]


def test_levels_are_those_of_syslog_by_name_and_priority() -> None:
    assert list(logs.LEVELS) == SYSLOG
    assert [logs.priority(level) for level in logs.LEVELS.values()] == list(range(8))
    assert [logs.level_name(level) for level in logs.LEVELS.values()] == SYSLOG
    python = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
    assert [logs.priority(getattr(logging, name)) for name in python] == [2, 3, 4, 6, 7]
    assert logs.priority(5) == 7


@pytest.mark.parametrize(
    ("name", "expected"),
    [("err", "err"), ("ERROR", "err"), ("Critical", "crit"), ("warn", "warning"), ("INFO", "info")],
)
def test_names_of_python_and_capitals_are_accepted(name: str, expected: str) -> None:
    assert logs.level_named(name) == expected


def test_unknown_level_is_an_error() -> None:
    with pytest.raises(KeyError):
        logs.level_named("most")


@pytest.mark.parametrize(
    ("start", "steps", "expected"),
    [
        ("warning", 1, "info"),
        ("warning", 2, "debug"),
        ("warning", 9, "debug"),
        ("info", -1, "warning"),
        ("info", -2, "err"),
        ("info", -9, "crit"),
        ("info", 0, "info"),
        ("notice", 1, "info"),
        ("notice", -1, "warning"),
        ("emerg", 1, "crit"),
        ("emerg", -1, "emerg"),
    ],
)
def test_each_step_changes_what_is_logged(start: str, steps: int, expected: str) -> None:
    assert logs.stepped(start, steps) == expected


def logged(
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[logging.Logger], None],
    level: str = "debug",
    form: str = "text",
) -> list[str]:
    """Return the lines that write() logs to stderr."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with logs.to_stderr():
        logs.configure(level, form)
        write(logging.getLogger("rmapd"))
    return stream.getvalue().splitlines()


def at_every_level(log: logging.Logger) -> None:
    for number in logs.LEVELS.values():
        log.log(number, "%s", logs.level_name(number))


@pytest.mark.parametrize("level", SYSLOG)
def test_level_lets_through_what_is_as_severe_or_more(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    lines = logged(monkeypatch, at_every_level, level, "json")
    assert [json.loads(line)["level"] for line in lines] == list(
        reversed(SYSLOG[SYSLOG.index(level) :: -1])
    )


def test_text_has_time_with_zone_level_and_message(monkeypatch: pytest.MonkeyPatch) -> None:
    before = datetime.now().astimezone()
    (line,) = logged(monkeypatch, lambda log: log.warning("a %s", "b"))
    time, level, message = line.split(" ", 2)
    assert (level, message) == ("WARNING", "a b")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", time)
    assert abs((datetime.fromisoformat(time) - before).total_seconds()) < 60


def test_time_has_the_offset_of_the_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        (line,) = logged(monkeypatch, lambda log: log.warning("x"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert line.split()[0].endswith("+05:30")


def test_json_line_has_time_level_area_message_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(log: logging.Logger) -> None:
        log.critical("violated %s", "L1", extra=logs.fields(invariant="L1", count=2))
        logging.getLogger("urllib3").info("x\x1b\ny")

    first, second = map(json.loads, logged(monkeypatch, write, form="json"))
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "crit",
        "area": "rmapd",
        "message": "violated L1",
        "fields": {"invariant": "L1", "count": 2},
    }
    assert (second["area"], second["message"], second["fields"]) == ("urllib3", "x\x1b\ny", {})


def test_area_is_the_module_that_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(log: logging.Logger) -> None:
        path = str(ROOT / "tracer/daemon/run.py")
        log.handle(log.makeRecord("rmapd", logging.INFO, path, 1, "x", (), None))

    (line,) = logged(monkeypatch, write, form="json")
    assert json.loads(line)["area"] == "daemon.run"


def fail(log: logging.Logger) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("no good")


def test_traceback_is_a_member_of_the_json_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = logged(monkeypatch, fail, form="json")
    assert json.loads(line)["traceback"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: two" in json.loads(line)["traceback"]


@pytest.mark.parametrize("form", logs.FORMATS)
def test_lines_for_journald_begin_with_their_priority(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(logs, "is_journal", lambda _environ, fd: fd == 2)

    def write(log: logging.Logger) -> None:
        log.critical("x")
        log.warning("x")
        log.info("x")
        log.log(logs.LEVELS["notice"], "x")

    lines = logged(monkeypatch, write, form=form)
    assert [line[:3] for line in lines] == ["<2>", "<4>", "<6>", "<5>"]
    assert form == "text" or all(json.loads(line[3:])["message"] == "x" for line in lines)


def test_line_is_wrapped_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "word " * 40 + "http://127.0.0.1:9743/metrics"
    assert len(logged(monkeypatch, lambda log: log.info(message))) == 1
    with terminal(80) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        record = logging.LogRecord("rmapd", logging.INFO, "x", 1, message, (), None)
        lines = logs.LineFormatter(wrap=True).format(record).split("\n")
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) > 2
    assert [line[:4] for line in lines[1:]] == ["    "] * (len(lines) - 1)
    assert " ".join(" ".join(lines).split()).endswith(" ".join(message.split()))


def test_log_follows_a_stderr_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live table on the terminal replaces it, so that the log appears above the table."""
    live = io.StringIO()

    def write(log: logging.Logger) -> None:
        log.info("before")
        monkeypatch.setattr(sys, "stderr", live)
        log.info("meanwhile")

    (line,) = logged(monkeypatch, write)
    assert line.endswith("before")
    assert live.getvalue().endswith("meanwhile\n")


def test_level_and_handler_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    logged(monkeypatch, at_every_level, "emerg")
    assert (root.level, list(root.handlers)) == before
    assert not logs.is_json()


@pytest.mark.parametrize("level", ["emerg", "debug"])
def test_error_that_ends_a_command_is_a_json_line_at_any_level(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    error = RmapdError("no", why="a\nb", hint="c")
    (line,) = logged(monkeypatch, lambda _: outcome.print_error(error), level, "json")
    found = json.loads(line)
    assert (found["level"], found["area"], found["message"]) == (
        "err",
        "outcome",
        "no: a; b; try: c",
    )
    assert logged(monkeypatch, lambda _: outcome.print_error(error), level)[0] == "rmapd: no: a"


@pytest.mark.parametrize(
    ("configured", "environ", "choice", "expected"),
    [
        ("", {}, LogChoice(), ("warning", "text")),
        ("log_level = 'ERROR'", {}, LogChoice(), ("err", "text")),
        ("log_format = 'json'", {"RMAPD_LOG_LEVEL": "alert"}, LogChoice(), ("alert", "json")),
        ("log_level = 'err'", {}, LogChoice("debug", "json"), ("debug", "json")),
        ("", {}, LogChoice(steps=1), ("info", "text")),
        ("log_level = 'info'", {}, LogChoice(steps=1), ("debug", "text")),
        ("log_level = 'info'", {}, LogChoice(steps=-1), ("warning", "text")),
    ],
)
def test_flags_win_over_environment_and_configuration(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    configured: str,
    environ: dict[str, str],
    choice: LogChoice,
    expected: tuple[str, str],
) -> None:
    for name in ("RMAPD_LOG_LEVEL", "RMAPD_LOG_FORMAT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "rmapd.toml"
    path.write_text(configured)
    found = load_settings(path, None, choice)
    assert (found.log_level, found.log_format) == expected


def test_default_level_is_the_command_s_and_unresolved_where_nothing_logs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RMAPD_LOG_LEVEL", raising=False)
    path = tmp_path / "rmapd.toml"
    path.write_text("")
    assert load_settings(path, None, LogChoice(), "info").log_level == "info"
    assert load_settings(path, None, LogChoice(steps=-1), "info").log_level == "warning"
    assert load_settings(path, None).log_level == "", "check-config prints what is configured"


def run(*args: str, **environ: str) -> Any:
    return CliRunner().invoke(main, args, env={"RMAPD_CONFIG": "", **environ})


COMMANDS = [["run"], ["exec", "--", "true"], ["audit"], ["protocols", "--save", "x"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_options_of_the_log_exclude_each_other(command: list[str]) -> None:
    head, *rest = command
    for options in (["-v", "-q"], ["--log-level", "info", "-v"], ["--log-level", "info", "-q"]):
        done = run(head, *options, *rest)
        assert (done.exit_code, "exclude each other" in done.output) == (2, True), options


@pytest.mark.parametrize("command", [*COMMANDS, ["doctor"]], ids=lambda command: command[0])
def test_unknown_level_or_format_is_exit_2(command: list[str]) -> None:
    head, *rest = command
    done = run(head, "--log-level", "most", *rest)
    assert (done.exit_code, "'most' is no level" in done.output) == (2, True)
    assert run(head, "--log-format", "xml", *rest).exit_code == 2
    assert "'most' is no level" in run(*command, RMAPD_LOG_LEVEL="most").output


def test_errors_of_the_configuration_are_json_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rmapd.toml"
    path.write_text("log_levl = 'info'\n")
    done = run("run", "--log-format", "json", "--config", str(path))
    assert done.exit_code == 2
    assert "log_level" in json.loads(done.stderr)["message"]
