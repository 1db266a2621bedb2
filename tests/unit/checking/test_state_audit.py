"""The order, the pace and the counts of the state audit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from tests.support.model_trees import MM, ScriptedTrees, doubt, look, scripted
from tracer.checking.findings import Draft, Explanation
from tracer.checking.open_doubts import DecidedDoubt
from tracer.checking.state_audit import SLICE_VMAS, StateAudit
from tracer.checking.verdicts import Verdicts
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.memory.vma_trees import Doubt
from tracer.tables.mm import Mm

SECOND = 10**9
LOOK_NS = 500_000


class Rig:
    """An audit over scripted looks, each of which takes CPU time."""

    def __init__(self, trees: ScriptedTrees, budget: float = 0.001) -> None:
        self.now, self.cpu, self.trees = 0, 0, trees
        self.reading_ns = 0  # what reading the clock of CPU time takes
        trees.before = self.spend
        self.verdicts = Verdicts(Tally(), lambda: 0.0)
        self.audit = StateAudit(
            trees,
            discover(),
            self.verdicts,
            self.draft,
            lambda _on: "",
            lambda _owned: None,
            budget,
            lambda: self.now,
            self.read_cpu,
        )

    def spend(self) -> None:
        self.now += LOOK_NS
        self.cpu += LOOK_NS

    def draft(self, decided: DecidedDoubt, name: str, doubts: Sequence[Doubt]) -> Draft:
        shape = "+".join(doubts[0].problems)
        return Draft(
            Finding(name, Verdict.VIOLATED, "tree", shape, ""), lambda: Explanation("wrong")
        )

    def read_cpu(self) -> int:
        self.cpu += self.reading_ns
        return self.cpu

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)

    def run(self, seconds: float) -> None:
        """Let the audit work whenever it is due."""
        end = self.now + int(seconds * 1e9)
        while (due := self.audit.due_ns()) is not None and due <= end:
            self.now = max(self.now, due)
            self.audit.work()
        self.now = max(self.now, end)

    def checks(self, name: str) -> dict[str, int]:
        counted = self.verdicts.tally.checks
        return {v.value: counted[name, v] for v in Verdict if counted[name, v]}


def mms(count: int, changed: int = 1) -> list[Mm]:
    return [Mm(0x1000 * (n + 1), 0, n + 1, "task", n + 1, changed) for n in range(count)]


def test_each_thing_looked_at_is_one_check() -> None:
    rig = Rig(scripted())
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V4") == {"holds": 3}
    assert rig.checks("V3") == {"holds": 11}, "ten VMAs and the map_count"
    assert rig.checks("R2") == {"holds": 5}


def test_whole_pass_reports_how_many_mms_are_done() -> None:
    """An mm of several slices is done with its last one."""
    slices = deque([look(vmas=6, high=0xFFFF), look(vmas=4)])
    rig = Rig(ScriptedTrees(slices, tasks=mms(3)))
    listed, done = list[int](), list[int]()

    def begin(total: int) -> Callable[[int], None]:
        listed.append(total)
        return done.append

    rig.audit.whole_pass(rig.sleep, listed=begin)
    assert (listed, done) == ([3], [0, 1, 2, 3])


def test_budget_bounds_the_cpu_time() -> None:
    rig = Rig(ScriptedTrees(tasks=mms(500)))
    rig.run(100)
    assert 0.08 < rig.cpu / SECOND < 0.12, "0.1 % of 100 s"


def test_calls_that_find_nothing_due_put_no_slice_off() -> None:
    """The loop calls work() after each burst of events, and reading a clock takes time, too."""
    rig = Rig(ScriptedTrees(tasks=mms(500)))
    rig.reading_ns = 2_000
    while rig.now < 100 * SECOND:
        rig.now += 2_000_000
        rig.audit.work()
    assert len(rig.trees.asked) > 100


def test_without_a_budget_it_works_only_when_asked() -> None:
    rig = Rig(scripted(), budget=0)
    assert rig.audit.due_ns() is None
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V4")


def test_small_machine_is_not_looked_at_more_than_once_a_second() -> None:
    rig = Rig(scripted(), budget=1.0)
    rig.run(10)
    assert len(rig.trees.asked) <= 11


def test_mm_with_many_vmas_is_looked_at_in_slices() -> None:
    rig = Rig(scripted(look(vmas=6, high=0xFFFF), look(vmas=4)))
    rig.audit.whole_pass(rig.sleep)
    assert [(low, most) for _, low, _, most in rig.trees.asked] == [
        (0, SLICE_VMAS),
        (0x10000, SLICE_VMAS),
    ]
    assert rig.checks("V3") == {"holds": 11}
    assert rig.audit.progress().counted["mms"] == 1


def test_map_count_over_slices_counts_only_if_nothing_changed_between_them() -> None:
    rig = Rig(scripted(look(vmas=6, high=0xFFFF, lock_seq=1), look(vmas=5, lock_seq=3)))
    rig.audit.whole_pass(rig.sleep)
    assert rig.audit.progress().counted["map_counts_disturbed"] == 1
    assert rig.checks("V3") == {"holds": 11}, "the VMAs alone"


def test_map_count_that_changes_between_slices_is_not_compared() -> None:
    """Before 6.4 nothing else shows a writer."""
    first = look(vmas=6, high=0xFFFF, map_count=10, counts_writers=False)
    rig = Rig(scripted(first, look(vmas=5, map_count=12, counts_writers=False)))
    rig.audit.whole_pass(rig.sleep)
    assert rig.audit.progress().counted["map_counts_disturbed"] == 1
    assert not rig.audit.progress().doubts


def test_map_count_of_vmas_that_may_be_hidden_is_no_check() -> None:
    rig = Rig(scripted(look(vmas=9, whole=False)))
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V3") == {"holds": 9}, "the VMAs alone"
    assert rig.audit.progress().counted["map_counts_disturbed"] == 1


def test_next_slice_waits_for_what_doubts_took() -> None:
    """Each slice meets a change half-way, and each narrow look a writer."""
    wrong = look(doubt("NODE_GAP"), undisturbed=False)
    rig = Rig(ScriptedTrees(tasks=mms(500), then=wrong))
    rig.run(300)
    assert rig.audit.progress().doubts["unverifiable"] > 1
    assert 0.15 < rig.cpu / SECOND < 0.45, "0.1 % of 300 s"


def test_wrong_map_count_over_slices_is_doubted_and_proven() -> None:
    wrong = look(doubt("MAP_COUNT", high=0))
    rig = Rig(scripted(look(vmas=6, high=0xFFFF), look(vmas=5), wrong, wrong, wrong))
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V3")["violated"] == 1
    (violation,) = rig.verdicts.tally.violations.values()
    assert violation.first.shape == "MAP_COUNT"


def test_cleared_doubt_is_a_check_that_holds() -> None:
    rig = Rig(scripted(look(doubt("NODE_GAP"), doubt("VMA_MM", vma=1))))
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V4") == {"holds": 3}
    assert rig.checks("V3") == {"holds": 11}
    assert rig.audit.progress().doubts == {"cleared": 1}


def test_proven_doubt_is_a_violation_of_each_rule_that_it_is_about() -> None:
    wrong = look(doubt("NODE_GAP"), doubt("VMA_MM", vma=1))
    rig = Rig(ScriptedTrees(then=wrong))
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V4") == {"holds": 2, "violated": 1}
    assert rig.checks("V3") == {"holds": 10, "violated": 1}
    assert rig.checks("R2") == {"holds": 5}


def test_look_with_more_doubts_than_are_kept_is_repeated() -> None:
    overflown = look(doubt("NODE_GAP"), nodes=300, doubted=150)
    rig = Rig(scripted(overflown, overflown))
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V4") == {"holds": 3}
    assert rig.audit.progress().counted["repeated"] == 2


def test_doubts_that_are_not_kept_each_time_are_unverifiable() -> None:
    overflown = look(doubt("NODE_GAP"), nodes=300, doubted=150)
    rig = Rig(scripted(*[overflown] * 17))
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V4") == {"holds": 151, "unverifiable": 149}


def test_mm_that_exits_during_a_look_is_no_check() -> None:
    rig = Rig(scripted(look(doubt("NODE_GAP"), alive=False)))
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V4") == {}
    assert rig.audit.progress().counted["mms_gone"] == 1


def test_look_that_was_led_astray_is_no_check() -> None:
    rig = Rig(scripted(look(complete=False)))
    rig.audit.whole_pass(rig.sleep)
    assert rig.checks("V4") == {}
    assert rig.audit.progress().counted["astray"] == 1


def test_mms_that_changed_come_first_and_no_mm_is_left_out() -> None:
    trees = ScriptedTrees(tasks=mms(6))
    rig = Rig(trees)
    rig.audit.whole_pass(rig.sleep)
    trees.tasks = [*mms(4), *mms(6, changed=2)[4:]]
    trees.asked.clear()
    rig.audit.whole_pass(rig.sleep)
    order = [mm.tgid for mm, *_ in trees.asked]
    assert (set(order[:2]), sorted(order)) == ({5, 6}, [1, 2, 3, 4, 5, 6])


def test_age_is_that_of_the_mm_that_waits_the_longest() -> None:
    rig = Rig(ScriptedTrees(tasks=mms(2)))
    rig.audit.whole_pass(rig.sleep)
    rig.now += 5 * SECOND
    assert 5 <= rig.audit.progress().oldest_seconds < 5.1


def test_pass_over_one_process_asks_for_its_mm_alone() -> None:
    trees = ScriptedTrees(tasks=mms(3))
    rig = Rig(trees)
    rig.audit.whole_pass(rig.sleep, pid=2)
    assert [mm.tgid for mm, *_ in trees.asked] == [2]
    trees.asked.clear()
    rig.audit.whole_pass(rig.sleep, pid=9)
    assert trees.asked == []


def test_doubt_that_stays_open_at_the_end_of_a_pass_is_unverifiable() -> None:
    rig = Rig(ScriptedTrees(then=look(doubt("NODE_GAP"), undisturbed=False)))
    rig.audit.whole_pass(rig.sleep, seconds=1.0)
    assert rig.checks("V4") == {"holds": 2, "unverifiable": 1}
    assert MM in [mm for mm, *_ in rig.trees.asked]


def test_pass_that_was_asked_for_ends_soon_and_looks_at_every_mm_from_then_on() -> None:
    rig = Rig(ScriptedTrees(tasks=mms(500)))
    rig.run(1)
    looked = len(rig.trees.asked)
    assert looked < 20, "0.1 % of a second"
    number = rig.audit.ask()
    assert not rig.audit.has_ended(number)
    began, spent = rig.now, rig.cpu
    rig.run(2)
    assert rig.audit.has_ended(number)
    asked = [mm.mm for mm, *_ in rig.trees.asked[looked : looked + 500]]
    assert len(set(asked)) == 500, "each once, also those that the pass before had looked at"
    assert (rig.cpu - spent) / (rig.now - began) < 0.26, "a quarter of a CPU"
    before = rig.cpu
    rig.run(10)
    assert (rig.cpu - before) / (10 * SECOND) < 0.002, "and then the budget again"


def test_pass_that_is_asked_for_meanwhile_begins_after_the_one_that_runs() -> None:
    rig = Rig(ScriptedTrees(tasks=mms(100)))
    first = rig.audit.ask()
    rig.audit.work()
    second = rig.audit.ask()
    assert second == first + 1
    while not rig.audit.has_ended(first):
        rig.run(0.01)
    assert not rig.audit.has_ended(second)
    rig.run(1)
    assert rig.audit.has_ended(second)
    assert len(rig.trees.asked) >= 200


def test_requests_before_a_pass_has_begun_share_it() -> None:
    rig = Rig(ScriptedTrees(tasks=mms(3)))
    assert rig.audit.ask() == rig.audit.ask()


def test_audit_of_no_mm_ends_the_pass_that_was_asked_for() -> None:
    rig = Rig(ScriptedTrees(tasks=[]))
    number = rig.audit.ask()
    rig.run(0.1)
    assert rig.audit.has_ended(number)
