"""A run as KTAP and JUnit, read back by public parsers of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from junitparser import Failure, JUnitXml, Skipped
from tap.parser import Parser

from tests.support.reports import HOSTILE
from tests.support.snapshots import FINDING, snapshot
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Tally, Verdict
from tracer.report.junit import as_junit
from tracer.report.ktap import as_ktap
from tracer.results.snapshot import Snapshot

NAUGHTY = f"{HOSTILE}\x00\x1b[2J\r\nnot ok 3 M3\n# \ud800"


def seen() -> Snapshot:
    """Return a snapshot with a point of each kind.

    M1 is violated, with hostile names; M2 holds, M3 is suspect, no check of M4 could be verified,
    M5 is covered without any check, all others have no coverage.
    """
    tally = Tally()
    tally.record(
        replace(FINDING, summary=NAUGHTY, task={"pid": 7, "comm": NAUGHTY}, stack=(NAUGHTY,)),
        1.0,
        3,
    )
    tally.add("M2", Verdict.HOLDS, 12)
    tally.record(replace(FINDING, invariant="M3", verdict=Verdict.SUSPECT), 1.0)
    tally.add("M4", Verdict.UNVERIFIABLE, 9)
    covered = {name: (Coverage.NONE, f"needs {NAUGHTY}") for name in discover()}
    covered |= dict.fromkeys(
        ("M1", "M2", "M3", "M4", "M5"), (Coverage.PARTIAL, "the oracle is missing")
    )
    return snapshot(
        checks=dict(tally.checks),
        violations={v.first.id: v for v in tally.violations.values()},
        coverage=covered,
    )


def parsed(text: str) -> tuple[Any, list[Any]]:
    """Return the plan and the test lines that tap.py parses."""
    lines = list(Parser().parse_text(text))
    (plan,) = [line for line in lines if line.category == "plan"]
    assert {line.category for line in lines} <= {"plan", "test", "diagnostic", "unknown"}
    assert sum(line.category == "unknown" for line in lines) == 1, (
        "KTAP version 1, and nothing else"
    )
    return plan, [line for line in lines if line.category == "test"]


def test_tap_parser_accepts_ktap() -> None:
    plan, tests = parsed(as_ktap(seen()))
    assert plan.expected_tests == len(tests) == len(discover())
    assert [test.number for test in tests] == list(range(1, len(tests) + 1))
    assert [test.description.partition(":")[0] for test in tests] == list(discover())
    assert {test.description[:2]: (test.ok, test.skip) for test in tests[:6]} == {
        "M1": (False, False),
        "M2": (True, False),
        "M3": (True, False),
        "M4": (True, True),
        "M5": (True, True),
        "L1": (True, True),
    }
    assert all(test.ok and test.skip for test in tests[5:])


def test_skip_has_its_reason() -> None:
    lines = as_ktap(seen()).splitlines()
    skips = {
        line.split()[2].rstrip(":"): line.partition(" # SKIP ")[2]
        for line in lines
        if " # SKIP " in line
    }
    assert skips["M4"] == "none of 9 checks could be verified, events were lost"
    assert skips["M5"] == "nothing to check happened"
    assert skips["L1"].startswith("needs </style>")
    assert "M2" not in skips


def test_suspect_fails_point_if_suspects_are_bad() -> None:
    _, tests = parsed(as_ktap(seen(), (Verdict.VIOLATED, Verdict.SUSPECT)))
    assert [test.description[:2] for test in tests if not test.ok] == ["M1", "M3"]


@pytest.mark.parametrize(
    ("bad", "failing"),
    [((Verdict.VIOLATED,), ["M1"]), ((Verdict.VIOLATED, Verdict.SUSPECT), ["M1", "M3"])],
)
def test_junit_parser_accepts_junit(
    tmp_path: Path, bad: tuple[Verdict, ...], failing: list[str]
) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(as_junit(seen(), ["sh", NAUGHTY], 7, bad))
    root = JUnitXml.fromfile(str(path))
    (suite,) = root
    assert suite.name == "rmapd on 6.1-test"
    assert {one.name: one.value for one in suite.properties()}["exit_code"] == "7"
    results = {case.name[:2]: case.result for case in suite}
    assert list(results) == list(discover())
    assert [
        name for name, result in results.items() if any(isinstance(one, Failure) for one in result)
    ] == failing
    skipped = [
        name for name, result in results.items() if any(isinstance(one, Skipped) for one in result)
    ]
    assert skipped == [name for name in discover() if name not in {"M1", "M2", "M3"}]
    counted = (root.tests, root.failures, root.skipped, root.errors)
    root.update_statistics()
    assert (
        counted
        == (root.tests, root.failures, root.skipped, root.errors)
        == (len(discover()), len(failing), len(skipped), 0)
    )
    assert FINDING.id in results["M1"][0].text
    assert "migrate_pages" in results["M1"][0].text
