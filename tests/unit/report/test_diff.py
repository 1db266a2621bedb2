"""rmapd diff: alarming differences come first, expected ones of two kernels raise no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tracer.cli import main
from tracer.errors import RmapdError
from tracer.protocol.text import parse
from tracer.report.diff import Difference, Grade, compare, read, read_both
from tracer.report.diff_output import as_json, as_text

LEGAL = (
    "vma_expand[file anon moved mmap:w ok]  i_mmap↓w anon↓w anon- file- "
    "commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w"
)
SWAPPED = (
    "vma_expand[file anon moved mmap:w ok]  anon↓w i_mmap↓w anon- file- "
    "commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w"
)
SHRUNK = "vma_shrink[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w"
UNLOCKED = "vma_shrink[anon moved mmap:w ok]  anon- commit(mmap:w anon:w) anon+"
NOT_HELD = "vma_shrink[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:r) anon+ anon↑w"


def report(
    path: Path,
    protocols: dict[str, int],
    wrong: dict[str, list[str]] | None = None,
    missing: str = "",
) -> Path:
    rows = [
        {"text": t, "count": n, "violates": (wrong or {}).get(t, []), "suspect": []}
        for t, n in protocols.items()
    ]
    windows: dict[str, int] = {}
    for line, count in protocols.items():
        windows[parse(line).window] = windows.get(parse(line).window, 0) + count
    hooks = {missing: {"state": "missing", "reason": f"no function {missing}"}} if missing else {}
    path.write_text(
        json.dumps({"kernel": path.stem, "protocols": rows, "windows": windows, "hooks": hooks})
    )
    return path


def differences(
    tmp_path: Path, a: dict[str, int], b: dict[str, int], **of_b: Any
) -> list[Difference]:
    return compare(
        read(report(tmp_path / "a.json", a)), read(report(tmp_path / "b.json", b, **of_b))
    )


def test_equal_reports_have_no_difference(tmp_path: Path) -> None:
    assert differences(tmp_path, {LEGAL: 5, SHRUNK: 7}, {LEGAL: 9, SHRUNK: 3}) == []


def test_violating_protocol_comes_first_with_most_similar_legal_one(
    tmp_path: Path,
) -> None:
    found = differences(
        tmp_path, {LEGAL: 5, SHRUNK: 5}, {LEGAL: 5, SWAPPED: 1, SHRUNK: 5}, wrong={SWAPPED: ["L1"]}
    )
    assert found == [
        Difference(Grade.RULED, "b.json", "vma_expand", SWAPPED, 1, LEGAL, "violates L1")
    ]


@pytest.mark.parametrize(
    ("odd", "near", "grade", "why"),
    [
        (UNLOCKED, SHRUNK, Grade.UNLOCKED, "without anon↑w anon↓w"),
        (NOT_HELD, SHRUNK, Grade.UNLOCKED, "without commit(mmap:w anon:w)"),
        (SWAPPED, LEGAL, Grade.UNORDERED, "anon i_mmap, not i_mmap anon"),
        (SHRUNK.replace(" ok", " anon:r ok"), SHRUNK, Grade.CONTEXT, ""),
        (SHRUNK.replace("anon+", "anon+ anon- anon+"), SHRUNK, Grade.STEPS, ""),
    ],
)
def test_each_grade_is_assigned_to_its_difference(
    tmp_path: Path, odd: str, near: str, grade: Grade, why: str
) -> None:
    both = {LEGAL: 5, SHRUNK: 5}
    (found,) = differences(tmp_path, both, both | {odd: 2})
    assert (found.grade, found.side, found.count, found.nearest, found.why) == (
        grade,
        "b.json",
        2,
        near,
        why,
    )
    assert found.grade.alarms == (grade <= Grade.UNORDERED)


def test_missing_lock_ranks_above_new_function(tmp_path: Path) -> None:
    new = "do_brk_flags[moved mmap:w ok]  commit(mmap:w)"
    assert [
        d.grade for d in differences(tmp_path, {SHRUNK: 5}, {SHRUNK: 5, new: 900, UNLOCKED: 1})
    ] == [Grade.UNLOCKED, Grade.FUNCTION]


def test_renamed_function_and_its_calls_raise_no_alarm(tmp_path: Path) -> None:
    old = {"copy_vma[anon mmap:w follows]  vma_merge()": 9, "vma_merge[mmap:w]": 9}
    new = {
        "copy_vma[anon mmap:w follows]  vma_merge_new_range()": 9,
        "vma_merge_new_range[mmap:w]": 9,
    }
    found = differences(tmp_path, old, new, missing="vma_merge")
    assert not any(d.grade.alarms for d in found)
    assert [d.why for d in found if d.function == "vma_merge"] == ["no function vma_merge"]
    assert {d.function for d in found if d.grade is Grade.FUNCTION} == {
        "vma_merge",
        "vma_merge_new_range",
    }


def test_lock_class_that_other_kernel_lacks_raises_no_alarm(tmp_path: Path) -> None:
    """Kernels 6.4 to 6.14 take the per-VMA lock; 6.1 has none."""
    with_vma = SHRUNK.replace("anon↓w", "vma↓w vma↑w anon↓w")
    assert [d.grade.alarms for d in differences(tmp_path, {SHRUNK: 5}, {with_vma: 5})] == [
        False,
        False,
    ]


def test_window_that_returned_early_lacks_no_lock(tmp_path: Path) -> None:
    """Seen between 6.1 and 6.12: collapse_huge_page() returns before it takes the anon_vma lock."""
    whole = "collapse_huge_page[mmap:r]  mmap↑r mmap↓w anon↓w anon↑w mmap↑w → []"
    early = "collapse_huge_page[mmap:r]  mmap↑r mmap↓w mmap↑w → []"
    assert [d.grade for d in differences(tmp_path, {whole: 5}, {whole: 5, early: 1})] == [
        Grade.STEPS
    ]


def test_rebuilt_window_equals_hooked_window(tmp_path: Path) -> None:
    rebuilt = SHRUNK.replace("moved ", "moved rebuilt ")
    assert differences(tmp_path, {SHRUNK: 5}, {rebuilt: 5}) == []


def test_rate_is_compared_only_with_enough_windows(tmp_path: Path) -> None:
    other = SHRUNK.replace(" ok", " anon:r ok")
    (a, b) = differences(tmp_path, {SHRUNK: 10, other: 990}, {SHRUNK: 990, other: 10})
    assert (a.grade, a.why) == (Grade.RATE, "99.00% in a.json, 1.00% in b.json")
    assert b.side == "b.json"
    assert differences(tmp_path, {SHRUNK: 1, other: 9}, {SHRUNK: 9, other: 1}) == []


def test_text_and_json_contain_every_difference(tmp_path: Path) -> None:
    a = read(report(tmp_path / "a.json", {SHRUNK: 5}))
    b = read(report(tmp_path / "b.json", {SHRUNK: 5, UNLOCKED: 1}))
    found = compare(a, b)
    assert "1 differences, 1 of them alarming" in as_text(a, b, found)
    assert SHRUNK in as_text(a, b, found)
    (row,) = as_json(a, b, found)["differences"]
    assert (row["grade"], row["alarming"], row["protocol"], row["nearest"]) == (
        "unlocked",
        True,
        UNLOCKED,
        SHRUNK,
    )


def test_two_files_with_equal_names_are_named_by_path(tmp_path: Path) -> None:
    """Two runs may both write r.json: 'only r.json' would be ambiguous."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = (
        report(tmp_path / "a/r.json", {SHRUNK: 5}),
        report(tmp_path / "b/r.json", {SHRUNK: 5, UNLOCKED: 1}),
    )
    a, b = read_both(*paths)
    assert [d.side for d in compare(a, b)] == [str(paths[1])]
    assert [one.name for one in read_both(paths[0], report(tmp_path / "s.json", {SHRUNK: 1}))] == [
        "r.json",
        "s.json",
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"kernel": 1}', "\x00", '{"hooks": {}, "protocols": [{"text": "x ? y("}]}']
)
def test_file_that_is_no_report_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").write_text(text)
    with pytest.raises(RmapdError, match=r"is no report of rmapd|cannot read the protocol"):
        read(tmp_path / "r")


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RmapdError, match="cannot read"):
        read(tmp_path / "none")


FIXTURES = Path(__file__).parents[2] / "fixtures"
"""Reports of guests, reduced to the keys that diff reads.

Two healthy kernels under vma.py and a minute of soak.py, and 6.1 with thirteen faults one after
the other (tests/vm/test_faults.py).
"""


def test_two_healthy_kernels_show_renamed_functions_without_alarm() -> None:
    a, b = read(FIXTURES / "healthy-6.1.json"), read(FIXTURES / "healthy-6.12.json")
    found = compare(a, b)
    assert len(found) > 50
    assert [d for d in found if d.grade.alarms] == []
    renamed = {(d.side, d.function): d.why for d in found if d.grade is Grade.FUNCTION}
    for side, function in (
        ("6.1", "__vma_adjust"),
        ("6.1", "vma_merge"),
        ("6.12", "commit_merge"),
        ("6.12", "vma_merge_new_range"),
    ):
        assert f"no function {function} in this kernel" in renamed[f"healthy-{side}.json", function]


def test_lock_removed_from_real_protocols_raises_alarm(tmp_path: Path) -> None:
    """Without its anon_vma lock each window of 6.12 alarms: the silence above proves something."""
    real = json.loads((FIXTURES / "healthy-6.12.json").read_text())
    locked = [one for one in real["protocols"] if "anon↓w anon- commit" in one["text"]]
    assert len(locked) > 3
    for one in locked:
        broken = one | {
            "text": one["text"]
            .replace("anon↓w ", "")
            .replace(" anon↑w", "")
            .replace("anon:w)", "anon:-)"),
            "count": 1,
        }
        (tmp_path / "broken.json").write_text(
            json.dumps(real | {"protocols": [*real["protocols"], broken]})
        )
        worst, *_ = compare(read(FIXTURES / "healthy-6.12.json"), read(tmp_path / "broken.json"))
        assert worst.grade.alarms, broken
        assert worst.text == broken["text"]


def only(
    tmp_path: Path, fault: Callable[[dict[str, Any]], bool], **changes: Any
) -> list[Difference]:
    """Compare the healthy 6.1 with the run of faults, without the protocols of other faults."""
    real = json.loads((FIXTURES / "faults-6.1.json").read_text())
    others = [
        one
        for one in real["protocols"]
        if not fault(one) and not one["violates"] and "invalidate↓w" not in one["text"]
    ]
    rows = [*others, *(one | changes for one in real["protocols"] if fault(one))]
    (tmp_path / "broken.json").write_text(json.dumps(real | {"protocols": rows}))
    return compare(read(FIXTURES / "healthy-6.1.json"), read(tmp_path / "broken.json"))


def test_real_fault_is_first_difference_of_two_runs(tmp_path: Path) -> None:
    """Find __vma_adjust() with the anon_vma lock taken before i_mmap_rwsem."""

    def swapped(one: dict[str, Any]) -> bool:
        return one["text"].startswith("__vma_adjust[") and "anon↓w i_mmap↓w anon-" in one["text"]

    worst, *rest = only(tmp_path, swapped)
    assert (worst.grade, worst.side, worst.function, worst.why) == (
        Grade.RULED,
        "broken.json",
        "__vma_adjust",
        "violates L1, L2",
    )
    assert "i_mmap↓w anon↓w anon-" in worst.nearest
    assert len(rest) > 50
    assert not any(d.grade.alarms for d in rest)
    unruled = only(
        tmp_path, swapped, violates=[]
    )  # as if no invariant knew of it: the order differs, from both sides
    assert {(d.grade, d.function) for d in unruled if d.grade.alarms} == {
        (Grade.UNORDERED, "__vma_adjust")
    }
    assert unruled[0].grade is Grade.UNORDERED


def test_all_faults_of_a_run_come_before_other_differences() -> None:
    found = compare(read(FIXTURES / "healthy-6.1.json"), read(FIXTURES / "faults-6.1.json"))
    ruled = [d for d in found if d.grade is Grade.RULED]
    assert len(ruled) == 13
    assert found[: len(ruled)] == ruled
    assert {d.side for d in ruled} == {"faults-6.1.json"}


def test_sampled_run_prints_number_of_unsampled_windows(tmp_path: Path) -> None:
    """A protocol may be missing in a run because its window was not recorded."""
    one, other = report(tmp_path / "a.json", {LEGAL: 5}), report(tmp_path / "b.json", {LEGAL: 5})
    one.write_text(
        json.dumps(
            json.loads(one.read_text())
            | {"windows_unsampled": {"vma_expand": 1000, "vma_shrink": 234}}
        )
    )
    a, b = read(one), read(other)
    assert as_text(a, b, compare(a, b)).splitlines()[:2] == [
        "a.json: a, 1 protocols; 1,234 windows were not sampled",
        "b.json: b, 1 protocols",
    ]


NO_HOOKS = "fentry programs are refused (EPERM); this kernel is built without CONFIG_KPROBES"


def blind(path: Path, **changes: Any) -> Path:
    """Write a report without windows, of a kernel on which only tracepoints can be hooked."""
    hooks = {
        name: {"state": "denied", "reason": NO_HOOKS}
        for name in ("vma_expand", "vma_shrink", "down_write")
    }
    hooks["vma_merge"] = {"state": "missing", "reason": "no function vma_merge"}
    found = {
        "kernel": "6.18",
        "protocols": [],
        "windows": {},
        "hooks": hooks,
        "fidelity": "full",
        "duration_seconds": 3.2,
    }
    path.write_text(json.dumps(found | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, f"has no windows: 3 of its hooks are missing: {NO_HOOKS}."),
        ({"fidelity": "migration"}, "has no windows: at fidelity migration no window is recorded."),
        ({"hooks": {}}, "has no windows: no window ended in its 3.2 s."),
        (
            {"hooks": {}, "windows": {"vma_expand": 3}},
            "has no protocols: no window ended in its 3.2 s.",
        ),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_run_without_windows_is_not_comparable(
    tmp_path: Path, changes: dict[str, Any], why: str, turned: bool
) -> None:
    sides = [
        str(blind(tmp_path / "blind.json", **changes)),
        str(report(tmp_path / "seeing.json", {SHRUNK: 5})),
    ]
    done = CliRunner().invoke(main, ["diff", *(sides[::-1] if turned else sides)])
    assert done.exit_code == 4
    assert f"There was nothing to compare. blind.json (6.18) {why}" in done.stdout
    assert "0 of them alarming" not in done.stdout
    done = CliRunner().invoke(main, ["diff", *sides, "--format", "json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["comparable"], why in found["reason"]) == (4, False, True)


def test_runs_without_common_function_are_not_comparable(tmp_path: Path) -> None:
    sides = [
        str(report(tmp_path / "a.json", {SHRUNK: 5})),
        str(report(tmp_path / "b.json", {LEGAL: 5})),
    ]
    done = CliRunner().invoke(main, ["diff", *sides])
    assert done.exit_code == 4
    assert (
        "No function is in both: a.json has windows of vma_shrink; b.json of vma_expand."
        in done.stdout
    )


def test_two_runs_without_windows_are_both_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["diff", str(blind(tmp_path / "a.json")), str(blind(tmp_path / "b.json"))]
    )
    assert done.exit_code == 4
    assert "a.json (6.18) has no windows" in done.stdout
    assert "b.json (6.18) has no windows" in done.stdout


def test_violating_protocol_raises_alarm_if_other_run_has_no_windows(tmp_path: Path) -> None:
    bad = report(tmp_path / "bad.json", {SWAPPED: 5}, {SWAPPED: ["L1"]})
    done = CliRunner().invoke(main, ["diff", str(bad), str(blind(tmp_path / "blind.json"))])
    assert done.exit_code == 3
    assert "2 differences, 1 of them alarming" in done.stdout
    assert "blind.json (6.18) has no windows" in done.stdout


def test_comparable_runs_are_marked_in_json(tmp_path: Path) -> None:
    sides = [str(report(tmp_path / f"{name}.json", {SHRUNK: 5})) for name in "ab"]
    done = CliRunner().invoke(main, ["diff", *sides, "--format", "json"])
    assert (done.exit_code, json.loads(done.stdout)["comparable"]) == (0, True)
