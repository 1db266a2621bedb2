"""rmapd on arm64: coverage, silence under the healthy workloads, and what it reads in page tables.

RMAPD_VM_KERNELS names the versions (default 6.1), of which those run that are in arm64.toml.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vm.guest import Result, run
from tests.vm.test_arm64 import KERNELS
from tests.workloads.vma import compile_program

LOAD = "python -m tests.workloads.migrate 20000; python -m tests.workloads.vma 200"
MISSING = {"6.1-arm64": {"V6": "none"}}
"""Kernel -> coverage that is not full, as on x86-64: 6.1 has no vma_modify()."""


@pytest.fixture(scope="module", params=KERNELS)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("vma")
    compile_program(folder / "vma", "aarch64-linux-gnu-gcc")
    commands = (
        "rmapd doctor > $OUT/doctor.txt",
        "rmapd doctor --format json > $OUT/doctor.json",
        "python -m tests.vm.decoded $OUT/decoded.json",
        f"RMAPD_VMA={folder}/vma rmapd exec --report $OUT/r.json -- sh -c '{LOAD}'; echo load $?",
    )
    return run(
        request.param,
        "; ".join(commands),
        label="checks",
        nodes=2,
        memory_tags=True,
        timeout=1800,
        readable=[folder],
    )


def read(result: Result, name: str) -> Any:
    path = result.folder / name
    assert path.exists(), result.output
    return json.loads(path.read_text())


def kernel_of(result: Result) -> str:
    return result.folder.name.removesuffix("-checks")


def test_every_invariant_is_covered_as_on_x86(guest: Result) -> None:
    doctor = read(guest, "doctor.json")
    print("\n" + (guest.folder / "doctor.txt").read_text())
    found = {name: one["coverage"] for name, one in doctor["invariants"].items()}
    expected = dict.fromkeys(found, "full") | MISSING.get(kernel_of(guest), {})
    assert found == expected
    assert doctor["capabilities"]["page-table oracle"] == "calibrated"
    pages = "16" if "16k" in kernel_of(guest) else "4"
    assert doctor["capabilities"]["page tables"].endswith(f"levels, pages of {pages} KiB")


def test_page_frames_are_those_of_pagemap(guest: Result) -> None:
    found = read(guest, "decoded.json")
    print(found)
    assert all("disagree" not in tally for tally in found["pages"].values())
    assert {name: tally["agree"] for name, tally in found["pages"].items()} == dict.fromkeys(
        ("small", "huge", "tagged"), 1000
    )
    assert found["pages"]["huge"]["huge"] > 500


def test_entries_name_the_folio_that_the_walk_visited(guest: Result) -> None:
    entries = read(guest, "decoded.json")["entries"]
    assert entries["of the folio"] > 100
    assert "of another page" not in entries


def test_healthy_load_is_silent_and_every_entry_is_accounted_for(guest: Result) -> None:
    assert "load 0" in guest.output, guest.output
    report = read(guest, "r.json")
    checks = {name: one["checks"] for name, one in report["invariants"].items()}
    print("\n" + "\n".join(f"{name} {one}" for name, one in checks.items()))
    assert report["violations"] == []
    assert not [name for name, one in checks.items() if one["violated"] or one["suspect"]]
    assert {loss for loss, count in report["lost"].items() if count} <= {"missed_runs"}
    entries = report["migration"]
    decided = sum(
        entries[f"entries_{how}"] for how in ("cleared", "violated", "suspect", "unverifiable")
    )
    assert entries["entries_recorded"] + entries["entries_copied"] == (
        entries["entries_removed"] + decided + entries["outstanding"]
    )
    assert checks["M1"]["holds"] > 10_000
    assert min(checks[name]["holds"] for name in ("L1", "L3", "L4", "L6", "V2", "V4", "R4")) > 50
