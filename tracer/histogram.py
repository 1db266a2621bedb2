"""Histograms as the kernel counts them: powers of two in nanoseconds."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

SLOTS = 64
_CODE = struct.Struct(f"<{SLOTS}QQ")


@dataclass(frozen=True)
class Histogram:
    """slots[n] counts values below 2**n ns and not below 2**(n-1)."""

    slots: tuple[int, ...] = field(default=(0,) * SLOTS)
    sum_ns: int = 0

    @classmethod
    def add_up(cls, raws: Sequence[bytes]) -> Histogram:
        """One histogram out of those of all CPUs (struct histogram of books.h)."""
        *slots, total = (sum(column) for column in zip(*map(_CODE.unpack, raws), strict=True)) if raws else (0,) * (SLOTS + 1)
        return cls(tuple(slots), total)

    @property
    def count(self) -> int:
        return sum(self.slots)

    def buckets(self, last: int = 16) -> list[tuple[str, float]]:
        """Cumulative Prometheus buckets of whole numbers: 0, 1, 3, 7 … 2**last - 1, then +Inf."""
        total, out = 0, []
        for n in range(last + 1):
            total += self.slots[n]
            out.append((repr(float(2**n - 1)), float(total)))
        return [*out, ("+Inf", float(self.count))]

    def buckets_seconds(self, first: int = 7, last: int = 36) -> list[tuple[str, float]]:
        """Cumulative Prometheus buckets from 2**first ns (128 ns) to 2**last ns (69 s), then +Inf."""
        total, out = sum(self.slots[:first]), []
        for n in range(first, last + 1):
            total += self.slots[n]
            out.append((repr(2**n / 1e9), float(total)))
        return [*out, ("+Inf", float(self.count))]
