"""The governor over machines that cost what the test says: it lowers, raises, and does not flap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from tracer.daemon.governor import Governor, Pace

LEVELS = ("full", "owner", "migration")
CPUS = 4


class Machine:
    """What each group costs, as a share of the machine, at a load that the test sets; only what is attached costs."""

    def __init__(self, governor: Governor, **groups: float) -> None:
        self.governor, self.groups, self.now, self.load = governor, groups, 0.0, 1.0
        self.spent = dict.fromkeys(groups, 0.0)
        self.decisions: list[tuple[float, str]] = []
        self.refuse = False

    def run(self, seconds: float, load: Callable[[float], float] | None = None) -> list[str]:
        """A look every second; the levels that it goes through meanwhile."""
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


def test_within_the_budget_nothing_changes() -> None:
    assert machine(full=0.005, owner=0.003, migration=0.001).run(10_000) == []


def test_over_the_budget_for_a_while_lowers_one_level() -> None:
    m = machine()
    assert m.run(9) == []
    assert m.run(3600) == ["owner"]
    assert m.decisions[0][0] <= 14


def test_a_short_burst_is_let_through() -> None:
    m = machine()
    assert m.run(3600, lambda now: 1.0 if now % 60 < 8 else 0.1) == []


def test_what_is_still_too_much_goes_further() -> None:
    m = machine(full=0.02, owner=0.02, migration=0.003)
    assert m.run(120) == ["owner", "migration"]


def test_the_lowest_level_stays_whatever_it_costs() -> None:
    m = machine(full=0.02, owner=0.02, migration=0.05)
    assert m.run(10_000) == ["owner", "migration"]


def test_never_below_what_is_offered() -> None:
    assert machine(("full",)).run(10_000) == []
    assert machine(("full", "owner"), full=0.02, owner=0.02).run(10_000) == ["owner"]


def test_it_comes_back_when_the_load_has_gone() -> None:
    m = machine()
    m.run(100)
    m.load = 0.1
    assert m.run(20) == [], "not at once"
    assert m.run(200) == ["full"]
    assert (m.governor.lowered, m.governor.raised) == (1, 1)


def test_the_same_load_does_not_raise_it() -> None:
    """What is left tells what the whole would cost: no trial is needed."""
    m = machine()
    assert m.run(40_000) == ["owner"]


def test_between_the_two_thresholds_it_stays_where_it_is() -> None:
    lowered, full = machine(), machine()
    lowered.run(100)
    lowered.load = full.load = (
        0.36  # full would cost 0.9 % of 1 %: below the budget, and not by enough to go up
    )
    assert lowered.run(10_000) == []
    assert full.run(10_000) == []


def test_where_nothing_is_left_to_tell_it_tries_more_and_more_rarely() -> None:
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
    assert m.run(200)[-1:] == ["full"], "a raise that was right for a while makes it patient again"


def test_a_raise_that_is_refused_is_not_asked_for_again() -> None:
    m = machine()
    m.run(100)
    m.load, m.refuse = 0.0, True
    assert m.run(10_000) == []
    assert m.governor.levels == ["owner", "migration"]
    assert m.governor.level == "owner"
    m.load, m.refuse = 10.0, False
    assert m.run(100) == ["migration"], "it still lowers"


def test_looks_that_come_too_soon_change_nothing() -> None:
    g = Governor(LEVELS, 0.01, CPUS, Pace(look=5))
    for now in range(4):
        assert g.look(float(now), {"full": 1e6 * now}) is None
    assert g.share == 0.0


def test_where_windows_are_sampled_what_all_of_them_would_cost_is_guessed() -> None:
    """`sampled` has no hooks of its own: it does a part of what `full` does with the same."""
    levels = ("full", "sampled", "owner")
    governor, spent, seen = Governor(levels, 0.01, 1), 0.0, []
    for now in range(400):
        # 40 ms a second for all windows, a tenth of them booked at the level below; from 200 s on there is a tenth of the load
        at_all, load = governor.level == "full", 0.04 if now < 200 else 0.004
        spent += load if at_all else load / 10
        decision = governor.look(
            float(now), {"full": 0.0, "sampled": spent, "owner": 0.0}, 1.0 if at_all else 10.0
        )
        seen += [(now, decision.level)] if decision else []
    assert [level for _, level in seen] == ["sampled", "full"], seen
    assert seen[1][0] >= 200
    assert (governor.lowered, governor.raised) == (1, 1)
