"""SIGHUP: what changed is logged with its old and new value, and so is what needs a restart."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec
import pytest

from tests.unit.daemon.test_session import Bench
from tracer import config as configuration
from tracer import logs
from tracer.config import CHANGEABLE, Config
from tracer.config_changes import as_text, changes
from tracer.config_maps import Maps
from tracer.daemon import run
from tracer.daemon.run import reload_configuration
from tracer.errors import RmapdError
from tracer.results.snapshot import ConfigRead


class Taking:
    """A session that takes over what a running one can change."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def change(self, config: Config) -> None:
        self.config = msgspec.structs.replace(
            self.config, **{name: getattr(config, name) for name in CHANGEABLE}
        )


START = Config(log_level="info")


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    os.close(made.events)


def reload(session: Taking, config: Config) -> None:
    reload_configuration(cast(Any, session), lambda: config)


Captured = pytest.CaptureFixture[str]


def messages(capsys: Captured) -> list[str]:
    return [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()]


def test_reload_of_the_same_configuration_changes_nothing(
    capsys: Captured,
) -> None:
    with logs.to_stderr():
        logs.configure("info", "text")
        reload(Taking(START), START)
    assert messages(capsys) == ["configuration read again: nothing changed"]


def test_changed_keys_are_logged_with_old_and_new_value(capsys: Captured) -> None:
    session = Taking(START)
    wanted = msgspec.structs.replace(START, budget=0.02, scan_seconds=30.0)
    with logs.to_stderr():
        logs.configure("info", "text")
        reload(session, wanted)
        reload(session, wanted)
    assert messages(capsys) == [
        "configuration read again: budget 0.01 -> 0.02, scan_seconds 60.0 -> 30.0",
        "configuration read again: nothing changed",
    ]


def test_keys_that_need_a_restart_are_named_until_it_comes(
    capsys: Captured,
) -> None:
    session = Taking(START)
    maps = msgspec.structs.replace(START.maps, ledger_rows=1 << 17)
    wanted = msgspec.structs.replace(START, maps=maps, require=["M1"], settle_seconds=1.0)
    restart = 'a restart is needed for require [] -> ["M1"], maps.ledger_rows 65536 -> 131072'
    with logs.to_stderr():
        logs.configure("info", "text")
        reload(session, wanted)
        reload(session, wanted)
        reload(session, msgspec.structs.replace(START, settle_seconds=1.0))
    assert messages(capsys) == [
        f"configuration read again: settle_seconds 5.0 -> 1.0; {restart}",
        f"configuration read again: {restart}",
        "configuration read again: nothing changed",
    ]


def test_level_and_format_of_the_log_are_applied(capsys: Captured) -> None:
    session = Taking(START)
    with logs.to_stderr():
        logs.configure("info", "text")
        reload(session, Config(log_level="debug"))
        assert logging.getLogger().level == logging.DEBUG
        reload(session, Config(log_level="err", log_format="json"))
        assert (logging.getLogger().level, logs.is_json()) == (logging.ERROR, True)
        reload(session, Config(log_level="err", log_format="json"))
        reload(session, Config(log_level="info"))
        assert (logging.getLogger().level, logs.is_json()) == (logging.INFO, False)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith(' read again: log_level "info" -> "debug"'), "at either level"
    assert json.loads(second)["area"] == "daemon.run"
    assert json.loads(second)["fields"] == {
        "changed": {
            "log_level": {"was": "debug", "now": "err"},
            "log_format": {"was": "text", "now": "json"},
        },
        "restart_needed": {},
    }
    assert third.endswith('log_level "err" -> "info", log_format "json" -> "text"')


def test_refused_configuration_is_logged_in_one_line(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "rmapd.toml"
    path.write_text("scan_second = 1\n")

    def refused() -> NoReturn:
        configuration.load(path)
        raise AssertionError

    session = Taking(START)
    reload_configuration(cast(Any, session), refused)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the configuration stays as it was: the configuration {path} is wrong: Object contains"
        " unknown field `scan_second`; try: scan_seconds"
    )
    assert session.config is START


def test_real_session_takes_over_exactly_what_the_log_names(bench: Bench) -> None:
    session = bench.session(START)
    wanted = msgspec.structs.replace(START, scan_seconds=7.0, budget=0.5, strict=True)
    reload_configuration(session, lambda: wanted)
    assert changes(START, session.config).keys() == {"scan_seconds", "budget"}
    assert changes(session.config, wanted).keys() == {"strict"}


class Rereading:
    """The access rules."""

    def reread(self) -> None:
        pass


def test_success_of_the_last_reload_is_kept(bench: Bench) -> None:
    """The time is that of the last success."""
    session = bench.session(START)
    assert session.config_read.successful
    first = session.config_read.success_seconds
    assert first > 0

    def refused() -> NoReturn:
        raise RmapdError("wrong")

    run.reload(session, refused, cast(Any, Rereading()))
    assert session.config_read == ConfigRead(False, first)
    run.reload(session, lambda: START, cast(Any, Rereading()))
    assert session.config_read.successful
    assert session.config_read.success_seconds >= first


@pytest.mark.parametrize("right", [False, True])
def test_access_rules_that_are_read_by_themselves_count_too(right: bool) -> None:
    assert ConfigRead(True, 7.0).and_rules(right) == ConfigRead(right, 7.0)
    assert ConfigRead(False, 7.0).and_rules(right) == ConfigRead(False, 7.0)


def another(value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, msgspec.Struct):
        fields = {name: another(getattr(value, name)) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **fields)
    return value + {int: 1, float: 1.0, str: "x", list: ["V4"]}[type(value)]


def test_every_key_that_differs_is_found() -> None:
    found = changes(Config(), another(Config()))
    assert len(found) == len(Config.__struct_fields__) - 1 + len(Maps.__struct_fields__)
    assert all(change.was != change.now for change in found.values())
    assert changes(another(Config()), another(Config())) == {}


def test_login_in_a_url_is_not_logged() -> None:
    before = Config(otlp_endpoint="http://me:secret@collector:4318/v1/logs")
    after = Config(otlp_endpoint="http://me:other@collector:4318/v1/logs")
    assert as_text(changes(before, after)) == (
        'otlp_endpoint "http://…@collector:4318/v1/logs" -> "http://…@collector:4318/v1/logs"'
    )
    assert "secret" not in str(changes(before, after))
    assert "other" not in str(changes(before, after))
