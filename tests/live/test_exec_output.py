"""What the command of `rmapd exec` prints, and its exit code, apart from rmapd's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tap.parser import Parser

from tests.live.conftest import rmapd
from tests.support.daemons import RMAPD

BINARY = bytes(range(256)) * 300 + b'{"kernel": "not the report"}\n'
WRITES_BINARY = f"import sys; sys.stdout.buffer.write(bytes(range(256)) * 300 + {BINARY[-29:]!r})"


def run(folder: Path, *args: str) -> tuple[int, bytes, bytes]:
    """Run exec with its output in files: a child that stays would keep a pipe open."""
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        code = subprocess.run(
            [RMAPD, "exec", *args], stdout=stdout, stderr=stderr, timeout=120, check=False
        ).returncode
    return code, out.read_bytes(), err.read_bytes()


def test_stdout_is_one_json_document_whatever_the_command_prints(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "--format", "json", "--", sys.executable, "-c", WRITES_BINARY)
    assert (code, json.loads(out)["command"]["exit_status"]) == (0, 0)
    assert err == BINARY


def test_output_is_a_file_with_all_that_the_command_prints(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_bytes(b"of an earlier run")
    script = f"{WRITES_BINARY}; sys.stdout.flush(); print('wrong', file=sys.stderr)"
    for form in ("json", "ktap", "text"):
        arguments = ("--format", form, "--output", str(file), "--", sys.executable, "-c", script)
        code, out, err = run(tmp_path, *arguments)
        assert (code, err, file.read_bytes()) == (0, b"", BINARY + b"wrong\n"), form
        assert out.startswith({"json": b"{", "ktap": b"KTAP version 1\n", "text": b"rmapd "}[form])


def test_ktap_has_no_line_of_the_command(tmp_path: Path) -> None:
    forged = "echo 'not ok 1 M1: forged'; echo '1..900'"
    code, out, err = run(tmp_path, "--format", "ktap", "--", "sh", "-c", forged)
    found = list(Parser().parse_text(out.decode()))
    assert code == 0
    assert all(line.ok for line in found if line.category == "test")
    assert b"forged" not in out
    assert b"forged" in err
    assert b"# the command exited with 0; rmapd exits with 0\n" in out


def test_command_that_closes_its_output_changes_nothing(tmp_path: Path) -> None:
    closes = "exec >&- 2>&-; echo lost; exit 5"
    code, out, err = run(tmp_path, "--format", "json", "--", "sh", "-c", closes)
    assert (code, json.loads(out)["command"]["exit_status"], err) == (5, 5, b"")


def test_reader_that_closes_its_pipe_changes_neither_code_nor_files(tmp_path: Path) -> None:
    for form in ("json", "text"):
        reading, writing = os.pipe()
        os.close(reading)
        report = tmp_path / f"{form}.json"
        options = ("--output", "/dev/null", "--format", form, "--report", str(report))
        with open(writing, "wb") as closed:
            done = subprocess.run(
                [RMAPD, "exec", *options, "--", "sh", "-c", "exit 5"],
                stdout=closed,
                stderr=subprocess.PIPE,
                timeout=120,
                check=False,
            )
        assert (done.returncode, done.stderr) == (5, b"")
        assert json.loads(report.read_text())["command"]["exit_status"] == 5


def test_command_line_may_be_long(tmp_path: Path) -> None:
    """Longer than a message between checker and supervisor may be."""
    words = ["x" * 1000] * 1000
    code, out, _ = run(tmp_path, "--format", "json", "--", "sh", "-c", "exit $(($# / 100))", *words)
    assert (code, len(json.loads(out)["command"]["argv"])) == (9, 1003)


def test_child_that_is_left_behind_writes_to_standard_error_only(tmp_path: Path) -> None:
    leaves = "(sleep 4; echo late) & echo early"
    code, out, err = run(tmp_path, "--format", "json", "--", "sh", "-c", leaves)
    assert (code, err) == (0, b"early\n"), "rmapd does not wait for it"
    time.sleep(5)
    assert (tmp_path / "stderr").read_bytes() == b"early\nlate\n"
    assert json.loads((tmp_path / "stdout").read_bytes()) == json.loads(out)


def test_text_report_follows_the_commands_own_output(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "--", "sh", "-c", "echo mine; exit 9")
    lines = out.decode().splitlines()
    assert (code, err, lines[0]) == (9, b"", "mine")
    assert "the command exited with 9; rmapd exits with 9: the command's own" in lines
    code, out, _ = run(tmp_path, "--", "sh", "-c", "kill -KILL $$")
    assert code == 137
    assert b"\nthe command was killed by SIGKILL; rmapd exits with 137: the command's own\n" in out


@pytest.mark.parametrize(
    ("command", "code", "status", "signal"),
    [("exit 3", 90, 3, None), ("kill -TERM $$", 90, None, "SIGTERM"), ("exit 0", 0, 0, None)],
)
def test_commands_code_is_told_from_rmapds_without_reading_text(
    tmp_path: Path, command: str, code: int, status: int | None, signal: str | None
) -> None:
    arguments = ("--command-exit-code", "90", "--format", "json", "--", "sh", "-c", command)
    ended, out, _ = run(tmp_path, *arguments)
    found: dict[str, Any] = json.loads(out)
    assert ended == code
    assert (found["command"]["exit_status"], found["command"]["signal"]) == (status, signal)
    assert (found["exit"]["code"], found["exit"]["source"]) == (code, "command")


def test_output_that_cannot_be_written_is_refused_before_the_command_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    done = rmapd("exec", "--output", str(tmp_path / "none/out"), "--", "touch", str(ran))
    assert done.returncode == 2
    assert "cannot write the command's output" in done.stderr
    assert not ran.exists()


def test_closed_standard_error_does_not_stop_the_command(tmp_path: Path) -> None:
    script = f"{RMAPD} exec --format json -- sh -c 'echo unheard; exit 6' 2>&-"
    done = subprocess.run(
        ["sh", "-c", script], stdout=subprocess.PIPE, env={**os.environ}, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["command"]["exit_status"]) == (6, 6)
