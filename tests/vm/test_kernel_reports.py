"""K1: what a stock kernel complains of becomes a finding, with the trail of the mm it is about."""

from __future__ import annotations

import json

from tests.vm.guest import run
from tracer.invariants.catalogue import discover
from tracer.report.explain import as_text
from tracer.report.find_violation import ExplainedViolation

ROUNDS = 5
FORGED = "BUG: Bad page map in process forged  pte:1 pmd:2"


def test_lost_page_is_found_by_the_kernels_own_count() -> None:
    """CVE-2025-38207, never fixed in 6.1: the kernel prints `Bad rss-counter state` at the exit.

    Whoever drops the last reference to the mm prints it: the finding has to name the process whose
    mm it was, and the move_page_tables() of that process. User space writes a complaint of its own.
    """
    command = (
        f'rmapd exec --report $OUT/r.json -- sh -c \'echo "{FORGED}" > /dev/kmsg;'
        f" python -m tests.workloads.uprobe_merge {ROUNDS}'; echo exit $?"
    )
    result = run("6.1", command, expect_bug=True, label="uprobe-merge", timeout=600)
    assert "exit 3" in result.output, result.output
    dmesg = (result.folder / "dmesg").read_text()
    assert FORGED in dmesg
    printed = [line for line in dmesg.splitlines() if "Bad rss-counter state" in line]
    assert len(printed) == ROUNDS
    report = json.loads((result.folder / "r.json").read_text())
    assert report["invariants"]["K1"]["coverage"] == "full"
    assert report["invariants"]["K1"]["checks"]["violated"] == ROUNDS
    assert {one["invariant"] for one in report["violations"]} == {"K1", "V7"}
    (violation,) = [one for one in report["violations"] if one["invariant"] == "K1"]
    assert violation["verdict"] == "violated"
    (text,) = violation["evidence"]["kernel_text"]
    assert text in printed[0]
    trail = violation["trail"]
    process = {step["task"]["tgid"] for step in trail}
    assert process == {violation["task"]["tgid"]}
    moves = [step for step in trail if step["function"] == "move_page_tables"]
    assert len(moves) == 2, "there and back"
    print(as_text(ExplainedViolation(violation, report), discover()["K1"]))
