"""Checks of an installation that is complete, incomplete or broken; the host is a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tracer.config import Config
from tracer.daemon import installation
from tracer.daemon.installation import NOTE, OK, WRONG, Check, Host
from tracer.errors import RmapdError

RUNS = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nResult=success\nNRestarts=0\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Make a host on which every check is ok."""
    made = Host(
        tmp_path / "proc",
        tmp_path / "sys",
        tmp_path / "state",
        tmp_path / "run",
        lambda: RUNS,
        lambda _name: "",
        lambda _name: 998,
        "#1 SMP PREEMPT_DYNAMIC Debian",
    )
    write(made.proc / "self/status", "Name:\trmapd\nCapEff:\t000001ffffffffff\n")
    write(made.proc / "sys/kernel/kptr_restrict", "1\n")
    write(made.sys / "kernel/btf/vmlinux", "types")
    write(made.sys / "kernel/security/lockdown", "[none] integrity confidentiality\n")
    write(made.sys / "kernel/tracing/available_filter_functions", "vma_expand\n")
    write(made.sys / "kernel/debug/sched/preempt", "none (voluntary) full\n")
    (made.run / "systemd/system").mkdir(parents=True)
    made.state.mkdir()
    return made


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def examined(host: Host, config: Callable[[], Config] = Config) -> dict[str, Check]:
    return {check.name: check for check in installation.examine(host, config, "rmapd.toml")}


def test_debugfs_is_not_missed_where_the_version_says_how_the_kernel_preempts(host: Host) -> None:
    write(host.sys / "kernel/debug/sched/preempt", "")
    found = examined(replace(host, version="#1 SMP PREEMPT Debian"))["debugfs"]
    assert (found.state, found.text) == (OK, "not needed: how this kernel preempts is known (full)")


def test_complete_installation_has_only_ok_checks(host: Host) -> None:
    found = examined(host)
    assert {check.state for check in found.values()} == {OK}
    assert not any(check.hint for check in found.values())


@pytest.mark.parametrize(
    ("path", "text", "name", "state", "expected"),
    [
        (
            "proc/self/status",
            "CapEff:\t0000000000000000\n",
            "privileges",
            WRONG,
            "CAP_BPF and CAP_PERFMON missing (CAP_BPF",
        ),
        (
            "proc/self/status",
            "CapEff:\t0000008000000000\n",
            "privileges",
            WRONG,
            "CAP_PERFMON missing (CAP_BPF and CAP_PERFMON are enough",
        ),
        (
            "proc/self/status",
            "CapEff:\t0000004000000000\n",
            "privileges",
            WRONG,
            "CAP_BPF missing (CAP_BPF and",
        ),
        (
            "proc/self/status",
            "CapEff:\t000000c000000000\n",
            "privileges",
            NOTE,
            "without CAP_SYS_ADMIN no run times",
        ),
        (
            "proc/self/status",
            "CapEff:\t0000000000200000\n",
            "privileges",
            NOTE,
            "without CAP_SYSLOG no addresses",
        ),
        (
            "proc/self/status",
            "CapEff:\t000000c400200000\n",
            "privileges",
            NOTE,
            "without CAP_SETPCAP",
        ),
        ("proc/sys/kernel/kptr_restrict", "2\n", "kptr_restrict", WRONG, "no addresses"),
        (
            "sys/kernel/security/lockdown",
            "none integrity [confidentiality]\n",
            "lockdown",
            WRONG,
            "may not read kernel memory",
        ),
        ("sys/kernel/tracing/available_filter_functions", "", "tracefs", NOTE, "not mounted"),
        ("sys/kernel/debug/sched/preempt", "", "debugfs", NOTE, "preempts"),
    ],
)
def test_each_deficiency_has_its_state_text_and_hint(
    host: Host, path: str, text: str, name: str, state: str, expected: str
) -> None:
    write(host.proc.parent / path, text)
    found = examined(host)[name]
    assert (found.state, bool(found.hint)) == (state, True)
    assert expected in found.text


@pytest.mark.parametrize(
    ("shown", "state", "expected"),
    [
        ("LoadState=not-found\nActiveState=inactive\n", NOTE, "rmapd.service is not-found"),
        (
            RUNS.replace("enabled", "disabled").replace("=active", "=inactive"),
            NOTE,
            "disabled, inactive",
        ),
        (
            RUNS.replace("=active", "=failed").replace("success", "exit-code"),
            WRONG,
            "ended with exit-code",
        ),
        (RUNS.replace("success", "watchdog"), WRONG, "ended with watchdog"),
        ("", NOTE, "rmapd.service is unknown"),
    ],
)
def test_state_of_the_unit_is_reported(host: Host, shown: str, state: str, expected: str) -> None:
    found = examined(replace(host, systemctl=lambda: shown))["unit"]
    assert found.state == state
    assert expected in found.text


def test_host_without_systemd_is_a_note(host: Host) -> None:
    (host.run / "systemd/system").rmdir()
    assert examined(host)["unit"].state == NOTE


def test_missing_python_modules_are_reported(host: Host) -> None:
    found = examined(
        replace(host, unimportable=lambda name: f"No module named {name!r}"),
        lambda: Config(otlp_endpoint="http://c:4318/v1/logs"),
    )
    assert (found["bcc"].state, found["seccomp"].state, found["OTLP"].state) == (WRONG, NOTE, WRONG)


@pytest.mark.parametrize(("files", "state"), [(["0.objects"], NOTE), (["0"], WRONG), ([], WRONG)])
def test_objects_in_the_cache_make_a_missing_bcc_a_note(
    host: Host, tmp_path: Path, files: list[str], state: str
) -> None:
    for name in files:
        write(tmp_path / "cache" / name, "")
    missing = replace(host, unimportable=lambda name: f"No module named {name!r}")
    found = examined(missing, lambda: Config(cache=str(tmp_path / "cache")))["bcc"]
    assert found.state == state
    assert "apt-get install python3-bpfcc" in found.hint
    assert ("files of rmapd compile (1)" in found.text) == (state == NOTE)


def test_wrong_configuration_does_not_stop_other_checks(host: Host) -> None:
    def broken() -> Config:
        raise RmapdError(
            "the configuration rmapd.toml is wrong", why="no key fidelty", hint="fidelity"
        )

    found = examined(host, broken)
    assert found["configuration"] == Check(
        "configuration", WRONG, "the configuration rmapd.toml is wrong: no key fidelty", "fidelity"
    )
    assert found["bcc"].state == OK


def test_missing_state_directory_is_a_note(host: Host) -> None:
    host.state.rmdir()
    assert examined(host)["state directory"].state == NOTE


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "raise ImportError('libbcc.so.0: cannot open shared object file')",
            "libbcc.so.0: cannot open shared object file",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ends with -11"),
        ("syntax error", "SyntaxError"),
    ],
)
def test_bcc_that_fails_to_import_is_wrong(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, expected: str
) -> None:
    """The file exists, so find_spec() finds it, but the compiler could not use it."""
    write(tmp_path / "python/bcc.py", content)
    monkeypatch.syspath_prepend(tmp_path / "python")
    found = examined(replace(host, unimportable=Host().unimportable))["bcc"]
    assert (found.state, expected in found.text) == (WRONG, True), found


def test_missing_user_of_the_daemon_is_a_note(host: Host) -> None:
    found = examined(replace(host, uid_of=lambda name: 1 if name != "rmapd" else None))
    assert found["user"].state == NOTE
    assert "there is no user rmapd" in found["user"].text


@pytest.mark.parametrize(
    ("config", "uid", "state", "says"),
    [
        (Config(user="monitor"), None, WRONG, "cannot become monitor: there is no such user"),
        (Config(user="root"), 0, WRONG, "cannot become root: it is root"),
        (Config(user="monitor"), 7, OK, "becomes monitor"),
        (Config(drop_privileges=False), None, OK, "stays the user that starts it"),
    ],
)
def test_user_is_the_one_that_run_becomes(
    host: Host, config: Config, uid: int | None, state: str, says: str
) -> None:
    found = examined(replace(host, uid_of=lambda _: uid), lambda: config)["user"]
    assert (found.state, says in found.text) == (state, True), found.text


@pytest.mark.parametrize("missing", ["", "No module named 'opentelemetry'"])
def test_login_of_the_collector_is_not_printed(host: Host, missing: str) -> None:
    config = Config(otlp_endpoint="https://tenant:s3cret@host/v1/logs")
    found = examined(replace(host, unimportable=lambda _: missing), lambda: config)["OTLP"]
    assert "https://…@host/v1/logs" in found.text
