"""A lock that a task keeps is found by the audit where functions are not hooked.

The module of tests/faults makes do_brk_flags() keep its lock. At fidelity `migration` no rwsem and
no window is hooked, as on a kernel without kprobes and fentry. The audit may use 5 % of a CPU: one
pass over the mms of an emulated kernel takes 40 ms. The guest runs in one thread of the emulator:
rmapd hooks sys_enter while all CPUs enter system calls (docs/KERNELS.md, 'Emulation').
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.vm.faults import reported, seconds
from tests.vm.guest import run
from tracer.invariants.catalogue import discover
from tracer.report.explain import as_text
from tracer.report.find_violation import ExplainedViolation

FOUND = {
    "calls": ("L3", r"L3 violated anon_vma_rwsem enters a system call"),
    "waits": ("L7", r"L7 violated \w+ waits for its own anon_vma rwsem"),
}
"""What the task does then -> (invariant, signature)."""


@pytest.mark.parametrize("then", FOUND)
def test_lock_that_is_kept_is_found_without_hooks_on_functions(module: Path, then: str) -> None:
    command = (
        f"echo audit_budget = 0.05 > $OUT/rmapd.toml; insmod {module} && rmapd exec"
        " --config $OUT/rmapd.toml --fidelity migration --report $OUT/r.json --"
        f" python -m tests.workloads.kept_lock {then} 20; echo exit $?"
    )
    result = run(
        "6.1",
        command,
        append="rmapd_faults=guest",
        label=f"kept-{then}",
        timeout=900,
        one_thread=True,
    )
    assert "exit 3" in result.output, result.output
    report, (fault,) = json.loads((result.folder / "r.json").read_text()), reported(result)
    assert fault["struck"] == 1
    assert report["invariants"]["L3"]["coverage"] == "partial"
    (violation,) = report["violations"]
    print(violation["summary"], violation["evidence"])
    invariant, signature = FOUND[then]
    assert re.fullmatch(signature, violation["signature"]), violation["signature"]
    assert violation["task"]["pid"] == fault["pid"]
    after = seconds(violation) - fault["first"]
    print(f"found {after:.2f} s after the strike")
    assert -1 < after < 20
    text = as_text(ExplainedViolation(violation, report), discover()[invariant])
    assert violation["evidence"]["lock"] in text
