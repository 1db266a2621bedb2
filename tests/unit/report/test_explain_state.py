"""What `rmapd explain` prints of a finding of the state audit."""

from __future__ import annotations

from tracer.report.explain_state import state_sections
from tracer.results.evidence import Evidence, MapleNode, WrongState

ROOT = MapleNode("0x100", "maple_arange_64", "0x0", "0xff", "0x1", ["0x21c"], ["0xff"], ["0x9"], 0)
LEAF = MapleNode(
    "0x200", "maple_leaf_64", "0x0", "0xff", "0x106", ["0x0", "0x7"], ["0x8"], bad=True
)
WRONG = WrongState(
    ["the largest gap is 0x9"], ["NODE_GAP_OF_PARENT"], "0x200", "0x8", "0x9", "0x0", "0xff"
)


def test_finding_without_wrong_state_has_no_section() -> None:
    assert list(state_sections(Evidence())) == []


def test_path_has_each_slot_with_pivot_and_gap_and_marks_the_bad_node() -> None:
    evidence = Evidence(wrong=[WRONG], path=[ROOT, LEAF], confirmed="seen three times")
    wrong, tree = state_sections(evidence)
    assert "expected 0x8, found 0x9" in wrong.lines[2]
    assert wrong.lines[-1] == "Confirmed: seen three times."
    lines = list(tree.lines)[2:]
    assert "node 0x100 depth 0 type maple_arange_64 parent 0x1 gap_slot 0" in lines[0]
    assert lines[1].split() == ["[0]", "slot", "0x21c", "pivot", "0xff", "gap", "0x9"]
    assert [line.startswith(">>") for line in lines] == [False, False, True, True, True]
    assert "pivot -" in lines[4], "the last pivot of a node is implied"


def test_page_with_another_index_is_named_as_a_folio() -> None:
    wrong = WrongState(
        ["index 0x5"], ["PAGE_INDEX"], "0x300", "0x4", "0x5", "0x1000", "0x1fff", vma="0x700"
    )
    (section,) = state_sections(Evidence(wrong=[wrong], confirmed="seen three times"))
    assert next(iter(section.lines)) == "VMA 0x700, folio 0x300, addresses 0x1000-0x1fff:"
