"""What the runner does with workers and commands, without namespaces: test_soak.py has those."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tracer.report.soak import SoakPart
from tracer.soak import runner
from tracer.soak.calls import Here
from tracer.soak.limits import Limits
from tracer.soak.loads import Part
from tracer.soak.plan import LoadPlan, Plan
from tracer.soak.stressors import STRESSORS

PARTS = (
    Part("storm", "what", python="family", workers=2),
    Part("tests", "what", commands=("true",)),
)
LOAD = LoadPlan("vma", PARTS, 1 << 20, "", 1 << 20)


def plan(**changes: str) -> Plan:
    limits = Limits(1 << 30, 100, 0)
    folder = changes.get("selftests", "")
    return Plan((LOAD,), limits, 1.0, 1, "/f", "/f/s", {}, {}, os.getpid(), folder)


def sleeper() -> int:
    child = os.fork()
    if not child:
        time.sleep(100)
        os._exit(0)
    return child


def test_killed_load_is_waited_for() -> None:
    child = sleeper()
    assert runner._killed(child)  # noqa: SLF001
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert runner._killed(child), "also where it is gone already"  # noqa: SLF001


def test_load_that_is_stuck_in_the_kernel_is_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = sleeper()
    monkeypatch.setattr(runner, "_DEATH_SECONDS", 0.2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "waitpid", lambda *_: (0, 0))
        assert not runner._killed(child)  # noqa: SLF001
    os.waitpid(child, 0)


def test_parts_have_the_counts_and_notes_of_all_their_workers() -> None:
    workers = [
        runner._Worker(LOAD, part, slot)  # noqa: SLF001
        for slot, part in enumerate((PARTS[0], PARTS[0], PARTS[1]))
    ]
    shared = runner._Shared(workers)  # noqa: SLF001
    shared.counts[0], shared.counts[2], shared.counts[3], shared.counts[4] = 5, 7, 1, 2
    shared.note(workers[0], "killed", "SIGSEGV")
    shared.note(workers[1], "killed", "SIGSEGV")
    shared.note(workers[1], "note", "first")
    shared.note(workers[1], "note", "x" * 1000)
    assert shared.parts() == [
        SoakPart("vma.storm", 12, 1, {"SIGSEGV": 2}, "x" * 200),
        SoakPart("vma.tests", 2),
    ]


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def outcomes(folder: Path, *commands: str, seconds: float | None = None) -> Callable[[], str]:
    part = Part("t", "what", commands=commands, needs=("selftests",), limit_seconds=seconds)
    here = Here(random.Random(1), 1 << 20, 1 << 20, folder)
    rounds = runner._command_rounds(plan(selftests=str(folder)), part, here)  # noqa: SLF001
    return lambda: next(rounds)


def test_commands_run_in_turn_and_those_that_are_not_built_are_left_out(tmp_path: Path) -> None:
    script(tmp_path, "good", "exit 0")
    script(tmp_path, "skips", "exit 4")
    script(tmp_path, "bad", "echo first >&2; echo it failed >&2; exit 1")
    after = outcomes(tmp_path, "good", "absent", "skips", "bad")
    found = [after() for _ in range(4)]
    assert found == ["", "", f"{tmp_path}/bad: it failed", ""]


def test_command_is_ended_after_its_time_with_its_children(tmp_path: Path) -> None:
    script(tmp_path, "long", f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    started = time.monotonic()
    assert outcomes(tmp_path, "long", seconds=0.5)() == ""
    assert time.monotonic() - started < 30
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][:1]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_round_of_python_that_fails_is_named_and_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(_here: Here):  # type: ignore[no-untyped-def]
        yield
        raise OSError(12, "no memory")

    monkeypatch.setitem(STRESSORS, "family", fails)
    here = Here(random.Random(1), 1 << 20, 1 << 20, tmp_path)
    rounds = runner._python_rounds(PARTS[0], here)  # noqa: SLF001
    found = [next(rounds) for _ in range(4)]
    assert found == ["", "a round failed: [Errno 12] no memory"] * 2
