"""`rmapd run` and `doctor` on this kernel, in order and with errors."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.live.conftest import ROOT, daemon, entries_hold, rmapd
from tests.support.daemons import RMAPD, checker_of, fetch, own_programs, remaining, sample, until
from tracer.attach import loader, resolver
from tracer.attach.plan import HookState
from tracer.config import Config
from tracer.config_maps import Maps
from tracer.daemon.probes import probes_folder, running_kernel
from tracer.daemon.session import open_session
from tracer.daemon.snapshots import caught_up
from tracer.invariants.catalogue import discover
from tracer.tables.c_structs import Layouts


def test_metrics_grow_by_thousands_while_memory_is_compacted() -> None:
    with daemon() as (process, url):
        entries_hold(url, 5000)
        assert sample(url, 'rmapd_violations_total{invariant="M1"}') == 0
        assert sample(url, 'rmapd_migration_entries_total{event="inserted"}') > 5000
        assert sample(url, 'rmapd_lock_hold_seconds_count{class="mmap_lock",mode="write"}') > 100
        assert fetch(f"{url}/")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr
        log = process.stderr.read()
        assert "gate open" in log
        assert "detached on signal 15" in log
    assert not remaining()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_program_remains_after_a_signal(number: int) -> None:
    with daemon() as (process, _):
        assert own_programs()
        process.send_signal(number)
        process.wait(30)
    assert not remaining()


def test_signal_in_the_first_moments_is_an_orderly_end() -> None:
    with subprocess.Popen(
        [RMAPD, "run", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: checker_of(process.pid), 30, "the checker was forked")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in log) == (0, False), log
    assert not remaining()


def test_duration_ends_the_run() -> None:
    done = rmapd("run", "--duration", "1", "--listen", "127.0.0.1:0")
    assert done.returncode == 0
    assert "gate closed" in done.stderr


def test_second_rmapd_is_refused_with_the_pid_of_the_first() -> None:
    with daemon() as (process, _):
        done = rmapd("run", "--listen", "127.0.0.1:0")
        assert done.returncode == 75
        done = rmapd("exec", "--daemon", "never", "--", "true")
        assert done.returncode == 125, "as timeout(1) and env(1): rmapd failed, and not the command"
        assert f"another rmapd is tracing this kernel (pid {process.pid})" in done.stderr


def test_busy_port_is_exit_75() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = rmapd("run", "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 75
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_reports_coverage_of_every_invariant() -> None:
    found = json.loads(rmapd("doctor", "--format", "json").stdout)
    assert list(found["invariants"]) == list(discover())
    assert all(i["coverage"] == "full" or i["reason"] for i in found["invariants"].values())
    assert found["invariants"]["M1"]["coverage"] in ("full", "partial")
    assert found["verdict"].startswith(
        tuple(f"{start} of {len(discover())} invariants" for start in range(1, 19))
    ) or found["verdict"].startswith("All ")
    grouped = [name for one in found["hook_groups"] for name in one["hooks"]]
    assert sorted(grouped) == sorted(found["hooks"])


def on_a_terminal(*command: str, **environ: str) -> list[str]:
    """Run a command on a pseudo-terminal of 80 columns, by script(1); return its lines."""
    done = subprocess.run(
        ["script", "-qec", f"stty cols 80 rows 24; {shlex.join(command)}", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1", **environ},
    )
    return done.stdout.splitlines()


def test_doctor_on_a_terminal_begins_with_the_verdict_and_fits_80_columns() -> None:
    verdict = json.loads(rmapd("doctor", "--format", "json").stdout)["verdict"]
    for options in ([], ["-v"]):
        lines = on_a_terminal(RMAPD, "doctor", *options)
        assert " ".join(lines[: lines.index("")]) == verdict
        assert max(map(len, lines)) <= 80
        assert any("page-table oracle" in line for line in lines)
    plain = "\n".join(on_a_terminal(RMAPD, "doctor"))
    coloured = "\n".join(on_a_terminal(RMAPD, "doctor", NO_COLOR=""))
    assert "\x1b[" not in plain
    assert "\x1b[32mfull\x1b[0m" in coloured or "\x1b[33mpartial\x1b[0m" in coloured


def test_start_and_report_on_a_terminal_are_short_and_fit_80_columns() -> None:
    lines = on_a_terminal(RMAPD, "exec", "--", "true")
    lost = next(n for n, line in enumerate(lines) if line.startswith("lost: "))
    unchecked = next(n for n, line in enumerate(lines) if line.startswith("not checked: "))
    lines = lines[: unchecked + 1] + lines[lost:]  # between them: windows and their protocols
    assert max(map(len, lines)) <= 80
    assert len(lines) < 50
    assert any(re.fullmatch(r"\d+ of \d+ hooks are attached.*", line) for line in lines)
    listen = ("--listen", "127.0.0.1:0")
    lines = on_a_terminal(RMAPD, "run", "--duration", "0", *listen)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in lines]  # of the table
    assert max(map(len, lines)) <= 80
    at = next(n for n, line in enumerate(lines) if "INFO gate open on " in line)
    assert "/metrics" in lines[at] + lines[at + 1]
    assert at < 24, "what is watched, what is not and why, in less than a screen"


def test_level_and_format_of_the_log_are_options() -> None:
    run = ("run", "--duration", "0", "--listen", "127.0.0.1:0")
    found = [json.loads(line) for line in rmapd(*run, "--log-format", "json").stderr.splitlines()]
    assert {"time", "level", "area", "message", "fields"} == set().union(*found)
    (gate,) = (one for one in found if one["message"].startswith("gate open on "))
    assert (gate["level"], gate["area"]) == ("info", "daemon.start_log")
    assert gate["fields"]["url"].startswith("http://127.0.0.1:")
    assert " INFO " not in rmapd(*run, "-q").stderr
    assert rmapd(*run, "--log-level", "emerg").stderr == ""
    assert " DEBUG hook " in rmapd(*run, "-v").stderr
    loud = rmapd("exec", "-v", "--", "true")
    assert re.search(r" INFO gate open on .*, fidelity full$", loud.stderr, re.M)
    assert rmapd("exec", "--", "true").stderr == ""


def test_strict_run_without_full_coverage_is_exit_4() -> None:
    doctor = json.loads(rmapd("doctor", "--format", "json").stdout)
    built = [i["coverage"] for i in doctor["invariants"].values()]
    done = rmapd("run", "--strict", "--duration", "0", "--listen", "127.0.0.1:0")
    assert done.returncode == (0 if set(built) == {"full"} else 4), done.stderr
    assert done.returncode == 0 or "coverage is not full" in done.stderr


def test_missing_capabilities_are_exit_2() -> None:
    done = subprocess.run(
        [
            "/usr/sbin/capsh",
            "--drop=cap_sys_admin,cap_bpf,cap_perfmon",
            "--",
            "-c",
            f"{RMAPD} exec -- true",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not enough privilege" in done.stderr
    assert (
        "CAP_BPF and CAP_PERFMON missing"
        " (CAP_BPF and CAP_PERFMON are enough, or CAP_SYS_ADMIN alone)" in done.stderr
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ["exec", "--report", "/nonexistent/r.json", "--", "true"],
            "cannot write the report /nonexistent/r.json",
        ),
        (["exec", "--require", "M9", "--", "true"], "no invariant M9"),
        (["explain", "Z1"], "no invariant Z1: did you mean"),
        (["run", "--config", "/nonexistent.toml"], "cannot read the configuration"),
        (["run", "--listen", "nowhere"], "ADDR:PORT"),
        (["run", "--fidelity", "most"], "most"),
        (["exec"], "COMMAND"),
    ],
)
def test_bad_usage_is_one_message_and_exit_2(args: list[str], expected: str) -> None:
    done = rmapd(*args)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_bcc_is_exit_2(tmp_path: Path) -> None:
    """As on a machine without python3-bpfcc."""
    (tmp_path / "bcc.py").write_text("raise ImportError('No module named bcc')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "RMAPD_CACHE": ""}
    done = subprocess.run(
        [RMAPD, "exec", "--", "true"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2
    assert "cannot import bcc" in done.stderr
    assert "apt-get install python3-bpfcc" in done.stderr


def test_missing_btf_is_exit_2(tmp_path: Path) -> None:
    """As on a kernel without CONFIG_DEBUG_INFO_BTF.

    An empty folder is mounted over /sys/kernel/btf in a mount namespace of its own.
    """
    script = f"mount --bind {tmp_path} /sys/kernel/btf && exec {RMAPD} exec -- true"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cannot read kernel types from /sys/kernel/btf/vmlinux" in done.stderr
    assert "CONFIG_DEBUG_INFO_BTF" in done.stderr


EVERYWHERE = ("migration", "mmap_lock", "page_tables")  # they need neither kprobes nor fentry


@pytest.mark.parametrize("probe_object", EVERYWHERE)
def test_probe_object_that_does_not_compile_costs_only_itself(
    tmp_path: Path, probe_object: str
) -> None:
    copy = tmp_path / "probes"
    shutil.copytree(probes_folder(), copy)
    broken = copy / f"{probe_object}.bpf.c"
    broken.write_text(broken.read_text() + "\nthis is not C;\n")
    with open_session(Config(), running_kernel(), [copy]) as session:
        session.step(0.1)
        session.stop()
        snapshot = caught_up(session)
    for hook in snapshot.hooks:
        if hook.probe_object == probe_object:
            assert hook.state is HookState.MISSING
            assert f"{probe_object}.bpf.c does not compile" in hook.reason
        elif hook.probe_object in EVERYWHERE:
            assert hook.state is HookState.ATTACHED
    assert bool(snapshot.oracle_reason) == (probe_object == "page_tables")
    assert (snapshot.coverage["M1"][0] == "none") == (probe_object == "migration")
    assert (snapshot.coverage["L2"][0] == "none") == (probe_object == "mmap_lock")
    assert not remaining()


def test_missing_symbol_costs_only_its_own_hook() -> None:
    kernel = running_kernel()
    made = resolver.make_plan(kernel, [probes_folder(), ROOT / "tests/fixtures"])
    include = probes_folder() / "include"
    build = loader.BuildEnvironment(
        kernel,
        Layouts.read(include / "shared.h").constants,
        include,
        Maps().sizes(),
    )
    with loader.load(made, build, statistics=False) as loaded:
        states = {h.hook.name: h.state for h in loaded.hooks}
    assert states.pop("never_there") in (HookState.MISSING, HookState.DENIED)
    full = {
        h.hook.name
        for probe_object in made.probe_objects
        if probe_object.name in EVERYWHERE
        for h in probe_object.hooks
    }
    assert {states[name] for name in full} == {HookState.ATTACHED}


def test_crash_of_the_compiler_is_exit_125(tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "RMAPD_CACHE": ""}
    done = subprocess.run(
        [RMAPD, "exec", "--", "true"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 125, "as timeout(1): rmapd failed, and not the command"
    assert "the compiler gave no answer: it died of SIGSEGV" in done.stderr
    assert not remaining()


def test_run_on_a_terminal_draws_a_table() -> None:
    """In a real pseudo-terminal, by script(1)."""
    command = f"{RMAPD} run --duration 3 --listen 127.0.0.1:0"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "160", "TERM": "xterm"},
    )
    assert "checks/s" in done.stdout
    assert "not checked here" in done.stdout
