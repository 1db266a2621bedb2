"""Results of soaks, made up."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from tracer.report.soak import FORMAT, Outcome, SoakLimits, SoakResult, SoakRun

MIB = 1 << 20


def result(*runs: tuple[str, float], **changes: Any) -> SoakResult:
    """Return a result with these runs, each an outcome and its seconds."""
    made = [
        SoakRun(
            number,
            cast(Outcome, outcome),
            seconds=seconds,
            fidelity="full",
            coverage={"M1": "full"},
        )
        for number, (outcome, seconds) in enumerate(runs, start=1)
    ]
    whole = SoakResult(
        soak=FORMAT,
        rmapd="0.1.0",
        kernel="6.1",
        host="h",
        loads=["vma"],
        repeat=len(made) or 1,
        seconds=600.0,
        seed=1,
        limits=SoakLimits(1024 * MIB, 128 * MIB, 200, "rlimits and a check", "no cgroup"),
        machine={"cpus": 2},
        versions={"Python": "3.11"},
        left_out={},
        runs=made,
    )
    return msgspec.structs.replace(whole, **changes)
