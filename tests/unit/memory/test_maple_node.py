"""Nodes of a maple tree, decoded; and the path from the root to an address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracer.memory.maple_node import ARANGE, LEAF, MapleNode, node_address, node_type, path_to

LAST = (1 << 64) - 1
ROOT, FIRST, SECOND = 0x1000, 0x2000, 0x3000


def entry(at: int, kind: int) -> int:
    return at | kind << 3 | 4


def words(parent: int, numbers: Mapping[int, int]) -> list[int]:
    out = [0] * 32
    out[0] = parent
    for at, number in numbers.items():
        out[at] = number
    return out


MEMORY = {
    # two leaves: below and above 0x8000
    ROOT: words(
        1, {1: 0x7FFF, 10: entry(FIRST, LEAF), 11: entry(SECOND, LEAF), 20: 0x3000, 21: 9, 30: 1}
    ),
    FIRST: words(ROOT | 6, {1: 0x2FFF, 2: 0x7FFF, 17: 0xAA, 31: 1}),
    SECOND: words(ROOT | 8 | 6, {1: 0x8FFF, 16: 0xBB, 31: 1}),
}


def read(addresses: Sequence[int]) -> dict[int, list[int]]:
    return {at: MEMORY[at] for at in addresses if at in MEMORY}


def test_entry_gives_address_and_type() -> None:
    assert (node_address(entry(ROOT, ARANGE)), node_type(entry(ROOT, ARANGE))) == (ROOT, ARANGE)


def test_path_leads_to_the_leaf_that_has_the_address() -> None:
    root = entry(ROOT, ARANGE) | 2
    for address, leaf in ((0, FIRST), (0x7FFF, FIRST), (0x8000, SECOND), (LAST, SECOND)):
        assert [node.at for node in path_to(address, root, read, LAST)] == [ROOT, leaf]


def test_path_ends_where_a_node_cannot_be_read() -> None:
    gone = entry(0x9000, ARANGE) | 2
    assert path_to(0, gone, read, LAST) == []


def test_leaf_has_the_ranges_of_its_slots() -> None:
    leaf = MapleNode.decode(entry(FIRST, LEAF), 0, 0x7FFF, MEMORY[FIRST])
    assert leaf.ranges() == [(0, 0x2FFF, 0), (0x3000, 0x7FFF, 0xAA)]
    assert (leaf.gaps, leaf.gap_slot) == ((), None)


def test_full_leaf_ends_at_its_last_slot() -> None:
    full = words(ROOT | 6, {n: n << 12 for n in range(1, 16)} | {n: 1 for n in range(16, 32)})
    assert len(MapleNode.decode(entry(FIRST, LEAF), 0, LAST, full).slots) == 16
    assert len(MapleNode.decode(entry(FIRST, LEAF), 0, 15 << 12, full).slots) == 15


def test_report_names_types_as_the_kernel_does() -> None:
    node = MapleNode.decode(entry(ROOT, ARANGE), 0, LAST, MEMORY[ROOT]).as_json()
    assert node["type"] == "maple_arange_64"
    assert (node["gaps"], node["gap_slot"]) == (["0x3000", "0x9"], 0)
    assert "gaps" not in MapleNode.decode(entry(FIRST, LEAF), 0, 9, MEMORY[FIRST]).as_json()
