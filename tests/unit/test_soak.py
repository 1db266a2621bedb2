"""The results of the kernel's own tests are counted, and runs of a kernel are added up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vm import soak
from tests.workloads.selftests import count, run

TAP = """TAP version 13
1..4
#  RUN           migration.private_anon ...
ok 1 migration.private_anon
ok 2 migration.shared_anon # SKIP Not enough threads or NUMA nodes available
not ok 3 migration.private_anon_thp
    ok 4 a subtest
"""
KHUGEPAGED = (
    "Collapse fully populated PTE table.... \x1b[32mOK\x1b[0m\n"
    "allocate huge page... \x1b[31mFail\x1b[0m\n"
    "file... \x1b[33mSkip\x1b[0m\n"
)


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        (TAP, 1, (2, 1, 1)),
        (KHUGEPAGED, 1, (1, 1, 1)),
        ("OK\n", 0, (1, 0, 0)),
        ("Not OK\n", 1, (0, 1, 0)),
        ("NUMA support not enabled\n", 4, (0, 0, 1)),
        ("", None, (0, 0, 0)),
        (TAP, None, (2, 1, 1)),
    ],
)
def test_results_are_counted_by_output_and_exit_code(
    output: str, code: int | None, expected: tuple[int, int, int]
) -> None:
    assert tuple(count(output, code).values()) == expected


def test_selftest_that_does_not_end_is_stopped_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    program = tmp_path / "hangs"
    program.write_text("#!/bin/sh\necho ok 1 first\nsleep 60 &\nsleep 60\n")
    program.chmod(0o755)
    found = run(tmp_path, "hangs", 1)
    assert (found["exit"], found["pass"]) == (None, 1)
    assert found["seconds"] < 30


def report(**checks: int) -> dict[str, Any]:
    everything = {"holds": 0, "violated": 0, "suspect": 0, "unverifiable": 0} | checks
    return {
        "kernel": "6.1.0-56-amd64",
        "duration_seconds": 600.0,
        "invariants": {"M1": {"checks": everything}},
        "windows": {"dup_mmap": 5},
        "protocols": [
            {
                "text": "dup_mmap[]",
                "function": "dup_mmap",
                "count": 5,
                "violates": [],
                "suspect": [],
            }
        ],
        "lost": {"missed_runs": 3, "ledger": 0},
        "migration": {"entries_recorded": 7},
        "loads": {
            "selftests": {
                "merge": {"pass": 24, "fail": 0, "skip": 1, "exit": 0},
                "rmap": {"pass": 1, "fail": 1, "skip": 0, "exit": None},
            }
        },
    }


def test_runs_of_a_kernel_are_added_up_in_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "KEPT", tmp_path)
    for number, kept in enumerate(
        (report(holds=6_000_000), report(holds=5_000_000, unverifiable=12))
    ):
        (tmp_path / f"6.1_{number}.json").write_text(json.dumps(kept))
    found = soak.summary()
    assert (
        "| 6.1 (6.1.0-56-amd64) | 2, 1,200 | 11,000,012 | 0 | 0 | 12 | missed_runs 6 | 10 | 1 |"
        in found
    )
    assert "| 6.1 | merge 48, 0, 2; rmap 2, 2, 0 (out of time) |" in found
    assert found.endswith("| holds | 6.1 |\n|-|-|\n| M1 | 11,000,000 |\n")


def test_results_of_workloads_are_found_among_other_output() -> None:
    found = soak.loads(
        'warning: x\n{"selftests": {"merge": {"pass": 1}}}\n'
        '{"seconds": 1.5, "parts": {}}\nrmapd 0.1.0\n'
    )
    assert found == {"selftests": {"merge": {"pass": 1}}, "soak": {"seconds": 1.5, "parts": {}}}
