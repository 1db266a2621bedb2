"""Counts of the windows that sampling left out."""

from __future__ import annotations

import struct

from tests.support.native import LAYOUTS
from tracer.tables.allowances import Allowances


def test_unsampled_windows_are_summed_over_cpus() -> None:
    """rows() returns the values of all CPUs, one after the other."""
    row = struct.pack("<6Q", 1, 2, 3, 4, 40, 5) + struct.pack("<6Q", 6, 7, 8, 9, 2, 0)

    class Two:
        def rows(self, count: int) -> list[bytes]:
            return [row] * count

    assert set(Allowances({"allowances": Two()}, LAYOUTS).unsampled().values()) == {42}  # type: ignore[dict-item]
