"""Stacks by id."""

from __future__ import annotations

import struct

from tests.support.box import box

HARNESS_STACK = struct.pack("<i", 7)  # the id that get_stackid() of harness.h returns


def test_stack_with_hash_collision_is_read_from_overflow_map() -> None:
    b = box()
    stacks, rows = b.tables.stacks, b.native.maps["stacks"].max_entries
    for at, address, name in ((7, 0x1111, "stacks"), (rows + 7, 0x2222, "more_stacks")):
        b.native.maps[name].update(HARNESS_STACK, struct.pack("<127Q", address, *[0] * 126))
        assert stacks.of_event(at) == [address]
    assert not stacks.of_event(rows + 8)
    assert not stacks.of_event(-17)
