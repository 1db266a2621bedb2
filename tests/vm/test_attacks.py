"""Attacks on the checker that need kprobes or a machine that may be harmed.

They run one after the other under load in one session.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.vm.guest import run
from tracer.invariants.catalogue import discover

KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()
BY_WINDOWS = {name for name, one in discover().items() if one.judge}


@pytest.fixture(scope="module", params=KERNELS)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    result = run(
        request.param,
        "python -m tests.vm.attacks $OUT/found.json",
        label="attacks",
        memory="2G",
        timeout=2400,
    )
    assert result.code == 0, result.output
    print(f"\n{request.param}\n{result.output}")
    return dict(json.loads((result.folder / "found.json").read_text()))


def test_attacks_cause_no_accusation_and_leave_no_program(found: dict[str, Any]) -> None:
    assert found["after"]["accused"] == []
    assert found["left"] == []
    assert found["after"]["checks"] > found["before"]["checks"] > 0


def test_kprobes_switched_off_cost_coverage_until_switched_on(found: dict[str, Any]) -> None:
    before, off, on = found["before"], found["kprobes"]["off"], found["kprobes"]["on"]
    assert before["full"]
    assert len(off["detached"]) > 10
    assert not BY_WINDOWS & set(off["full"])
    assert any("kprobes/enabled" in reason for reason in off["reasons"])
    assert on["detached"] == []
    assert on["full"] == before["full"]


def test_ftrace_switched_off_is_refused_or_costs_coverage(found: dict[str, Any]) -> None:
    tried = found["ftrace"]
    assert tried.get("refused") or (
        tried["off"]["detached"] and not BY_WINDOWS & set(tried["off"]["full"])
    )


def test_detached_links_are_refused_or_detected(found: dict[str, Any]) -> None:
    tried = found["links"]
    assert sum(tried["answers"].values()) > 50
    assert len(tried["detached"]) >= bool(tried["answers"].get("taken"))


@pytest.mark.parametrize("attack", ["hotplug", "clock", "memory"])
def test_session_keeps_coverage_and_checks_during_an_attack(
    found: dict[str, Any], attack: str
) -> None:
    assert found[attack]["accused"] == []
    assert found[attack]["full"] == found["before"]["full"]
    assert found[attack]["checks"] > found["kprobes"]["on"]["checks"]


def test_memory_attack_makes_the_kernel_kill_tasks(found: dict[str, Any]) -> None:
    assert found["memory"]["killed"] >= 2


def test_tiny_maps_make_checks_unverifiable_without_accusation(found: dict[str, Any]) -> None:
    tiny = found["tiny"]
    assert tiny["accused"] == []
    assert tiny["lost"]["ledger"] > 0
    assert tiny["lost"]["protocols"] > 0
    assert tiny["unverifiable"] > 100
    assert tiny["checks"] > tiny["unverifiable"]
