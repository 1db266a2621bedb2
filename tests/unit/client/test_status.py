"""`rmapd status`: its exit codes, its text and its JSON, over the real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support import busy
from tests.support.served import Daemon
from tests.unit.client.test_connection import Site
from tracer.cli import main
from tracer.client.address import from_url
from tracer.client.connection import Client
from tracer.client.health import health
from tracer.client.status_text import as_lines
from tracer.errors import RmapdError
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Verdict
from tracer.results.audit import AuditProgress
from tracer.results.snapshot import Snapshot, StoreState


def rmapd(*args: str, **environment: str) -> Result:
    given: dict[str, str | None] = {"RMAPD_CONFIG": None, **environment}
    return CliRunner().invoke(main, list(args), env=given)


def status(daemon: Daemon, *args: str, **environment: str) -> Result:
    return rmapd("status", "--url", daemon.url, *args, **environment)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(busy.well()) as made:
        yield made


def uncovered(s: Snapshot, *names: str) -> dict[str, Any]:
    return dict(s.coverage) | dict.fromkeys(names, (Coverage.NONE, "needs first_walk"))


def test_green_daemon_is_exit_0(daemon: Daemon) -> None:
    done = status(daemon)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("GREEN: Nothing violated in")
    assert "\x1b" not in done.output
    assert "exit" not in done.output


def test_amber_daemon_without_a_violation_is_exit_0(daemon: Daemon) -> None:
    daemon.put(violations={"M1": busy.violations()[1]}, checks={("M1", Verdict.SUSPECT): 1})
    done = status(daemon)
    assert done.exit_code == 0
    assert done.output.startswith("AMBER: M1 under suspicion")
    assert "SUSPECT  M1-" in done.output


@pytest.mark.parametrize(
    "also",
    [{}, {"gate_open": False}, {"age": 1000.0}, {"coverage": {}, "required": ("M2",)}],
    ids=["alone", "gate closed", "checker hangs", "M2 not checked"],
)
def test_violation_is_exit_3_whatever_else_is_wrong(daemon: Daemon, also: dict[str, Any]) -> None:
    changes = also | ({"coverage": uncovered(daemon.snapshot, "M2")} if "coverage" in also else {})
    first = busy.violations()[0]
    daemon.put(violations={first.first.id: first}, checks={("L1", Verdict.VIOLATED): 3}, **changes)
    done = status(daemon)
    assert done.exit_code == 3
    assert "VIOLATED L1-" in done.output
    assert done.output.endswith("exit 3: violated: L1\n")


def test_violation_beyond_the_kept_findings_is_exit_3(daemon: Daemon) -> None:
    daemon.put(checks={("M1", Verdict.VIOLATED): 1}, rest={("M1", Verdict.VIOLATED): 1})
    done = status(daemon)
    assert done.exit_code == 3
    assert "1 findings without evidence" in done.output


@pytest.mark.parametrize(
    ("required", "option", "code"),
    [
        ((), (), 0),
        (("M2",), (), 4),
        ((), ("--require", "M1, M2"), 4),
        (("M1",), ("--require", "M3"), 0),
    ],
)
def test_required_invariant_that_is_not_checked_is_exit_4(
    daemon: Daemon, required: tuple[str, ...], option: tuple[str, ...], code: int
) -> None:
    daemon.put(coverage=uncovered(daemon.snapshot, "M2"), required=required)
    done = status(daemon, *option)
    assert done.exit_code == code
    assert ("required, and not checked here: M2 (needs first_walk)" in done.output) == (code == 4)


def test_requirement_that_is_checked_in_part_is_met(daemon: Daemon) -> None:
    daemon.put(
        coverage=dict(daemon.snapshot.coverage) | {"M2": (Coverage.PARTIAL, "why")},
        required=("M2",),
    )
    assert status(daemon).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gate_open": False}, "the gate is closed: the daemon is ending"),
        ({"age": 125.0}, "the checker hangs: it has read no tables for 2 min"),
    ],
)
def test_daemon_that_checks_nothing_more_is_exit_5(
    daemon: Daemon, changes: dict[str, Any], why: str
) -> None:
    daemon.put(**changes)
    done = status(daemon)
    assert done.exit_code == 5
    assert why in done.output


def test_stale_data_are_shown_and_no_failure_yet(daemon: Daemon) -> None:
    daemon.put(age=20.0)
    done = status(daemon)
    assert done.exit_code == 0
    assert re.search(r"; data (19|2\d)(\.\d)? s old", done.output)
    assert re.search(r"The data is stale: the last update was 2\d s ago", done.output)


def test_no_daemon_is_exit_5(daemon: Daemon) -> None:
    daemon.stop()
    done = status(daemon)
    assert (done.exit_code, done.stdout) == (5, "")
    assert f"cannot read from rmapd at {daemon.url}: nothing listens there" in done.stderr
    assert "Traceback" not in done.stderr
    daemon.start(ready=False)
    done = status(daemon)
    assert done.exit_code == 5
    assert "the gate is not open" in done.stderr


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--require", "M9"), "rmapd there knows no invariant M9"),
        (("--url", "web1"), "does not begin with http"),
        (("--format", "xml"), "xml"),
        (("--timeout", "-1"), "-1"),
        (("--config", "/nonexistent.toml"), "no such file"),
    ],
)
def test_wrong_usage_is_exit_2(daemon: Daemon, args: tuple[str, ...], why: str) -> None:
    url = () if {"--url", "--config"} & set(args) else ("--url", daemon.url)
    done = rmapd("status", *url, *args)
    assert done.exit_code == 2
    assert why.lower() in done.stderr.lower()


def test_json_has_the_exit_code_and_the_status(daemon: Daemon) -> None:
    done = status(daemon, "--format", "json")
    found = json.loads(done.stdout)
    assert done.exit_code == found["exit_code"] == 0
    assert (found["url"], found["reachable"], found["reason"]) == (daemon.url, True, "")
    assert found["status"]["kernel"] == daemon.snapshot.kernel
    daemon.put(checks={("M1", Verdict.VIOLATED): 1})
    done = status(daemon, "--format", "json")
    assert done.exit_code == json.loads(done.stdout)["exit_code"] == 3
    daemon.stop()
    done = status(daemon, "--format", "json")
    found = json.loads(done.stdout)
    assert done.exit_code == found["exit_code"] == 5
    assert (found["reachable"], found["error"]["why"]) == (False, "nothing listens there")
    assert not done.stderr


def test_text_fits_one_screen_and_escapes_names() -> None:
    many = {
        f"M1-{n:010x}": replace(one, first=replace(one.first, shape=str(n), summary="\x1b[31mx"))
        for n in range(50)
        for one in [busy.violations()[1]]
    }
    with Daemon(replace(busy.snapshot(), violations=many)) as daemon:
        done = status(daemon)
    assert len(done.output.splitlines()) <= 24
    assert "… and 45 more: rmapd events" in done.output
    assert r"\x1b[31mx" in done.output
    assert "\x1b" not in done.output


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"audit": AuditProgress(reason="no oracle")}, "audit     none: no oracle"),
        ({"outstanding": 0}, "entries   none outstanding of 1 migration entry"),
        ({"store": StoreState("/x.db", "No space left on device")}, "/x.db cannot be written"),
        ({"counters": {"LOCKS_LOST": 3}}, "lost      locks 3"),
    ],
)
def test_rows_describe_the_daemon(daemon: Daemon, changes: dict[str, Any], text: str) -> None:
    daemon.put(**({"counters": {"ENTRIES_RECORDED": 1}} | changes))
    assert text in status(daemon).output


def test_colours_repeat_what_words_state() -> None:
    with Daemon() as daemon, Client(from_url(daemon.url), timeout=30.0) as client:
        seen = client.status()
    lines = list(as_lines(seen, health(seen), daemon.url))
    assert (lines[0].plain, str(lines[0].style)) == ("RED: L1 violated", "bold red")
    assert any(line.plain.startswith("VIOLATED") for line in lines)


def test_unknown_requirement_is_an_error() -> None:
    with Daemon() as daemon, Client(from_url(daemon.url), timeout=30.0) as client:
        seen = client.status()
    with pytest.raises(RmapdError, match="no invariant Z1"):
        health(seen, ["Z1"])


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    site = Site(tmp_path)
    environment = {
        "RMAPD_API_CA_FILE": str(tmp_path / "ca.pem"),
        "RMAPD_API_USER": "alice",
        "RMAPD_API_PASSWORD": "correct horse",
        "RMAPD_API_TIMEOUT_SECONDS": "a variable of no option is no error",
    }
    with Daemon(access=site.rules) as daemon:
        assert rmapd("status", RMAPD_API_URL=daemon.url, **environment).exit_code == 3
        wrong = environment | {"RMAPD_API_PASSWORD": "wrong"}
        done = rmapd("status", RMAPD_API_URL=daemon.url, **wrong)
        assert done.exit_code == 2
        assert "it refuses this user or password" in done.stderr
        assert "wrong" not in done.output


def test_daemon_of_this_host_is_found_by_its_configuration(tmp_path: Path) -> None:
    site = Site(tmp_path, names=("web1.example",))
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    password.chmod(0o600)
    with Daemon(access=site.rules) as daemon:
        config = tmp_path / "rmapd.toml"
        config.write_text(f'listen = "0.0.0.0:{daemon.port}"\nweb_config = "{site.rules}"\n')
        login = ("--user", "alice", "--password-file", str(password))
        done = rmapd("status", "--config", str(config), *login)
    assert done.exit_code == 3, done.output
    assert f"at https://127.0.0.1:{daemon.port}" in done.output


def test_password_over_an_open_network_is_warned_of() -> None:
    done = rmapd(
        *("status", "--url", "http://nothing.invalid:1", "--user", "a"), RMAPD_API_PASSWORD="s3cret"
    )
    assert done.exit_code == 5
    assert "http://nothing.invalid:1 is not encrypted" in done.stderr
    assert "s3cret" not in done.output
