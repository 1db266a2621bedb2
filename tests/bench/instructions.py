"""Count the instructions of each load with rmapd at each fidelity and without it.

Runs in a guest whose clock counts instructions (tests.vm.cost). One variant is loaded at a time,
and its loop stands still during a load: what is counted is what the hooks add to the task.

usage: python -m tests.bench.instructions FOLDER [--loads A,B] [--variants A,B] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.__main__ import made
from tests.bench.loads import Loads
from tests.bench.variants import Maker, Nothing
from tracer.daemon import probes

OPERATIONS = {
    "map": 2_000,
    "merge": 1_000,
    "protect": 1_000,
    "brk": 2_000,
    "move": 1_000,
    "fork": 6,
    "exec": 30,
    "faults": 10_000,
    "compact": 4_000,
    "compile": 1,
}
"""Operations of a load in a run: enough that a timer interrupt more or less is below a percent."""


def count(loads: Loads, name: str, repeats: int) -> tuple[list[int], int]:
    """Return (instructions per operation of each repeat, how often the load was run).

    The first run warms up. There are no repeats where the kernel did nothing of the load:
    compaction may find no page to move.
    """
    found = []
    for n in range(repeats + 1):
        took = loads.run(name, None, OPERATIONS[name])
        if not took:
            return [], n + 1
        found.append(round(took.cpu_ns))
    return found[1:], repeats + 1


def symbols(tags: Mapping[str, str]) -> Iterator[str]:
    """Yield a line per function of the kernel: its address and name, a program by its hook."""
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, _, name, *_ = line.split()
        tag = name.removeprefix("bpf_prog_").partition("_")[0]
        yield f"{address} {tags.get(tag, name)}"


def measure(names: Sequence[str], wanted: Sequence[str], repeats: int, out: Path) -> dict[str, Any]:
    kernel = probes.running_kernel()
    counts: dict[str, dict[str, list[int]]] = {name: {} for name in names}
    runs = []
    with tempfile.TemporaryDirectory(prefix="rmapd-bench-") as folder:
        loads, maker = Loads(Path(folder)), Maker(kernel, Path(folder))
        for name in ("none", *wanted):
            variant = Nothing() if name == "none" else made(maker, name)
            if variant is None:
                print(f"{name}: no hook of it on this kernel", flush=True)
                continue
            with variant.on():
                for load in names:
                    found, times = count(loads, load, repeats)
                    runs += [(name, load)] * times * (load != "compile")
                    print(f"{load} {name}: {found or 'not done'}", flush=True)
                    if found:
                        counts[load][name] = found
                lines = symbols(variant.tags())
                (out / f"symbols.{name}").write_text("\n".join(lines))
            variant.close()
    return {"kernel": kernel.release, "counts": counts, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.instructions", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--loads", default=",".join(OPERATIONS))
    parser.add_argument("--variants", default="full")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    found = measure(
        options.loads.split(","), options.variants.split(","), options.repeats, options.out
    )
    (options.out / "counts.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
