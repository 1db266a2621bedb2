"""The facts of a standing, taken from a snapshot."""

from __future__ import annotations

from collections.abc import Sequence

from tracer.attach.plan import HookState
from tracer.results.history import HistoryPoint
from tracer.results.hook_groups import blocked_by
from tracer.results.snapshot import Snapshot
from tracer.results.standing import STALE_SECONDS, Facts, Standing, stand
from tracer.time_text import two_units

_MINUTES = 3


def standing(
    s: Snapshot,
    points: Sequence[HistoryPoint] = (),
    age: float | None = None,
    *,
    hooks: bool = True,
) -> Standing:
    """Return how a run stands.

    age: seconds since the snapshot was taken, where a daemon answers from it; None: of a run's
    report. hooks: whether the reasons have why most of the missing hooks are missing; False where
    the output lists the hooks by reason anyway.
    """
    outstanding, unsettled = (s.outstanding, 0) if s.gate_open else (0, s.outstanding)
    return stand(
        Facts(
            coverage={name: level.value for name, (level, _) in s.coverage.items()},
            checks={(name, verdict.value): count for (name, verdict), count in s.checks.items()},
            off={
                h.hook.name: blocked_by(h.reason) or h.reason
                for h in s.hooks
                if hooks and h.state in (HookState.MISSING, HookState.DENIED)
            },
            taken_away=[h.hook.name for h in s.hooks if h.state is HookState.DETACHED],
            lost=s.lost,
            required=s.required,
            outstanding=outstanding,
            oldest_seconds=s.oldest_entry_seconds if s.gate_open else 0.0,
            age_limit_seconds=s.age_limit_seconds,
            floors=_floors(points) if s.gate_open else (),
            unsettled=unsettled,
            undecided=s.undecided,
            lowered_to=s.lowered_to,
            gate_closed=age is not None and not s.gate_open,
            stale=_stale(s, age),
            ended_early=[s.ended_early] if s.ended_early else [],
        )
    )


def _stale(s: Snapshot, age: float | None) -> str:
    if age is None or not s.gate_open or age <= STALE_SECONDS:
        return ""
    return f"The data is stale: the last update was {two_units(round(age))} ago."


def _floors(points: Sequence[HistoryPoint]) -> list[int]:
    """Return the fewest entries outstanding in each of the last minutes, the oldest minute first.

    Empty while the history is shorter than that.
    """
    if not points or points[-1].seconds - points[0].seconds < 60.0 * _MINUTES:
        return []
    minutes: list[list[int]] = [[] for _ in range(_MINUTES)]
    for point in points:
        ago = int((points[-1].seconds - point.seconds) // 60)
        if ago < _MINUTES:
            minutes[_MINUTES - 1 - ago].append(point.outstanding)
    return [min(minute) for minute in minutes] if all(minutes) else []
