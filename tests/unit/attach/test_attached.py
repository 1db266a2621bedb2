"""Hooks are attached and detached as a whole, in order, and their states follow."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from tracer.attach import attached
from tracer.attach.attach_process import describe
from tracer.attach.attached import (
    AttachedProbes,
    AttachedProgram,
    attach_all,
    close_all,
    detach_all,
)
from tracer.attach.plan import AttachMethod, Hook, HookState, PlannedHook
from tracer.attach.reattach_helper import ReattachHelper
from tracer.bpf.links import Link
from tracer.bpf.programs import Program, RunStatistics


class FakeLink(Link):
    """A link that notes when it is closed."""

    def __init__(self, name: str, done: list[str]) -> None:
        self._name, self._done = name, done

    def close(self) -> None:
        self._done.append(f"detach {self._name}")

    def missed(self) -> int:
        return 5 if self._name == "kprobe.multi" else 0


class FakeProgram(Program):
    """A program that notes what is done with it, and may be refused."""

    def __init__(self, done: list[str], refused: bool = False) -> None:
        self._done, self._refused = done, refused

    def attach(self, how: str, symbol: str) -> Link | None:
        if self._refused:
            raise PermissionError(1, "Operation not permitted")
        self._done.append(f"attach {how}")
        return None if how == "run" else FakeLink(how, self._done)

    def missed(self) -> int:
        return 2

    def statistics(self) -> RunStatistics:
        return RunStatistics(1, 10, 0.5, self.missed())

    def close(self) -> None:
        self._done.append("close")


def points(done: list[str], *hows: str, refused: str = "") -> list[AttachedProgram]:
    return [AttachedProgram(FakeProgram(done, how == refused), how, "grow") for how in hows]


def probes(done: list[str], *, instead: str = "") -> AttachedProbes:
    """Return one attached hook of the probe object `vma`."""
    hook = PlannedHook(
        "vma",
        Hook("grow", [], ""),
        HookState.READY,
        (AttachMethod("fentry", "grow", (), instead),),
    ).attached(0)
    made = AttachedProbes([hook], {}, {"grow": points(done, "fentry", "fexit")})
    attach_all(made.points["grow"])
    done.clear()
    return made


def test_kprobes_are_removed_at_the_same_time_and_all_entries_before_the_returns() -> None:
    """Each close waits for the others: one after the other they would wait for ever."""
    done, beats, together = list[str](), list[int](), threading.Barrier(3, timeout=20)

    class Slow(Link):
        def __init__(self, name: str) -> None:
            self._name = name

        def close(self) -> None:
            together.wait()
            done.append(self._name)

    hooks = [points(done, "kprobe", "kretprobe") for _ in range(3)]
    for hook in hooks:
        for point in hook:
            point.link = Slow(point.how)
    detach_all(*hooks, closed=lambda: beats.append(len(done)))
    assert len(beats) == 6, "one for each: a watchdog sees that it goes on"
    assert done == ["kprobe"] * 3 + ["kretprobe"] * 3
    assert not any(point.link for hook in hooks for point in hook)


def test_return_is_attached_before_entry_and_detached_after_it() -> None:
    done = list[str]()
    hook = points(done, "fentry", "fexit")
    attach_all(hook)
    close_all(hook)
    assert done == [
        *("attach fexit", "attach fentry", "detach fentry", "detach fexit"),
        *("close", "close"),
    ]


def test_refused_program_leaves_none_of_its_hook_attached() -> None:
    done = list[str]()
    hook = points(done, "kprobe", "kretprobe", refused="kprobe")
    with pytest.raises(PermissionError):
        attach_all(hook)
    assert done == ["attach kretprobe", "detach kretprobe"]
    assert [point.link for point in hook] == [None, None]


def test_hook_that_someone_else_detached_is_detached_until_it_comes_back() -> None:
    made = probes([])
    (changed,) = made.update_detached({"grow": "ftrace is switched off"})
    assert (changed.state, changed.reason) == (HookState.DETACHED, "ftrace is switched off")
    assert made.hooks == [changed]
    assert made.attached() == frozenset()
    assert made.update_detached({"grow": "ftrace is switched off"}) == []
    (changed,) = made.update_detached({})
    assert (changed.state, changed.reason) == (HookState.ATTACHED, "")
    assert made.attached() == {"grow"}


def test_substitute_that_comes_back_is_a_substitute_again() -> None:
    made = probes([], instead="clone of grow")
    made.update_detached({"grow": "gone"})
    made.update_detached({})
    assert (made.hooks[0].state, made.hooks[0].reason) == (HookState.SUBSTITUTED, "clone of grow")


def test_paused_hook_keeps_its_programs_and_resumes() -> None:
    done = list[str]()
    made = probes(done)
    made.pause({"locks"}, "too dear")
    assert made.hooks[0].on
    made.pause({"vma"}, "too dear")
    assert (made.hooks[0].state, made.hooks[0].reason) == (HookState.PAUSED, "too dear")
    assert made.attachments() == []
    assert made.missed(lambda hook: hook.probe_object == "vma") == 4
    assert made.resume({"vma"}) == []
    assert made.hooks[0].state is HookState.ATTACHED
    assert done == ["detach fentry", "detach fexit", "attach fexit", "attach fentry"]


def test_calls_that_a_link_left_out_are_counted_with_those_of_the_program_and_kept() -> None:
    (point,) = hook = points([], "kprobe.multi")
    attach_all(hook)
    assert (point.missed(), point.statistics().missed) == (7, 7)
    detach_all(hook)
    assert (point.missed(), point.statistics().missed) == (7, 7)
    attach_all(hook)
    assert point.missed() == 12


def test_paused_hook_is_not_reported_as_detached() -> None:
    made = probes([])
    made.pause({"vma"}, "too dear")
    assert made.update_detached({"grow": "gone"}) == []
    assert made.hooks[0].state is HookState.PAUSED


def test_detached_hook_can_be_paused() -> None:
    made = probes([])
    made.update_detached({"grow": "gone"})
    made.pause({"vma"}, "too dear")
    assert made.hooks[0].state is HookState.PAUSED


def test_hook_that_is_refused_on_resuming_stays_paused() -> None:
    made = probes([])
    made.pause({"vma"}, "too dear")
    made.points["grow"] = points([], "fentry", "fexit", refused="fentry")
    assert made.resume({"vma"}) == ["fentry grow: Operation not permitted"]
    assert made.hooks[0].state is HookState.PAUSED


def test_program_that_runs_on_demand_is_not_paused() -> None:
    made = probes([])
    on_demand = PlannedHook(
        "vma", Hook("look", [], ""), HookState.READY, (AttachMethod("run", "", ()),)
    ).attached(0)
    made.hooks.append(on_demand)
    made.points["look"] = points([], "run")
    made.pause({"vma"}, "too dear")
    assert [hook.state for hook in made.hooks] == [HookState.PAUSED, HookState.ATTACHED]


def test_reattach_helper_gets_hooks_that_are_paused_when_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, given = probes([]), list[str]()
    made.points["grow"] += points([], "run")
    made.pause({"vma"}, "not needed yet")
    monkeypatch.setattr(
        attached,
        "ReattachHelper",
        lambda targets, _user, **_: given.extend(target.how for target in targets),
    )
    made.start_reattach_helper({"vma"})
    assert given == ["fentry", "fexit"]


def test_takeover_is_not_told_of_the_descriptor_of_statistics() -> None:
    """It is closed and opened again while the daemon runs; its number may be another file's."""
    made = AttachedProbes(statistics_fd=77)
    reply, fds = describe(made, 64, {}, links=False)
    assert (reply.statistics, fds) == (False, [])
    reply, fds = describe(made, 64, {})
    assert (reply.statistics, fds) == (True, [77])


@pytest.mark.parametrize(("error", "asked"), [(errno.ETIMEDOUT, 1), (errno.EPIPE, 1), (1, 3)])
def test_helper_that_does_not_answer_is_not_asked_for_each_hook(error: int, asked: int) -> None:
    """Each question takes ten seconds, in which nothing is checked."""
    done = list[str]()
    made = AttachedProbes()
    for name in ("grow", "shrink", "move"):
        method = AttachMethod("fentry", name, ())
        hook = PlannedHook("vma", Hook(name, [], ""), HookState.READY, (method,)).attached(0)
        made.hooks.append(replace(hook, state=HookState.PAUSED))
        made.points[name] = points(done, "fentry")

    def attach(_program: Program) -> Link:
        done.append("asked")
        raise OSError(error, os.strerror(error))

    made.reattach_helper = cast(ReattachHelper, SimpleNamespace(attach=attach))
    assert len(made.resume({"vma"})) == asked
    assert done == ["asked"] * asked
