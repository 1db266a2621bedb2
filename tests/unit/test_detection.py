"""DETECTION.md says what the rows of stock bugs and the kept results say."""

from __future__ import annotations

import importlib.util

import pytest

from tests.vm.guest import known
from tests.vm.stock_bugs import (
    PAGE,
    Bug,
    as_expected,
    every,
    outcomes,
    page,
    parts,
    planned,
    rows,
)
from tracer.invariants.catalogue import discover


def test_tables_of_the_page_are_those_of_the_rows_and_the_results() -> None:
    assert PAGE.read_text() == page(PAGE.read_text(), parts())


def test_page_without_a_part_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place between <!-- tried"):
        page("nothing", {"tried": ""})


@pytest.mark.parametrize("bug", rows(), ids=lambda bug: f"#{bug.number}")
def test_row_is_shown_or_could_be_or_cannot_and_says_why(bug: Bug) -> None:
    assert [bool(bug.workload), bool(bug.could), bool(bug.cannot)].count(True) == 1
    assert bool(bug.could) is bool(bug.missing)
    assert bool(bug.workload) is bool(bug.bad) is bool(bug.found) is bool(bug.function)
    assert {*bug.found, *bug.also} <= {*discover()}
    assert {*bug.bad, *bug.good} <= {*known()}
    if bug.workload:
        assert importlib.util.find_spec(f"tests.workloads.{bug.workload.split()[0]}")


def test_numbers_of_rows_are_in_order() -> None:
    assert [bug.number for bug in rows()] == [*range(1, len(rows()) + 1)]


def test_each_kernel_of_a_row_has_a_result_that_is_as_the_row_says() -> None:
    """A row is called shown only where its workload was run, on every kernel that it names."""
    results = {(one.number, one.kernel): one for one in outcomes()}
    for bug in rows():
        for kernel in (*bug.bad, *bug.good):
            assert as_expected(bug, results[bug.number, kernel])


def test_plan_has_each_kernel_of_the_rows_that_are_asked_for() -> None:
    assert {bug.number for bug, _ in planned([], [])} == {b.number for b in rows() if b.workload}
    assert {kernel for _, kernel in planned([22], [])} == {"6.1", "6.12.43", "6.18"}
    assert [(bug.number, kernel) for bug, kernel in planned([4, 22], ["6.18"])] == [(22, "6.18")]
    assert planned([1], []) == planned([22], ["7.3"]) == []


def test_score_counts_every_row_once() -> None:
    bugs = [
        Bug(1, "a", "v", "w", workload="x", found=("M1",), bad=("6.1",), function="f"),
        Bug(2, "b", "v", "w", could="by M1", missing="y"),
        Bug(3, "c", "v", "w", cannot="z"),
    ]
    assert every(bugs).splitlines()[-1] == ("Of 3: 1 shown, 1 could be shown, 1 cannot be shown.")
