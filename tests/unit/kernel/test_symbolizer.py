"""Addresses as names."""

from __future__ import annotations

from tests.support.native import synthetic_kernel
from tracer.kernel.symbolizer import Symbols


def test_a_name_that_occurs_in_many_stacks_is_one_text() -> None:
    symbols = Symbols(synthetic_kernel())
    known = [symbols.stack([address]) for address in (0x1000, 0x1000)]
    assert known[0][0] is known[1][0]
