"""`rmapd explain` of a violation and of an invariant, and the alignment of two protocols."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.snapshots import snapshot
from tracer.cli import main
from tracer.invariants.verdict import Finding, Verdict, Violation
from tracer.outputs.store.writer import Store
from tracer.packed import pack
from tracer.protocol.text import parse
from tracer.report.alignment import aligned, differences
from tracer.report.similarity import similarity
from tracer.results.json_form import as_json, violation_json

HEALTHY = (
    "__vma_adjust[file anon moved mmap:w ok]  i_mmap↓w anon↓w anon- file- "
    "commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w"
)
SWAPPED = (
    "__vma_adjust[file anon moved mmap:w ok]  anon↓w i_mmap↓w anon- file- "
    "commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w"
)
STEP = {
    "time_ns": 5_000_000,
    "duration_ns": 10,
    "function": "__vma_adjust",
    "task": {"pid": 7, "tgid": 7},
}
VMA = {
    "vma": "0xffff1",
    "was_start": "0x1000",
    "was_end": "0x3000",
    "vm_start": "0x1000",
    "vm_end": "0x5000",
    "flags": "rw-p rd wr",
}


def lock_order() -> Violation:
    before = STEP | {"time_ns": 2_000_000, "vma": VMA, "protocol": HEALTHY, "stack": []}
    own = STEP | {
        "vma": VMA,
        "protocol": SWAPPED,
        "stack": ["__vma_adjust+0x1"],
        "marked": True,
        "why": "this window broke L1: the order",
    }
    evidence = {
        "proven": False,
        "vma": VMA,
        "addresses": {"mm": "0xaa"},
        "trail_note": "The flight recorder has all since then.",
    }
    task = {"pid": 7, "tgid": 7, "comm": "x", "cgroup": {"id": 42, "name": "session-1.scope"}}
    summary, stack = (
        "i_mmap_rwsem is taken with the anon_vma rwsem held",
        ("__vma_adjust+0x1", "f+0x2 [faults]"),
    )
    finding = Finding(
        "L1",
        Verdict.VIOLATED,
        "__vma_adjust",
        "s",
        summary,
        task,
        stack,
        evidence,
        SWAPPED,
        pack((before, own)),
    )
    return Violation(
        finding,
        1.0,
        2.0,
        3,
        {"kernel": "6.1.0-test", "tainted": "GOE", "command_line": ["rmapd_faults=guest"]},
    )


def left_behind() -> Violation:
    page = {
        "folio": "0xf0",
        "kind": "anon",
        "order": 0,
        "flags": ["uptodate", "swapbacked"],
        "locked": False,
    }
    entry = {
        "tgid": 9,
        "comm": "victim",
        "addr": "0x7000",
        "entry": "0xe",
        "pfn": "0x12",
        "locked": False,
        "mm": "0xaa",
    }
    entry |= {
        "first_walk": VMA,
        "vma_now": VMA | {"same": True},
        "folio_now": page,
        "second_walk": "the second walk came",
    }
    culprit = {
        "function": "remove_migration_pte",
        "why": "the second walk called it, and it put nothing back",
    }
    evidence = {
        "entries": [entry],
        "culprit": culprit,
        "trail_note": "The flight recorder has wrapped: VMA changes are overwritten.",
    }
    finding = Finding(
        "M1",
        Verdict.VIOLATED,
        "migrate_pages",
        "s",
        "an entry is left: victim[9]",
        {},
        ("migrate_pages+0x1",),
        evidence,
    )
    return Violation(
        finding, 1.0, 2.0, 5, {"kernel": "6.1.0-test", "tainted": "", "command_line": []}
    )


def protocol_row(line: str, count: int, violates: list[str]) -> dict[str, Any]:
    return {
        "function": parse(line).window,
        "text": line,
        "count": count,
        "violates": violates,
        "suspect": [],
    }


@pytest.fixture
def report(tmp_path: Path) -> Path:
    found = as_json(snapshot(), ["x"], 0) | {
        "violations": [violation_json(lock_order()), violation_json(left_behind())]
    }
    other = HEALTHY.replace("anon- ", "")
    found["protocols"] = [
        protocol_row(SWAPPED, 3, ["L1"]),
        protocol_row(HEALTHY, 812, []),
        protocol_row(other, 9000, []),
    ]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(found))
    return path


def explain(*args: str) -> str:
    done = CliRunner().invoke(main, ["explain", *args])
    assert done.exit_code == 0, done.output
    return done.output


def test_lock_order_violation_is_explained_with_legal_protocol(report: Path) -> None:
    output = explain(lock_order().first.id, "--report", str(report))
    assert (
        "Subject: L1 violated in __vma_adjust() on 6.1.0-test: "
        "i_mmap_rwsem is taken with the anon_vma rwsem held" in output
    )
    for part in (
        "mm/rmap.c",
        "tainted GOE",
        "rmapd_faults=guest",
        "cgroup session-1.scope (inode 42)",
        "0x1000-0x3000, then 0x1000-0x5000",
    ):
        assert part in output
    assert "rw-p rd wr" in output
    assert "812 windows of this run" in output
    assert ">> +0.000000 s  [7]" in output
    assert "-0.003000 s" in output
    assert "^ this window broke L1: the order" in output
    assert "f+0x2 [faults]" in output
    lines = output.splitlines()
    seen, legal, marks = (
        next(n for n, line in enumerate(lines) if line.startswith(f"    {name}  "))
        for name in ("seen ", "legal", "     ")
    )
    assert (legal, marks) == (seen + 1, seen + 2)
    marked = {
        lines[seen][at : at + 6].strip()
        for at, mark in enumerate(lines[marks])
        if mark == "^" and lines[marks][at - 1] == " "
    }
    assert "i_mmap" in " ".join(marked) or "anon↓w" in " ".join(marked)


def test_entry_left_behind_names_function_that_did_not_restore_it(report: Path) -> None:
    output = explain(left_behind().first.id[:6].lower(), "--report", str(report))
    assert "Function at fault: remove_migration_pte() -- the second walk called it" in output
    assert "pfn 0x12; its page is not locked" in output
    assert "0xf0, anon, order 0, uptodate swapbacked" in output
    assert "The flight recorder has wrapped" in output
    assert "not tainted" in output


def test_violation_is_explained_as_json_and_markdown(report: Path) -> None:
    found = json.loads(explain(lock_order().first.id, "--report", str(report), "--format", "json"))
    assert found["function_at_fault"] == "__vma_adjust"
    assert found["nearest_legal"]["protocol"] == HEALTHY
    assert {run["op"] for run in found["nearest_legal"]["differences"]} > {"equal"}
    assert found["violation"] == violation_json(lock_order())
    output = explain(lock_order().first.id, "--report", str(report), "--format", "md")
    assert output.startswith("# L1 violated in ")
    assert output.count("```") % 2 == 0
    assert "## Trail" in output


def test_stored_violation_is_found_by_beginning_of_its_id(tmp_path: Path) -> None:
    path = tmp_path / "rmapd.db"
    store = Store(path, "6.1.0-test", 1 << 20, 90, must=True)
    now = time.time()
    for violation in (lock_order(), left_behind()):
        violation.first_seen = violation.last_seen = now
        store.keep([violation], {})
    store.close()
    output = explain("L1-", "--store", str(path))
    assert "By hour: " in output
    assert "This run has no legal protocol of __vma_adjust()" in output
    done = CliRunner().invoke(main, ["explain", "L9-123", "--store", str(path)])
    assert done.exit_code == 2
    assert lock_order().first.id in done.output
    assert (
        "no store"
        in CliRunner()
        .invoke(main, ["explain", "L1-12", "--store", str(tmp_path / "none.db")])
        .output
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"violations": [{}]}', '{"violations": 7}'])
def test_explaining_from_file_that_is_no_report_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    done = CliRunner().invoke(main, ["explain", "L1-12", "--report", str(path)])
    assert done.exit_code == 2
    assert "is no report of rmapd" in done.output


def test_invariant_is_explained_in_full() -> None:
    assert explain("l1").startswith("L1: documented lock order\n\nclaim           Within a window")
    assert json.loads(explain("M1", "--format", "json"))["id"] == "M1"


def test_equal_steps_are_aligned_and_differences_are_marked() -> None:
    kept = parse("do_brk_flags[anon mmap:w] -ENOMEM  anon↓w → [mmap:w anon:w]")
    given_back = parse("do_brk_flags[anon mmap:w] -ENOMEM  anon↓w anon↑w")
    assert aligned(kept, given_back) == [
        "seen   [anon] [mmap:w] anon↓w ·      → [mmap:w anon:w] -ENOMEM",
        "legal  [anon] [mmap:w] anon↓w anon↑w ·                 -ENOMEM",
        "                              ^^^^^^ ^^^^^^^^^^^^^^^^^",
    ]
    assert {run["op"] for run in differences(kept, kept)} == {"equal"}
    assert all("^" not in line for line in aligned(given_back, given_back))
    assert all(len(line) <= 110 for line in aligned(parse(SWAPPED), parse(HEALTHY)))


def test_same_action_is_aligned_whatever_its_lock_states() -> None:
    unlocked = parse(
        "__vma_adjust[anon moved mmap:w geometry=pgoff]  anon-(-) commit(mmap:w anon:-) anon+(-)"
    )
    locked = parse(
        "__vma_adjust[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w"
    )
    head = (
        "seen   [anon] [moved] [mmap:w] [geometry=pgoff] ",
        "legal  [anon] [moved] [mmap:w] [ok]             ",
        "                               ^^^^^^^^^^^^^^^^ ",
    )
    steps = (
        "·      anon-(-) commit(mmap:w anon:-) anon+(-) ·",
        "anon↓w anon-    commit(mmap:w anon:w) anon+    anon↑w",
        "^^^^^^ ^^^^^^^^ ^^^^^^^^^^^^^^^^^^^^^ ^^^^^^^^ ^^^^^^",
    )
    assert aligned(unlocked, locked) == [a + b for a, b in zip(head, steps, strict=True)]


def test_most_similar_protocol_has_same_context_and_actions() -> None:
    own = parse("__vma_adjust[anon moved mmap:w ok]  anon-(-) commit(mmap:w anon:-) anon+(-)")
    same = parse(
        "__vma_adjust[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w"
    )
    file = parse("__vma_adjust[file moved mmap:w ok]  commit(mmap:w anon:-)")
    split = parse("__vma_adjust[anon moved mmap:w ok]  anon↓w anon↑w")
    assert max((file, split, same), key=lambda other: similarity(own, other)) is same


def test_two_mmap_locks_in_both_orders_print_both_stacks(tmp_path: Path) -> None:
    evidence = {
        "outer_mm": "0xa",
        "inner_mm": "0xb",
        "opposite_task": 77,
        "opposite_stack": ["dup_mmap+0x9", "fork+0x1"],
    }
    finding = Finding(
        "L2",
        Verdict.SUSPECT,
        "mmap_lock",
        "nested",
        "task x[1] took two",
        {"pid": 1},
        ("mmap_write_lock+0x1",),
        evidence,
    )
    path = tmp_path / "r.json"
    path.write_text(
        json.dumps(
            {"kernel": "6.1.0-test", "violations": [violation_json(Violation(finding, 1.0, 1.0))]}
        )
    )
    output = explain("L2-", "--report", str(path))
    assert re.search(r"^    outer mm +0xa$", output, re.MULTILINE)
    assert "Stack of the opposite order, task 77" in output
    assert "dup_mmap+0x9" in output
    assert "This is a suspect, not proven." in output


@pytest.mark.parametrize(
    "stack",
    [
        ("mapping_rmap_tree_insert+0x1", "vma_link+0x2", "mmap_region+0x3"),
        ("vma_interval_tree_insert.isra.0+0x1", "vma_link+0x2"),
    ],
    ids=["renamed", "clone"],
)
def test_caller_is_found_by_the_symbol_that_the_hook_is_attached_to(
    tmp_path: Path, stack: tuple[str, ...]
) -> None:
    """The window keeps its name on a kernel whose function has another one; the stack has that."""
    name, symbol = "vma_interval_tree_insert", stack[0].partition("+")[0]
    finding = Finding("L4", Verdict.VIOLATED, name, "s", "no lock is held", {"pid": 7}, stack)
    found = as_json(snapshot(), ["x"], 0)
    found["violations"] = [violation_json(Violation(finding, 1.0, 1.0))]
    found["hooks"][name] = {"state": "substituted", "how": "fentry", "symbol": symbol, "reason": ""}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(found))
    output = explain("L4-", "--report", str(path))
    assert f"Function at fault: {name}(), called by vma_link()." in output
