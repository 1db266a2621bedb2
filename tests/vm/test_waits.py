"""L7 on real kernels: tasks that wait for themselves, for each other, and for too long.

The module rmapd_waits makes tasks wait on purpose (6.1; RMAPD_VM_FAULTS names another kernel). A
stock kernel does it by itself: mremap() of a shared mapping of hugetlbfs over 1 GiB, on every
kernel from 6.18 on that was tried. RMAPD_VM_KERNELS names the kernels that are asked for.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import FAULTY
from tests.vm.faults import reported, seconds
from tests.vm.guest import Result, run
from tests.vm.modules import built
from tracer.invariants.catalogue import discover
from tracer.report.explain import as_text
from tracer.report.find_violation import ExplainedViolation

KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()
LIMIT_SECONDS, SECONDS = 5, 25
EXPECTED = {
    "own_write": ("violated", r"own_write: .*waits for the rwsem \(to write\), which it has for"),
    "own_read": ("violated", r"own_read: .*waits for the mmap_lock .*, which it has for read"),
    "ring": ("violated", r"ring_(one|two): 2 tasks wait for each other for ever: .* the rwsem of"),
    "ring_through_a_reader": (
        "violated",
        r"read_(one|two): 2 tasks wait for each other for ever: .*mmap_lock of",
    ),
    "long": ("suspect", r".*has waited for the mmap_lock .*, and python\[\d+\] has it for write"),
}
"""What the module does -> (verdict, function and summary)."""


def of_waits(report: dict[str, Any]) -> list[dict[str, Any]]:
    found = [v for v in report["violations"] if v["invariant"] == "L7"]
    for violation in found:
        print(violation["verdict"], violation["function"], violation["summary"])
    return found


def worst(violations: list[dict[str, Any]]) -> str:
    verdicts = {violation["verdict"] for violation in violations}
    return next((verdict for verdict in ("violated", "suspect") if verdict in verdicts), "")


@pytest.fixture(scope="module")
def waits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(FAULTY, "rmapd_waits", tmp_path_factory.mktemp("waits"))


@pytest.fixture(scope="module")
def made(waits: Path) -> tuple[Result, dict[str, Any]]:
    """Let tasks wait in each way, one after the other, under one `rmapd exec`."""
    each = "; ".join(f"python -m tests.workloads.waits {name} {SECONDS}" for name in EXPECTED)
    limit = f"echo max_wait_seconds = {LIMIT_SECONDS} > $OUT/rmapd.toml"
    command = (
        f"{limit}; insmod {waits} && rmapd exec --config $OUT/rmapd.toml --report $OUT/r.json --"
        f" sh -c '{each}'; echo exit $?"
    )
    result = run(
        FAULTY,
        command,
        append="rmapd_faults=guest",
        label="waits",
        timeout=1200,
        one_thread=True,
        readable=[waits.parent],
    )
    assert "exit 3" in result.output, result.output
    return result, json.loads((result.folder / "r.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_tasks_that_wait_on_purpose_are_found(
    made: tuple[Result, dict[str, Any]], name: str
) -> None:
    result, report = made
    verdict, text = EXPECTED[name]
    assert report["invariants"]["L7"]["coverage"] == "full"
    assert {v["invariant"] for v in report["violations"]} == {"L7"}
    (fault,) = (one for one in reported(result) if one["name"] == name)
    own = [v for v in of_waits(report) if 0 <= seconds(v) - fault["first"] < SECONDS + 5]
    assert worst(own) == verdict, own
    named = [v for v in own if re.match(text, f"{v['function']}: {v['summary']}")]
    assert [v["verdict"] for v in named] == [verdict], own
    print(f"{name}: found {seconds(named[0]) - fault['first']:.2f} s after the threads began")
    explained = as_text(ExplainedViolation(named[0], report), discover()["L7"])
    assert named[0]["summary"] in " ".join(explained.split())


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel not in ("6.1", "6.12")])
@pytest.mark.parametrize("command", ["exec", "run"])
def test_stock_kernel_that_waits_for_itself_is_named_within_seconds(
    kernel: str, command: str
) -> None:
    """The task cannot be killed: `exec` ends by its --timeout, `run` is stopped."""
    workload = "python -m tests.workloads.hugetlb_move"
    script = {
        "exec": f"rmapd exec --timeout 30 --grace 3 --report $OUT/r.json -- {workload}",
        "run": (
            "rmapd run --listen 127.0.0.1:9743 --store '' > $OUT/log 2>&1 & daemon=$!;"
            " until curl -sf http://127.0.0.1:9743/-/ready; do sleep 0.5; done;"
            f" {workload} & sleep 20; curl -s http://127.0.0.1:9743/api/v1/report > $OUT/r.json;"
            " kill $daemon; wait $daemon; echo exit $?"
        ),
    }[command]
    result = run(kernel, script, label=f"waits-{command}", timeout=900, one_thread=True)
    moved = re.search(r"moves ([\d.]+)", result.output)
    assert moved, result.output
    found = of_waits(json.loads((result.folder / "r.json").read_text()))
    (violation,) = [one for one in found if one["verdict"] == "violated"]
    assert violation["signature"] == ("L7 violated huge_pmd_share waits for its own i_mmap_rwsem")
    assert any(frame.startswith("move_hugetlb_page_tables") for frame in violation["stack"])
    after = seconds(violation) - float(moved[1])
    print(f"{kernel}, {command}: found {after:.2f} s after the move began")
    assert -1 < after < 10
