"""Real violations on a real kernel, fault by fault.

docs/measurements/DETECTION.md has the table that this prints. The module of tests/faults is built
against Debian's headers of the guest's kernel and loaded in the guest only. RMAPD_VM_FAULTS: 6.1
(the default) or 6.1-arm64.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import FAULTY
from tests.vm.faults import reported, seconds
from tests.vm.guest import Result, run
from tracer.invariants.catalogue import discover
from tracer.report.explain import as_text
from tracer.report.find_violation import ExplainedViolation

WINDOWS: dict[str, tuple[int, int, set[tuple[str, str]]]] = {
    "walk_unlocked": (5, 5, {("L6", "rmap_walk_anon")}),
    "entry_unlocked": (5, 5, {("M2", "try_to_migrate_one"), ("L6", "rmap_walk_anon")}),
    "restored_unlocked": (5, 5, {("M3", "remove_migration_pte"), ("L6", "rmap_walk_anon")}),
    "source_mapped": (5, 5, {("R1", "remove_migration_pte")}),
    "adjust_swapped": (1, 1, {("L1", "__vma_adjust"), ("L2", "__vma_adjust")}),
    "move_swapped": (1, 1, {("L1", "move_page_tables"), ("L2", "move_page_tables")}),
    "cycle": (2, 1, {("L1", "do_brk_flags"), ("L2", "do_brk_flags")}),
    "commit_unlocked": (1, 1, {("L4", "__vma_adjust"), ("L5", "__vma_adjust")}),
    "import_unlocked": (1, 1, {("L4", "__vma_adjust"), ("L5", "__vma_adjust")}),
    "tree_unlocked": (1, 1, {("L4", "__vma_adjust"), ("L5", "__vma_adjust")}),
    "error_locked": (1, 1, {("L3", "do_brk_flags")}),
    "not_paired": (1, 1, {("V2", "__vma_adjust")}),
    "import_lost": (1, 1, {("V5", "__vma_adjust")}),
    "pgoff_lost": (1, 1, {("V1", "__vma_adjust")}),
}
"""Fault -> (number of strikes, number of violated windows, {(invariant, function) to be found})."""
PARAMETERS = "rmapd_faults=guest" + " nokaslr" * ("arm64" in FAULTY)
BEFORE = 1.0
"""Seconds by which a window may begin before the strike in it; faults are four seconds apart."""


def in_guest(module: Path, command: str, label: str, *, expect_bug: bool = False) -> Result:
    return run(
        FAULTY,
        command,
        append=PARAMETERS,
        expect_bug=expect_bug,
        label=label,
        timeout=1800 if "arm64" in FAULTY else 900,
        readable=[module.parent],
    )


def culprit(violation: dict[str, Any]) -> str:
    """Return whether the trail ends with the violating window, in the words of the matrix."""
    if not violation["protocol"]:
        return "none: no window"
    last = violation["trail"][-1] if violation["trail"] else {}
    own = (violation["function"], violation["task"]["pid"], violation["protocol"])
    return (
        "right"
        if last and (last["function"], last["task"]["pid"], last["protocol"]) == own
        else "pushed out"
    )


def fault_named(report: dict[str, Any], violation: dict[str, Any]) -> str:
    """Return the function at fault of `rmapd explain`, whose text must have all its parts."""
    explained = as_text(ExplainedViolation(violation, report), discover()[violation["invariant"]])
    (name,) = re.findall(r"^Function at fault: (\w+)\(\)", explained, re.MULTILINE)
    assert all(
        part in explained
        for part in ("What was promised", "Proof", "Trail", "Stack", report["kernel"])
    )
    return str(name)


def row(fault: dict[str, Any], violation: dict[str, Any]) -> str:
    """Return a row of the detection matrix."""
    after, times = seconds(violation) - fault["first"], f"{fault['struck']} | {violation['count']}"
    named = (
        violation["protocol"] or violation["signature"].partition(f"{violation['function']} ")[2]
    )
    found = (
        f"{violation['invariant']} {violation['verdict']} | {after:.2f} s "
        f"| `{violation['function']}()`"
    )
    return f"| `{fault['name']}` | {times} | {found} | {culprit(violation)} | `{named}` |"


def test_window_fault_is_found_and_attributed_to_its_function(module: Path) -> None:
    command = (
        f"insmod {module} && "
        "rmapd exec --report $OUT/r.json -- python -m tests.workloads.faults; echo exit $?"
    )
    result = in_guest(module, command, "matrix")
    assert "exit 3" in result.output, result.output
    report, faults = json.loads((result.folder / "r.json").read_text()), reported(result)
    assert {fault["name"]: fault["struck"] for fault in faults} == {
        name: times for name, (times, _, _) in WINDOWS.items()
    }
    found = list(report["violations"])
    for at, fault in enumerate(faults):
        start, until = (
            faults[i]["first"] - BEFORE if i < len(faults) else float("inf") for i in (at, at + 1)
        )
        own = [violation for violation in found if start <= seconds(violation) < until]
        found = [violation for violation in found if violation not in own]
        print("\n".join(row(fault, violation) for violation in own))
        _, windows, expected = WINDOWS[fault["name"]]
        assert {(violation["invariant"], violation["function"]) for violation in own} == expected, (
            fault
        )
        assert len(own) == len(expected), "one signature each"
        for violation in own:
            assert (violation["verdict"], violation["count"]) == ("violated", windows), violation[
                "signature"
            ]
            assert violation["task"]["pid"] == fault["pid"]
            assert seconds(violation) - fault["first"] < 60
            assert fault_named(report, violation) == violation["function"]
            if "arm64" not in FAULTY:  # there the stack at a return begins with the caller
                assert any(
                    frame.startswith(f"{violation['function']}+") for frame in violation["stack"]
                )
            if violation["protocol"]:
                assert culprit(violation) == "right", violation["trail"]
    assert not found, "violations that no fault explains"
    assert set(report["lost"].values()) == {0}


@pytest.mark.parametrize("fault", ["left_behind", "passed_over", "one_skipped"])
def test_entries_left_behind_are_proven_before_the_kernel_dies(module: Path, fault: str) -> None:
    """Migration entries stay in page tables, and the kernel's BUG follows.

    left_behind: the second walk visits the VMA and restores nothing. passed_over: it does not take
    place, and M5 names the VMA. one_skipped: it visits one of two VMAs that map the page, and M5
    names the other.
    """
    command = (
        f"insmod {module} && "
        f"{{ rmapd exec --report $OUT/r.json -- python -m tests.workloads.victim 5 {fault}; "
        "echo exit $?; sync; "
        "test -s $OUT/r.json && echo rmapd-vm: the report is written > /dev/kmsg; "
        "pkill -9 victim; sleep 3; }"
    )
    result = in_guest(module, command, fault, expect_bug=True)
    assert "exit 3" in result.output, result.output
    report, (struck,) = json.loads((result.folder / "r.json").read_text()), reported(result)
    assert struck["struck"] == 5
    assert report["invariants"]["M1"]["checks"]["violated"] == 5
    assert report["invariants"]["M1"]["checks"]["suspect"] == 0
    by_invariant = {violation["invariant"]: violation for violation in report["violations"]}
    print("\n".join(row(struck, violation) for violation in report["violations"]))
    summaries = {each["invariant"]: each["summary"] for each in report["violations"]}
    violation, visits = by_invariant["M1"], report["invariants"]["M5"]["checks"]
    if fault == "left_behind":
        assert set(by_invariant) == {"M1"}, summaries
        assert (visits["violated"], visits["unverifiable"]) == (0, 0)
        assert "the second walk visited it and did not restore it" in violation["summary"]
    else:
        assert set(by_invariant) == {"M1", "M5"}, summaries
        assert (visits["violated"], visits["unverifiable"]) == (5, 0)
        assert "did not visit a VMA" in by_invariant["M5"]["summary"]
        assert int(by_invariant["M5"]["evidence"]["first_walk"]["vm_start"], 16)
    assert (violation["invariant"], violation["verdict"], violation["count"]) == (
        "M1",
        "violated",
        5,
    )
    assert "victim[" in violation["summary"]
    if fault != "one_skipped":  # there it may be the child
        assert f"victim[{struck['victim']}]" in violation["summary"]
    assert any(frame.startswith("migrate_pages+") for frame in violation["stack"])
    assert violation["evidence"]["entries"][0]["locked"] is False
    at_fault = "remove_migration_pte" if fault == "left_behind" else "remove_migration_ptes"
    assert {fault_named(report, each) for each in report["violations"]} == {at_fault}
    assert all(each["evidence"]["trail_note"] for each in report["violations"])
    dmesg = (result.folder / "dmesg").read_text()
    written, bug = (
        dmesg.find("rmapd-vm: the report is written"),
        dmesg.find("kernel BUG at include/linux/swapops.h"),
    )
    assert bug > 0, "the kernel's own BUG was expected when the victim died"
    assert 0 < written < bug


def test_diff_of_a_healthy_and_a_broken_kernel_begins_with_the_broken_window(
    module: Path,
) -> None:
    """Compare a suspect kernel with a trusted one under the same workload."""
    command = (
        "rmapd exec --report $OUT/well.json -- python tests/workloads/vma.py 23 >/dev/null; "
        f"echo exit $?; insmod {module}; "
        "rmapd exec --report $OUT/broken.json -- sh -c 'python tests/workloads/vma.py 23; "
        "python -m tests.workloads.faults adjust_swapped' "
        ">/dev/null; echo exit $?; rmapd diff $OUT/well.json $OUT/broken.json"
    )
    result = in_guest(module, command, "diff")
    assert "exit 0" in result.output, result.output
    assert "exit 3" in result.output, result.output
    print(result.output)
    first = result.output.partition("!! violated or suspect protocol\n")[2].splitlines()
    assert re.match(
        r" +1  only broken.json: __vma_adjust\[file anon moved .*\]  anon↓w i_mmap↓w ", first[0]
    ), result.output
    assert first[1].strip() == "violates L1, L2"
    assert re.match(
        r" +most similar:  __vma_adjust\[file anon moved .*\]  i_mmap↓w anon↓w ", first[2]
    )
    assert "1 of them alarming" in result.output, result.output


def test_fault_module_refuses_a_kernel_without_its_boot_parameter(module: Path) -> None:
    result = run(
        FAULTY, f"insmod {module}; echo insmod $?", label="refused", readable=[module.parent]
    )
    assert "insmod 1" in result.output
    assert "Operation not permitted" in result.output
