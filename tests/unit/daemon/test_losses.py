"""Hooks that are detached or come back, and missed runs: look() asks, everything else reads."""

from __future__ import annotations

from typing import Any, cast

from tests.unit.daemon.test_fidelity import Fake, fidelity, loaded
from tracer.attach.attached import AttachedProbes
from tracer.attach.liveness import LivenessCheck
from tracer.daemon.losses import LossTracker
from tracer.invariants.catalogue import discover


class FakeLiveness:
    """Finds the hooks off that the test names."""

    def __init__(self) -> None:
        self.off: dict[str, str] = {}

    def check(self) -> dict[str, str]:
        return dict(self.off)


class MissingRuns(Fake):
    """A program of which the kernel misses as many runs as the test sets."""

    runs_missed = 0

    def missed(self) -> int:
        return self.runs_missed


def tracker() -> tuple[LossTracker, FakeLiveness, AttachedProbes, dict[str, MissingRuns]]:
    made, watch, programs = loaded(), FakeLiveness(), dict[str, MissingRuns]()
    for name, points in made.points.items():
        for point in points:
            programs[name] = MissingRuns()
            point.program = programs[name]
    one, _ = fidelity(made)
    now = iter(range(1, 1_000_000))
    losses = LossTracker(
        made, cast(LivenessCheck, cast(Any, watch)), one, discover(), lambda: next(now)
    )
    losses.look()
    return losses, watch, made, programs


def test_detached_hook_takes_coverage_away_until_it_is_back() -> None:
    losses, watch, _, _ = tracker()
    before = losses.look()
    assert {"M5", "M3", "L1", "M1"} <= before
    watch.off = {"second_walk": "kprobes are off"}
    covered = losses.look()
    assert "M5" not in covered
    assert "M3" in covered, "the tracepoint checks in place of the hook"
    assert "M5" in before, "a value that was handed out does not change"
    watch.off = {}
    assert losses.look() == before


def test_detached_hook_of_windows_counts_as_missed_run_of_windows() -> None:
    losses, watch, _, _ = tracker()
    watch.off = {"down_write": "kprobes are off"}
    assert losses.windows_missed == 0, "not before a look"
    losses.look()
    assert losses.windows_missed == 1
    watch.off = {}
    losses.look()
    assert losses.windows_missed == 2


def test_missed_run_doubts_only_the_invariants_that_declare_its_hook() -> None:
    losses, _, _, programs = tracker()
    programs["second_walk"].runs_missed = 1
    assert all(missed.last_ns is None for missed in losses.unbroken.values())
    losses.look()
    doubted = {name for name, missed in losses.unbroken.items() if missed.last_ns is not None}
    declared = {
        name
        for name, one in discover().items()
        if one.unbroken and "second_walk" in one.unbroken.hooks
    }
    assert doubted == declared == {"M4", "M5"}
