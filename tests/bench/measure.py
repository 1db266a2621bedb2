"""Rounds of measurements: each variant runs between two runs of the baseline, without any tracer.

So drift of a shared machine cancels out of the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.loads import Loads, Took
from tests.bench.variants import Nothing


@dataclass
class Measured:
    """One load under one variant, with ratios to the baseline for each round.

    wall: wall-clock time. cpu: CPU time of the load. whole: CPU time of the load and of the
    tracer's processes. The `best` of the summary is the least CPU time of all rounds over the least
    of the baseline: other programs on the machine can only add to either.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    took_ns: list[float] = field(default_factory=list)
    baseline_ns: list[float] = field(default_factory=list)
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
        """Add a round; without one of the three times it is counted as skipped.

        quiet: no other rmapd had BPF programs in this kernel.
        """
        if not (before and took and after):
            self.skipped += 1
            return
        baseline_cpu, baseline_wall = (
            (before.cpu_ns + after.cpu_ns) / 2,
            (before.wall_ns + after.wall_ns) / 2,
        )
        self.wall.append(took.wall_ns / baseline_wall)
        self.cpu.append(took.cpu_ns / baseline_cpu)
        self.whole.append((took.cpu_ns + tracer_ns / took.operations) / baseline_cpu)
        self.quiet.append(quiet)
        self.took_ns.append(took.cpu_ns)
        self.baseline_ns.append(min(before.cpu_ns, after.cpu_ns))

    def summary(self) -> dict[str, object]:
        if not self.cpu:
            return {"rounds": 0, "skipped": self.skipped}
        return {
            "rounds": len(self.cpu),
            "skipped": self.skipped,
            "baseline_cpu_ns": round(statistics.median(self.baseline_ns)),
            "best": round(min(self.took_ns) / min(self.baseline_ns), 3),
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
    """Return (first quartile, median, third quartile)."""
    if len(numbers) < 2:
        return [round(n, 3) for n in (*numbers, *numbers, *numbers)]
    return [
        round(quartile, 3) for quartile in statistics.quantiles(numbers, n=4, method="inclusive")
    ]


Results = dict[str, dict[str, Measured]]
"""Measurements by variant, then by load."""


def rounds(
    variants: Sequence[Nothing],
    loads: Loads,
    names: Sequence[str],
    count: int,
    quiet: Callable[[], bool],
    report: Callable[[str], None],
) -> Results:
    """Measure each variant in count rounds; each round begins with another variant.

    quiet: whether no other rmapd traces this kernel now.
    """
    baseline = Nothing()
    found: Results = {variant.name: {name: Measured() for name in names} for variant in variants}
    before = _go(baseline, loads, names)[0]
    for number in range(count):
        started, first = time.monotonic(), number % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            alone = quiet()
            with variant.on():
                took, tracer_ns = _go(variant, loads, names)
            after = _go(baseline, loads, names)[0]
            alone &= quiet()
            for name in names:
                found[variant.name][name].add(
                    before[name], took[name], after[name], tracer_ns[name], quiet=alone
                )
            before = after
        report(f"round {number + 1} of {count}: {time.monotonic() - started:.0f} s")
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
