"""Check kernels for some minutes under the kernel's own tests of mm and a mixed load.

usage: python -m tests.vm.soak run SECONDS KERNEL...
       python -m tests.vm.soak table
       python -m tests.vm.soak summary

run gives each of the kernel's own tests a tenth of SECONDS, and the mixed load all of them. It
exits with 1 if anything is violated, suspect or lost, or if there is no report. table writes
docs/measurements/SEEN.md from the kept reports. summary prints checks, verdicts, losses, protocols
and what holds, per kernel.

The reports of all runs are added up: they are kept under RMAPD_VM_RESULTS (by default the folder of
temporary files).
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
MAX_ENTRY_AGE_SECONDS = 120
"""An emulated kernel is twenty times slower, and M4 is about entries that stay, not about speed."""
PARAMETERS = "numa=fake=2 rcupdate.rcu_cpu_stall_timeout=300"
"""A preempted reader waits for minutes where the machine is shared: the default is 21 seconds."""
_SELFTEST_SHARE = 10
_OVERHEAD_SECONDS = 2400
"""To boot, verify some 120 programs, run the kernel's own tests and settle, all emulated."""
_CPUS = 3  # with fewer the kernel's test of migration skips

Report = dict[str, Any]


def soak(kernel: str, seconds: int) -> bool:
    """Return True if all checked invariants hold and nothing is lost."""
    try:
        tests = built(kernel)
        settings = (
            f"echo max_entry_age_seconds = {MAX_ENTRY_AGE_SECONDS} > $OUT/rmapd.toml; "
            "export RMAPD_CONFIG=$OUT/rmapd.toml"
        )
        load = (
            f"python -m tests.workloads.selftests {tests} {seconds // _SELFTEST_SHARE}; "
            f"python -m tests.workloads.soak {seconds}"
        )
        command = f"{settings}; rmapd exec --fail-on suspect --report $OUT/r.json -- sh -c '{load}'"
        limit = 4 * seconds + _OVERHEAD_SECONDS
        result = run(
            kernel,
            command,
            label="soak",
            append=PARAMETERS,
            memory="4G",
            cpus=_CPUS,
            timeout=limit,
            readable=[tests],
        )
    except GuestError as error:
        print(error, file=sys.stderr)
        return False
    if not (result.folder / "r.json").exists():
        print(result.output, file=sys.stderr)
        return False
    found = json.loads((result.folder / "r.json").read_text()) | {"loads": loads(result.output)}
    kept = _keep(kernel, found, result.folder)
    print(_line(kernel, found), kept, flush=True)
    for violation in found["violations"]:
        print(
            f"  {violation['verdict']} {violation['invariant']} x{violation['count']} "
            f"{violation['signature']}"
        )
    return result.code == 0 and not any(
        count for loss, count in found["lost"].items() if loss != "missed_runs"
    )


def loads(output: str) -> dict[str, Any]:
    """Return the results of the workloads, which each print a JSON line."""
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            result = json.loads(line)
            found |= result if "selftests" in result else {"soak": result}
    return found


def _keep(kernel: str, found: Report, folder: Path) -> Path:
    """Keep the report under the next number, with the folder of the run beside it."""
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
    """Return several reports of one kernel added up as one."""
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
        ", ".join(f"{loss} {count:,}" for loss, count in found["lost"].items() if count)
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
        f"{kernel}: {found['duration_seconds']:.0f} s, {sum(found['windows'].values()):,} windows, "
        f"{len(found['protocols'])} protocols, "
        f"{found['migration']['entries_recorded']:,} migration entries; "
        f"holds {total['holds']:,}: {held}; {rest}, lost {_lost(found)}"
    )


def summary() -> str:
    """Return a table of the kernels, one of their own tests, and one of the invariants."""
    lines = [
        "| kernel | runs, seconds | checks | violated | suspect | unverifiable | lost | windows "
        "| protocols |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    own_tests, added = [], {}
    for name, reports in _reports().items():
        found = added[name] = _added(reports)
        total = _total(found)
        cells = [f"{name} ({found['kernel']})", f"{len(reports)}, {found['duration_seconds']:,.0f}"]
        cells += [
            f"{sum(total.values()):,}",
            *(f"{total[verdict]:,}" for verdict in VERDICTS[1:]),
            _lost(found),
        ]
        cells += [f"{sum(found['windows'].values()):,}", str(len(found["protocols"]))]
        lines.append(f"| {' | '.join(cells)} |")
        own_tests.append(f"| {name} | {_selftests(reports)} |")
    return (
        "\n".join(
            [
                *lines,
                "",
                "| kernel | its own tests: passed, failed, skipped |",
                "|-|-|",
                *own_tests,
                "",
                *_held(added),
            ]
        )
        + "\n"
    )


def _held(found: dict[str, Report]) -> list[str]:
    """Return a table of the checks that hold, by invariant and kernel."""
    lines = [f"| holds | {' | '.join(found)} |", f"|-|{'-|' * len(found)}"]
    for invariant in dict.fromkeys(name for one in found.values() for name in one["invariants"]):
        checks = (one["invariants"].get(invariant, {"checks": {}}) for one in found.values())
        cells = (f"{one['checks'].get('holds', 0):,}" for one in checks)
        lines.append(f"| {invariant} | {' | '.join(cells)} |")
    return lines


def _selftests(reports: list[Report]) -> str:
    results: dict[str, Counter[str]] = defaultdict(Counter)
    for one in reports:
        for command, result in one.get("loads", {}).get("selftests", {}).items():
            results[command.split()[0]].update(
                {key: result[key] for key in ("pass", "fail", "skip")}
                | {"cut": result["exit"] is None}
            )
    return "; ".join(
        f"{name} {one['pass']}, {one['fail']}, {one['skip']}"
        f"{' (out of time)' if one['cut'] else ''}"
        for name, one in results.items()
    )


def table() -> str:
    """Return SEEN.md: each protocol of all soaks with its count per kernel."""
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
        "The notation is in [PROTOCOLS.md](../PROTOCOLS.md). "
        "`python -m tests.vm.soak run 600 KERNEL...`",
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
