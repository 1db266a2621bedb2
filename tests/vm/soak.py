"""Everything at once on a kernel for ten minutes, judged; then what was seen on all of them as a table (docs/SEEN.md).

usage: python -m tests.vm.soak run SECONDS KERNEL...       (exit 1 where anything is violated, suspect, lost or unreadable)
       python -m tests.vm.soak table                       (from the reports that are there)
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.vm.guest import RESULTS, GuestError, ladder, run

TABLE = Path(__file__).parent.parent.parent / "docs/SEEN.md"
_WELCOME_SECONDS = 120  # an emulated kernel is twenty times slower: M4 is about what stays, not about how fast this machine is
_OVERHEAD_SECONDS = 1200  # booting, verifying some 120 programs and settling, all emulated


def soak(kernel: str, seconds: int) -> bool:
    """True where the kernel kept every promise that was watched."""
    settings = f"echo welcome_seconds = {_WELCOME_SECONDS} > $OUT/rmapd.toml; export RMAPD_CONFIG=$OUT/rmapd.toml"
    command = f"{settings}; rmapd exec --fail-on suspect --report $OUT/r.json -- python -m tests.workloads.soak {seconds}"
    try:
        result = run(kernel, command, label="soak", append="numa=fake=2", timeout=4 * seconds + _OVERHEAD_SECONDS)
    except GuestError as error:
        print(error, file=sys.stderr)
        return False
    path = result.folder / "r.json"
    if not path.exists():
        print(result.output, file=sys.stderr)
        return False
    found = json.loads(path.read_text())
    print(_line(kernel, found), flush=True)
    for violation in found["violations"]:
        print(f"  {violation['verdict']} {violation['invariant']} x{violation['count']} {violation['signature']}")
    return result.code == 0 and not any(count for book, count in found["lost"].items() if book != "missed_runs")


def _line(kernel: str, found: dict[str, Any]) -> str:
    checks = {name: one["checks"] for name, one in found["invariants"].items() if sum(one["checks"].values())}
    verdicts = {v: sum(check[v] for check in checks.values()) for v in ("violated", "suspect", "unverifiable")}
    held = ", ".join(f"{name} {check['holds']:,}" for name, check in checks.items())
    lost = {book: count for book, count in found["lost"].items() if count} or "nothing"
    entries = found["migration"]["entries_booked"]
    return (
        f"{kernel}: {found['duration_seconds']:.0f} s, {sum(found['windows'].values()):,} windows, {len(found['protocols'])} protocols, "
        f"{entries:,} migration entries; holds {held}; {verdicts}, lost {lost}"
    )


def table() -> str:
    """Every protocol seen in any soak, with its count per kernel."""
    reports = {name: RESULTS / f"{name}-soak/r.json" for name in ladder()}
    found = {name: json.loads(path.read_text()) for name, path in reports.items() if path.exists()}
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    torn = []
    for name, one in found.items():
        for protocol in one["protocols"]:
            if wrong := protocol["violates"] + protocol["suspect"]:
                torn.append(f"- {name}, {protocol['count']:,}: `{protocol['text']}` would be {', '.join(wrong)}")
            else:
                counts[protocol["function"], protocol["text"]][name] = protocol["count"]
    lines = ["# Protocols seen on healthy kernels", ""]
    lines += [f"- {name} ({one['kernel']}): {_line(name, one).partition(': ')[2]}" for name, one in found.items()]
    lines += [
        "",
        "The notation is in PROTOCOLS.md. `python -m tests.vm.soak run 600 KERNEL...` makes the reports, `... table` this file.",
        "",
    ]
    lines += [f"| protocol | {' | '.join(found)} |", f"|-|{'-|' * len(found)}"]
    for (_, text), by_kernel in sorted(counts.items()):
        row = " | ".join(f"{by_kernel[name]:,}" if name in by_kernel else "" for name in found)
        lines.append(f"| `{text}` | {row} |")
    if torn:
        lines += ["", "## While the kernel left out runs of programs", ""]
        lines += ["Windows that lost steps, or a return: rmapd counted them as unverifiable (KERNELS.md, lazy preemption).", "", *torn]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    match arguments:
        case ["run", seconds, *kernels] if seconds.isdecimal() and kernels and {*kernels} <= {*ladder()}:
            return 0 if all([soak(kernel, int(seconds)) for kernel in kernels]) else 1
        case ["table"]:
            TABLE.write_text(table())
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
