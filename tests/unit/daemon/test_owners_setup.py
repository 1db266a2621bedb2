"""L3 by audit over attached probes: the reader, and the hook at system calls."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.native import LAYOUTS, PROBES, Native
from tracer.attach import plan
from tracer.attach.attached import AttachedProbes, AttachedProgram
from tracer.attach.plan import AttachMethod, HookState, PlannedHook
from tracer.bpf.links import Link
from tracer.bpf.programs import Program
from tracer.daemon.owners_setup import make_owner_reader, system_call_hook


class Fake(Program):
    def __init__(self) -> None:
        self.refused, self.attached = False, 0

    def attach(self, how: str, symbol: str) -> Link | None:
        if self.refused:
            raise PermissionError(1, "Operation not permitted")
        self.attached += how != "run"
        return FakeLink(self)


class FakeLink(Link):
    def __init__(self, program: Fake) -> None:
        self._program = program

    def close(self) -> None:
        self._program.attached = 0


@pytest.fixture
def program() -> Fake:
    return Fake()


@pytest.fixture
def loaded(program: Fake) -> AttachedProbes:
    made = AttachedProbes()
    for hook in plan.read_probe_object(PROBES / "owners.toml").hook:
        how, symbol = hook.candidates[0].split(":")
        method = AttachMethod(how, symbol, ())
        made.hooks.append(PlannedHook("owners", hook, HookState.READY, (method,)).attached(0))
        made.points[hook.name] = [AttachedProgram(program, how, symbol)]
    made.pause({"owners"}, "not needed yet")
    return made


def test_system_calls_are_hooked_while_that_is_asked_for(
    loaded: AttachedProbes, program: Fake
) -> None:
    hook = system_call_hook(loaded)
    assert (hook(True), program.attached) == ("", 1)
    assert (hook(False), program.attached) == ("", 0)
    states = {one.hook.name: one.state for one in loaded.hooks}
    assert states == {"owner_look": HookState.ATTACHED, "owner_enters": HookState.PAUSED}


def test_refusal_is_returned_each_time_and_logged_once(
    loaded: AttachedProbes, program: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    hook, program.refused = system_call_hook(loaded), True
    caplog.set_level(logging.WARNING, "rmapd")
    why = "raw_tp sys_enter: Operation not permitted"
    assert [hook(True), hook(True)] == [why, why]
    assert [record.getMessage() for record in caplog.records] == [
        f"L3: whether a task enters a system call with a lock is not seen: {why}"
    ]
    program.refused = False
    assert hook(True) == ""


def test_hook_that_this_kernel_lacks_is_a_refusal(loaded: AttachedProbes) -> None:
    loaded.hooks[1] = loaded.hooks[1].failed(HookState.MISSING, "no raw tracepoint sys_enter")
    assert system_call_hook(loaded)(True) == "no raw tracepoint sys_enter"
    del loaded.hooks[1]
    assert system_call_hook(loaded)(True) == "no program"


def test_reader_is_there_only_where_it_finds_its_own_task(loaded: AttachedProbes) -> None:
    native = Native()
    loaded.maps = cast(Any, native.maps)
    point = SimpleNamespace(program=native.programs["owner_look"])
    loaded.points["owner_look"] = [cast(Any, point)]
    reader, why = make_owner_reader(loaded, LAYOUTS)
    assert (reader, why) == (None, "the bounds of RAM in the direct map are not known")
    loaded.hooks[0] = loaded.hooks[0].failed(HookState.MISSING, "no member owner")
    assert make_owner_reader(loaded, LAYOUTS) == (None, "no member owner")
    del loaded.hooks[0]
    assert make_owner_reader(loaded, LAYOUTS) == (None, "the program owner_look is missing")
