"""Measure the cost of rmapd and of rivals that do comparable work.

Results are printed and written, never asserted.

usage: python -m tests.bench [--rounds N] [--scale F] [--loads A,B] [--variants A,B]
                             [--out FILE.json]     (root)
       python -m tests.bench --table FILE.json...
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from tests.bench import rivals
from tests.bench.loads import COUNTS, Loads
from tests.bench.measure import rounds
from tests.bench.table import table
from tests.bench.variants import FAMILIES, Maker, Nothing
from tracer.bpf.programs import program_ids
from tracer.config import LEVELS, Config
from tracer.daemon import levels, probes

_FLOORS = tuple(f"floor:{name}" for name in LEVELS if name != "sampled")
UNAUDITED = "unaudited"
"""`full` without the state audit."""
VARIANTS = (
    *LEVELS,
    "full+statistics",
    UNAUDITED,
    *_FLOORS,
    *(f"only:{name}" for name in FAMILIES),
    *rivals.RIVALS,
)


def made(maker: Maker, name: str) -> Nothing | None:
    """Return a variant by its name; None if this kernel or machine cannot have it.

    sampled:N records N windows of a function a second on each CPU.
    """
    kind, _, what = name.partition(":")
    if kind == "floor":
        return maker.floor(name, levels.probe_objects(what))
    if kind == "only":
        return maker.family(what)
    if kind == "sampled":
        return maker.session(
            name, kind, sampled_windows=int(what) if what else Config().sampled_windows
        )
    if name == UNAUDITED:
        return maker.session(name, "full", audit_budget=0)
    if name in rivals.RIVALS:
        return rivals.made(name, maker)
    return maker.session(name, name.partition("+")[0], statistics="+" in name)


def _programs() -> set[int]:
    """Return the ids of rmapd's programs in this kernel, by their names.

    The programs of rivals end with their processes.
    """
    return {number for number, name in program_ids() if name.startswith("rmapd_")}


def measure(wanted: list[str], names: list[str], count: int, scale: float) -> dict[str, object]:
    kernel = probes.running_kernel()
    with (
        tempfile.TemporaryDirectory(prefix="rmapd-bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        maker, variants, absent, seconds = Maker(kernel, Path(folder)), [], {}, {}
        for name in wanted:
            started = time.monotonic()
            variant = made(maker, name)
            seconds[name] = round(time.monotonic() - started, 2)
            if variant is None:
                absent[name] = "no hook of it on this kernel, or not installed"
                continue
            variant.name = name
            stack.callback(variant.close)
            try:
                with variant.on():
                    pass
            except (OSError, RuntimeError) as error:
                absent[name] = str(error)
                continue
            variants.append(variant)
            print(
                f"{name}: {variant.facts().get('points', '')} ready after {seconds[name]} s",
                flush=True,
            )
        loads, ours = (
            Loads(Path(folder), scale),
            {number for variant in variants for number in variant.program_ids()},
        )
        found = rounds(
            variants,
            loads,
            names,
            count,
            lambda: not _programs() - ours,
            lambda text: print(text, flush=True),
        )
        return {
            "kernel": kernel.release,
            "cpus": os.cpu_count(),
            "scale": scale,
            "ready_seconds": seconds,
            "absent": absent,
            "results": {
                name: {load: each.summary() for load, each in by_load.items()}
                for name, by_load in found.items()
            },
            "facts": {variant.name: variant.facts() for variant in variants},
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the number of operations of each load"
    )
    parser.add_argument("--loads", default=",".join(COUNTS))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--table", nargs="+", type=Path, help="print the Markdown table of runs written with --out"
    )
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(path.read_text()) for path in options.table]))
        return
    found = measure(
        options.variants.split(","), options.loads.split(","), options.rounds, options.scale
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    print(table([found]))


if __name__ == "__main__":
    main()
