"""What doctor says of an installation: in order, missing, half there, broken. The machine is a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tracer.config import Config
from tracer.daemon import installation
from tracer.daemon.installation import NOTE, OK, WRONG, Check, Probed
from tracer.errors import RmapdError

RUNS = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nResult=success\nNRestarts=0\n"


@pytest.fixture
def machine(tmp_path: Path) -> Probed:
    """A machine on which all is well."""
    made = Probed(
        tmp_path / "proc",
        tmp_path / "sys",
        tmp_path / "state",
        tmp_path / "run",
        lambda: RUNS,
        lambda _name: "",
        lambda _name: True,
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


def examined(machine: Probed, config: Callable[[], Config] = Config) -> dict[str, Check]:
    return {check.name: check for check in installation.examine(machine, config, "rmapd.toml")}


def test_all_is_well(machine: Probed) -> None:
    found = examined(machine)
    assert {check.state for check in found.values()} == {OK}
    assert "try:" not in installation.as_text(list(found.values()))


@pytest.mark.parametrize(
    ("path", "text", "name", "state", "says"),
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
def test_what_is_not(
    machine: Probed, path: str, text: str, name: str, state: str, says: str
) -> None:
    write(machine.proc.parent / path, text)
    found = examined(machine)[name]
    assert (found.state, bool(found.hint)) == (state, True)
    assert says in found.says
    assert f"try: {found.hint}" in installation.as_text([found])


@pytest.mark.parametrize(
    ("shown", "state", "says"),
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
def test_the_unit(machine: Probed, shown: str, state: str, says: str) -> None:
    found = examined(replace(machine, systemctl=lambda: shown))["unit"]
    assert found.state == state
    assert says in found.says


def test_no_systemd(machine: Probed) -> None:
    (machine.run / "systemd/system").rmdir()
    assert examined(machine)["unit"].state == NOTE


def test_what_python_lacks(machine: Probed) -> None:
    found = examined(
        replace(machine, unimportable=lambda name: f"No module named {name!r}"),
        lambda: Config(otlp_endpoint="http://c:4318/v1/logs"),
    )
    assert (found["bcc"].state, found["seccomp"].state, found["OTLP"].state) == (WRONG, NOTE, WRONG)


def test_a_wrong_configuration_hides_nothing_else(machine: Probed) -> None:
    def broken() -> Config:
        raise RmapdError(
            "the configuration rmapd.toml is wrong", why="no key fidelty", hint="fidelity"
        )

    found = examined(machine, broken)
    assert found["configuration"] == Check(
        "configuration", WRONG, "the configuration rmapd.toml is wrong: no key fidelty", "fidelity"
    )
    assert found["bcc"].state == OK


def test_a_state_directory_that_is_not_there_yet(machine: Probed) -> None:
    machine.state.rmdir()
    assert examined(machine)["state directory"].state == NOTE


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "raise ImportError('libbcc.so.0: cannot open shared object file')",
            "libbcc.so.0: cannot open shared object file",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ends with -11"),
        ("syntax error", "SyntaxError"),
    ],
)
def test_a_bcc_that_is_there_and_cannot_be_imported_is_not_installed(
    machine: Probed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, says: str
) -> None:
    """A file is there (find_spec finds it), and the compiler could not use it."""
    write(tmp_path / "python/bcc.py", content)
    monkeypatch.syspath_prepend(tmp_path / "python")
    found = examined(replace(machine, unimportable=Probed().unimportable))["bcc"]
    assert (found.state, says in found.says) == (WRONG, True), found


def test_a_name_from_outside_does_not_reach_the_terminal() -> None:
    assert "\x1b" not in installation.as_text([Check("OTLP", WRONG, "http://\x1b[2J", "\x1b[31m")])


def test_a_machine_without_the_user_of_the_daemon(machine: Probed) -> None:
    found = examined(replace(machine, knows=lambda name: name != "rmapd"))
    assert found["user"].state == NOTE
    assert "there is no user rmapd" in found["user"].says
