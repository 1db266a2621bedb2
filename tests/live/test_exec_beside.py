"""`rmapd exec` beside `rmapd run`: the daemon's time is measured, and nothing is attached twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml
from tap.parser import Parser

from tests.live.conftest import WORKLOAD, daemon, daemons_user, rmapd, run_exec
from tests.live.test_death import executing, read, started
from tests.live.test_governor import PACE, load, slow_probes, wait_for_value
from tests.support.daemons import (
    RMAPD,
    checker_of,
    child_of,
    loaded_by,
    own_programs,
    remaining,
    sample,
    until,
)
from tests.support.rehearsal import WindowRecorder, make
from tests.support.violations import VIOLATING, variant
from tests.workloads.migrate import migrated
from tracer.daemon.probes import running_kernel
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Verdict
from tracer.process import local_socket

__all__ = ["load", "slow_probes"]  # fixtures

ENTRIES = 'rmapd_migration_entries_total{event="inserted"}'
SAMPLES = f"""
import json, subprocess, sys, time, urllib.request
def counts(url):
    text = urllib.request.urlopen(url + "/metrics").read().decode()
    return {{line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines() if line[:1] not in "#"}}
first = counts(sys.argv[1])
subprocess.run({WORKLOAD!r} + ["20000"], check=True)
time.sleep(3)
json.dump([first, counts(sys.argv[1])], open(sys.argv[2], "w"))
"""
"""A command that looks at the daemon's metrics before and after it migrates pages."""


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a daemon in which a test can have windows recorded."""
    altered = (sys.executable, "-m", "tests.support.altered", str(make(tmp_path / "probes")), "{}")
    with daemon(command=altered) as (process, url):
        yield process, url


@contextlib.contextmanager
def recorder() -> Iterator[Callable[[str, int], None]]:
    """Yield a function that has a number of windows recorded that violate an invariant."""
    with contextlib.closing(WindowRecorder.find()) as found:

        def record(invariant: str, times: int, nth: int = 0) -> None:
            for _ in range(times):
                found.record(variant(VIOLATING[invariant], nth))

        yield record


def violated(report: dict[str, Any]) -> dict[str, int]:
    """Return by invariant how often the findings of a report were met."""
    return {one["invariant"]: one["count"] for one in report["violations"]}


def test_counts_of_the_span_are_those_of_the_daemon_and_of_the_workload(tmp_path: Path) -> None:
    seen, kernel = tmp_path / "seen.json", running_kernel().release
    with daemon() as (process, url):
        programs, before = own_programs(), sample(url, ENTRIES)
        checks = 'rmapd_checks_total{{invariant="{}",verdict="{}"}}'
        outer = {
            (name, verdict): sample(url, checks.format(name, verdict))
            for name in ("M1", "M2", "M3", "M4")
            for verdict in Verdict
        }
        pages = migrated()
        done, report = run_exec(
            tmp_path,
            "--require",
            "M1,M4",
            "--daemon",
            "only",
            command=[sys.executable, "-c", SAMPLES, url, str(seen)],
        )
        pages = migrated() - pages
        assert done.returncode == 0, done.stderr
        assert sorted(own_programs()) == sorted(programs), "nothing is attached a second time"
        first = done.stderr.splitlines()[0]
        assert first.startswith(f"rmapd: exec uses the daemon that runs (pid {process.pid}, since ")
        time.sleep(1.1)  # a snapshot is a second old at most
        inside = json.loads(seen.read_text())
        for (name, verdict), earlier in outer.items():
            line, found = checks.format(name, verdict), report["invariants"][name]["checks"]
            least = inside[1].get(line, 0) - inside[0].get(line, 0)
            most = sample(url, line) - earlier
            assert least <= found[verdict] <= most, (name, verdict)
        recorded = report["migration"]["entries_recorded"]
        assert inside[1][ENTRIES] - inside[0][ENTRIES] <= recorded <= sample(url, ENTRIES) - before
        m1 = report["invariants"]["M1"]["checks"]
        print(f"{pages} pages, {recorded} entries, M1 {m1}, {most=}")
        assert pages >= 20_000
        assert 5_000 <= m1["holds"] <= recorded + report["migration"]["entries_copied"]
        assert (m1["violated"], m1["suspect"], m1["unverifiable"]) == (0, 0, 0)
        assert report["migration"]["outstanding"] == 0
        assert set(report["lost"].values()) == {0}
    assert report["kernel"] == kernel
    assert report["daemon"]["pid"] == process.pid
    assert (report["daemon"]["fidelity_lowered"], report["daemon"]["known_before"]) == (False, [])
    assert report["exit"] == {"code": 0, "reason": "the command's own", "source": "command"}
    assert report["invariants"]["V4"]["checks"]["holds"] > 20, "passes of the audit"
    totals = report["timeline"]["totals"]["holds"]
    assert totals == sorted(totals)
    assert totals[-1] == sum(one["checks"]["holds"] for one in report["invariants"].values())
    made = rmapd(
        "report", "--from", str(tmp_path / "report.json"), "--output", f"{tmp_path}/r.html"
    )
    assert made.returncode == 0, made.stderr
    assert not remaining()


def test_violations_are_those_of_the_span(
    recording: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    report = tmp_path / "r.json"
    _, url = recording
    with recorder() as record:
        record("L3", 4)
        record("V1", 2)
        with executing("--report", str(report), "--", "sleep", "3") as process:
            started(process)
            record("L3", 7)
            record("L6", 3)
            output, _ = process.communicate(timeout=60)
        record("L3", 2)
    found = read(report)
    assert violated(found) == {"L3": 7, "L6": 3}
    by_invariant = {one["invariant"]: one for one in found["violations"]}
    assert found["daemon"]["known_before"] == [by_invariant["L3"]["id"]]
    assert by_invariant["L3"]["first_seen"] < found["started"] < by_invariant["L6"]["first_seen"]
    assert {name for name, one in found["invariants"].items() if one["checks"]["violated"]} == {
        "L3",
        "L6",
    }
    assert found["standing"]["colour"] == "red"
    assert (process.returncode, found["exit"]["source"]) == (3, "violation")
    assert "the command exited with 0; rmapd exits with 3: violated (--fail-on)" in output
    assert f"known before: {by_invariant['L3']['id']}" in " ".join(output.split())
    line = 'rmapd_violations_total{invariant="L3"}'
    until(lambda: sample(url, line) == 13, 20, "the daemon itself knows all of them")


def test_two_at_once_have_each_its_own_span(
    recording: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    loaded = sorted(own_programs())
    with recorder() as record, executing("--report", str(first), "--", "sleep", "6") as outer:
        started(outer)
        record("L3", 2)
        with executing("--report", str(second), "--", "sleep", "1") as inner:
            started(inner)
            record("L3", 3)
            assert sorted(own_programs()) == loaded
            inner.communicate(timeout=60)
        record("L3", 5)
        outer.communicate(timeout=60)
    assert (violated(read(second)), violated(read(first))) == ({"L3": 3}, {"L3": 10})
    assert (inner.returncode, outer.returncode) == (3, 3)


@pytest.mark.parametrize("which", ["checker", "all"])
def test_daemon_that_is_killed_leaves_no_verdict_on_the_rest(
    recording: tuple[subprocess.Popen[str], str], tmp_path: Path, which: str
) -> None:
    report, (running, _) = tmp_path / "r.json", recording
    with recorder() as record, executing("--report", str(report), "--", "sleep", "60") as process:
        started(process)
        record("L3", 5)
        time.sleep(4)  # a finding is fetched within two seconds
        checker = checker_of(running.pid)
        os.kill(checker, signal.SIGSTOP)  # it would end in order when its supervisor dies
        if which == "all":
            running.kill()
        os.kill(checker, signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
    found = read(report)
    assert process.returncode == 71, errors
    assert (found["exit"]["code"], found["exit"]["source"]) == (71, "daemon")
    assert found["ended_early"]["daemon"]["pid"] == running.pid
    assert f"the daemon (pid {running.pid}) died or was restarted" in found["ended_early"]["reason"]
    assert "has no verdict" in found["ended_early"]["reason"]
    assert "ENDED EARLY: the daemon" in output
    assert violated(found) == {"L3": 5}, "what was known is reported"
    assert (found["standing"]["colour"], found["command"]["signal"]) == ("red", "SIGTERM")
    running.wait(30)
    assert not remaining()
    done = rmapd("exec", "--daemon", "only", "--", "true")
    assert done.returncode == 125
    assert "no daemon runs" in done.stderr
    assert rmapd("exec", "--", "true").returncode == 0, "a stale socket is no daemon"


def test_daemon_that_dies_without_a_finding_is_never_green(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    with daemon() as (running, _):
        with executing("--report", str(report), "--", "sleep", "60") as process:
            started(process)
            os.kill(checker_of(running.pid), signal.SIGKILL)
            process.communicate(timeout=60)
        running.wait(30)
    found = read(report)
    assert process.returncode == 71
    assert found["standing"]["colour"] == "amber"
    assert {one["kind"] for one in found["standing"]["reasons"]} >= {"ended_early"}


def test_daemon_that_is_stopped_reports_until_its_end(
    recording: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    report, (running, _) = tmp_path / "r.json", recording
    socket_folder = local_socket.folder_of(Path("/run/rmapd/rmapd.lock"))
    assert [one.name for one in socket_folder.iterdir()] == ["socket"]
    with recorder() as record, executing("--report", str(report), "--", "sleep", "60") as process:
        started(process)
        record("L6", 4)
        running.terminate()
        process.communicate(timeout=60)
    assert running.wait(30) == 0
    found = read(report)
    assert (process.returncode, violated(found)) == (71, {"L6": 4})
    assert "was stopped" in found["ended_early"]["reason"]
    assert list(socket_folder.iterdir()) == [], "the socket is removed"


@contextlib.contextmanager
def lowered_in_a_span(
    slow_probes: Path, load: subprocess.Popen[bytes], report: Path, seconds: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run exec with `sleep` for so long; yield it and the URL once the governor has lowered."""
    altered = [sys.executable, "-m", "tests.support.altered", str(slow_probes), json.dumps(PACE)]
    with daemon(command=altered, env={"RMAPD_BUDGET": "0.05"}) as (_, url):
        arguments = ("--report", str(report), "--require", "L2", "--", "sleep", seconds)
        with executing(*arguments) as process:
            started(process)
            load.send_signal(signal.SIGCONT)
            wait_for_value(url, 'rmapd_fidelity{level="owner"}', 1)
            load.send_signal(signal.SIGSTOP)
            yield process, url


def test_fidelity_that_is_lowered_in_the_span_is_reported(
    slow_probes: Path,
    load: subprocess.Popen[bytes],
    tmp_path: Path,
) -> None:
    report = tmp_path / "r.json"
    with lowered_in_a_span(slow_probes, load, report, "1000") as (process, url):
        wait_for_value(url, 'rmapd_fidelity{level="full"}', 1)
        os.kill(child_of(process.pid, "sleep"), signal.SIGTERM)
        process.communicate(timeout=60)
    found = read(report)
    assert (found["fidelity"], found["daemon"]["fidelity_lowered"]) == ("owner", True)
    assert "fidelity" in {one["kind"] for one in found["standing"]["reasons"]}
    assert found["invariants"]["L2"]["coverage"] == "none"
    assert found["invariants"]["L2"]["reason"].startswith("for a part of the time: ")


def test_required_invariant_that_loses_its_coverage_in_the_span_is_exit_4(
    slow_probes: Path,
    load: subprocess.Popen[bytes],
    tmp_path: Path,
) -> None:
    report = tmp_path / "r.json"
    with lowered_in_a_span(slow_probes, load, report, "12") as (process, _):
        process.communicate(timeout=60)
    found = read(report)
    assert (process.returncode, found["exit"]["source"]) == (4, "required")
    assert found["exit"]["reason"] == "L2 required, and not checked all the time"


def test_options_of_exec_work_with_a_daemon(tmp_path: Path) -> None:
    ran, junit = tmp_path / "ran", tmp_path / "r.xml"
    with daemon() as (process, _):
        done = rmapd("exec", "--fidelity", "full", "--", "touch", str(ran))
        assert (done.returncode, "--fidelity full cannot be obeyed" in done.stderr) == (2, True)
        assert f"the daemon that runs (pid {process.pid}) decides" in done.stderr
        done = rmapd("exec", "--require", "M1,L5", "--", "touch", str(ran))
        assert (done.returncode, "L5 is required and cannot be checked" in done.stderr) == (4, True)
        done = rmapd("exec", "--daemon", "never", "--", "touch", str(ran))
        assert done.returncode == 125
        assert f"another rmapd is tracing this kernel (pid {process.pid})" in done.stderr
        done = rmapd("exec", "--report", str(tmp_path / "none/r"), "--", "touch", str(ran))
        assert (done.returncode, ran.exists()) == (2, False)
        assert rmapd("exec", "--", "/nonexistent").returncode == 127
        assert rmapd("exec", "--", "sh", "-c", "exit 7").returncode == 7
        done, report = run_exec(tmp_path, "--timeout", "0.5", command=["sleep", "60"])
        assert (done.returncode, report["exit"]["source"]) == (124, "timeout")
        assert report["command"]["signal"] == "SIGTERM"
        done = rmapd("exec", "--format", "json", "--", "echo", "mine")
        assert json.loads(done.stdout)["command"]["exit_status"] == 0
        assert done.stderr.splitlines()[1:] == ["mine"]
        done = rmapd("exec", "--format", "ktap", "--junit", str(junit), "--", "true")
        tests = [line for line in Parser().parse_text(done.stdout) if line.category == "test"]
        (suite,) = JUnitXml.fromfile(str(junit))
        assert len(tests) == len(list(suite)) == len(discover())
        assert f"# by the daemon with pid {process.pid}, fidelity full" in done.stdout
        done = rmapd("exec", "--log-format", "json", "--", "true")
        assert json.loads(done.stderr)["message"].startswith("exec uses the daemon that runs")
        with executing("--", "sleep", "60") as one:
            started(one)
            one.send_signal(signal.SIGINT)
            output, _ = one.communicate(timeout=30)
            assert (one.returncode, "ENDED EARLY: SIGINT arrived" in output) == (130, True)
        process.terminate()
        assert process.wait(30) == 0


def test_other_users_are_refused(reachable: Path) -> None:
    lock = reachable / "rmapd.lock"
    asks = (
        "import sys; from pathlib import Path; from tracer.daemon.span_client import connect;"
        "\\ntry: print(connect(Path(sys.argv[1])))\\nexcept Exception as error: print(error)"
    ).replace("\\n", "\n")

    def as_user(uid: int, *capabilities: str) -> str:
        user = ["setpriv", f"--reuid={uid}", "--regid=1", "--clear-groups", *capabilities]
        return subprocess.run(
            [*user, sys.executable, "-c", asks, str(lock)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    with daemon(env={"RMAPD_LOCK_FILE": str(lock)}) as (process, _):
        for uid in (daemons_user().pw_uid, 1):
            assert "Permission denied" in as_user(uid)
            every_file = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
            assert "only root may use the daemon" in as_user(uid, *every_file)
        env = {"RMAPD_LOCK_FILE": str(lock)}
        assert rmapd("exec", "--daemon", "only", "--", "true", env=env).returncode == 0
        process.terminate()
        process.wait(30)
        assert process.stderr
        assert "is refused: only root may use the daemon" in process.stderr.read()


def test_daemon_that_is_never_root_serves_root_and_not_its_own_user(reachable: Path) -> None:
    """As under the unit: the daemon's user owns lock and socket, and may open the socket."""
    lock, user = reachable / "rmapd.lock", daemons_user()
    capabilities = "+bpf,+perfmon,+sys_admin,+dac_read_search,+syslog"
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    kept = [f"--inh-caps=-all,{capabilities}", f"--ambient-caps=-all,{capabilities}"]
    env = {"RMAPD_LOCK_FILE": str(lock)}
    with daemon(command=[*as_user, *kept, RMAPD], env=env) as (process, _):
        socket_path = local_socket.folder_of(lock) / "socket"
        assert (socket_path.stat().st_uid, socket_path.stat().st_mode & 0o777) == (
            user.pw_uid,
            0o600,
        )
        done = rmapd("exec", "--daemon", "only", "--format", "json", "--", "true", env=env)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["daemon"]["pid"] == process.pid
        asks = (
            f"import socket; s = socket.socket(1); s.connect({str(socket_path)!r});"
            " print(s.recv(999))"
        )
        refused = subprocess.run(
            [*as_user, sys.executable, "-c", asks], capture_output=True, text=True, check=True
        )
        assert "only root may use the daemon" in refused.stdout
        process.terminate()
        assert process.wait(30) == 0
        assert not socket_path.exists()


def test_rmapd_without_a_socket_is_named() -> None:
    lock = Path("/run/rmapd/rmapd.lock")
    lock.parent.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        ["flock", str(lock), RMAPD, "exec", "--", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert "offers no socket to exec" in done.stderr


def test_client_that_is_killed_frees_its_span(
    recording: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    running, _ = recording
    for _ in range(6):
        with executing("--", "sleep", "60") as process:
            started(process)
            command = child_of(process.pid, "sleep")
            process.kill()
            os.kill(command, signal.SIGKILL)
    done, _ = run_exec(tmp_path, command=["true"])
    assert done.returncode == 0, done.stderr
    assert len(loaded_by(checker_of(running.pid))) > 10
