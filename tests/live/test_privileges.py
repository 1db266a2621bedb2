"""The daemon drops its privileges after attaching, and works on; /proc shows which it has."""

from __future__ import annotations

import grp
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyprctl import Cap

from tests.live.conftest import ROOT, daemon, daemons_user, entries_hold, rmapd
from tests.live.test_governor import reattach_helper_of
from tests.live.test_otlp import DAEMON
from tests.support.collector import collector
from tests.support.daemons import (
    RMAPD,
    checker_of,
    fetch,
    loaded_by,
    sample,
    status,
    still_loaded,
    threads,
    until,
)
from tracer.outputs.store import reader

PAGES = (
    "/",
    "/protocols",
    "/hooks",
    "/invariants/M1",
    "/metrics",
    "/api/v1/openapi.json",
    "/api/v1/report",
    "/api/v1/protocols",
)
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
FILTERED = importlib.util.find_spec("seccomp") is not None


def coverage(process: subprocess.Popen[str]) -> str:
    """End the daemon and return its log line on coverage."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr
    (log,) = (
        line.partition(" INFO ")[2]
        for line in process.stderr.read().splitlines()
        if " INFO coverage: " in line
    )
    return log


AUDITED_DAEMON = (
    """
import os, sys
from tracer.process import privileges
drop, folders = privileges.drop, (sys.argv.pop(1), sys.argv.pop(1))
if os.environ["FORCE_COLOR"]:
    sys.stdout.isatty = lambda: True

def hook(event, arguments):
    path = {"open": 0, "import": 1}.get(event)
    if path is not None and str(arguments[path]).startswith(folders):
        print("late:", arguments[path], file=sys.stderr, flush=True)

def dropped(*arguments):
    result = drop(*arguments)
    sys.addaudithook(hook)
    return result
privileges.drop = dropped
"""
    + DAEMON
)
"""The daemon of test_otlp, which prints each file of two folders that it opens or imports after it
has dropped its privileges."""


@pytest.fixture
def config(reachable: Path) -> Path:
    """Write a configuration that root owns and every user can read, as the package installs it."""
    path = reachable / "rmapd.toml"
    path.write_text("scan_seconds = 2.0\n")
    return path


INTRUDER = """
import json, os, sys
from tracer import cli
from tracer.daemon import run
from tracer.web.application import Application, Response

FOLDERS = ("/etc/cron.d", "/run/systemd", "/run", "/root", "/usr/bin")
CREATED = [f"{folder}/rmapd-intruder" for folder in FOLDERS]

def create(name):
    os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return error.strerror
    return "done"

def attempts():
    found = {name: outcome(lambda: create(name)) for name in CREATED}
    for name in filter(os.path.exists, CREATED):
        os.unlink(name)
    found["write /etc/shadow"] = outcome(lambda: os.open("/etc/shadow", os.O_WRONLY))
    found["read /etc/shadow"] = outcome(lambda: os.open("/etc/shadow", os.O_RDONLY))
    found["kill a process of root's"] = outcome(lambda: os.kill(1, 0))
    found["read its environment"] = outcome(lambda: os.open("/proc/1/environ", os.O_RDONLY))
    found["become root"] = outcome(lambda: os.setresuid(0, 0, 0))
    found["join root's group"] = outcome(lambda: os.setgroups([0]))
    return found

announce, answer = run.log_start, Application.__call__
def announced(*arguments):
    announce(*arguments)
    print("intruder in the checker:", json.dumps(attempts()), file=sys.stderr, flush=True)
def answered(self, ask):
    if ask.path == "/intruder":
        return Response.plain(200, json.dumps(attempts()))
    return answer(self, ask)
run.log_start, Application.__call__ = announced, answered
cli.main()
"""
"""The daemon, with attempts in its threads to access what is root's."""


MEASURED = "rmapd_probe_measured_seconds_total"


def test_daemon_without_privileges_continues_to_check(config: Path) -> None:
    started = time.monotonic()
    with daemon("--config", str(config)) as (process, url):
        found = threads(checker_of(process.pid))
        assert len(found) > 1, "the server's thread is one of them"
        found += threads(process.pid)  # the supervisor has one thread
        for one in found:
            assert {int(one[name], 16) for name in SETS} == {0}, one
            assert one["NoNewPrivs"] == "1"
            assert one["Seccomp"] == ("2" if FILTERED else "0")
        sweeps, cleared = (
            'rmapd_oracle_questions_total{kind="sweeps"}',
            'rmapd_migration_entries_total{event="cleared_by_oracle"}',
        )
        before = {name: sample(url, name) for name in (sweeps, cleared)}
        for _ in range(30):  # until an entry is zapped during a migration
            entries_hold(url, 5000)
            if sample(url, cleared) > before[cleared]:
                break
        assert sample(url, cleared) > before[cleared], "the oracle still reads page tables"
        assert sample(url, sweeps) > before[sweeps], "the oracle still sweeps them"
        assert sample(url, 'rmapd_checks_total{invariant="M1",verdict="suspect"}') == 0
        assert sample(url, 'rmapd_checks_total{invariant="M1",verdict="unverifiable"}') == 0
        measured = sample(url, MEASURED)
        until(
            lambda: sample(url, MEASURED) > measured + 1.5, 90, "no sample of run times was begun"
        )
        assert sample(url, MEASURED) < 0.7 * (time.monotonic() - started), "no sample was ended"
        config.write_text("scan_seconds = 3.0\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(2)
        assert sample(url, "rmapd_oracle_ready") == 1
        programs = loaded_by(process.pid)
        assert len(programs) > 10
        dropped = coverage(process)
    assert not still_loaded(programs)
    config.write_text("scan_seconds = 2.0\ndrop_privileges = false\n")
    with daemon("--config", str(config)) as (process, _):
        checker = checker_of(process.pid)
        assert all(
            int(one["CapEff"], 16) == int(status(Path("/proc/self"))["CapEff"], 16)
            for one in threads(checker)
        )
        assert threads(checker)[0]["NoNewPrivs"] == "0"
        assert coverage(process) == dropped


def test_no_thread_can_access_files_and_processes_of_root(reachable: Path) -> None:
    script = reachable / "intruder.py"
    script.write_text(INTRUDER)
    with daemon(command=[sys.executable, str(script)]) as (process, url):
        server = json.loads(fetch(f"{url}/intruder")[1])
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr
        (checker,) = (
            line
            for line in process.stderr.read().splitlines()
            if line.startswith("intruder in the checker: ")
        )
    for found in (server, json.loads(checker.removeprefix("intruder in the checker: "))):
        assert len(found) == 11, found
        assert not {what for what, outcome in found.items() if outcome == "done"}


def test_every_thread_and_the_reattach_helper_run_as_the_user(config: Path) -> None:
    """Real, effective, saved and file-system ids are the user's; there are no other groups."""
    user = daemons_user()
    with daemon("--config", str(config)) as (process, _):
        helper, checker = reattach_helper_of(process.pid), checker_of(process.pid)
        # The supervisor follows when the checker reports that it has dropped its privileges.
        until(
            lambda: str(user.pw_uid) in threads(process.pid)[0]["Uid"].split(),
            30,
            "the supervisor stays root",
        )
        found = [*threads(process.pid), *threads(checker), *threads(helper)]
        assert len(found) > 3, "one of the supervisor, two of the checker, one of the helper"
        for one in found:
            assert set(one["Uid"].split()) == {str(user.pw_uid)}, one
            assert set(one["Gid"].split()) == {str(user.pw_gid)}, one
            assert one["Groups"] == "", one
            assert (one["NoNewPrivs"], one["CapInh"], one["CapAmb"]) == ("1", "0" * 16, "0" * 16)
        # Not dumpable: root owns their files in /proc, the user's other processes cannot read them.
        for pid in (process.pid, checker, helper):
            assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
            read_environ = [
                "setpriv",
                f"--reuid={user.pw_uid}",
                f"--regid={user.pw_gid}",
                "--clear-groups",
                "cat",
                f"/proc/{pid}/environ",
            ]
            assert subprocess.run(read_environ, capture_output=True, check=False).returncode != 0


BECOME_USER = """
import os, json
from pyprctl import Cap
from tracer.process import privileges, users
who = users.resolve("rmapd")
privileges.become(who, frozenset({Cap.BPF}))
def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return error.strerror
    return "done"
attempts = (
    lambda: os.setresuid(0, 0, 0),
    lambda: os.setgroups([0]),
    lambda: os.open("/etc/shadow", os.O_RDONLY),
    lambda: os.kill(1, 0),
)
outcomes = [outcome(attempt) for attempt in attempts]
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), outcomes]))
print(open("/proc/self/status").read())
"""


def test_become_is_irreversible() -> None:
    """become() serves processes of one thread: the reattach helper and the supervisor."""
    user = daemons_user()
    done = subprocess.run(
        [sys.executable, "-c", BECOME_USER], capture_output=True, text=True, check=True, cwd=ROOT
    )
    line, _, fields = done.stdout.partition("\n")
    refused = "Operation not permitted"
    assert json.loads(line) == [
        [user.pw_uid] * 3,
        [user.pw_gid] * 3,
        [],
        [refused, refused, "Permission denied", refused],
    ]
    found = {
        key: value.strip() for key, _, value in (row.partition(":") for row in fields.splitlines())
    }
    assert {int(found[name], 16) for name in ("CapPrm", "CapEff")} == {1 << Cap.BPF.value}
    assert (found["CapBnd"], found["CapAmb"], found["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")


def test_store_owned_by_root_is_given_to_the_user(reachable: Path) -> None:
    """An older rmapd created it as root; other files of its folder stay root's."""
    user, folder = daemons_user(), Path("/var/lib/rmapd")
    kept = folder.rename(reachable / "kept") if folder.exists() else None
    try:
        folder.mkdir(mode=0o700)
        without = {"RMAPD_DROP_PRIVILEGES": "false", "RMAPD_STORE": str(folder / "rmapd.db")}
        done = rmapd("run", "--duration", "1", "--listen", "127.0.0.1:0", env=without)
        assert done.returncode == 0, done.stderr
        assert (folder / "rmapd.db").stat().st_uid == 0
        (folder / "theirs").touch()
        with daemon(env={"RMAPD_STORE": str(folder / "rmapd.db")}) as (process, url):
            assert sample(url, "rmapd_store_writable") == 1
            process.terminate()
            assert process.wait(30) == 0
        for path in (folder, folder / "rmapd.db"):
            assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o077) == (
                user.pw_uid,
                user.pw_gid,
                0,
            ), path
        assert (folder / "theirs").stat().st_uid == 0
        first, second = reader.read(folder / "rmapd.db").runs
        assert first["ended"]
        assert second["ended"]
    finally:
        shutil.rmtree(folder)
        if kept:
            kept.rename(folder)


def test_store_that_the_user_cannot_write_is_exit_2(tmp_path: Path) -> None:
    done = rmapd(
        "run", "--duration", "1", "--listen", "127.0.0.1:0", "--store", str(tmp_path / "rmapd.db")
    )
    assert done.returncode == 2
    assert "cannot write the store" in done.stderr
    assert f"the user {daemons_user().pw_name}" in done.stderr


def test_files_readable_by_root_only_stay_in_force_on_reload(
    reachable: Path,
) -> None:
    key, config, web = reachable / "key.pem", reachable / "rmapd.toml", reachable / "web.yml"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-keyout",
        str(key),
    ]
    subprocess.run([*make, "-out", str(reachable / "cert.pem")], check=True, capture_output=True)
    web.write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n")
    config.write_text(f'listen = "127.0.0.1:0"\nweb_config = "{web}"\n')
    for path in (key, config):
        path.chmod(0o600)
    with subprocess.Popen(
        [RMAPD, "run", "--config", str(config)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        log: list[str] = []
        while "gate open" not in (log or [""])[-1]:
            log.append(process.stderr.readline())
        process.send_signal(signal.SIGHUP)
        time.sleep(3)
        process.terminate()
        assert process.wait(30) == 0
        before, after = "".join(log), process.stderr.read()
    assert f"cannot read the configuration {config}" in before, "the start warns of it"
    denied = f"cannot read the configuration {config}: Permission denied"
    assert f"the configuration stays as it was: {denied}" in after
    assert "the access rules stay unchanged: the certificate and key" in after
    assert f"chgrp {grp.getgrgid(daemons_user().pw_gid).gr_name} {config}" in after


@pytest.mark.parametrize("terminal", [False, True])
def test_no_file_of_the_checkout_is_opened_after_privileges_are_dropped(
    reachable: Path, terminal: bool
) -> None:
    """The user that the daemon becomes has possibly no access to the checkout.

    Pages, violations, a collector and a terminal need no file of it.
    """
    with collector() as receiver:
        text = f'otlp_endpoint = "{receiver.url}"\nscan_seconds = 1.0\n'
        (reachable / "rmapd.toml").write_text(text)
        command = [sys.executable, "-c", AUDITED_DAEMON, str(ROOT), sys.prefix]
        env = {
            "PYTHONPATH": str(ROOT),
            "RMAPD_STORE": f"{reachable}/rmapd.db",
            "FORCE_COLOR": "1" if terminal else "",
        }
        with daemon("--config", str(reachable / "rmapd.toml"), command=command, env=env) as (
            process,
            url,
        ):
            until(
                lambda: sample(url, 'rmapd_violations_total{invariant="L1"}'),
                20,
                "the finding is counted",
            )
            (violation,) = json.loads(fetch(f"{url}/api/v1/violations")[1])
            for path in (
                *PAGES,
                f"/violations/{violation['id']}",
                f"/api/v1/violations/{violation['id']}",
            ):
                assert fetch(url + path)[0] == 200, path
            until(lambda: receiver.received, 20, "the collector receives it")
            process.send_signal(signal.SIGHUP)
            time.sleep(2)
            process.terminate()
            assert process.wait(30) == 0
            assert process.stderr
            log = process.stderr.read()
    assert "SIGHUP" not in log
    assert "configuration read again: nothing changed\n" in log
    assert not [line for line in log.splitlines() if line.startswith("late:")]


def test_daemon_works_from_a_checkout_that_only_root_can_read(tmp_path: Path) -> None:
    """The daemon has imported and read all that it needs before it drops its privileges.

    Pages, descriptions, violations and the end of a run work.
    """
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(ROOT / "tracer", closed / "tracer")
    shutil.copytree(ROOT / "probes", closed / "probes")
    (closed / "packages").mkdir()
    packages = next(Path(sys.prefix).glob("lib/python*/site-packages"))
    script = (
        f"mount --bind {packages} {closed / 'packages'} && mount -t tmpfs none {packages}"
        f" && cd / && exec env PYTHONPATH={closed}:{closed / 'packages'} {sys.executable}"
        ' -c "from tracer.cli import main; main()" "$@"'
    )
    with daemon(
        command=["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"]
    ) as (process, url):
        assert status(Path(f"/proc/{process.pid}"))["Uid"].split()[0] == str(daemons_user().pw_uid)
        for path in PAGES:
            assert fetch(url + path)[0] == 200, path
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import os\nfor _ in range(50):\n p = os.fork()\n p or os._exit(0)\n os.wait()",
            ],
            check=True,
        )
        process.send_signal(signal.SIGHUP)
        time.sleep(3)
        assert fetch(f"{url}/")[0] == 200
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr
        log = process.stderr.read()
    assert "Traceback" not in log
    assert f"{closed / 'tracer'} cannot be read by the user" in log, "the log has the reason"


def test_unprivileged_user_cannot_hold_the_lock(config: Path) -> None:
    lock = Path("/run/rmapd/rmapd.lock")
    user = ["setpriv", "--reuid=1", "--regid=1", "--clear-groups"]
    with daemon("--config", str(config)) as (process, _):
        assert lock.read_text() == str(process.pid)
        assert (
            subprocess.run(
                [*user, "flock", "-n", str(lock), "true"], capture_output=True, check=False
            ).returncode
            != 0
        )
        done = rmapd("exec", "--daemon", "never", "--", "true")
        assert done.returncode not in (0, 3)
        assert f"another rmapd is tracing this kernel (pid {process.pid})" in done.stderr
    took = subprocess.run(
        [*user, "flock", "-n", str(lock), "true"], capture_output=True, text=True, check=False
    )
    assert "Permission denied" in took.stderr
    assert rmapd("exec", "--", "true").returncode == 0


def test_configuration_is_reloaded_without_privileges(config: Path) -> None:
    with daemon("--config", str(config)) as (process, _):
        config.write_text("scan_seconds = 7.0\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(2.5)
        config.rename(config.with_suffix(".gone"))
        process.send_signal(signal.SIGHUP)
        time.sleep(2.5)
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr
        log = process.stderr.read()
    (line,) = [line for line in log.splitlines() if "configuration read again: " in line]
    assert "scan_seconds " in line
    assert line.endswith(" -> 7.0")
    assert "the configuration stays as it was: cannot read the configuration" in log


def test_exec_runs_its_command_with_the_callers_privileges() -> None:
    done = rmapd("exec", "--", "grep", "-E", "^(CapEff|CapBnd|NoNewPrivs):", "/proc/self/status")
    own = status(Path("/proc/self"))
    log = {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in done.stdout.splitlines()[:3])
    }
    assert log == {name: own[name] for name in ("CapEff", "CapBnd", "NoNewPrivs")}
