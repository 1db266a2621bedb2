"""The header is parsed into layouts that match C."""

from __future__ import annotations

import struct

import pytest

from tests.support.native import LAYOUTS
from tracer.errors import RmapdError
from tracer.tables.c_structs import parse


def test_layouts_have_sizes_and_values_of_header() -> None:
    params = LAYOUTS.structs["params"]
    assert params.unpack(params.pack(gate=1, vmemmap=5)).vmemmap == 5
    assert LAYOUTS.structs["histogram"].size == 65 * 8
    assert LAYOUTS.constants["MIGRATION_LEFT"] == 1
    state = LAYOUTS.structs["lock_state"]
    raw = struct.pack("<20Q", *range(20))
    assert state.unpack(raw).n == 2
    assert len(state.unpack(raw).held) == 16


def test_member_of_unknown_form_is_error() -> None:
    with pytest.raises(RmapdError, match="cannot read the member"):
        parse("struct odd { unsigned long long x; };")


_UNION = """
struct one { u64 x; };
struct two { u32 y; u32 z; u64 w; };
union either { struct one one; struct two two; };
struct holder { u32 kind; u32 pad; union either either; };
"""


def test_a_union_is_read_as_the_bytes_of_its_largest_struct() -> None:
    layouts = parse(_UNION).structs
    assert layouts["holder"].size == 8 + 16
    raw = struct.pack("<IIIIQ", 2, 0, 3, 4, 5)
    found = layouts["holder"].unpack(raw)
    assert (found.kind, found.either) == (2, raw[8:])
    two = layouts["two"].unpack(found.either)
    assert (two.y, two.z, two.w) == (3, 4, 5)
    assert layouts["one"].unpack(found.either).x == 4 << 32 | 3
    assert layouts["holder"].pack(kind=2, either=raw[8:]) == raw
    assert layouts["holder"].pack() == bytes(24)


def test_a_union_of_anything_but_structs_is_an_error() -> None:
    with pytest.raises(RmapdError, match="u64 is not a struct"):
        parse("union odd { u64 x; };")
