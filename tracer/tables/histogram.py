"""Histograms as the kernel counts them: powers of two in nanoseconds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SLOTS = 64
_CODE = struct.Struct(f"<{SLOTS}QQ")


@dataclass(frozen=True)
class Histogram:
    """slots[n] counts values below 2**n ns and not below 2**(n-1)."""

    slots: tuple[int, ...] = field(default=(0,) * SLOTS)
    sum_ns: int = 0

    @classmethod
    def add_up(cls, raw: bytes) -> Histogram:
        """One histogram out of those of all CPUs, one after the other (struct histogram of shared.h)."""
        if raw == bytes(len(raw)):
            return cls()
        *slots, total = (sum(column) for column in zip(*_CODE.iter_unpack(raw), strict=True))
        return cls(tuple(slots), total)

    @property
    def count(self) -> int:
        return sum(self.slots)

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(
            tuple(a + b for a, b in zip(self.slots, other.slots, strict=True)),
            self.sum_ns + other.sum_ns,
        )

    def _below(
        self, powers: Sequence[int], edge: Callable[[int], float]
    ) -> list[tuple[str, float]]:
        """Cumulative Prometheus buckets with these powers of two as edges, then +Inf."""
        return [
            *((repr(edge(n)), float(sum(self.slots[: n + 1]))) for n in powers),
            ("+Inf", float(self.count)),
        ]

    def buckets(self, powers: Sequence[int]) -> list[tuple[str, float]]:
        """Of whole numbers: a value below 2**n is at most 2**n - 1."""
        return self._below(powers, lambda n: float(2**n - 1))

    def buckets_seconds(self, powers: Sequence[int]) -> list[tuple[str, float]]:
        """Of times: edges of 2**n ns, in seconds."""
        return self._below(powers, lambda n: 2**n / 1e9)
