"""Histograms with slots of powers of two (struct histogram)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts

SLOTS = 64
_CODE = struct.Struct(f"<{SLOTS}QQ")


@dataclass(frozen=True)
class Histogram:
    """One histogram, of times in nanoseconds or of whole numbers.

    slots[n] counts values below 2**n and not below 2**(n-1). sum_ns: the sum of all values.
    """

    slots: tuple[int, ...] = field(default=(0,) * SLOTS)
    sum_ns: int = 0

    @classmethod
    def add_up(cls, raw: bytes) -> Histogram:
        """Add up the histograms of all CPUs, which follow one another in the bytes."""
        if raw == bytes(len(raw)):
            return cls()
        *slots, total = (sum(column) for column in zip(*_CODE.iter_unpack(raw), strict=True))
        return cls(tuple(slots), total)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.slots)

    @property
    def zeros(self) -> int:
        """How many of the values are 0: of waits, acquisitions that did not wait."""
        return self.slots[0]

    @property
    def above_zero(self) -> Histogram:
        """The values that are not 0."""
        return Histogram((0, *self.slots[1:]), self.sum_ns)

    def edge_ns(self, share: float) -> int:
        """Return the upper edge of the slot at which this share of the values is reached.

        That share of the values is below it. 0 of an empty histogram.
        """
        wanted, so_far = share * self.count, 0
        for n, count in enumerate(self.slots):
            so_far += count
            if count and so_far >= wanted:
                return int(2**n)
        return 0

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(
            tuple(a + b for a, b in zip(self.slots, other.slots, strict=True)),
            self.sum_ns + other.sum_ns,
        )

    def since(self, earlier: Histogram) -> Histogram:
        """Return the values that were counted after `earlier`, an older state of the same one."""
        slots = (max(0, b - a) for a, b in zip(earlier.slots, self.slots, strict=True))
        return Histogram(tuple(slots), max(0, self.sum_ns - earlier.sum_ns))

    def _below(
        self, powers: Sequence[int], edge: Callable[[int], float]
    ) -> list[tuple[str, float]]:
        """Return cumulative Prometheus buckets (le, count) for these powers of two, then +Inf."""
        return [
            *((repr(edge(n)), float(sum(self.slots[: n + 1]))) for n in powers),
            ("+Inf", float(self.count)),
        ]

    def buckets(self, powers: Sequence[int]) -> list[tuple[str, float]]:
        """Return buckets of whole numbers: a value below 2**n is at most 2**n - 1."""
        return self._below(powers, lambda n: float(2**n - 1))

    def buckets_seconds(self, powers: Sequence[int]) -> list[tuple[str, float]]:
        """Return buckets of times, with edges of 2**n ns written in seconds."""
        return self._below(powers, lambda n: 2**n / 1e9)


class Histograms:
    """Reader of the per-CPU map `histograms`."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._names = maps["histograms"], layouts.enums["hist"][:-1]

    def read(self) -> dict[str, Histogram]:
        """Return every histogram by its name in enum hist, summed over the CPUs."""
        rows = self._table.rows(len(self._names))
        return dict(zip(self._names, map(Histogram.add_up, rows), strict=True))
