"""What the daemon gives up after attaching, read from /proc, and that nothing of its work is lost by it."""

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

from tests.live.conftest import (
    RMAPD,
    ROOT,
    checker_of,
    daemon,
    daemons_user,
    entries_hold,
    fetch,
    loaded_by,
    rmapd,
    sample,
    still_loaded,
    until,
)
from tests.live.test_governor import reattach_helper_of
from tests.live.test_otlp import DAEMON
from tests.support.collector import collector
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


def status(of: Path) -> dict[str, str]:
    return {
        key: value.strip()
        for key, _, value in (
            line.partition(":") for line in (of / "status").read_text().splitlines()
        )
    }


def threads(pid: int) -> list[dict[str, str]]:
    return [status(task) for task in Path(f"/proc/{pid}/task").iterdir()]


def coverage(process: subprocess.Popen[str]) -> str:
    """Ends the daemon and gives what it said of coverage."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr
    (said,) = (
        line.partition(" INFO ")[2]
        for line in process.stderr.read().splitlines()
        if " INFO coverage: " in line
    )
    return said


LATE = (
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
    said = drop(*arguments)
    sys.addaudithook(hook)
    return said
privileges.drop = dropped
"""
    + DAEMON
)
"""The daemon with a finding that is put in, which says what it opens of these folders after it has dropped privileges."""


@pytest.fixture
def config(reachable: Path) -> Path:
    """As the package installs it: root's, and everybody may read it."""
    path = reachable / "rmapd.toml"
    path.write_text("scan_seconds = 2.0\n")
    return path


THIEF = """
import json, os, sys
from tracer import cli
from tracer.daemon import run
from tracer.web.application import Application, Response

CREATED = ("/etc/cron.d/rmapd-thief", "/run/systemd/rmapd-thief", "/run/rmapd-thief", "/root/rmapd-thief", "/usr/bin/rmapd-thief")

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return error.strerror
    return "done"

def attempts():
    found = {name: outcome(lambda: os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)) for name in CREATED}
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
    print("the judge:", json.dumps(attempts()), file=sys.stderr, flush=True)
def answered(self, ask):
    return Response.plain(200, json.dumps(attempts())) if ask.path == "/thief" else answer(self, ask)
run.log_start, Application.__call__ = announced, answered
cli.main()
"""
"""The daemon, whose threads try what a thief in them would."""


def test_daemon_without_privileges_continues_to_check(config: Path) -> None:
    with daemon("--config", str(config)) as (process, url):
        found = threads(checker_of(process.pid))
        assert len(found) > 1, "the server's thread is among them"
        found += threads(process.pid)  # the supervisor's one
        for one in found:
            assert {int(one[name], 16) for name in SETS} == {0}, one
            assert one["NoNewPrivs"] == "1"
            assert one["Seccomp"] == ("2" if FILTERED else "0")
        sweeps, cleared = (
            'rmapd_oracle_questions_total{kind="sweeps"}',
            'rmapd_migration_entries_total{event="cleared_by_oracle"}',
        )
        before = {name: sample(url, name) for name in (sweeps, cleared)}
        for _ in range(30):  # until an entry is zapped in mid-migration
            entries_hold(url, 5000)
            if sample(url, cleared) > before[cleared]:
                break
        assert sample(url, cleared) > before[cleared], "the oracle still reads page tables"
        assert sample(url, sweeps) > before[sweeps], "and searches them"
        assert sample(url, 'rmapd_checks_total{invariant="M1",verdict="suspect"}') == 0
        assert sample(url, 'rmapd_checks_total{invariant="M1",verdict="unverifiable"}') == 0
        assert sample(url, 'rmapd_probe_runs_total{hook="set_migration_pte"}') > 5000, (
            "the kernel's statistics"
        )
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
        judge = checker_of(process.pid)
        assert all(
            int(one["CapEff"], 16) == int(status(Path("/proc/self"))["CapEff"], 16)
            for one in threads(judge)
        )
        assert threads(judge)[0]["NoNewPrivs"] == "0"
        assert coverage(process) == dropped


def test_no_thread_can_access_files_and_processes_of_root(reachable: Path) -> None:
    script = reachable / "thief.py"
    script.write_text(THIEF)
    with daemon(command=[sys.executable, str(script)]) as (process, url):
        server = json.loads(fetch(f"{url}/thief")[1])
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr
        (judge,) = (
            line for line in process.stderr.read().splitlines() if line.startswith("the judge: ")
        )
    for found in (server, json.loads(judge.removeprefix("the judge: "))):
        assert len(found) == 11, found
        assert not {what for what, outcome in found.items() if outcome == "done"}


def test_every_thread_and_the_reattach_helper_run_as_the_user(config: Path) -> None:
    """Real, effective, saved and file-system ids, and no supplementary groups."""
    user = daemons_user()
    with daemon("--config", str(config)) as (process, _):
        helper, judge = reattach_helper_of(process.pid), checker_of(process.pid)
        found = [*threads(process.pid), *threads(judge), *threads(helper)]
        assert len(found) > 3, "the supervisor's, the judge's two, the helper's"
        for one in found:
            assert set(one["Uid"].split()) == {str(user.pw_uid)}, one
            assert set(one["Gid"].split()) == {str(user.pw_gid)}, one
            assert one["Groups"] == "", one
            assert (one["NoNewPrivs"], one["CapInh"], one["CapAmb"]) == ("1", "0" * 16, "0" * 16)
        for pid in (
            process.pid,
            judge,
            helper,
        ):  # not dumpable: /proc has it as root's, and another process of the user cannot look into it
            assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
            spy = [
                "setpriv",
                f"--reuid={user.pw_uid}",
                f"--regid={user.pw_gid}",
                "--clear-groups",
                "cat",
                f"/proc/{pid}/environ",
            ]
            assert subprocess.run(spy, capture_output=True, check=False).returncode != 0


BECOME = """
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
tries = (lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]), lambda: os.open("/etc/shadow", os.O_RDONLY), lambda: os.kill(1, 0))
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), [outcome(attempt) for attempt in tries]]))
print(open("/proc/self/status").read())
"""


def test_become_is_irreversible() -> None:
    """For a process of one thread: the one that attaches again, or one that supervises."""
    user = daemons_user()
    done = subprocess.run(
        [sys.executable, "-c", BECOME], capture_output=True, text=True, check=True, cwd=ROOT
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
    """It was root's, in a folder of root's; files that are not the store's stay as they are."""
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
        said: list[str] = []
        while "gate open" not in (said or [""])[-1]:
            said.append(process.stderr.readline())
        process.send_signal(signal.SIGHUP)
        time.sleep(3)
        process.terminate()
        assert process.wait(30) == 0
        before, after = "".join(said), process.stderr.read()
    assert f"cannot read the configuration {config}" in before, "said at the start already"
    assert (
        f"the configuration stays as it was: cannot read the configuration {config}: Permission denied"
        in after
    )
    assert "the access rules stay unchanged: the certificate and key" in after
    assert f"chgrp {grp.getgrgid(daemons_user().pw_gid).gr_name} {config}" in after


@pytest.mark.parametrize("terminal", [False, True])
def test_no_file_of_the_checkout_is_opened_after_privileges_are_dropped(
    reachable: Path, terminal: bool
) -> None:
    """The user that the daemon becomes may not be able to read it: a page, a violation, a collector, a terminal need no file of it."""
    with collector() as receiver:
        text = f'otlp_endpoint = "{receiver.url}"\nscan_seconds = 1.0\n'
        (reachable / "rmapd.toml").write_text(text)
        command = [sys.executable, "-c", LATE, str(ROOT), sys.prefix]
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
                "the finding is there",
            )
            (violation,) = json.loads(fetch(f"{url}/api/v1/violations")[1])
            for path in (
                *PAGES,
                f"/violations/{violation['id']}",
                f"/api/v1/violations/{violation['id']}",
            ):
                assert fetch(url + path)[0] == 200, path
            until(lambda: receiver.received, 20, "the collector has it")
            process.send_signal(signal.SIGHUP)
            time.sleep(2)
            process.terminate()
            assert process.wait(30) == 0
            assert process.stderr
            said = process.stderr.read()
    assert "SIGHUP" not in said
    assert "configuration read again" in said
    assert not [line for line in said.splitlines() if line.startswith("late:")]


def test_daemon_works_from_a_checkout_that_only_root_can_read(tmp_path: Path) -> None:
    """What is imported or read late was read before: pages, descriptions, violations and the end of a run go on."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(ROOT / "tracer", closed / "tracer")
    shutil.copytree(ROOT / "probes", closed / "probes")
    (closed / "packages").mkdir()
    packages = next(Path(sys.prefix).glob("lib/python*/site-packages"))
    script = (
        f"mount --bind {packages} {closed / 'packages'} && mount -t tmpfs none {packages} && cd / && "
        f'exec env PYTHONPATH={closed}:{closed / "packages"} {sys.executable} -c "from tracer.cli import main; main()" "$@"'
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
        said = process.stderr.read()
    assert "Traceback" not in said
    assert f"{closed / 'tracer'} cannot be read by the user" in said, "who reads the log knows"


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
        done = rmapd("exec", "--", "true")
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
        said = process.stderr.read()
    assert (
        "configuration read again: max_entry_age_seconds 10, settle_seconds 5, scan_seconds 7"
        in said
    )
    assert "the configuration stays as it was: cannot read the configuration" in said


def test_exec_runs_its_command_with_the_callers_privileges() -> None:
    done = rmapd("exec", "--", "grep", "-E", "^(CapEff|CapBnd|NoNewPrivs):", "/proc/self/status")
    own = status(Path("/proc/self"))
    said = {
        key: value.strip()
        for key, _, value in (line.partition(":") for line in done.stdout.splitlines()[:3])
    }
    assert said == {name: own[name] for name in ("CapEff", "CapBnd", "NoNewPrivs")}
