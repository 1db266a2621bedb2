"""The Markdown table of a run: a row per load, a column per variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.bench.loads import TITLES


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return a table per run of the load's CPU time with a variant over the baseline.

    A cell has the median, the quartiles and the ratio of the least times, and, where it
    differs, the ratio with the CPU time of the tracer's processes.
    """
    return "\n\n".join(f"### {run['kernel']}, {run['cpus']} CPUs\n\n{_one(run)}" for run in runs)


def _one(run: dict[str, Any]) -> str:
    variants = list(run["results"])
    loads = list(next(iter(run["results"].values())))
    lines = [
        "| load (CPU time without) | " + " | ".join(variants) + " |",
        "|---" * (len(variants) + 1) + "|",
    ]
    for load in loads:
        baseline = next(
            (
                by_load[load]["baseline_cpu_ns"]
                for by_load in run["results"].values()
                if by_load[load]["rounds"]
            ),
            0,
        )
        cells = (_cell(run["results"][variant][load]) for variant in variants)
        lines.append(f"| {TITLES[load]} ({_time(baseline)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    if not found["rounds"]:
        return "not done"
    low, middle, high = found["cpu"]
    whole, quiet = found["whole"][1], found["quiet"]
    alone = (
        f", alone {quiet[1]:.2f} ({found['quiet_rounds']})"
        if quiet and found["quiet_rounds"] < found["rounds"]
        else ""
    )
    return (
        f"{middle:.2f} ({low:.2f}-{high:.2f}; {found['best']:.2f})"
        + alone
        + (f", whole {whole:.2f}" if whole - middle > 0.02 else "")
    )


def _time(ns: float) -> str:
    return (
        f"{ns:,.0f} ns"
        if ns < 10_000
        else f"{ns / 1000:,.0f} µs"
        if ns < 10_000_000
        else f"{ns / 1e6:,.0f} ms"
    )
