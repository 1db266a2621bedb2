"""Climb the ladder: on each kernel that can be had, attach, look what is covered, and stay silent.

usage: python -m tests.vm.ladder [KERNEL...] [--seconds N] [--again] [--table]     (root)

Without names: all of kernels.toml, bugs.toml, variants.toml and rungs.toml. What is known of a
kernel is kept in docs/measurements/ladder.json beside the page, after each kernel, and a kernel
that is kept is passed over: a run that was stopped goes on where it was. --again: not so.
--seconds: of the healthy load (default 60). --table: only write docs/measurements/LADDER.md.

Exits with 1 if a kernel could not be booted, or if the healthy load was not silent.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from tests.support.made_parts import replaced
from tests.vm import soak, stock_bugs
from tests.vm.guest import ROOT, GuestError, commit, kernels, run

KEPT, PAGE = ROOT / "docs/measurements/ladder.json", ROOT / "docs/measurements/LADDER.md"
BEGIN, END = "<!-- made by python -m tests.vm.ladder --table -->", "<!-- end of the table -->"
_START_SECONDS = 1800
"""To boot, to attach four times and to settle, emulated."""


class Attached(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to the open gate: seconds until it is open, then to detach, and MB at most."""

    gate: float
    close: float
    peak_mb: float
    cpu: float


class Rung(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a kernel.

    verdict: doctor's first sentence. hooks: state -> how many. coverage: invariant -> (coverage,
    reason). compiled, cached: the first start, and the next one. doctor: seconds. holds, wrong:
    checks of the healthy load that hold, and its findings by signature. unverifiable: how many.
    """

    release: str
    commit: str
    date: str
    verdict: str
    capabilities: dict[str, str]
    hooks: dict[str, int]
    coverage: dict[str, tuple[str, str]]
    compiled: Attached
    cached: Attached
    doctor: float
    seconds: int
    holds: int
    unverifiable: int
    wrong: dict[str, int]


def kept() -> dict[str, Rung]:
    """Return what is kept, by the kernel's name."""
    return msgspec.json.decode(KEPT.read_bytes(), type=dict[str, Rung]) if KEPT.exists() else {}


def climb(kernel: str, seconds: int) -> Rung:
    """Boot a kernel and find out. Raises GuestError where it dies."""
    load = f"python -m tests.workloads.soak {seconds}"
    steps = (
        "rm -rf $RMAPD_CACHE/*",
        "python -m tests.bench.gate --session $RMAPD_CACHE > $OUT/compiled.json",
        "python -m tests.bench.gate --session $RMAPD_CACHE > $OUT/cached.json",
        "date +%s.%N > $OUT/begin; rmapd doctor --format json > $OUT/doctor.json;"
        " date +%s.%N > $OUT/end",
        f"echo max_entry_age_seconds = {soak.MAX_ENTRY_AGE_SECONDS} > $OUT/rmapd.toml",
        "rmapd exec --config $OUT/rmapd.toml --fail-on suspect --report $OUT/r.json --"
        f" sh -c {shlex.quote(load)}",
    )
    result = run(
        kernel,
        "; ".join(steps),
        label="ladder",
        append=soak.PARAMETERS,
        memory="4G",
        timeout=_START_SECONDS + 6 * seconds,
    )
    try:
        return _read(result.folder, seconds)
    except (OSError, ValueError, KeyError) as error:
        raise GuestError(f"{error}\n{result.output}") from error


def _read(folder: Path, seconds: int) -> Rung:
    doctor = json.loads((folder / "doctor.json").read_text())
    report = json.loads((folder / "r.json").read_text())
    took = [
        msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Attached)
        for name in ("compiled", "cached")
    ]
    begin, end = (float((folder / name).read_text()) for name in ("begin", "end"))
    states = [hook["state"] for hook in doctor["hooks"].values()]
    checks = [one["checks"] for one in report["invariants"].values()]
    return Rung(
        release=doctor["kernel"],
        commit=commit(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        verdict=doctor["verdict"].partition(". ")[0],
        capabilities=doctor["capabilities"],
        hooks={state: states.count(state) for state in sorted(set(states))},
        coverage={
            name: (one["coverage"], one["reason"]) for name, one in doctor["invariants"].items()
        },
        compiled=took[0],
        cached=took[1],
        doctor=round(end - begin, 1),
        seconds=seconds,
        holds=sum(one["holds"] for one in checks),
        unverifiable=sum(one["unverifiable"] for one in checks),
        wrong={
            one["signature"]: one["count"]
            for one in report["violations"]
            if one["verdict"] in stock_bugs.WRONG
        },
    )


def found_on(kernel: str) -> list[str]:
    """Return the numbers of the stock bugs that were found on a kernel, with the invariants."""
    return [
        f"#{one.number} ({', '.join(one.found)})"
        for one in stock_bugs.outcomes()
        if one.kernel == kernel and one.found
    ]


def table(known: Mapping[str, Rung]) -> str:
    """Return Markdown: a row of each kernel, then what differs between them."""
    return "\n".join([*_rows(known), "", *_differences(known)])


def _rows(known: Mapping[str, Rung]) -> Iterator[str]:
    head = (
        "kernel",
        "release",
        "hooks attached; substituted; none",
        "invariants in full; in part; none",
        "gate, compiled; cached, s",
        "doctor, s",
        "peak of attaching, MB",
        "healthy load, s: checks that hold; unverifiable; findings",
        "bugs found",
    )
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for name, entry in kernels().items():
        rung = known.get(name)
        if rung is None:
            why = entry.cannot or "not climbed yet"
            yield f"| {name} | {why} |" + " |" * (len(head) - 2)
            continue
        levels = [level for level, _ in rung.coverage.values()]
        off = sum(n for state, n in rung.hooks.items() if state in ("missing", "denied"))
        wrong = ", ".join(f"{one} ×{n}" for one, n in rung.wrong.items()) or "none"
        cells = (
            name,
            rung.release,
            f"{rung.hooks.get('attached', 0) + rung.hooks.get('paused', 0)};"
            f" {rung.hooks.get('substituted', 0)}; {off}",
            "; ".join(str(levels.count(level)) for level in ("full", "partial", "none")),
            f"{rung.compiled.gate:.0f}; {rung.cached.gate:.0f}",
            f"{rung.doctor:.0f}",
            f"{rung.compiled.peak_mb:.0f}",
            f"{rung.seconds}: {rung.holds:,}; {rung.unverifiable:,}; {wrong}",
            ", ".join(found_on(name)) or "none was tried",
        )
        yield f"| {' | '.join(cells)} |"


def _differences(known: Mapping[str, Rung]) -> Iterator[str]:
    """Yield a line per invariant that is not the same everywhere, with where and why."""
    yield "| invariant | coverage | on | reason |"
    yield "|---|---|---|---|"
    names = sorted({name for rung in known.values() for name in rung.coverage})
    for name in names:
        where: dict[tuple[str, str], list[str]] = {}
        for kernel, rung in known.items():
            where.setdefault(rung.coverage.get(name, ("none", "no such rule then")), []).append(
                kernel
            )
        for (level, reason), on in where.items():
            if level != "full":
                kernels_there = "all" if len(on) == len(known) else ", ".join(on)
                yield f"| {name} | {level} | {kernels_there} | {reason} |"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.ladder")
    parser.add_argument("kernels", nargs="*", help=", ".join(kernels()))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := set(options.kernels) - set(kernels()):
        parser.error(f"no kernel {min(unknown)}: {', '.join(kernels())}")
    known, failed = kept(), False
    if not options.table:
        for name in options.kernels or kernels():
            if kernels()[name].cannot or (name in known and not options.again):
                continue
            try:
                known[name] = climb(name, options.seconds)
            except GuestError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                failed = True
                continue
            failed |= bool(known[name].wrong)
            known = {one: known[one] for one in kernels() if one in known}
            KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(known), indent=1) + b"\n")
            print(f"{name}: {known[name].verdict}; {known[name].wrong or 'silent'}", flush=True)
    PAGE.write_text(page(PAGE.read_text(), known))
    return failed


def page(text: str, known: Mapping[str, Rung]) -> str:
    """Return the page with its tables."""
    return replaced(text, BEGIN, END, table(known))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
