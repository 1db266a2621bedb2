"""Climb the ladder: on each kernel that can be had, attach, stay silent, and find faults in state.

usage: python -m tests.vm.ladder [KERNEL...] [--seconds N] [--guests N] [--again] [--table]   (root)

Without names: every kernel for x86-64 and arm64 that the tests know. What is known of a kernel is
kept in docs/measurements/ladder.json beside the page, after each kernel, and a kernel that is kept,
with as long a load, is passed over: a run that was stopped goes on where it was. --again: not so.
--seconds: of the healthy load (default 600). --guests: how many run at a time (default 1). --table:
only write docs/measurements/LADDER.md.

Faults are made where the headers of the kernel are served; elsewhere a bug that the kernel has is
tried (stock_bugs.toml). Exits with 1 if a kernel could not be booted, if the healthy load was not
silent, if a fault was not found by just the invariants that it breaks, or if nothing was found on a
kernel.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from tests.support.made_parts import keep, replaced
from tests.vm import guest, soak, stock_bugs
from tests.vm.faults import found_during, reported
from tests.vm.guest import ROOT, GuestError, NotServedError, commit, run
from tests.vm.modules import built

KEPT, PAGE = ROOT / "docs/measurements/ladder.json", ROOT / "docs/measurements/LADDER.md"
BEGIN, END = "<!-- made by python -m tests.vm.ladder --table -->", "<!-- end of the table -->"
_START_SECONDS = 2400
"""To boot, to attach four times and to settle, emulated."""
_SWAP = (
    "modprobe zram && echo 1G > /sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0"
)
"""Memory that is compressed: the guest has no disk."""
LOADS = "message,vma,rmap,thp"
FAULTS = {
    "gap_large": {"V4"},
    "vma_missing": {"V3", "V4"},
    "chain_outside": {"R2"},
    "index_off": {"R4"},
}
"""In the maple tree's gaps and slots, in an anon_vma's tree and in a page (rmapd_state) -> the
invariants that it breaks."""
_FAULT_SECONDS = 20
"""For which each fault stays: a pass of the audit takes some seconds."""


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
    struck: fault in state -> the invariants that were violated while it was there, and those that
    were suspect, each with the verdict behind it. not_struck: why none was made.
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
    done: dict[str, int] = {}
    left_out: dict[str, str] = {}
    struck: dict[str, list[str]] = {}
    not_struck: str = ""

    def well(self) -> bool:
        """Return whether the healthy load was silent, and each fault found by what it breaks."""
        return not self.wrong and all(FAULTS[name] == {*by} for name, by in self.struck.items())


def kept() -> dict[str, Rung]:
    """Return what is kept, by the kernel's name."""
    return msgspec.json.decode(KEPT.read_bytes(), type=dict[str, Rung]) if KEPT.exists() else {}


def climb(kernel: str, seconds: int) -> Rung:
    """Boot a kernel and find out. Raises GuestError where it dies.

    The machine for arm64 has two memory nodes: its 6.1 does not know numa=fake.
    """
    steps = (
        "rm -rf $RMAPD_CACHE/*",
        "python -m tests.bench.gate --session $RMAPD_CACHE > $OUT/compiled.json",
        "python -m tests.bench.gate --session $RMAPD_CACHE > $OUT/cached.json",
        "date +%s.%N > $OUT/begin; rmapd doctor --format json > $OUT/doctor.json;"
        " date +%s.%N > $OUT/end",
        f"echo max_entry_age_seconds = {soak.MAX_ENTRY_AGE_SECONDS} > $OUT/rmapd.toml",
        _SWAP,
        f"rmapd soak --for {seconds}s --load {LOADS} --seed 1 --daemon never --quiet"
        " --config $OUT/rmapd.toml --out $OUT/soak.json",
    )
    result = run(
        kernel,
        "; ".join(steps),
        label="ladder",
        append=soak.PARAMETERS,
        memory="4G",
        nodes=2 if guest.known()[kernel].arch == "arm64" else 1,
        timeout=_START_SECONDS + 6 * seconds,
    )
    try:
        return _read(result.folder, seconds)
    except (OSError, ValueError, KeyError) as error:
        raise GuestError(f"{error}\n{result.output}") from error


def _read(folder: Path, seconds: int) -> Rung:
    doctor = json.loads((folder / "doctor.json").read_text())
    whole = json.loads((folder / "soak.json").read_text())
    (soaked,) = whole["runs"]
    if soaked["outcome"] not in ("silent", "violated"):
        raise ValueError(f"the soak is {soaked['outcome']}: {soaked['why']}")
    report = json.loads(Path(soaked["report"]).read_text()) if soaked["report"] else {}
    took = [
        msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Attached)
        for name in ("compiled", "cached")
    ]
    begin, end = (float((folder / name).read_text()) for name in ("begin", "end"))
    states = [hook["state"] for hook in doctor["hooks"].values()]
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
        holds=soaked["checks"]["holds"],
        unverifiable=soaked["checks"]["unverifiable"],
        wrong={
            one["signature"]: one["count"]
            for one in report.get("violations", ())
            if one["verdict"] in stock_bugs.WRONG
        },
        done={part["name"]: part["done"] for part in soaked["parts"]},
        left_out=whole["left_out"],
    )


def strike(kernel: str, rung: Rung) -> Rung:
    """Corrupt a sleeping process on a kernel, and return the rung with what was found.

    Raises GuestError where the kernel dies, where a fault is not made, or where something is found
    when none is there.
    """
    guest.image(kernel)  # if that is served no longer, this raises
    with tempfile.TemporaryDirectory() as folder:
        try:
            module = built(kernel, "rmapd_state", Path(folder))
        except NotServedError:
            return msgspec.structs.replace(rung, struck={}, not_struck="no headers are served")
        result = run(
            kernel,
            f"echo audit_budget = 0.05 > $OUT/rmapd.toml; insmod {module} && rmapd exec"
            " --config $OUT/rmapd.toml --report $OUT/r.json --"
            f" python -m tests.workloads.state_faults {_FAULT_SECONDS} {' '.join(FAULTS)}",
            append="rmapd_faults=guest",
            label="ladder-faults",
            timeout=_START_SECONDS,
            readable=[Path(folder)],
        )
    made = reported(result)
    if [fault["name"] for fault in made] != [*FAULTS]:
        raise GuestError(result.output)
    report = result.report()
    found = {fault["name"]: found_during(fault, report) for fault in made}
    if sum(map(len, found.values())) != len(report["violations"]):
        raise GuestError(f"violations that no fault explains\n{result.output}")
    struck = {name: sorted({*map(_named, own)}) for name, own in found.items()}
    return msgspec.structs.replace(rung, struck=struck, not_struck="")


def _named(violation: dict[str, Any]) -> str:
    """Return the invariant, with the verdict behind it unless it is violated."""
    verdict = violation["verdict"]
    return f"{violation['invariant']}{'' if verdict == 'violated' else f' {verdict}'}"


def found_on(kernel: str) -> list[str]:
    """Return the numbers of the stock bugs that a kernel has and that were found on it."""
    has = {bug.number: bug for bug in stock_bugs.rows() if kernel in bug.bad}
    return [
        f"#{one.number} ({', '.join(one.found)})"
        for one in stock_bugs.outcomes()
        if one.kernel == kernel and one.number in has and {*has[one.number].found} <= {*one.found}
    ]


def table(rungs: Mapping[str, Rung]) -> str:
    """Return Markdown: a row of each kernel, what differs between them, what was not brought."""
    return "\n".join([*_rows(rungs), "", *_differences(rungs), "", *_not_run(rungs)])


def _rows(rungs: Mapping[str, Rung]) -> Iterator[str]:
    head = (
        "kernel",
        "release",
        "hooks attached; substituted; none",
        "invariants in full; in part; none",
        "gate, compiled; cached, s",
        "doctor, s",
        "peak of attaching, MB",
        "healthy load, s: checks that hold; unverifiable; findings",
        "faults in state: found (by)",
        "bugs found",
    )
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for name in guest.known():
        rung = rungs.get(name)
        if rung is None:
            yield f"| {name} | not climbed yet |" + " |" * (len(head) - 2)
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
            _struck(rung),
            ", ".join(found_on(name)) or "none was tried",
        )
        yield f"| {' | '.join(cells)} |"


def _struck(rung: Rung) -> str:
    if not rung.struck:
        return rung.not_struck or "not made yet"
    missed = [name for name, by in rung.struck.items() if not FAULTS[name] <= {*by}]
    found = f"{len(rung.struck) - len(missed)} of {len(rung.struck)}"
    by = ", ".join(sorted({one for invariants in rung.struck.values() for one in invariants}))
    wrong = sorted({one for name, by in rung.struck.items() for one in {*by} - FAULTS[name]})
    return (
        f"{found} ({by})"
        + (f"; missed: {', '.join(missed)}" if missed else "")
        + (f"; wrong: {', '.join(wrong)}" if wrong else "")
    )


def _differences(rungs: Mapping[str, Rung]) -> Iterator[str]:
    """Yield a line per invariant that is not the same everywhere, with where and why."""
    yield "| invariant | coverage | on | reason |"
    yield "|---|---|---|---|"
    names = sorted({name for rung in rungs.values() for name in rung.coverage})
    for name in names:
        where: dict[tuple[str, str], list[str]] = {}
        for kernel, rung in rungs.items():
            where.setdefault(rung.coverage.get(name, ("none", "no such rule then")), []).append(
                kernel
            )
        for (level, reason), on in where.items():
            if level != "full":
                kernels_there = "all" if len(on) == len(rungs) else ", ".join(on)
                yield f"| {name} | {level} | {kernels_there} | {reason} |"


def _not_run(rungs: Mapping[str, Rung]) -> Iterator[str]:
    """Yield a line per part of the load that was not brought everywhere, with where and why."""
    yield "| part of the load | left out on | reason |"
    yield "|---|---|---|"
    where: dict[tuple[str, str], list[str]] = {}
    for kernel, rung in rungs.items():
        for part, why in rung.left_out.items():
            where.setdefault((part, why), []).append(kernel)
        for part, done in rung.done.items():
            if not done:
                where.setdefault((part, "it ended no round"), []).append(kernel)
    for (part, why), on in where.items():
        yield f"| {part} | {', '.join(on)} | {why} |"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.ladder")
    parser.add_argument("kernels", nargs="*", help=", ".join(guest.known()))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--guests", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := set(options.kernels) - set(guest.known()):
        parser.error(f"no kernel {min(unknown)}: {', '.join(guest.known())}")
    failed = False
    if not options.table:
        rungs = kept()
        with ThreadPoolExecutor(options.guests) as guests:
            climbed = guests.map(
                lambda name: _climbed(name, options.seconds, rungs.get(name), again=options.again),
                options.kernels or guest.known(),
            )
            failed = not all([*climbed])
    PAGE.write_text(page(PAGE.read_text(), kept()))
    stock_bugs.write_page()
    return failed


_KEEPING = threading.Lock()


def _climbed(name: str, seconds: int, rung: Rung | None, *, again: bool) -> bool:
    """Find out what is not kept of a kernel, keep it, and return whether all is well.

    rung: what is kept. again: find all of it out once more.
    """
    try:
        if again or rung is None or rung.seconds < seconds:
            rung = _keep(name, climb(name, seconds))
        if not rung.not_struck and not (rung.struck and rung.well()):
            rung = _keep(name, strike(name, rung))
        if not rung.struck and (again or not found_on(name)):
            _try_bug(name)
    except GuestError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return False
    return rung.well() and bool(rung.struck or found_on(name))


def _try_bug(kernel: str) -> None:
    """Run the first bug that a kernel has, if one is known, and keep what was found."""
    for bug in stock_bugs.rows():
        if kernel in bug.bad:
            outcome, *_ = stock_bugs.walk(bug, kernel)
            with _KEEPING:
                stock_bugs.keep(outcome)
            return


def _keep(name: str, rung: Rung) -> Rung:
    with _KEEPING:
        rungs = kept() | {name: rung}
        rungs = {one: rungs[one] for one in guest.known() if one in rungs}
        keep(KEPT, rungs)
    print(f"{name}: {rung.verdict}; {rung.wrong or 'silent'}; {_struck(rung)}", flush=True)
    return rung


def page(text: str, rungs: Mapping[str, Rung]) -> str:
    """Return the page with its tables."""
    return replaced(text, BEGIN, END, table(rungs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
