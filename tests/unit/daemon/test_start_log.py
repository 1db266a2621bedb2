"""The start in the log: a few lines, warnings only for what is wrong, all of it as fields."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from tests.support.busy import tracepoints_only, well
from tests.unit.results.test_hook_groups import absent, hook
from tracer.attach.plan import HookState
from tracer.daemon.start_log import log_start
from tracer.invariants.base import Coverage
from tracer.results.snapshot import Snapshot


def logged(
    caplog: pytest.LogCaptureFixture, s: Snapshot, level: int = logging.INFO
) -> list[tuple[str, str]]:
    caplog.clear()
    caplog.set_level(level, "rmapd")
    log_start(s, "http://127.0.0.1:9743")
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_start_on_a_kernel_that_refuses_function_hooks_is_three_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    s = tracepoints_only()
    count, none = len(s.hooks), [name for name, (is_, _) in s.coverage.items() if is_ == "none"]
    assert "L1" in none
    assert logged(caplog, s) == [
        (
            "INFO",
            f"21 of {count} hooks are attached; {count - 21} are not: fentry programs are refused"
            " (EPERM: Operation not permitted), this kernel is built without CONFIG_KPROBES."
            " Details: rmapd doctor -v",
        ),
        (
            "INFO",
            f"coverage: of {len(s.invariants)} invariants 4 in full (V3 V4 R2 R4),"
            " 10 in part (M1 M2 M3 M4 L2 L3 L7 R1 R3 K1),"
            f" {len(none)} not ({' '.join(none)})",
        ),
        (
            "INFO",
            "gate open on 6.12.95-amd64, fidelity full, http://127.0.0.1:9743/metrics",
        ),
    ]


def test_start_with_all_hooks_is_three_lines_too(caplog: pytest.LogCaptureFixture) -> None:
    hooks, coverage, gate = logged(caplog, well())
    assert hooks == ("INFO", f"{len(well().hooks)} of {len(well().hooks)} hooks are attached")
    every = len(well().invariants)
    assert coverage[1].startswith(f"coverage: of {every} invariants {every} in full (M1 ")
    assert gate[1].startswith("gate open")


def test_replaced_function_is_no_warning_and_failed_hook_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    s = well()
    made = (
        absent("__vma_adjust_of_6_1"),
        hook("h", HookState.DENIED, "the verifier refused it", tried=True),
        hook("d", HookState.DETACHED, "its link is gone"),
    )
    lines = logged(caplog, replace(s, hooks=(*s.hooks, *made)))
    assert [message for level, message in lines if level == "WARNING"] == [
        "hooks: 1 could not be attached: h (the verifier refused it)",
        "hooks: 1 is detached: d (its link is gone)",
    ]
    assert "; 1 function does not exist in this kernel. Details:" in lines[0][1]


def test_each_hook_that_is_off_is_a_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    s = tracepoints_only()
    lines = logged(caplog, s, logging.DEBUG)
    debug = [message for level, message in lines if level == "DEBUG"]
    assert len(debug) == sum(not one.on for one in s.hooks)
    assert all(message.startswith("hook ") and " is denied: " in message for message in debug)


def test_gap_in_what_is_required_and_oracle_without_calibration_are_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    s = well(required=("L1",), oracle_reason="no /proc/kallsyms")
    s = replace(s, coverage={**s.coverage, "L1": (Coverage.PARTIAL, "sampled")})
    warnings = [message for level, message in logged(caplog, s) if level == "WARNING"]
    assert warnings == [
        "the page-table oracle is not calibrated (no /proc/kallsyms): suspects stay suspects",
        "Required, and not checked in full: L1 in part.",
    ]


def test_fields_have_counts_invariants_and_the_address(caplog: pytest.LogCaptureFixture) -> None:
    logged(caplog, tracepoints_only())
    hooks, coverage, gate = (record.__dict__["fields"] for record in caplog.records)
    assert hooks["hooks"]["attached"] == 21
    assert hooks["hooks"]["refused"] == len(tracepoints_only().hooks) - 21
    assert coverage["full"] == ["V3", "V4", "R2", "R4"]
    assert "L1" in coverage["none"]
    assert gate["url"] == "http://127.0.0.1:9743"
