"""When a doubt is cleared, proven, gone or unverifiable."""

from __future__ import annotations

import pytest

from tests.support.model_trees import MM, ScriptedTrees, doubt, look, scripted
from tracer.checking.open_doubts import ATTEMPTS, LOOKS, MOST_OPEN, DecidedDoubt, OpenDoubts
from tracer.invariants.verdict import Verdict
from tracer.memory.vma_trees import LAST_ADDRESS, Look

INVARIANT_OF = {
    "NODE_GAP": "V4",
    "NODE_UNREADABLE": "V4",
    "NODE_PARENT": "V4",
    "VMA_MM": "V3",
    "MAP_COUNT": "V3",
}
GAP = doubt("NODE_GAP")
WRONG = look(GAP)


class Rig:
    """Open doubts over scripted looks, with a clock that runs to whatever is due."""

    def __init__(self, trees: ScriptedTrees, refuses: str = "") -> None:
        self.now, self.counting, self.refuses = 0, list[bool](), refuses
        self.trees = trees
        self.doubts = OpenDoubts(trees, self.count, INVARIANT_OF, lambda: self.now)

    def count(self, on: bool) -> str:
        self.counting.append(on)
        return self.refuses if on else ""

    def decide(self) -> list[DecidedDoubt]:
        """Work until nothing is open any more."""
        decided = list[DecidedDoubt]()
        while (due := self.doubts.due_ns()) is not None:
            self.now = max(self.now, due)
            decided += self.doubts.work()
        return decided


def one_decision(
    *looks: object, refuses: str = "", then: object = None
) -> tuple[Rig, DecidedDoubt]:
    trees = scripted(*looks)  # type: ignore[arg-type]
    if then is not None:
        trees.then = then  # type: ignore[assignment]
    rig = Rig(trees, refuses)
    assert rig.doubts.add(MM, [GAP]) == []
    (decided,) = rig.decide()
    return rig, decided


def test_narrow_look_that_shows_nothing_wrong_clears() -> None:
    rig, decided = one_decision(look())
    assert (decided.verdict, rig.doubts.ended["cleared"]) == (Verdict.HOLDS, 1)
    assert rig.trees.asked == [(MM, GAP.low - 1, GAP.low, 0)], "the path to the node, and no more"


def test_doubt_about_a_vma_is_looked_at_in_its_whole_range() -> None:
    rig = Rig(scripted())
    wrong = doubt("VMA_MM", vma=1)
    rig.doubts.add(MM, [wrong])
    rig.decide()
    assert rig.trees.asked == [(MM, wrong.low, wrong.high, 0)]


def test_many_doubts_leave_other_work_its_turn() -> None:
    trees = ScriptedTrees()
    rig = Rig(trees)
    trees.before = lambda: setattr(rig, "now", rig.now + 300_000)
    rig.doubts.add(MM, [doubt("NODE_GAP", low=n << 12, high=n << 12) for n in range(1, 11)])
    turns = []
    while rig.doubts.open:
        turns.append(len(rig.doubts.work()))
    assert turns == [4, 4, 2], "a millisecond each"
    assert len(trees.asked) == 10, "none twice"


def test_disturbed_look_that_shows_nothing_wrong_clears_too() -> None:
    assert one_decision(look(undisturbed=False))[1].verdict is Verdict.HOLDS


def test_three_undisturbed_looks_that_show_the_same_are_proof() -> None:
    rig, decided = one_decision(then=WRONG)
    assert decided.verdict is Verdict.VIOLATED
    assert (len(rig.trees.asked), decided.checks) == (LOOKS, {"V4": 1})
    assert rig.now >= 55_000_000, "5 and 50 ms between them"


@pytest.mark.parametrize(
    "harmless",
    [
        look(GAP, undisturbed=False),
        look(doubt("NODE_GAP", raced=True)),
        look(GAP, complete=False),
        look(complete=False),
    ],
)
def test_look_that_proves_nothing_does_not_count(harmless: Look) -> None:
    rig, decided = one_decision(WRONG, harmless, harmless, WRONG, harmless, WRONG)
    assert decided.verdict is Verdict.VIOLATED
    assert len(rig.trees.asked) == 6


def test_fault_that_changes_from_look_to_look_is_not_proven() -> None:
    other = look(doubt("NODE_GAP", got=2))
    assert one_decision(WRONG, WRONG, other, other, look())[1].verdict is Verdict.HOLDS
    changing = [look(doubt("NODE_GAP", got=n)) for n in range(ATTEMPTS)]
    assert one_decision(*changing)[1].verdict is Verdict.UNVERIFIABLE


def test_only_what_every_look_showed_is_evidence() -> None:
    also = look(GAP, doubt("NODE_PARENT"))
    assert one_decision(also, WRONG, also)[1].doubts == (GAP,)


def test_doubt_goes_with_its_mm() -> None:
    rig, decided = one_decision(WRONG, WRONG, look(GAP, alive=False))
    assert (decided.verdict, rig.doubts.ended["mm_gone"]) == (None, 1)


def test_writer_at_every_look_makes_it_unverifiable() -> None:
    rig, decided = one_decision(then=look(GAP, undisturbed=False))
    assert (decided.verdict, len(rig.trees.asked)) == (Verdict.UNVERIFIABLE, ATTEMPTS)
    assert "writer" in decided.reason
    assert rig.now > 5 * 10**9, "it had seconds to go"


def test_map_count_is_cleared_only_without_a_writer() -> None:
    wrong = doubt("MAP_COUNT", low=0, high=LAST_ADDRESS)
    trees = scripted(look(undisturbed=False), look(GAP), look(undisturbed=False))
    rig = Rig(trees)
    rig.doubts.add(MM, [wrong])
    (decided,) = rig.decide()
    assert decided.verdict is Verdict.HOLDS
    assert [asked[1:3] for asked in trees.asked] == [(0, LAST_ADDRESS)] * 2


def test_map_count_is_not_cleared_where_vmas_may_be_hidden() -> None:
    """A node that was passed over, or so many doubts that that of map_count may be missing."""
    rig = Rig(ScriptedTrees(then=look(whole=False)))
    rig.doubts.add(MM, [doubt("MAP_COUNT", low=0, high=LAST_ADDRESS)])
    (decided,) = rig.decide()
    assert decided.verdict is Verdict.UNVERIFIABLE
    assert decided.reason == "a part of the tree could not be looked at"


def test_kernel_that_does_not_count_writers_has_them_counted_first() -> None:
    uncounted = look(GAP, counts_writers=False)
    rig, decided = one_decision(then=uncounted)
    assert decided.verdict is Verdict.VIOLATED
    assert len(rig.trees.asked) == LOOKS + 1, "the first look was before the count"
    assert rig.counting == [True, False]


def test_writers_are_counted_on_for_the_doubts_that_follow() -> None:
    """Each switch changes code on all CPUs, so it is not switched off between two doubts."""
    uncounted = look(GAP, counts_writers=False)
    trees = scripted()
    trees.then = uncounted
    rig = Rig(trees)
    for _ in range(5):
        rig.doubts.add(MM, [GAP])
        while rig.doubts.open:
            rig.now = max(rig.now, rig.doubts.due_ns() or 0)
            rig.doubts.work()
    assert rig.counting == [True]
    assert len(trees.asked) == 5 * LOOKS + 1, "the later doubts need no look before the count"
    last = rig.now
    assert rig.decide() == []
    assert rig.counting == [True, False]
    assert rig.now == last + 10_000_000_000


@pytest.mark.parametrize(("problem", "renewals"), [("NODE_UNREADABLE", LOOKS), ("NODE_GAP", 0)])
def test_end_of_ram_is_read_anew_before_an_address_is_called_unreadable(
    problem: str, renewals: int
) -> None:
    wrong = doubt(problem)
    trees = scripted()
    trees.then = look(wrong)
    rig = Rig(trees)
    rig.doubts.add(MM, [wrong])
    (decided,) = rig.decide()
    assert decided.verdict is Verdict.VIOLATED
    assert trees.renewed == renewals


def test_kernel_that_refuses_to_count_writers_has_no_proof() -> None:
    rig, decided = one_decision(then=look(GAP, counts_writers=False), refuses="EPERM")
    assert decided.verdict is Verdict.UNVERIFIABLE
    assert "EPERM" in decided.reason
    assert rig.counting == [True]


def test_doubts_of_one_range_are_decided_together() -> None:
    rig = Rig(scripted())
    mine, yours = doubt("VMA_MM", vma=1), doubt("NODE_GAP", low=0x9000, high=0x9FFF)
    rig.doubts.add(MM, [GAP, mine, yours])
    assert [one.checks for one in rig.decide()] == [{"V4": 1, "V3": 1}, {"V4": 1}]


def test_doubts_beyond_the_bound_are_unverifiable_at_once() -> None:
    rig = Rig(scripted())
    many = [doubt("NODE_GAP", low=n << 12, high=(n << 12) + 4095) for n in range(MOST_OPEN + 3)]
    refused = rig.doubts.add(MM, many)
    assert [one.verdict for one in refused] == [Verdict.UNVERIFIABLE] * 3
    assert len(rig.decide()) == MOST_OPEN


def test_what_is_open_at_the_end_is_unverifiable() -> None:
    rig = Rig(scripted())
    rig.doubts.add(MM, [GAP])
    (left,) = rig.doubts.finish()
    assert (left.verdict, rig.doubts.open) == (Verdict.UNVERIFIABLE, [])
