"""What doctor says of an installation: in order, missing, half there, broken. The machine is a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tracer import installation
from tracer.config import Config
from tracer.errors import RmapdError
from tracer.installation import NOTE, OK, WRONG, Check, Machine

RUNS = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nResult=success\nNRestarts=0\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which all is well."""
    made = Machine(
        tmp_path / "proc", tmp_path / "sys", tmp_path / "state", tmp_path / "run", lambda: RUNS, lambda _name: True, lambda _name: True
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


def examined(machine: Machine, config: Callable[[], Config] = Config) -> dict[str, Check]:
    return {check.name: check for check in installation.examine(machine, config, "rmapd.toml")}


def test_all_is_well(machine: Machine) -> None:
    found = examined(machine)
    assert {check.state for check in found.values()} == {OK}
    assert "try:" not in installation.as_text(list(found.values()))


@pytest.mark.parametrize(
    ("path", "text", "name", "state", "says"),
    [
        ("proc/self/status", "CapEff:\t0000000000200000\n", "privileges", WRONG, "CAP_SYSLOG, CAP_PERFMON, CAP_BPF missing"),
        ("proc/self/status", "CapEff:\t000000c400200000\n", "privileges", NOTE, "without CAP_SETPCAP"),
        ("proc/sys/kernel/kptr_restrict", "2\n", "kptr_restrict", WRONG, "no addresses"),
        ("sys/kernel/security/lockdown", "none integrity [confidentiality]\n", "lockdown", WRONG, "may not read kernel memory"),
        ("sys/kernel/tracing/available_filter_functions", "", "tracefs", NOTE, "not mounted"),
        ("sys/kernel/debug/sched/preempt", "", "debugfs", NOTE, "preempts"),
    ],
)
def test_what_is_not(machine: Machine, path: str, text: str, name: str, state: str, says: str) -> None:
    write(machine.proc.parent / path, text)
    found = examined(machine)[name]
    assert (found.state, bool(found.hint)) == (state, True)
    assert says in found.says
    assert f"try: {found.hint}" in installation.as_text([found])


@pytest.mark.parametrize(
    ("shown", "state", "says"),
    [
        ("LoadState=not-found\nActiveState=inactive\n", NOTE, "rmapd.service is not-found"),
        (RUNS.replace("enabled", "disabled").replace("=active", "=inactive"), NOTE, "disabled, inactive"),
        (RUNS.replace("=active", "=failed").replace("success", "exit-code"), WRONG, "ended with exit-code"),
        (RUNS.replace("success", "watchdog"), WRONG, "ended with watchdog"),
        ("", NOTE, "rmapd.service is unknown"),
    ],
)
def test_the_unit(machine: Machine, shown: str, state: str, says: str) -> None:
    found = examined(replace(machine, systemctl=lambda: shown))["unit"]
    assert found.state == state
    assert says in found.says


def test_no_systemd(machine: Machine) -> None:
    (machine.run / "systemd/system").rmdir()
    assert examined(machine)["unit"].state == NOTE


def test_what_python_lacks(machine: Machine) -> None:
    found = examined(replace(machine, has=lambda _name: False), lambda: Config(otlp_endpoint="http://c:4318/v1/logs"))
    assert (found["bcc"].state, found["seccomp"].state, found["OTLP"].state) == (WRONG, NOTE, WRONG)


def test_a_wrong_configuration_hides_nothing_else(machine: Machine) -> None:
    def broken() -> Config:
        raise RmapdError("the configuration rmapd.toml is wrong", why="no key fidelty", hint="fidelity")

    found = examined(machine, broken)
    assert found["configuration"] == Check("configuration", WRONG, "the configuration rmapd.toml is wrong: no key fidelty", "fidelity")
    assert found["bcc"].state == OK


def test_a_state_directory_that_is_not_there_yet(machine: Machine) -> None:
    machine.state.rmdir()
    assert examined(machine)["state directory"].state == NOTE


def test_a_machine_without_the_user_of_the_daemon(machine: Machine) -> None:
    found = examined(replace(machine, knows=lambda name: name != "rmapd"))
    assert found["user"].state == NOTE
    assert "there is no user rmapd" in found["user"].says
