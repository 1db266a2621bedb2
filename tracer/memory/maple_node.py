"""One node of an mm's maple tree, decoded from its 256 bytes, in the terms of mt_dump().

The layout is that of 64-bit kernels: struct maple_range_64 and struct maple_arange_64 in
include/linux/maple_tree.h. An mm's tree has the flag MT_FLAGS_ALLOC_RANGE, so its inner nodes are
maple_arange_64 and its leaves maple_leaf_64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAF, ARANGE = 1, 3  # enum maple_type: maple_leaf_64, maple_arange_64
_NAMES = {0: "maple_dense", LEAF: "maple_leaf_64", 2: "maple_range_64", ARANGE: "maple_arange_64"}
_LEAF_SLOTS, _ARANGE_SLOTS = 16, 10  # MAPLE_RANGE64_SLOTS, MAPLE_ARANGE64_SLOTS
_GAP_AT, _ARANGE_META, _LEAF_META = 20, 30, 31  # in words of 8 bytes
_DEEPEST = 31  # MAPLE_HEIGHT_MAX


def node_address(entry: int) -> int:
    """Return the address of the node that a slot or a root leads to (mte_to_node())."""
    return entry & ~255


def node_type(entry: int) -> int:
    """Return its type (mte_node_type())."""
    return entry >> 3 & 15


@dataclass(frozen=True)
class MapleNode:
    """A node with the range [low, high] that its parent gives it.

    slots, pivots, gaps: those in use; a leaf has no gaps. The last pivot is implied where it is 0.
    parent: the first word of the node. gap_slot: where the metadata says that the largest gap is.
    """

    at: int
    type: int
    low: int
    high: int
    parent: int
    slots: tuple[int, ...]
    pivots: tuple[int, ...]
    gaps: tuple[int, ...]
    gap_slot: int | None

    @classmethod
    def decode(cls, entry: int, low: int, high: int, words: Sequence[int]) -> MapleNode:
        """Decode the 32 words of the node that `entry` leads to."""
        leaf = node_type(entry) == LEAF
        count = _LEAF_SLOTS if leaf else _ARANGE_SLOTS
        pivots, slots = words[1:count], words[count : 2 * count]
        end, gap_slot = _end(leaf, words, high)
        return cls(
            node_address(entry),
            node_type(entry),
            low,
            high,
            words[0],
            tuple(slots[: end + 1]),
            tuple(pivots[: end + 1]),
            () if leaf else tuple(words[_GAP_AT : _GAP_AT + end + 1]),
            gap_slot,
        )

    def ranges(self) -> list[tuple[int, int, int]]:
        """Return (first address, last address, slot) of each slot in use."""
        out, first = [], self.low
        for n, slot in enumerate(self.slots):
            last = self.pivots[n] if n < len(self.pivots) and self.pivots[n] else self.high
            out.append((first, last, slot))
            first = last + 1
        return out

    def as_json(self) -> dict[str, Any]:
        """Return the node with the keys of a report; all numbers are hexadecimal texts."""
        found: dict[str, Any] = {
            "node": hex(self.at),
            "type": _NAMES.get(self.type, f"type {self.type}"),
            "min": hex(self.low),
            "max": hex(self.high),
            "parent": hex(self.parent),
            "slots": [hex(slot) for slot in self.slots],
            "pivots": [hex(pivot) for pivot in self.pivots],
        }
        if self.type != LEAF:
            found |= {"gaps": [hex(gap) for gap in self.gaps], "gap_slot": self.gap_slot}
        return found


def _end(leaf: bool, words: Sequence[int], high: int) -> tuple[int, int | None]:
    """Return the last slot in use (ma_data_end()), and the slot of the largest gap."""
    if not leaf:
        meta = words[_ARANGE_META]
        return min(meta & 255, _ARANGE_SLOTS - 1), meta >> 8 & 255
    last = words[_LEAF_SLOTS - 1]
    if not last:
        return min(words[_LEAF_META] & 255, _LEAF_SLOTS - 1), None
    return (_LEAF_SLOTS - 2 if last == high else _LEAF_SLOTS - 1), None


def path_to(
    address: int,
    root: int,
    read: Callable[[Sequence[int]], Mapping[int, Sequence[int]]],
    last_address: int,
) -> list[MapleNode]:
    """Return the nodes from the root to the leaf that has an address.

    root: ma_root. read: returns the words at addresses, of those that can be read. The path ends
    where it leads nowhere.
    """
    path: list[MapleNode] = []
    entry, low, high = root & ~2, 0, last_address
    while entry and len(path) < _DEEPEST:
        words = read([node_address(entry)]).get(node_address(entry))
        if words is None:
            break
        path.append(MapleNode.decode(entry, low, high, words))
        if path[-1].type != ARANGE:
            break
        below = [r for r in path[-1].ranges() if r[0] <= address <= r[1]]
        if not below:
            break
        low, high, entry = below[0]
    return path
