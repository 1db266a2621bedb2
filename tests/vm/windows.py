"""Count the calls of kernel functions per operation of tests/workloads/vma.py, on each kernel.

usage: python -m tests.vm.windows [KERNEL...]     (prints a table for docs/measurements/WINDOWS.md)

Kprobes with a histogram by pid count the calls of the workload and its children. The calls of 46
operations less those of 23, divided by 23, are the calls of one operation, without set-up and exit.
A remainder means that operations differ from each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.vm.guest import image, ladder, run
from tests.workloads.vma import OPERATIONS, compiled

TRACING = Path("/sys/kernel/tracing")
FEW, MANY = 23, 46
FUNCTIONS = """__vma_adjust vma_expand vma_shrink commit_merge __split_vma vma_merge
vma_merge_new_range vma_modify do_brk_flags copy_vma move_vma
move_page_tables expand_downwards anon_vma_clone anon_vma_fork __anon_vma_prepare unlink_anon_vmas
unlink_file_vma unlink_file_vma_batch_process dup_mmap uprobe_start_dup_mmap uprobe_end_dup_mmap
vma_adjust_trans_huge khugepaged_enter_vma vm_area_dup
mmap_region vma_mas_store perf_event_mmap vma_prepare vma_complete""".split()


def probe() -> dict[str, str]:
    """Attach a counting kprobe to each function; return why it is impossible where it is."""
    if not (TRACING / "kprobe_events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACING)], check=True)
    symbols = {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines()}
    traceable = {
        line.split()[0]
        for line in (TRACING / "available_filter_functions").read_text().splitlines()
    }
    missing = {}
    for name in FUNCTIONS:
        if name not in traceable:
            missing[name] = "notrace" if name in symbols else "absent"
            continue
        # open("a") would seek, which tracefs refuses
        events = os.open(TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
        os.write(events, f"p:windows/{name} {name}\n".encode())
        os.close(events)
        (TRACING / f"events/windows/{name}/trigger").write_text(
            'hist:keys=common_pid if comm == "vma"\n'
        )
    return missing


def hits() -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    for folder in (TRACING / "events/windows").glob("*/hist"):
        for pid, count in re.findall(r"common_pid: +(\d+) \} hitcount: +(\d+)", folder.read_text()):
            found[folder.parent.name, int(pid)] += int(count)
    return found


def stopped(pid: int) -> None:
    if not os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]):
        sys.exit("the workload did not stop")


def measure(program: int, operation: str, count: int) -> dict[str, list[int]]:
    """Return the calls of each function by the workload and its children after set-up."""
    command = ["vma", str(count), "1", *([operation] if operation != "all" else [])]
    with subprocess.Popen(
        command,
        executable=f"/proc/self/fd/{program}",
        pass_fds=[program],
        stdout=subprocess.DEVNULL,
    ) as work:
        stopped(work.pid)
        before = hits()
        os.kill(work.pid, signal.SIGCONT)
        stopped(work.pid)
        after = hits() - before
        os.kill(work.pid, signal.SIGCONT)
    added: dict[str, list[int]] = {}
    for (name, pid), number in after.items():
        added.setdefault(name, [0, 0])[pid != work.pid] += number
    return added


def count() -> None:
    """Count in the guest; print one JSON line."""
    program = compiled()
    missing = probe()
    found = {}
    for operation in (*OPERATIONS, "all"):
        few, many = measure(program, operation, FEW), measure(program, operation, MANY)
        print(operation, flush=True)
        found[operation] = {
            name: [
                high - low
                for high, low in zip(many.get(name, [0, 0]), few.get(name, [0, 0]), strict=True)
            ]
            for name in {*few, *many}
        }
    with contextlib.suppress(OSError):
        missing["missed"] = ",".join(
            line
            for line in (TRACING / "kprobe_profile").read_text().splitlines()
            if line.split()[-1] != "0"
        )
    print("windows " + json.dumps({"missing": missing, "found": found}))


def cells(answer: dict[str, Any], function: str) -> str:
    """Return a cell per operation, or why there is no probe.

    "1" or "0+15" are the calls of the process, and of its children; "r" precedes a remainder.
    """

    def one(own: int, children: int) -> str:
        both = [f"{n // FEW}" + (f" r{n % FEW}" if n % FEW else "") for n in (own, children)]
        return both[0] if both[1] == "0" else "+".join(both)

    if function in answer["missing"]:
        return "|".join([answer["missing"][function]] + [""] * (len(answer["found"]) - 1))
    return "|".join(one(*hit.get(function, [0, 0])) for hit in answer["found"].values())


def table(answers: dict[str, dict[str, Any]]) -> str:
    """Return the table; kernels with equal numbers share a row."""
    operations = list(next(iter(answers.values()))["found"])
    lines = ["|function|kernels|" + "|".join(operations) + "|", "|-|-|" + "-|" * len(operations)]
    for function in FUNCTIONS:
        rows: dict[str, list[str]] = {}
        for name, answer in answers.items():
            rows.setdefault(cells(answer, function), []).append(name)
        lines += [
            f"|{function}|{' '.join(names) if len(rows) > 1 else 'all'}|{row}|"
            for row, names in rows.items()
        ]
    return "\n".join(lines)


def main(kernels: list[str]) -> None:
    answers = {}
    for name in kernels:
        result = run(name, "python -m tests.vm.windows in-guest", label="windows", timeout=900)
        lines = [line for line in result.output.splitlines() if line.startswith("windows ")]
        if not lines:
            sys.exit(result.output)
        answers[name] = json.loads(lines[0].removeprefix("windows "))
        missed = answers[name]["missing"].pop("missed")
        print(
            f"{name}: {image(name).name.removeprefix('vmlinuz-')}, "
            f"missed by kprobes: {missed or 'none'}",
            flush=True,
        )
    print(table(answers))


if __name__ == "__main__":
    count() if sys.argv[1:] == ["in-guest"] else main(sys.argv[1:] or list(ladder()))
