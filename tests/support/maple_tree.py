"""Maple trees of an mm as bytes: building valid ones, and checking them in Python.

check() makes the checks of lib/maple_tree.c (mt_validate(), mas_validate_gaps()) over bytes. It is
written to be read, and shares no code with probes/audit.bpf.c: the tests compare the two.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

T = TypeVar("T")
ALL = (1 << 64) - 1
LEAF, INNER = 1, 3  # enum maple_type: maple_leaf_64, maple_arange_64
NO_GAP = 15  # MAPLE_ARANGE64_META_MAX
LEAF_SLOTS, SLOTS = 16, 10
PIVOT, LEAF_SLOT, LEAF_META = 1, 16, 31  # indexes of words in a node
SLOT, GAP, META = 10, 20, 30
WORDS = struct.Struct("<32Q")


@dataclass(frozen=True)
class Range:
    """A VMA, with its first and last address; vma 0: nothing is mapped there."""

    vma: int
    first: int
    last: int


@dataclass
class Node:
    """A node under construction."""

    at: int
    kind: int
    first: int
    last: int
    gap: int
    words: list[int]

    @property
    def entry(self) -> int:
        return self.at | self.kind << 3 | 4


@dataclass(frozen=True)
class Tree:
    """A tree in memory: what is in struct maple_tree, and the bytes of each node."""

    root: int
    flags: int
    nodes: dict[int, bytes]


def with_gaps(ranges: Sequence[Range]) -> Iterator[Range]:
    """Yield the ranges, and the empty ones between them."""
    edge = 0
    for one in ranges:
        if one.first > edge:
            yield Range(0, edge, one.first - 1)
        yield one
        edge = one.last + 1
    if edge <= ALL:
        yield Range(0, edge, ALL)


def build(ranges: Sequence[Range], tree: int, take: Callable[[int], int], random: Random) -> Tree:
    """Build a valid tree of a random shape.

    tree: address of struct maple_tree. take: returns the address of new memory of this size.
    """
    level = [_leaf(part, take(256), random) for part in _cut(list(with_gaps(ranges)), 16, random)]
    height, done = 1, list(level)
    while len(level) > 1:
        level = [_inner(part, take(256), random) for part in _cut(level, SLOTS, random)]
        done += level
        height += 1
    top = level[0]
    top.words[0] = tree | 1
    return Tree(top.entry | 2, 3 | height << 2, {one.at: WORDS.pack(*one.words) for one in done})


def _cut(items: list[T], most: int, random: Random) -> Iterator[list[T]]:
    """Cut a level into nodes; each has two entries at least, so that the tree ends."""
    at = 0
    while at < len(items):
        left = len(items) - at
        count = left if left <= most and random.random() < 0.5 else random.randint(2, most)
        if left - count == 1:
            count += 1 if count < most else -1
        yield items[at : at + count]
        at += count


def _leaf(part: Sequence[Range], at: int, random: Random) -> Node:
    words = [0] * 32
    for i, one in enumerate(part):
        words[LEAF_SLOT + i] = one.vma
        if i < LEAF_SLOTS - 1:
            words[PIVOT + i] = one.last
    if len(part) < LEAF_SLOTS:
        words[LEAF_META] = len(part) - 1
        if part[-1].last == ALL or random.random() < 0.3:
            words[PIVOT + len(part) - 1] = 0  # the node's maximum stands for it
    gap = max((one.last - one.first + 1 for one in part if not one.vma), default=0)
    return Node(at, LEAF, part[0].first, part[-1].last, gap, words)


def _inner(part: Sequence[Node], at: int, random: Random) -> Node:
    words = [0] * 32
    for i, child in enumerate(part):
        words[SLOT + i] = child.entry
        words[GAP + i] = child.gap
        if i < SLOTS - 1:
            words[PIVOT + i] = child.last
        child.words[0] = at | i << 3 | 6
    if len(part) < SLOTS and random.random() < 0.3:
        words[PIVOT + len(part) - 1] = 0
    gaps = [child.gap for child in part]
    largest = NO_GAP if not max(gaps) and random.random() < 0.5 else gaps.index(max(gaps))
    words[META] = len(part) - 1 | largest << 8
    return Node(at, INNER, part[0].first, part[-1].last, max(gaps), words)


@dataclass
class Walk:
    """What check() found: node -> names of enum audit_problem, and the VMAs in their order."""

    problems: dict[int, set[str]] = field(default_factory=dict)
    ranges: list[Range] = field(default_factory=list)
    nodes: int = 0


@dataclass(frozen=True)
class _Work:
    entry: int
    first: int
    last: int
    gap: int | None
    parent: int
    depth: int


def check(root: int, flags: int, tree: int, read: Callable[[int], bytes | None]) -> Walk:
    """Check every node against what its parent states of it, in the order of addresses.

    read: returns the 256 bytes at an address, None where nothing can be read.
    """
    walk, height, empty_end = Walk(), flags >> 2 & 31, 0
    waiting = [_Work(root & ~2, 0, ALL, None, tree | 1, 1)] if root else []
    while waiting:
        work = waiting.pop()
        at, kind = work.entry & ~255, work.entry >> 3 & 15
        found = walk.problems.setdefault(at, set())
        walk.nodes += 1
        raw = read(at)
        if raw is None:
            found.add("NODE_UNREADABLE")
            continue
        words = WORDS.unpack(raw)
        if words[0] & ~255 == at:
            found.add("NODE_DEAD")
        elif words[0] != work.parent:
            found.add("NODE_PARENT")
        end, named = _end(words, kind, work.last), words[META] >> 8 & 255
        if work.depth > height:
            found.add("NODE_TOO_DEEP")
        elif kind != (LEAF if work.depth == height else INNER):
            found.add("NODE_TYPE")
        elif "NODE_DEAD" not in found and not _has_end(kind, end, named):
            found.add("NODE_END")
        if found - {"NODE_PARENT"}:
            empty_end = 0
            continue
        rows = list(_rows(words, kind, end, work, found))
        gaps = [0] * len(rows)
        for i, (entry, first, last) in enumerate(rows):
            if kind == INNER:
                gaps[i] = words[GAP + i]
                if gaps[i] > (last - first + 1) & ALL:
                    found.add("NODE_GAP")
                if entry & 0x87 != 4 or entry < 256:
                    found.add("NODE_CHILD")
            elif entry:
                walk.ranges.append(Range(entry, first, last))
                empty_end = 0
            else:
                gaps[i] = (last - first + 1) & ALL
                if empty_end and empty_end == first:
                    found.add("NODE_TWO_EMPTY")
                empty_end = (last + 1) & ALL
        if kind == INNER:
            claimed = 0 if named == NO_GAP else gaps[named]
            if claimed != max(gaps):
                found.add("NODE_GAP_SLOT")
        if work.gap is not None and work.gap != max(gaps):
            found.add("NODE_GAP_OF_PARENT")
        if kind == INNER and not found & {"NODE_PIVOT", "NODE_CHILD"}:
            for i, (entry, first, last) in reversed(list(enumerate(rows))):
                parent = at | i << 3 | 6
                waiting.append(_Work(entry, first, last, gaps[i], parent, work.depth + 1))
        elif kind == INNER:
            empty_end = 0
    walk.problems = {at: found for at, found in walk.problems.items() if found}
    return walk


def _has_end(kind: int, end: int, named: int) -> bool:
    """Whether the last slot in use is one, and the slot of the largest gap is in use."""
    if kind == LEAF:
        return end < LEAF_SLOTS
    return end < SLOTS and (named <= end or named == NO_GAP)


def _end(words: Sequence[int], kind: int, last: int) -> int:
    """Return the last slot in use: ma_data_end()."""
    if kind != LEAF:
        return words[META] & 255
    pivot = words[PIVOT + LEAF_SLOTS - 2]
    if not pivot:
        return words[LEAF_META] & 255
    return LEAF_SLOTS - 2 if pivot == last else LEAF_SLOTS - 1


def _rows(
    words: Sequence[int], kind: int, end: int, work: _Work, found: set[str]
) -> Iterator[tuple[int, int, int]]:
    """Yield (entry, first address, last address) of each slot in use; check all slots."""
    slots, at = (LEAF_SLOTS, LEAF_SLOT) if kind == LEAF else (SLOTS, SLOT)
    first = work.first
    for i in range(end + 1):
        last = words[PIVOT + i] if i < slots - 1 else work.last
        if i == end:
            last = last or work.last
            if last != work.last:
                found.add("NODE_END")
        if last < first or last > work.last or (i < end and last == work.last):
            found.add("NODE_PIVOT")
        yield words[at + i], first, last
        first = (last + 1) & ALL
    for i in range(end + 1, slots):
        if (i < slots - 1 and words[at + i]) or (i < slots - 2 and words[PIVOT + i]):
            found.add("NODE_BEYOND_END")
        if kind == INNER and words[GAP + i]:
            found.add("NODE_BEYOND_END")
