"""Count what rmapd costs in instructions, in guests whose clock counts them.

usage: python -m tests.vm.cost [KERNEL...] [--loads A,B] [--variants A,B] [--repeats N]
                               [--keep] [--table]

Prints the counts, and what changed by more than 1 % of the kept ones. --keep: keep them in
docs/measurements/cost.json, and write the tables of COST.md and COST-DETAILS.md beside it and the
picture. --table: only write these.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import msgspec
from matplotlib.figure import Figure

from tests.bench import profile
from tests.bench.instructions import OPERATIONS
from tests.bench.loads import TITLES, build
from tests.support.made_parts import keep, replaced
from tests.vm.guest import RESULTS, ROOT, commit, ladder, run

KEPT = ROOT / "docs/measurements/cost.json"
PAGE, PICTURE = ROOT / "docs/measurements/COST.md", ROOT / "docs/measurements/cost.svg"
DETAILS = ROOT / "docs/measurements/COST-DETAILS.md"
BEGIN, END = "<!-- made by python -m tests.vm.cost --table -->", "<!-- end of the table -->"
CHANGED = 0.01
"""A smaller difference is not reported. Repeated runs of most loads differ by less."""
PROFILED = "protect"
"""The load whose dearest functions are kept: it passes the most kinds of hooks."""
_DEAREST, _CHANCE = 20, 0.1
_PLUGIN = ROOT / "tests/bench/profile_plugin.c"
_SECONDS = 3600

Counts = dict[str, dict[str, list[int]]]
"""Instructions of an operation in each run, by load, then by variant; `none` is without rmapd."""


class Cost(msgspec.Struct, forbid_unknown_fields=True):
    """What was counted on one kernel.

    dearest: of the load PROFILED, the functions that `full` adds most to: name, instructions and
    runs of an operation.
    """

    release: str
    commit: str
    date: str
    counts: Counts
    dearest: list[tuple[str, float, float]]


class _Counted(msgspec.Struct):
    """What tests.bench.instructions writes."""

    kernel: str
    counts: Counts
    runs: list[tuple[str, str]]


def kept() -> dict[str, Cost]:
    """Return what is kept, by the kernel's name."""
    return msgspec.json.decode(KEPT.read_bytes(), type=dict[str, Cost]) if KEPT.exists() else {}


def measure(kernel: str, loads: Sequence[str], variants: Sequence[str], repeats: int) -> Cost:
    """Count in a guest. Raises GuestError where it dies."""
    folder = RESULTS / f"{kernel}-cost"
    tools = RESULTS / f"{kernel}-cost-tools"
    tools.mkdir(parents=True, exist_ok=True)
    plugin = tools / "profile.so"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", plugin, _PLUGIN],
        check=True,
    )
    marks = _marks(build(tools))
    counted = run(
        kernel,
        f"python -u -m tests.bench.instructions $OUT --loads {','.join(loads)}"
        f" --variants {','.join(variants)} --repeats {repeats}",
        label="cost",
        timeout=_SECONDS,
        counted=True,
        plugin=f"{plugin},begin={marks['count_begins']},end={marks['count_ends']},"
        f"out={folder}/profile",
    )
    if counted.code:
        raise RuntimeError(f"the guest's command ended with {counted.code}:\n{counted.output}")
    found = msgspec.json.decode((folder / "counts.json").read_bytes(), type=_Counted)
    return Cost(
        found.kernel,
        commit(),
        datetime.date.today().isoformat(),
        found.counts,
        list(_dearest(folder, found.runs)),
    )


def _marks(program: Path) -> dict[str, str]:
    listed = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    return {name: address for address, _, name in map(str.split, listed.splitlines())}


def _dearest(folder: Path, runs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, float, float]]:
    last = {run: number for number, run in enumerate(runs)}
    with_rmapd, without = last.get(("full", PROFILED)), last.get(("none", PROFILED))
    if with_rmapd is None or without is None:
        return
    added = profile.spent(folder, "full", with_rmapd).without(
        profile.spent(folder, "none", without)
    )
    for name, spent, times in added.dearest(_DEAREST, OPERATIONS[PROFILED]):
        yield name, round(spent, 1), round(times, 2)


def changes(kernel: str, now: Counts, before: Counts, least: float) -> Iterator[tuple[str, float]]:
    """Yield a sentence and the share by which a count changed, where that is more than `least`."""
    for load, by_variant in now.items():
        for variant, counts in by_variant.items():
            old = before.get(load, {}).get(variant)
            if not old:
                continue
            is_now, was = statistics.median(counts), statistics.median(old)
            if abs(share := is_now / was - 1) > least:
                counted = f"{was:,.0f} -> {is_now:,.0f} ({share:+.1%})"
                yield f"{kernel} {load} {variant}: {counted}", share


def ratio(by_variant: Mapping[str, Sequence[int]], variant: str) -> float:
    """Return the instructions of a load with a variant, times those without rmapd."""
    return statistics.median(by_variant[variant]) / statistics.median(by_variant["none"])


def spread(counts: Sequence[int]) -> float:
    """Return how far the counts of repeated runs are apart, as a share of the least."""
    return max(counts) / min(counts) - 1


def table(costs: Mapping[str, Cost]) -> str:
    """Return the tables of all kernels, and of each the dearest functions."""
    return "\n\n".join(_one(name, cost) for name, cost in costs.items())


def _one(name: str, cost: Cost) -> str:
    variants = [v for v in next(iter(cost.counts.values())) if v != "none"]
    counted = {load: each for load, each in cost.counts.items() if "none" in each}
    lines = [
        f"### {name}: {cost.release}, {cost.date}, at {cost.commit}",
        "",
        "| instructions of an operation | without | " + " | ".join(variants) + " | spread |",
        "|---" * (len(variants) + 3) + "|",
    ]
    for load, by_variant in counted.items():
        without = statistics.median(by_variant["none"])
        cells = [f"{ratio(by_variant, v):.2f}" if v in by_variant else "not done" for v in variants]
        apart = max(spread(counts) for counts in by_variant.values())
        lines.append(
            f"| {TITLES[load]} | {without:,.0f} | " + " | ".join(cells) + f" | {apart:.1%} |"
        )
    if cost.dearest:
        lines += [
            "",
            f"Of what `full` adds to *{TITLES[PROFILED]}*, the dearest functions:",
            "",
            "| function, or hook of a program | instructions | runs |",
            "|---|---|---|",
            *(f"| `{name}` | {spent:,.0f} | {runs:g} |" for name, spent, runs in cost.dearest),
        ]
    return "\n".join(lines)


def summary(costs: Mapping[str, Cost]) -> str:
    """Return one table of all kernels: each load with `full`, and with empty programs."""
    lines = [
        "| load | " + " | ".join(f"{name}: `full` (empty programs)" for name in costs) + " |",
        "|---" * (len(costs) + 1) + "|",
    ]
    for load, title in TITLES.items():
        cells = [_summary_cell(cost.counts.get(load, {})) for cost in costs.values()]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _summary_cell(by_variant: Mapping[str, Sequence[int]]) -> str:
    if not {"none", "full"} <= by_variant.keys():
        return ""
    if not _repeats(by_variant):
        return "by chance"
    floor = f" ({ratio(by_variant, _FLOOR):.2f})" if _FLOOR in by_variant else ""
    return f"{ratio(by_variant, 'full'):.2f}{floor}"


def with_tables(text: str, tables: str) -> str:
    """Return a page with what is between its two comments replaced."""
    return replaced(text, BEGIN, END, tables)


def pages(costs: Mapping[str, Cost]) -> Iterator[tuple[Path, str]]:
    """Yield each page with its tables, and the text that it has to have."""
    for path, tables in ((PAGE, summary(costs)), (DETAILS, table(costs))):
        yield path, with_tables(path.read_text(), tables)


_FLOOR = "floor:full"
_DRAWN = {"floor:full": "#9db4c8", "owner": "#e0a458", "full": "#b3432f"}
"""Variant -> colour of its bar."""


def _repeats(by_variant: Mapping[str, Sequence[int]]) -> bool:
    """Return whether repeated runs of a load give the same: compaction depends on chance."""
    return max(map(spread, by_variant.values())) < _CHANCE


def draw(costs: Mapping[str, Cost], to: Path) -> None:
    """Draw the ratios as bars, a panel per kernel. to: an SVG file."""
    matplotlib.rcParams["svg.hashsalt"] = "rmapd"  # the same file for the same counts
    figure = Figure(figsize=(9, 0.6 + 2.6 * len(costs)), layout="constrained")
    every = figure.subplots(len(costs), 1, squeeze=False)[:, 0]
    for axes, (name, cost) in zip(every, costs.items(), strict=True):
        counts = {load: c for load, c in cost.counts.items() if "none" in c and _repeats(c)}
        variants = [v for v in _DRAWN if v in next(iter(counts.values()))]
        for n, variant in enumerate(variants):
            ratios = [
                ratio(by_variant, variant) if variant in by_variant else 0
                for by_variant in counts.values()
            ]
            at = [place + (n - 1) * 0.27 for place in range(len(counts))]
            label = "empty programs" if variant.startswith("floor") else variant
            bars = axes.bar(at, ratios, 0.25, color=_DRAWN[variant], label=label)
            axes.bar_label(bars, fmt="%.2f", fontsize=6)
        axes.axhline(1, color="#444444", linewidth=0.8)
        axes.set_xticks(range(len(counts)), [*counts])
        axes.set_ylabel("instructions,\ntimes without rmapd")
        axes.set_title(f"{name}: Linux {cost.release}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].legend(frameon=False, fontsize=8)
    figure.savefig(to, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm.cost", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("kernels", nargs="*", help=", ".join(ladder()))
    parser.add_argument("--loads", default=",".join(OPERATIONS))
    parser.add_argument("--variants", default="full,sampled,owner,migration,floor:full")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.kernels) - set(ladder()):
        parser.error(f"no kernel {min(unknown)} in tests/vm/kernels.toml: {', '.join(ladder())}")
    costs = kept()
    for kernel in options.kernels:
        cost = measure(
            kernel, options.loads.split(","), options.variants.split(","), options.repeats
        )
        print(_one(kernel, cost), flush=True)
        before = costs[kernel].counts if kernel in costs else {}
        for sentence, _ in changes(kernel, cost.counts, before, CHANGED):
            print(sentence, flush=True)
        costs[kernel] = cost
        if options.keep:
            keep(KEPT, costs)
    if options.table or options.keep:
        for path, text in pages(costs):
            path.write_text(text)
        draw(costs, PICTURE)


if __name__ == "__main__":
    main()
