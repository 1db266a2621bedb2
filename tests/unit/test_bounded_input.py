"""Input is bounded in bytes and in time, and all commands accept the same reports."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.clock import Clock
from tests.support.reports import unlucky, written
from tests.unit.report.test_explain import left_behind, lock_order
from tracer import atomic_file, bounded_input, cli_common
from tracer.cli import main
from tracer.errors import RmapdError
from tracer.outputs.store.writer import Store
from tracer.report.load import read_report
from tracer.results.json_form import violation_json

DEEP = "[" * 200_000
NOBODY = 65534


def rmapd(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def commands(path: Path) -> dict[str, list[str | Path]]:
    """Every command that reads a report, of this one."""
    return {
        "report": ["report", "--from", path],
        "explain": ["explain", "L1-", "--report", path],
        "diff": ["diff", path, path],
    }


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time advances only in waits for something to read: /dev/zero takes as long as it takes."""
    monkeypatch.setattr(bounded_input, "time", Clock())
    monkeypatch.setattr(bounded_input, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(atomic_file, "_PATIENCE_SECONDS", 0.3)


@pytest.mark.parametrize("command", ["report", "explain", "diff"])
def test_endless_device_is_an_error_for_every_command(command: str) -> None:
    done = rmapd(*commands(Path("/dev/zero"))[command])
    assert done.exit_code == 2, done.output
    assert "cannot read /dev/zero: it has more than 64 MiB" in done.stderr


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("command", ["report", "explain", "diff"])
def test_file_that_cannot_be_read_is_an_error_for_every_command(
    tmp_path: Path, command: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path / "fifo", "it did not end within 0.3 s"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
    ):
        done = rmapd(*commands(path)[command])
        assert done.exit_code == 2, done.output
        assert str(path) in done.stderr
        assert why in done.stderr or (path == tmp_path and "is a directory" in done.stderr)


@pytest.mark.usefixtures("short_patience")
def test_endless_configuration_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        ("/dev/zero", "more than 1 MiB"),
        (tmp_path / "fifo", "it did not end within"),
    ):
        (tmp_path / "rmapd.toml").write_text(f'web_config = "{path}"')
        for given_path in (path, tmp_path / "rmapd.toml"):
            done = rmapd("check-config", "--config", given_path)
            assert (done.exit_code, why in done.stderr) == (2, True), done.stderr
    assert rmapd("check-config", "--config", "/dev/null").exit_code == 0


def test_pipe_with_a_slow_writer_is_read(tmp_path: Path) -> None:
    """Like <(…) of bash."""
    os.mkfifo(tmp_path / "fifo")
    text = json.dumps(unlucky())

    def late() -> None:
        time.sleep(0.2)
        with (tmp_path / "fifo").open("w") as file:
            file.write(text[:1000])
            file.flush()
            time.sleep(0.2)
            file.write(text[1000:])

    writer = threading.Thread(target=late)
    writer.start()
    done = rmapd("report", "--from", tmp_path / "fifo")
    writer.join()
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("# L1 violated")


NOT_REPORTS: list[bytes] = [
    b"",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"\x00" * 99,
    DEEP.encode(),
    b'{"kernel": "6.1", "protocols": ' + b"[" * 90 + b"]" * 90 + b"}",
    b'{"kernel": "6.1", "duration_seconds": NaN}',
    b'{"kernel": "6.1", "duration_seconds": ' + b"9" * 5000 + b"}",
    b'{"kernel": "6.1", "violations": [{}]}',
    b'{"kernel": "6.1", "violations": 7}',
    b'{"kernel": "6.1", "protocols": [{"count": 1}]}',
]


@pytest.mark.parametrize("content", NOT_REPORTS)
@pytest.mark.parametrize("command", ["report", "explain", "diff"])
def test_file_that_is_not_a_report_is_refused_by_every_command(
    tmp_path: Path, content: bytes, command: str
) -> None:
    (tmp_path / "r.json").write_bytes(content)
    done = rmapd(*commands(tmp_path / "r.json")[command])
    assert (
        done.exit_code,
        "r.json is no report of rmapd" in done.stderr,
        "try: " in done.stderr,
    ) == (2, True, True), done.stderr


def known() -> dict[str, Any]:
    """Return a report with all kinds of evidence."""
    found = unlucky()
    two = {
        "outer_mm": "0xa",
        "inner_mm": "0xb",
        "opposite_task": 77,
        "opposite_stack": ["f+0x9"],
        "edges": [{"held": "a", "taken": "b"}],
    }
    both = violation_json(lock_order()), violation_json(left_behind())
    return found | {
        "violations": [
            *found["violations"],
            *both,
            both[0] | {"id": "L2-1", "invariant": "L2", "evidence": two},
        ]
    }


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each value in a JSON value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at] * bool(at) + [place for key, each in inner for place in places(each, (*at, key))]


KNOWN = known() | {"histograms": known()["histograms"][:2]}
_OF_VIOLATIONS = [
    place for place in places(KNOWN) if place[0] in ("violations", "protocols", "command")
]
_DELETED = object()


@settings(
    max_examples=150,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(
        st.sampled_from(_OF_VIOLATIONS) | st.sampled_from(places(KNOWN)), min_size=1, max_size=3
    ),
    st.sampled_from(
        [_DELETED, None, 0, -1, 10**30, 1.5, "", "x\x1b", [], ["x"], {}, {"x": 1}, True]
    ),
)
def test_altered_report_is_accepted_by_all_commands_or_by_none(
    tmp_path: Path, where: list[tuple[Any, ...]], value: Any
) -> None:
    """Any change of a report: it stays a report for all commands, or is one for none."""
    found = copy.deepcopy(KNOWN)
    for place in where:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            inside: Any = found
            for key in place[:-1]:
                inside = inside[key]
            if value is _DELETED:
                del inside[place[-1]]
            else:
                inside[place[-1]] = copy.deepcopy(value)
    path = written(tmp_path / "r.json", found)
    try:
        given_report = read_report(path).exact_report
    except RmapdError:
        for args in commands(path).values():
            assert "is no report of rmapd" in rmapd(*args).stderr
        return
    assert given_report.kernel is not None
    done = rmapd("report", "--from", path)
    assert done.exit_code == 0, done.output
    done = rmapd("diff", path, path)
    without = done.exit_code == 4 and "There was nothing to compare" in done.output
    assert without or done.exit_code == 0 or "cannot read the protocol" in done.stderr, done.output
    for number, violation in enumerate(found.get("violations", [])):
        if number < 5 and "-" in violation["id"]:
            for form in ("text", "md", "json"):
                done = rmapd("explain", violation["id"], "--report", path, "--format", form)
                assert (
                    done.exit_code == 0
                    or "cannot explain" in done.stderr
                    or "no violation" in done.stderr
                ), done.output
                assert done.exit_code in (0, 2)


def test_incomplete_evidence_is_explained(tmp_path: Path) -> None:
    """`report` accepted it once, and `explain` ended with KeyError: 'taken'."""
    found = unlucky()
    (own,) = [v for v in found["violations"] if v["invariant"] == "L1"]
    own["evidence"] = {"edges": [{"held": "anon"}], "entries": [{}], "folio": {"folio": "0x1"}}
    own["trail"] = [{"function": "f"}]
    path = written(tmp_path / "r.json", found)
    for args in commands(path).values():
        assert rmapd(*args).exit_code == 0


def test_argument_that_is_not_utf_8_is_read_back(tmp_path: Path) -> None:
    """An argument can be any bytes: JSON has them as half a surrogate pair."""
    path = written(
        tmp_path / "r.json", unlucky() | {"command": {"argv": ["printf", "\udcff"], "exit_code": 0}}
    )
    done = rmapd("report", "--from", path)
    assert (done.exit_code, "\\\\udcff" in done.stdout or "\\udcff" in done.stdout) == (0, True), (
        done.output
    )


def test_violation_of_an_unknown_invariant_is_an_error(tmp_path: Path) -> None:
    found = unlucky()
    found["violations"][0] |= {"id": "Z9-1", "invariant": "Z9"}
    done = rmapd("explain", "Z9-1", "--report", written(tmp_path / "r.json", found))
    assert (done.exit_code, "this rmapd has no invariant Z9" in done.stderr) == (2, True)


@pytest.mark.parametrize("id", ["L1", "NOPE", "L1-1"])
def test_missing_file_is_an_error_even_where_it_is_not_needed(tmp_path: Path, id: str) -> None:
    for option in ("--report", "--store"):
        done = rmapd("explain", id, option, tmp_path / "missing")
        assert (done.exit_code, "missing" in done.stderr) == (2, True), done.output
    done = rmapd("explain", id, "--report", tmp_path / "missing", "--store", "x")
    assert (done.exit_code, "cannot read two sources" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("latin.toml", b'store = "\xff"', "it is not UTF-8"),
        ("deep.toml", b"a = " + DEEP.encode(), "is wrong"),
        ("zero.toml", b'store = "a\\u0000b"', "a character that no file name can have"),
    ],
)
def test_file_that_is_not_a_configuration_is_an_error(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = rmapd("check-config", "--config", tmp_path / name)
    assert (done.exit_code, name in done.stderr, why in done.stderr) == (2, True, True), done.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"a: \xff",
        DEEP.encode(),
        b"? [a]\n: b",
        b"2026-13-99: x",
        b"a: !!python/object:os.system x",
        b"\x00",
    ],
)
def test_file_that_is_not_a_web_configuration_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "web.yml").write_bytes(content)
    (tmp_path / "rmapd.toml").write_text(f'web_config = "{tmp_path}/web.yml"')
    done = rmapd("check-config", "--config", tmp_path / "rmapd.toml")
    assert (done.exit_code, "web.yml is wrong" in done.stderr) == (2, True), done.output


def as_nobody(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run in a process without root's privileges, and without a means to regain them."""
    return subprocess.run(
        [sys.executable, "-m", "tracer", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        user=NOBODY if os.geteuid() == 0 else None,
        group=NOBODY if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
    )


@pytest.mark.parametrize("command", [["report"], ["explain", "L1-1"]])
def test_store_without_read_permission_is_an_error(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/rmapd.db").touch()
    (tmp_path / "secret.db").touch(mode=0o000)
    (tmp_path / "locked").chmod(0o000)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    try:
        for path in (tmp_path / "locked/rmapd.db", tmp_path / "secret.db"):
            done = as_nobody(*command, "--store", path)
            assert done.returncode == 2, done.stderr
            assert f"cannot read the store {path}: Permission denied\n  try: " in done.stderr
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_locked_store_is_a_temporary_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracer.outputs.store.reader._WAIT_SECONDS", 0.01)
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE a (b)")
        database.execute("BEGIN EXCLUSIVE")
        done = rmapd("report", "--store", tmp_path / "x.db")
    assert done.exit_code in (2, 75)
    assert "Traceback" not in done.stderr


ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"PYTHONUNBUFFERED": "1"},
        {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "error::EncodingWarning"},
    ],
)
def test_commands_work_in_a_locale_without_utf_8(tmp_path: Path, extra: dict[str, str]) -> None:
    path = written(tmp_path / "r.json", unlucky())
    html: list[str | Path] = ["report", "--from", path, "--output", tmp_path / "r.html"]
    drawn = (
        [] if "PYTHONWARNINGS" in extra else [html]
    )  # matplotlib opens its own files without an encoding
    each: list[list[str | Path]] = [*commands(path).values(), *drawn, ["check-config", "--example"]]
    for args in each:
        done = subprocess.run(
            [sys.executable, "-m", "tracer", *map(str, args)],
            capture_output=True,
            check=False,
            env={**os.environ, **ASCII, **extra},
        )
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
    assert not drawn or "↓" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_certificate_that_is_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cert.pem")
    (tmp_path / "web.yml").write_text(
        "tls_server_config: {cert_file: cert.pem, key_file: cert.pem}"
    )
    (tmp_path / "rmapd.toml").write_text(f'web_config = "{tmp_path}/web.yml"')
    done = rmapd("check-config", "--config", tmp_path / "rmapd.toml")
    assert (
        done.exit_code,
        "cert.pem cannot be used for TLS: it is not a regular file" in done.stderr,
    ) == (2, True), done.output


def test_pipe_or_device_as_store_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        done = rmapd("report", "--store", path)
        assert (done.exit_code, f"there is no store {path}" in done.stderr) == (2, True), (
            done.output
        )
        with pytest.raises(RmapdError, match="store"):
            Store(path, "6.1", 1 << 20, 90, must=True)


def test_default_configuration_that_cannot_be_looked_up_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Locked:
        def exists(self) -> bool:
            raise PermissionError(13, "Permission denied")

        def __fspath__(self) -> str:
            return "/proc/self/no/such"

        __str__ = __fspath__

    monkeypatch.setattr(cli_common, "_DEFAULT_CONFIG", Locked())
    done = rmapd("check-config")
    assert (done.exit_code, "cannot read the configuration /proc/self/no/such" in done.stderr) == (
        2,
        True,
    ), done.output
    assert rmapd("explain", "L1").exit_code == 0, "explain L1 needs no configuration"
