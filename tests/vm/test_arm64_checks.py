"""rmapd on arm64: coverage, silence under the healthy workloads, and what it reads in page tables.

RMAPD_VM_KERNELS names the versions (default 6.1), of which those run that are in arm64.toml.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.vm.guest import ROOT, Result, run
from tests.vm.test_arm64 import KERNELS, read, silent_and_accounted_for
from tests.workloads.vma import compile_program

LOAD = "python -m tests.workloads.migrate 20000; python -m tests.workloads.vma 200"
MISSING = {"6.1-arm64": {"V6": "none"}}
"""Kernel -> coverage that is not full, as on x86-64: 6.1 has no vma_modify()."""


HUGE = {
    4: {"transparent": {2048, 64}, "hugetlb": {64, 2048, 32768}},
    16: {"transparent": {32768, 64}, "hugetlb": {2048, 32768}},
}
"""KiB of a page -> kind -> KiB of its huge pages: by PMDs and PTEs, contiguous and not."""
ROUNDS = 20


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the Debian package for arm64, and return a folder with what it installs."""
    made = subprocess.run(
        ["make", "-C", ROOT, "deb", "ARCH=arm64"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (archive,) = (ROOT / "build/deb").glob("*_arm64.deb")
    folder = tmp_path_factory.mktemp("package")
    subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    return folder


@pytest.fixture(scope="module", params=KERNELS)
def guest(
    request: pytest.FixtureRequest, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    folder = tmp_path_factory.mktemp("vma")
    compile_program(folder / "vma", "aarch64-linux-gnu-gcc")
    commands = (
        "rmapd doctor > $OUT/doctor.txt",
        "rmapd doctor --format json > $OUT/doctor.json",
        "python -m tests.vm.decoded $OUT/decoded.json",
        f"RMAPD_VMA={folder}/vma rmapd exec --report $OUT/r.json -- sh -c '{LOAD}'; echo load $?",
        "rmapd exec --report $OUT/huge.json -- python tests/workloads/numa.py"
        f" {ROUNDS} > $OUT/huge.txt; echo huge $?",
        f"cp -a {package}/. / && python -m tests.vm.confined $OUT/confined.json /usr/bin/rmapd",
    )
    return run(
        request.param,
        "; ".join(commands),
        label="checks",
        nodes=2,
        memory_tags=True,
        timeout=2400,
        readable=[folder, package],
    )


def kernel_of(result: Result) -> str:
    return result.folder.name.removesuffix("-checks")


def kib_of_a_page(result: Result) -> int:
    return 16 if "16k" in kernel_of(result) else 4


def test_every_invariant_is_covered_as_on_x86(guest: Result) -> None:
    doctor = read(guest, "doctor.json")
    print("\n" + (guest.folder / "doctor.txt").read_text())
    found = {name: one["coverage"] for name, one in doctor["invariants"].items()}
    expected = dict.fromkeys(found, "full") | MISSING.get(kernel_of(guest), {})
    assert found == expected
    assert doctor["capabilities"]["page-table oracle"] == "calibrated"
    assert doctor["capabilities"]["page tables"].endswith(
        f"levels, pages of {kib_of_a_page(guest)} KiB"
    )


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
    silent_and_accounted_for(report)
    checks = {name: one["checks"] for name, one in report["invariants"].items()}
    assert checks["M1"]["holds"] > 10_000
    assert min(checks[name]["holds"] for name in ("L1", "L3", "L4", "L6", "V2", "V4", "R4")) > 50


def test_huge_pages_of_every_kind_move_between_nodes_and_hold(guest: Result) -> None:
    text = (guest.folder / "huge.txt").read_text()
    print("\n" + text)
    assert "huge 0" in guest.output, guest.output
    moved: dict[str, set[int]] = {"transparent": set(), "hugetlb": set()}
    for kind, size, pages, refused in re.findall(
        r"(\w+), (\d+) kB: moved (\d+) pages in .*; \{(.*)\}", text
    ):
        assert re.fullmatch(r"('EBUSY': \d+)?", refused), "others may have the page isolated"
        assert int(pages) > ROUNDS, (kind, size)
        moved[kind].add(int(size))
    small = {64} if kernel_of(guest) == "6.1-arm64" else set()  # it has no such folios
    expected = HUGE[kib_of_a_page(guest)]
    assert moved == expected | {"transparent": expected["transparent"] - small}
    report = read(guest, "huge.json")
    silent_and_accounted_for(report)
    hooks = report["overhead"]["hooks"]
    assert min(hooks[f"{how}_migration_pmd"]["runs"] for how in ("set", "remove")) > 5 * ROUNDS


def test_installed_package_checks_without_privileges(guest: Result) -> None:
    found = read(guest, "confined.json")
    log = (guest.folder / "confined.log").read_text()
    print("\n" + log)
    assert (found["exit"], found["left"]) == (0, [])
    assert found["programs"] > 50
    assert len(found["threads"]) > 2
    for one in found["threads"]:
        assert int(one["CapEff"], 16) == 0
        assert (one["NoNewPrivs"], one["Seccomp"]) == ("1", "2")
        assert set(one["Uid"].split()) == {"65534"}
    wrong = re.findall(r'rmapd_checks_total\{.*"(?:violated|suspect)"\} (\S+)', found["metrics"])
    assert len(wrong) > 40
    assert {float(count) for count in wrong} == {0}
    assert not [line for line in log.splitlines() if " ERROR " in line or "not permitted" in line]
