"""The rooms and the direction of the imports; the layouts; the invariants' own completeness."""

from __future__ import annotations

import ast
import struct
from pathlib import Path

import pytest

from tests.support.native import LAYOUTS, ROOT
from tracer.errors import RmapdError
from tracer.invariant import Coverage, discover
from tracer.layout import parse

# Lower numbers know nothing of higher ones. bcc is known to `compiler` alone.
FLOORS = [
    floor.split()
    for floor in """
    printable evidence answer histogram standing stubs monitors missed_runs notify schema pulse syscalls machine governor cache child
    errors logs
    outcome reading
    stored database btf layout bpf verdict config template whole drawing wire privileges otlp command
    exec_order
    slices kernel instance installation protocol signature program compiler reported
    plan symbols books windows encoding notation invariant plots summary watch keeper
    checkpoint required
    oracle loaded rulings difference scene trail
    aligned fidelity late
    loader beside
    handover html_report markdown_report
    handed_down
    supervisor
    snapshot explain publish
    suspects calibrate history
    facts
    metrics report points status
    findings docket store journal ktap junit current
    judge reaction web
    recorder
    session
    after_death
    found_after
    service execute doctor
    exec_supervisor run_supervisor
    cli
    __main__
    """.strip().splitlines()
]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def floor(module: str) -> int:
    return next(n for n, names in enumerate(FLOORS) if module in names)


def test_imports_point_one_way() -> None:
    web = [(path, "web") for path in (ROOT / "tracer/web").glob("*.py")]
    for path, room in [
        *((path, path.stem) for path in sorted((ROOT / "tracer").glob("*.py"))),
        *web,
    ]:
        if room == "__init__":
            continue
        own = floor(room)
        for name in imports(path):
            part = name.split(".")[1] if name.startswith("tracer.") else ""
            if (
                part
                and ((ROOT / f"tracer/{part}.py").exists() or (ROOT / f"tracer/{part}").is_dir())
                and part != room
            ):
                assert floor(part) < own, f"{path.stem} imports {part}"


def test_bcc_is_imported_by_one_module() -> None:
    users = {path.name for path in (ROOT / "tracer").rglob("*.py") if "bcc" in imports(path)}
    assert users == {"compiler.py"}


def test_monitors_know_no_machinery() -> None:
    for path in (ROOT / "tracer/monitors").glob("*.py"):
        known = {name.split(".")[1] for name in imports(path) if name.startswith("tracer.")}
        assert known <= {"answer", "invariant", "monitors", "protocol", "verdict"}, path.name


def test_files_stay_small() -> None:
    for path in (ROOT / "tracer").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 470, path.name


def test_every_invariant_of_the_catalogue_is_declared() -> None:
    known = discover()
    assert list(known) == "M1 M2 M3 M4 M5 L1 L2 L3 L4 L5 L6 V1 V2 V3 V4 V5 R1 R2".split()
    for invariant in known.values():
        assert all(
            (
                invariant.title,
                invariant.claim,
                invariant.stated,
                invariant.not_violations,
                invariant.confirmed,
            )
        )
        assert bool(invariant.needs) != bool(invariant.awaits)


def test_coverage_says_what_is_lacking() -> None:
    m1 = discover()["M1"]
    every = {name for names in (*m1.needs, *(m1.lacking or {})) for name in names.split("|")}
    assert m1.coverage(every) == (Coverage.FULL, "")
    assert m1.coverage(every - {"set_migration_pte"}) == (Coverage.NONE, "needs set_migration_pte")
    level, reason = m1.coverage(every - {"oracle"})
    assert level is Coverage.PARTIAL
    assert "suspect" in reason


def test_coverage_knows_alternatives() -> None:
    l5 = discover()["L5"]
    new = {
        "commit",
        "commit_merge",
        "vma_expand",
        "vma_shrink",
        "__split_vma",
        "do_brk_flags",
        "expand_downwards",
    }
    assert l5.coverage(new) == (Coverage.FULL, "")
    assert l5.coverage(
        {"commit", "__vma_adjust", "vma_adjust_trans_huge", "do_brk_flags", "expand_upwards"}
    ) == (Coverage.FULL, "")
    assert l5.coverage({"commit"}) == (Coverage.NONE, "needs __vma_adjust or commit_merge")
    assert l5.coverage(new - {"vma_shrink"}) == (Coverage.PARTIAL, "shrinking is not seen")
    l2 = discover()["L2"]
    assert l2.coverage(l2.needs) == (
        Coverage.PARTIAL,
        "only mmap_lock against mmap_lock: the rwsems of anon_vma and i_mmap have no tracepoint",
    )


def test_layouts_round_trip_and_match_c() -> None:
    params = LAYOUTS.structs["params"]
    assert params.unpack(params.pack(gate=1, levels=5)).levels == 5
    assert LAYOUTS.structs["histogram"].size == 65 * 8
    assert LAYOUTS.constants["MIGRATION_LEFT"] == 1
    state = LAYOUTS.structs["lock_state"]
    raw = struct.pack("<20Q", *range(20))
    assert state.unpack(raw).n == 2
    assert len(state.unpack(raw).held) == 16


def test_a_member_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(RmapdError, match="cannot read the member"):
        parse("struct odd { unsigned long long x; };")
