"""Read what tests/bench/profile_plugin.c counted: the instructions of a load by function."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_KERNEL = 1 << 63


@dataclass(frozen=True)
class Spent:
    """Instructions in each function of the kernel, and how often it ran; a program by its hook."""

    instructions: Counter[str]
    runs: Counter[str]

    def without(self, other: Spent) -> Spent:
        """Return what is here and not there."""
        left = Counter(self.instructions)
        left.subtract(other.instructions)
        more = Counter(self.runs)
        more.subtract(other.runs)
        return Spent(left, more)

    def dearest(self, most: int, operations: int) -> Iterator[tuple[str, float, float]]:
        """Yield functions with their instructions and runs of an operation, the dearest first."""
        for name, spent in self.instructions.most_common(most):
            yield name, spent / operations, self.runs[name] / operations


class Symbols:
    """The functions of a guest's kernel, from lines of address and name."""

    def __init__(self, lines: str) -> None:
        known = sorted(
            (int(address, 16), name)
            for address, _, name in (line.partition(" ") for line in lines.splitlines())
        )
        self._addresses = [address for address, _ in known]
        self._names = [name for _, name in known]

    def spent(self, blocks: str) -> Spent:
        """Add up the blocks of code, lines of address, instructions and runs; not user space."""
        instructions, runs = Counter[str](), Counter[str]()
        for line in blocks.splitlines():
            where, *numbers = line.split()
            address, (length, times) = int(where, 16), map(int, numbers)
            at = bisect.bisect_right(self._addresses, address) - 1
            if address < _KERNEL or at < 0:
                continue
            instructions[self._names[at]] += length * times
            if self._addresses[at] == address:
                runs[self._names[at]] += times
        return Spent(instructions, runs)


def spent(folder: Path, variant: str, number: int) -> Spent:
    """Return what a run counted, from the files that a guest and the plugin wrote."""
    symbols = Symbols((folder / f"symbols.{variant}").read_text())
    return symbols.spent((folder / f"profile.{number}").read_text())
