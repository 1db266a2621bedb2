"""The governor over simulated costs: it lowers, raises, and does not flap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from tracer.daemon.governor import Governor, Pace

LEVELS = ("full", "owner", "migration")
CPUS = 4


class Machine:
    """A machine on which each attached group costs a share of CPU time, times the load."""

    def __init__(self, governor: Governor, **groups: float) -> None:
        self.governor, self.groups, self.now, self.load = governor, groups, 0.0, 1.0
        self.spent = dict.fromkeys(groups, 0.0)
        self.decisions: list[tuple[float, str]] = []
        self.refuse = False

    def run(self, seconds: float, load: Callable[[float], float] | None = None) -> list[str]:
        """Look once a second; return the levels that the governor chooses."""
        first = len(self.decisions)
        end = self.now + seconds
        while self.now < end:
            self.now += 1
            factor = load(self.now) if load else self.load
            running = self.governor.levels[self.governor.levels.index(self.governor.level) :]
            for group, share in self.groups.items():
                if group in running:
                    self.spent[group] += share * factor * CPUS
            before = self.governor.level
            if decision := self.governor.look(self.now, dict(self.spent)):
                if self.refuse and self.governor.levels.index(
                    decision.level
                ) < self.governor.levels.index(before):
                    self.governor.stay()
                else:
                    self.decisions.append((self.now, decision.level))
        return [level for _, level in self.decisions[first:]]


def machine(levels: tuple[str, ...] = LEVELS, budget: float = 0.01, **groups: float) -> Machine:
    return Machine(
        Governor(levels, budget, CPUS),
        **(groups or {"full": 0.02, "owner": 0.004, "migration": 0.001}),
    )


def test_cost_within_the_budget_changes_nothing() -> None:
    assert machine(full=0.005, owner=0.003, migration=0.001).run(10_000) == []


def test_cost_over_the_budget_for_ten_seconds_lowers_one_level() -> None:
    m = machine()
    assert m.run(9) == []
    assert m.run(3600) == ["owner"]
    assert m.decisions[0][0] <= 14


def test_short_burst_over_the_budget_changes_nothing() -> None:
    m = machine()
    assert m.run(3600, lambda now: 1.0 if now % 60 < 8 else 0.1) == []


def test_cost_still_over_the_budget_lowers_again() -> None:
    m = machine(full=0.02, owner=0.02, migration=0.003)
    assert m.run(120) == ["owner", "migration"]


def test_lowest_level_stays_at_any_cost() -> None:
    m = machine(full=0.02, owner=0.02, migration=0.05)
    assert m.run(10_000) == ["owner", "migration"]


def test_level_that_is_not_offered_is_never_chosen() -> None:
    assert machine(("full",)).run(10_000) == []
    assert machine(("full", "owner"), full=0.02, owner=0.02).run(10_000) == ["owner"]


def test_level_is_raised_once_the_load_is_gone() -> None:
    m = machine()
    m.run(100)
    m.load = 0.1
    assert m.run(20) == [], "not at once"
    assert m.run(200) == ["full"]
    assert (m.governor.lowered, m.governor.raised) == (1, 1)


def test_constant_load_never_raises_the_level() -> None:
    """The remaining groups give the estimate, so no trial is needed."""
    m = machine()
    assert m.run(40_000) == ["owner"]


def test_cost_between_both_thresholds_changes_nothing() -> None:
    lowered, full = machine(), machine()
    lowered.run(100)
    lowered.load = full.load = (
        0.36  # full would cost 0.9 % of 1 %: below the budget, and not by enough to go up
    )
    assert lowered.run(10_000) == []
    assert full.run(10_000) == []


def test_level_without_an_estimate_is_tried_less_and_less_often() -> None:
    m = machine(full=0.05, owner=0.0, migration=0.0)
    went = m.run(24 * 3600)
    assert went[:3] == ["owner", "full", "owner"]
    tries = [at for at, level in m.decisions if level == "full"]
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps[0] < 200
    assert gaps[-1] > 3600
    above = sum(
        down - up for (up, _), (down, _) in zip(m.decisions[1::2], m.decisions[2::2], strict=False)
    )
    assert above / m.now < 0.01
    m.load = 0.0
    assert m.run(4000) == ["full"]
    m.load = 1.0
    m.run(20)
    m.load = 0.0
    assert m.run(200)[-1:] == ["full"], "after a raise that lasted, the rest is short again"


def test_refused_raise_is_never_decided_again() -> None:
    m = machine()
    m.run(100)
    m.load, m.refuse = 0.0, True
    assert m.run(10_000) == []
    assert m.governor.levels == ["owner", "migration"]
    assert m.governor.level == "owner"
    m.load, m.refuse = 10.0, False
    assert m.run(100) == ["migration"], "it still lowers"


def test_look_before_the_interval_is_over_is_ignored() -> None:
    g = Governor(LEVELS, 0.01, CPUS, Pace(look=5))
    for now in range(4):
        assert g.look(float(now), {"full": 1e6 * now}) is None
    assert g.share == 0.0


def test_sampled_windows_cost_is_scaled_to_all_windows() -> None:
    """`sampled` has the hooks of `full` and does a part of its work."""
    levels = ("full", "sampled", "owner")
    governor, spent, seen = Governor(levels, 0.01, 1), 0.0, []
    for now in range(400):
        # 40 ms a second for all windows, a tenth of that when sampled; a tenth of the load from
        # 200 s on
        at_all, load = governor.level == "full", 0.04 if now < 200 else 0.004
        spent += load if at_all else load / 10
        decision = governor.look(
            float(now), {"full": 0.0, "sampled": spent, "owner": 0.0}, 1.0 if at_all else 10.0
        )
        seen += [(now, decision.level)] if decision else []
    assert [level for _, level in seen] == ["sampled", "full"], seen
    assert seen[1][0] >= 200
    assert (governor.lowered, governor.raised) == (1, 1)
