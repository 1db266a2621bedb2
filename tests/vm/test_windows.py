"""Windows and protocols of an exact workload on full kernels, by fentry, kprobe and fprobe.

docs/measurements/WINDOWS.md has the expected numbers and their reasons.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from typing import Any

import pytest

from tests.vm.guest import run
from tracer.invariants.catalogue import discover
from tracer.protocol.model import Commit, Part, Protocol, Step
from tracer.protocol.text import parse

KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()
ROUNDS = 23
HOWS = ("fentry", "kprobe", "kprobe.multi")
BY_FPROBE = {"7.2", "7.3"}
"""Kernels whose fprobe reaches entries by ftrace."""
FULL = [name for name, one in discover().items() if one.judge or one.needs_every_window]
ALWAYS = {
    "__split_vma": 2,
    "do_brk_flags": 1,
    "copy_vma": 1,
    "move_vma": 1,
    "move_page_tables": 1,
    "expand_downwards": 1,
    "anon_vma_clone": 12,
    "anon_vma_fork": 9,  # the parent's VMAs with an anon_vma: calls without work are no windows
    "unlink_anon_vmas": 3,
    "dup_mmap": 1,
}
TO_6_2 = {"__vma_adjust": 4, "vma_merge": 5, "vma_expand": 1}
FROM_6_12 = {"vma_expand": 2, "commit_merge": 4, "vma_merge_new_range": 3, "vma_modify": 4}


@pytest.fixture(scope="module", params=KERNELS)
def every(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the results of count.py on one kernel, by each method that it has."""
    hows = HOWS if request.param in BY_FPROBE else HOWS[:2]
    command = " && ".join(f"python -m tests.vm.count $OUT/{h}.json {ROUNDS} {h}" for h in hows)
    result = run(request.param, command, label="windows", timeout=2700)
    assert result.code == 0, result.output
    found = {how: json.loads((result.folder / f"{how}.json").read_text()) for how in hows}
    for how, one in found.items():
        slowest = sorted(
            one["statistics"].items(), key=lambda item: -item[1]["microseconds"] * item[1]["runs"]
        )[:8]
        size, gate = one["rss_bytes"] / 1e6, one["gate_seconds"]
        print(
            f"\n{one['kernel']} {how}: gate open after {gate} s, {one['attached']} hooks attached, "
            f"peak RSS {size:.0f} MB"
        )
        print(
            "  "
            + ", ".join(f"{name} {s['runs']}x{s['microseconds']:.2f} us" for name, s in slowest)
        )
    return found


@pytest.fixture(params=HOWS)
def found(request: pytest.FixtureRequest, every: dict[str, Any]) -> dict[str, Any]:
    if request.param not in every:
        pytest.skip("this kernel's fprobe does not reach entries by ftrace")
    return dict(every[request.param])


def test_every_window_is_counted_once(found: dict[str, Any]) -> None:
    old = found["hooks"]["__vma_adjust"]["state"] == "attached"
    expected = ALWAYS | (TO_6_2 if old else FROM_6_12)
    if found["hooks"]["unlink_file_vma_batch_process"]["state"] == "substituted":
        # unlink_file_vma_batch_final() ends every free_pgtables(), with files or without
        expected["unlink_file_vma_batch_process"] = 1
    assert found["windows"] == {name: ROUNDS * times for name, times in expected.items()}
    assert found["table"] == found["recorded"], (
        "the table of windows and the flight recorder have the same windows"
    )


def test_healthy_kernel_has_no_finding_with_full_coverage(found: dict[str, Any]) -> None:
    assert found["violations"] == []
    assert not [check for check in found["checks"] if not check.endswith("holds")]
    assert {loss for loss, count in found["lost"].items() if count} <= {
        "missed_runs"
    }  # 7.x preempts
    old = found["hooks"]["__vma_adjust"]["state"] == "attached"
    full = [name for name in FULL if name != "V6" or not old]
    assert {name: found["coverage"][name] for name in full} == {name: ["full", ""] for name in full}
    judged = ("L1", "L2", "L3", "L4", "L5", "V1", "V2", "V5")
    for name in (*judged, *(() if old else ("V6",))):
        assert found["checks"][f"{name} holds"] >= ROUNDS


def test_each_method_records_the_same_protocols(every: dict[str, Any]) -> None:
    first, *others = every.values()
    assert all(other["protocols"] == first["protocols"] for other in others)
    for name in ("down_write", "up_write"):
        assert {how: one["hooks"][name]["how"] for how, one in every.items()} == {
            how: how for how in every
        }
    for name in ("__split_vma", "anon_vma_clone"):
        assert {how: one["hooks"][name]["how"] for how, one in every.items()} == {
            how: how.removesuffix(".multi") for how in every
        }


def _without_vma_lock(protocol: Protocol) -> tuple[Step, ...]:
    """Return the steps without the per-VMA lock, which only some kernels have."""
    steps = (
        Commit(tuple(p for p in step.parts if p[0] is not Part.VMA))
        if isinstance(step, Commit)
        else step
        for step in protocol.flat()
    )
    return tuple(steps)


def test_rebuilt_vma_expand_has_the_protocol_of_a_hooked_one(every: dict[str, Any]) -> None:
    """vma_expand() is rebuilt on 6.1 and hooked from 6.12 on, with its locks in commit_merge()."""
    golden = parse(
        "vma_expand[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w"
    )
    seen = [parse(line) for line in every["fentry"]["protocols"]]
    state = every["fentry"]["hooks"]["vma_expand"]["state"]
    window = "vma_expand" if state == "substituted" else "commit_merge"
    assert state in ("substituted", "attached")
    wanted = replace(golden.context, rebuilt=state == "substituted")
    assert any(
        _without_vma_lock(p) == _without_vma_lock(golden)
        and p.window == window
        and p.context == wanted
        for p in seen
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_sampled_windows_are_few_and_cause_no_accusation(kernel: str) -> None:
    """One window a second of each function is recorded on each CPU."""
    load = "for _ in 1 2 3; do python -m tests.workloads.vma 1000; done"
    command = (
        "RMAPD_SAMPLED_WINDOWS=1 rmapd exec --fidelity sampled --report $OUT/r.json -- "
        f"sh -c {shlex.quote(load)}"
    )
    one_thread = "arm64" not in kernel  # else such a guest may hang (docs/KERNELS.md, 'Emulation')
    result = run(kernel, command, label="sampled", timeout=1200, one_thread=one_thread)
    assert result.code == 0, result.output
    report = json.loads((result.folder / "r.json").read_text())
    recorded, unsampled = report["windows"], report["windows_unsampled"]
    print(
        f"\n{report['kernel']}, {report['duration_seconds']:.0f} s: "
        f"{sum(recorded.values())} windows recorded, {sum(unsampled.values())} not"
    )
    assert sum(unsampled.values()) > 10 * sum(recorded.values())
    once_a_second = {
        name: count
        for name, count in recorded.items()
        if count <= 2 * (report["duration_seconds"] + 2)
    }
    assert {"__split_vma", "do_brk_flags", "copy_vma", "expand_downwards", "dup_mmap"} <= {
        *once_a_second
    }
    covered = {name: (one["coverage"], one["reason"]) for name, one in report["invariants"].items()}
    assert covered["L4"] == ("full", "")
    missing = ["V6"] if report["hooks"]["vma_modify"]["state"] == "missing" else []
    assert {covered[name] for name in FULL if name not in ("L4", *missing)} == {
        ("partial", "windows are sampled: 1 outermost ones of a function a second, on each CPU")
    }
    counts = {
        verdict: sum(one["checks"][verdict] for one in report["invariants"].values())
        for verdict in ("violated", "suspect")
    }
    assert (counts, report["violations"]) == ({"violated": 0, "suspect": 0}, [])
    assert not [
        one["text"]
        for one in report["protocols"]
        if one["function"] == "outside" and "(" in one["text"].replace("(new)", "")
    ]
