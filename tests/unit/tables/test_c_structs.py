"""The header is parsed into layouts that match C."""

from __future__ import annotations

import struct

import pytest

from tests.support.native import LAYOUTS
from tracer.errors import RmapdError
from tracer.tables.c_structs import parse


def test_layouts_have_sizes_and_values_of_header() -> None:
    params = LAYOUTS.structs["params"]
    assert params.unpack(params.pack(gate=1, levels=5)).levels == 5
    assert LAYOUTS.structs["histogram"].size == 65 * 8
    assert LAYOUTS.constants["MIGRATION_LEFT"] == 1
    state = LAYOUTS.structs["lock_state"]
    raw = struct.pack("<20Q", *range(20))
    assert state.unpack(raw).n == 2
    assert len(state.unpack(raw).held) == 16


def test_member_of_unknown_form_is_error() -> None:
    with pytest.raises(RmapdError, match="cannot read the member"):
        parse("struct odd { unsigned long long x; };")
