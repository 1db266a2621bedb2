"""The kernel's own tests of mm, then everything at once on a kernel for some minutes, judged; what was seen on all kernels as tables.

usage: python -m tests.vm.soak run SECONDS KERNEL...       (exit 1 where anything is violated, suspect, lost or unreadable)
       python -m tests.vm.soak table                       (docs/measurements/SEEN.md from the reports that are there)
       python -m tests.vm.soak summary                     (checks, verdicts, losses and protocols per kernel, all runs added up)

Reports add up: each run of a kernel is kept under RMAPD_VM_RESULTS (the folder of temporary files, where that is not set).
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.vm.guest import RESULTS, GuestError, ladder, run
from tests.vm.selftests import built

TABLE = Path(__file__).parent.parent.parent / "docs/measurements/SEEN.md"
KEPT = RESULTS / "soaks"
VERDICTS = ("holds", "violated", "suspect", "unverifiable")
_WELCOME_SECONDS = 120  # an emulated kernel is twenty times slower: M4 is about what stays, not about how fast this machine is
_SELFTEST_SECONDS = 60
_OVERHEAD_SECONDS = (
    2400  # booting, verifying some 120 programs, the kernel's own tests and settling, all emulated
)
_CPUS = 3  # the kernel's test of migration skips where fewer can touch what moves

Report = dict[str, Any]


def soak(kernel: str, seconds: int) -> bool:
    """True where the kernel kept every promise that was watched."""
    try:
        tests = built(kernel)
        settings = f"echo max_entry_age_seconds = {_WELCOME_SECONDS} > $OUT/rmapd.toml; export RMAPD_CONFIG=$OUT/rmapd.toml"
        load = f"python -m tests.workloads.selftests {tests} {_SELFTEST_SECONDS}; python -m tests.workloads.soak {seconds}"
        command = f"{settings}; rmapd exec --fail-on suspect --report $OUT/r.json -- sh -c '{load}'"
        limit = 4 * seconds + _OVERHEAD_SECONDS
        result = run(
            kernel,
            command,
            label="soak",
            append="numa=fake=2",
            memory="4G",
            cpus=_CPUS,
            timeout=limit,
        )
    except GuestError as error:
        print(error, file=sys.stderr)
        return False
    if not (result.folder / "r.json").exists():
        print(result.output, file=sys.stderr)
        return False
    found = json.loads((result.folder / "r.json").read_text()) | {"loads": _loads(result.output)}
    kept = _keep(kernel, found, result.folder)
    print(_line(kernel, found), kept, flush=True)
    for violation in found["violations"]:
        print(
            f"  {violation['verdict']} {violation['invariant']} x{violation['count']} {violation['signature']}"
        )
    return result.code == 0 and not any(
        count for book, count in found["lost"].items() if book != "missed_runs"
    )


def _loads(output: str) -> dict[str, Any]:
    """What the workloads said of themselves: a JSON line each."""
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            found |= said if "selftests" in said else {"soak": said}
    return found


def _keep(kernel: str, found: Report, folder: Path) -> Path:
    """The report under a number of its own, and the folder of the run beside it."""
    KEPT.mkdir(parents=True, exist_ok=True)
    number = 1 + len([*KEPT.glob(f"{kernel}_*.json")])
    path = KEPT / f"{kernel}_{number}.json"
    path.write_text(json.dumps(found))
    shutil.copytree(folder, path.with_suffix(""), dirs_exist_ok=True)
    return path


def _reports() -> dict[str, list[Report]]:
    kept = {name: sorted(KEPT.glob(f"{name}_*.json")) for name in ladder()}
    return {
        name: [json.loads(path.read_text()) for path in paths]
        for name, paths in kept.items()
        if paths
    }


def _added(reports: list[Report]) -> Report:
    """Several reports of one kernel as one."""
    checks: dict[str, Counter[str]] = defaultdict(Counter)
    windows, lost = Counter[str](), Counter[str]()
    protocols: dict[str, Report] = {}
    for one in reports:
        for name, invariant in one["invariants"].items():
            checks[name].update(invariant["checks"])
        windows.update(one["windows"])
        lost.update(one["lost"])
        for protocol in one["protocols"]:
            before = protocols.get(protocol["text"], {"count": 0})
            protocols[protocol["text"]] = protocol | {"count": protocol["count"] + before["count"]}
    return {
        "kernel": reports[-1]["kernel"],
        "duration_seconds": sum(one["duration_seconds"] for one in reports),
        "invariants": {name: {"checks": dict(check)} for name, check in checks.items()},
        "windows": dict(windows),
        "protocols": [*protocols.values()],
        "lost": dict(lost),
        "migration": {
            "entries_recorded": sum(one["migration"]["entries_recorded"] for one in reports)
        },
    }


def _total(found: Report) -> dict[str, int]:
    return {
        verdict: sum(one["checks"].get(verdict, 0) for one in found["invariants"].values())
        for verdict in VERDICTS
    }


def _lost(found: Report) -> str:
    return (
        ", ".join(f"{book} {count:,}" for book, count in found["lost"].items() if count)
        or "nothing"
    )


def _line(kernel: str, found: Report) -> str:
    total = _total(found)
    held = ", ".join(
        f"{name} {one['checks']['holds']:,}"
        for name, one in found["invariants"].items()
        if one["checks"].get("holds")
    )
    rest = ", ".join(f"{verdict} {total[verdict]:,}" for verdict in VERDICTS[1:])
    return (
        f"{kernel}: {found['duration_seconds']:.0f} s, {sum(found['windows'].values()):,} windows, {len(found['protocols'])} protocols, "
        f"{found['migration']['entries_recorded']:,} migration entries; holds {total['holds']:,}: {held}; {rest}, lost {_lost(found)}"
    )


def summary() -> str:
    """One row per kernel, then what the kernel's own tests said of themselves there."""
    lines = [
        "| kernel | runs, seconds | checks | violated | suspect | unverifiable | lost | windows | protocols |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    said = []
    for name, reports in _reports().items():
        found = _added(reports)
        total = _total(found)
        cells = [f"{name} ({found['kernel']})", f"{len(reports)}, {found['duration_seconds']:,.0f}"]
        cells += [
            f"{sum(total.values()):,}",
            *(f"{total[verdict]:,}" for verdict in VERDICTS[1:]),
            _lost(found),
        ]
        cells += [f"{sum(found['windows'].values()):,}", str(len(found["protocols"]))]
        lines.append(f"| {' | '.join(cells)} |")
        said.append(f"| {name} | {_selftests(reports)} |")
    return (
        "\n".join(
            [*lines, "", "| kernel | its own tests: passed, failed, skipped |", "|-|-|", *said]
        )
        + "\n"
    )


def _selftests(reports: list[Report]) -> str:
    results: dict[str, Counter[str]] = defaultdict(Counter)
    for one in reports:
        for command, result in one.get("loads", {}).get("selftests", {}).items():
            results[command.split()[0]].update(
                {key: result[key] for key in ("pass", "fail", "skip")}
                | {"cut": result["exit"] is None}
            )
    return "; ".join(
        f"{name} {one['pass']}, {one['fail']}, {one['skip']}{' (out of time)' if one['cut'] else ''}"
        for name, one in results.items()
    )


def table() -> str:
    """Every protocol seen in any soak, with its count per kernel."""
    found = {name: _added(reports) for name, reports in _reports().items()}
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    torn = []
    for name, one in found.items():
        for protocol in one["protocols"]:
            if wrong := protocol["violates"] + protocol["suspect"]:
                cells = (name, f"{protocol['count']:,}", f"`{protocol['text']}`", ", ".join(wrong))
                torn.append(f"| {' | '.join(cells)} |")
            else:
                counts[protocol["function"], protocol["text"]][name] = protocol["count"]
    lines = ["# Protocols seen on healthy kernels", ""]
    lines += [
        textwrap.fill(
            f"- {name} ({one['kernel']}): {_line(name, one).partition(': ')[2]}",
            width=100,
            subsequent_indent="  ",
        )
        for name, one in found.items()
    ]
    lines += [
        "",
        "The notation is in [PROTOCOLS.md](../PROTOCOLS.md). `python -m tests.vm.soak run 600 KERNEL...`",
        "makes the reports, `... table` this file.",
        "",
    ]
    lines += [f"| protocol | {' | '.join(found)} |", f"|-|{'-|' * len(found)}"]
    for (_, text), by_kernel in sorted(counts.items()):
        row = " | ".join(f"{by_kernel[name]:,}" if name in by_kernel else "" for name in found)
        lines.append(f"| `{text}` | {row} |")
    if torn:
        lines += ["", "## While the kernel left out runs of programs", ""]
        lines += [
            "These windows lost steps, or a return. rmapd counted them as unverifiable",
            "([KERNELS.md](../KERNELS.md), lazy preemption).",
            "",
            "| kernel | count | protocol | would be |",
            "|-|-|-|-|",
            *torn,
        ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    match arguments:
        case ["run", seconds, *kernels] if (
            seconds.isdecimal() and kernels and {*kernels} <= {*ladder()}
        ):
            return 0 if all([soak(kernel, int(seconds)) for kernel in kernels]) else 1
        case ["table"]:
            TABLE.write_text(table())
            return 0
        case ["summary"]:
            print(summary(), end="")
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
