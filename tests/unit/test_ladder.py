"""The ladder of kernels: its page, and what a row and a difference say."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.vm import guest, ladder, stock_bugs
from tests.vm.faults import found_during, seconds
from tests.vm.guest import GuestError, Result, known
from tests.vm.ladder import BEGIN, KEPT, PAGE, Attached, Rung, kept, main, page, table
from tracer.results.json_form import iso

ATTACHED = Attached(gate=30.4, close=3.0, peak_mb=131.2, cpu=20.0)
RUNG = Rung(
    release="6.1.0-57-amd64",
    commit="abc",
    date="2026-11-30",
    verdict="23 of 24",
    capabilities={},
    hooks={"attached": 80, "paused": 2, "substituted": 4, "missing": 6, "denied": 1},
    coverage={"M1": ("full", ""), "V6": ("none", "needs vma_modify")},
    compiled=ATTACHED,
    cached=msgspec.structs.replace(ATTACHED, gate=4.2),
    doctor=12.0,
    seconds=60,
    holds=12345,
    unverifiable=6,
    wrong={"V6 text": 2},
)


def test_page_is_that_of_the_kept_rungs() -> None:
    assert PAGE.read_text() == page(PAGE.read_text(), kept()), "python -m tests.vm.ladder --table"
    assert {*kept()} <= {*known()}


def test_row_has_hooks_coverage_seconds_and_findings() -> None:
    (row,) = (line for line in table({"6.1": RUNG}).splitlines() if line.startswith("| 6.1 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:8] == [
        "6.1.0-57-amd64",
        "82; 4; 7",
        "1; 0; 1",
        "30; 4",
        "12",
        "131",
        "60: 12,345; 6; V6 text ×2",
    ]


@pytest.mark.parametrize(
    ("struck", "why", "cell", "well"),
    [
        ({"gap_large": ["V4"], "vma_missing": ["V3", "V4"]}, "", "2 of 2 (V3, V4)", 1),
        ({"gap_large": ["V4"], "index_off": []}, "", "1 of 2 (V4); missed: index_off", 0),
        (
            {"gap_large": ["V4"], "index_off": ["K1", "L2 suspect"]},
            "",
            "1 of 2 (K1, L2 suspect, V4); missed: index_off; wrong: K1, L2 suspect",
            0,
        ),
        ({"gap_large": ["L2 suspect", "V4"]}, "", "1 of 1 (L2 suspect, V4); wrong: L2 suspect", 0),
        ({}, "no headers are served", "no headers are served", 1),
        ({}, "", "not made yet", 1),
    ],
)
def test_row_has_the_faults_in_state_and_what_found_them(
    struck: dict[str, list[str]], why: str, cell: str, well: bool
) -> None:
    rung = msgspec.structs.replace(RUNG, wrong={}, struck=struck, not_struck=why)
    (row,) = (line for line in table({"6.1": rung}).splitlines() if line.startswith("| 6.1 |"))
    assert f"| {cell} |" in row
    assert rung.well() == well


def test_kernel_whose_healthy_load_was_not_silent_is_not_well() -> None:
    assert not RUNG.well()


def test_fault_is_found_by_what_was_first_seen_while_it_was_there() -> None:
    seen = {
        "V3": "2026-11-30T12:00:00.5+00:00",
        "V4": "2026-11-30T12:00:02+00:00",
        "R2": "2026-11-30T12:00:05+00:00",
    }
    report = {"violations": [{"invariant": v, "first_seen": at} for v, at in seen.items()]}
    begin = seconds({"first_seen": "2026-11-30T12:00:01+00:00"})
    fault = {"made": begin, "undone": begin + 4}
    assert [one["invariant"] for one in found_during(fault, report)] == ["V4"]


def test_faults_that_were_struck_are_kept_with_all_that_was_found_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at = {name: 1000.0 + 60 * n for n, name in enumerate(ladder.FAULTS)}
    seen = [
        ("V4", "violated", at["gap_large"] + 5),
        ("V3", "violated", at["vma_missing"] + 1),
        ("V4", "violated", at["vma_missing"] + 2),
        ("L2", "suspect", at["chain_outside"] + 3),
    ]
    told = "\n".join(
        "fault " + json.dumps({"name": name, "made": made, "undone": made + 20})
        for name, made in at.items()
    )

    def boot(*_: object, **__: object) -> Result:
        found = [
            {"invariant": name, "verdict": verdict, "first_seen": iso(when)}
            for name, verdict, when in seen
        ]
        (tmp_path / "r.json").write_text(json.dumps({"violations": found}))
        return Result(0, told, tmp_path)

    monkeypatch.setattr(guest, "image", lambda _: tmp_path)
    monkeypatch.setattr(ladder, "built", lambda *_: tmp_path / "rmapd_state.ko")
    monkeypatch.setattr(ladder, "run", boot)
    struck = ladder.strike("6.1", RUNG).struck
    assert struck == {
        "gap_large": ["V4"],
        "vma_missing": ["V3", "V4"],
        "chain_outside": ["L2 suspect"],
        "index_off": [],
    }
    seen.append(("R4", "violated", at["index_off"] + 40))
    with pytest.raises(GuestError, match="violations that no fault explains"):
        ladder.strike("6.1", RUNG)
    (tmp_path / "r.json").unlink()
    monkeypatch.setattr(ladder, "run", lambda *_, **__: Result(1, told, tmp_path))
    with pytest.raises(GuestError, match=r"r\.json"):
        ladder.strike("6.1", RUNG)


def test_bug_counts_as_found_on_a_kernel_that_has_it_if_all_that_it_violates_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = stock_bugs.Found(1, 1.0, "f", "f", "")

    def outcome(number: int, kernel: str, *invariants: str) -> stock_bugs.Outcome:
        return stock_bugs.Outcome(number, kernel, "", "", dict.fromkeys(invariants, found), {}, 0.1)

    known_outcomes = [
        outcome(22, "6.18", "L1"),  # which does not have it
        outcome(22, "6.1", "V7"),  # which violates K1, too
        outcome(8, "6.12.43", "R3", "L1", "K1"),
    ]
    monkeypatch.setattr(stock_bugs, "outcomes", lambda: known_outcomes)
    assert [ladder.found_on(kernel) for kernel in ("6.18", "6.1", "6.12.43")] == [
        [],
        [],
        ["#8 (R3, L1, K1)"],
    ]


def test_kernel_that_was_not_climbed_has_a_row() -> None:
    rows = table({}).splitlines()
    for name in known():
        assert [row for row in rows if row.startswith(f"| {name} | not climbed yet |")]


def test_difference_names_the_kernels_that_have_it_and_the_reason() -> None:
    whole = msgspec.structs.replace(RUNG, coverage={"M1": ("full", ""), "V6": ("full", "")})
    rows = table({"6.1": RUNG, "7.3": whole}).splitlines()
    assert "| V6 | none | 6.1 | needs vma_modify |" in rows
    assert not [row for row in rows if row.startswith("| M1 |")]
    assert "| V6 | none | all | needs vma_modify |" in table({"6.1": RUNG}).splitlines()


def test_part_of_the_load_that_did_not_run_is_told() -> None:
    rung = msgspec.structs.replace(
        RUNG, done={"vma.storm": 5, "thp.ksm": 0}, left_out={"rmap.nodes": "one node"}
    )
    assert table({"6.1": rung}).splitlines()[-2:] == [
        "| rmap.nodes | 6.1 | one node |",
        "| thp.ksm | 6.1 | it ended no round |",
    ]


def test_kernel_without_headers_is_well_if_a_bug_of_its_own_was_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rung = msgspec.structs.replace(RUNG, wrong={}, seconds=600)
    no_headers = msgspec.structs.replace(rung, not_struck="no headers are served")
    tried = list[str]()
    monkeypatch.setattr(ladder, "KEPT", tmp_path / "ladder.json")
    monkeypatch.setattr(ladder, "PAGE", tmp_path / "page")
    monkeypatch.setattr(ladder, "climb", lambda *_: rung)
    monkeypatch.setattr(ladder, "strike", lambda *_: no_headers)
    monkeypatch.setattr(ladder, "found_on", lambda kernel: ["#12"] if tried else [])

    def walk(bug: stock_bugs.Bug, kernel: str) -> tuple[None, dict[str, object], None]:
        tried.append(f"{bug.number} {kernel}")
        return None, {}, None

    of_6_16 = [bug for bug in stock_bugs.rows() if "6.16.12" in bug.bad]
    monkeypatch.setattr(stock_bugs, "rows", lambda: of_6_16)
    monkeypatch.setattr(stock_bugs, "walk", walk)
    monkeypatch.setattr(stock_bugs, "keep", lambda _: None)
    monkeypatch.setattr(stock_bugs, "write_page", lambda: None)
    (tmp_path / "page").write_text(f"{BEGIN}\n{ladder.END}\n")
    assert main(["6.19.14"]) == 1, "no bug of it is known, so nothing was found"
    assert (main(["6.16.12"]), tried) == (0, ["12 6.16.12"])
    assert (main(["6.16.12"]), tried) == (0, ["12 6.16.12"]), "all of it is kept"
    assert (main(["6.16.12", "--again"]), tried) == (0, ["12 6.16.12"] * 2)
    assert {*kept()} == {"6.16.12", "6.19.14"}


def test_unknown_kernel_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["5.10"])
    assert "no kernel 5.10: 6.1, " in capsys.readouterr().err
    assert KEPT.exists()
    with pytest.raises(ValueError, match="no place between"):
        page(BEGIN, {})
