"""Rounds: each variant between two goes with nothing on, so that what drifts on a shared machine falls out of the ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.loads import Loads, Took
from tests.bench.variants import Nothing


@dataclass
class Measured:
    """One load under one variant, a ratio a round: of the time on the clock, of the load's own CPU time, and of the whole: with the
    CPU time of the tracer's processes. `best` is the least CPU time of all rounds with over the least without: what others on the machine
    do only adds to either."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    took_ns: list[float] = field(default_factory=list)
    bare_ns: list[float] = field(default_factory=list)
    quiet: list[bool] = field(default_factory=list)
    skipped: int = 0

    def add(
        self,
        before: Took | None,
        took: Took | None,
        after: Took | None,
        tracer_ns: float,
        *,
        quiet: bool,
    ) -> None:
        """A go that could not be done costs its round, which is counted. quiet: nobody else had a BPF program in this kernel."""
        if not (before and took and after):
            self.skipped += 1
            return
        bare_cpu, bare_wall = (
            (before.cpu_ns + after.cpu_ns) / 2,
            (before.wall_ns + after.wall_ns) / 2,
        )
        self.wall.append(took.wall_ns / bare_wall)
        self.cpu.append(took.cpu_ns / bare_cpu)
        self.whole.append((took.cpu_ns + tracer_ns / took.operations) / bare_cpu)
        self.quiet.append(quiet)
        self.took_ns.append(took.cpu_ns)
        self.bare_ns.append(min(before.cpu_ns, after.cpu_ns))

    def summary(self) -> dict[str, object]:
        if not self.cpu:
            return {"rounds": 0, "skipped": self.skipped}
        return {
            "rounds": len(self.cpu),
            "skipped": self.skipped,
            "bare_cpu_ns": round(statistics.median(self.bare_ns)),
            "best": round(min(self.took_ns) / min(self.bare_ns), 3),
            "quiet": spread(
                [ratio for ratio, quiet in zip(self.cpu, self.quiet, strict=True) if quiet]
            )
            if any(self.quiet)
            else [],
            "quiet_rounds": sum(self.quiet),
            **{name: spread(getattr(self, name)) for name in ("cpu", "whole", "wall")},
            "each": {
                name: [round(x, 3) for x in getattr(self, name)]
                for name in ("cpu", "whole", "wall")
            },
        }


def spread(numbers: Sequence[float]) -> list[float]:
    """(first quartile, median, third quartile)."""
    if len(numbers) < 2:
        return [round(n, 3) for n in (*numbers, *numbers, *numbers)]
    return [
        round(quartile, 3) for quartile in statistics.quantiles(numbers, n=4, method="inclusive")
    ]


Results = dict[str, dict[str, Measured]]
"""By variant, then by load."""


def rounds(
    variants: Sequence[Nothing],
    loads: Loads,
    names: Sequence[str],
    count: int,
    quiet: Callable[[], bool],
    say: Callable[[str], None],
) -> Results:
    """`count` rounds; in each, every variant in turn, from another one each time. quiet: whether nobody else traces this kernel now."""
    nothing = Nothing()
    found: Results = {variant.name: {name: Measured() for name in names} for variant in variants}
    before = _go(nothing, loads, names)[0]
    for number in range(count):
        started, first = time.monotonic(), number % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            alone = quiet()
            with variant.on():
                took, tracer_ns = _go(variant, loads, names)
            after = _go(nothing, loads, names)[0]
            alone &= quiet()
            for name in names:
                found[variant.name][name].add(
                    before[name], took[name], after[name], tracer_ns[name], quiet=alone
                )
            before = after
        say(f"round {number + 1} of {count}: {time.monotonic() - started:.0f} s")
    return found


def _go(
    variant: Nothing, loads: Loads, names: Sequence[str]
) -> tuple[dict[str, Took | None], dict[str, float]]:
    took, tracer_ns = dict[str, Took | None](), dict[str, float]()
    for name in names:
        used = variant.cpu_seconds()
        took[name] = loads.run(name, variant.meanwhile)
        tracer_ns[name] = 1e9 * (variant.cpu_seconds() - used)
    return took, tracer_ns
