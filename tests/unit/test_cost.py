"""Instruction counts: which function they belong to, what changed, and the page's table."""

from __future__ import annotations

import pytest

from tests.bench.profile import Symbols
from tests.vm.cost import BEGIN, Cost, changes, kept, pages, spread, summary, with_tables

SYMBOLS = """ffffffff81000000 startup
ffffffff81000100 mas_store_prealloc
ffffffffc0000000 fentry:down_write
"""
BLOCKS = """401000 5 1000
ffffffff81000100 7 3
ffffffff81000120 2 3
ffffffffc0000000 10 4
ffffffffc0000000 6 1
"""


def test_instructions_are_added_up_by_function_without_user_space() -> None:
    found = Symbols(SYMBOLS).spent(BLOCKS)
    assert found.instructions == {"mas_store_prealloc": 27, "fentry:down_write": 46}
    assert found.runs == {"mas_store_prealloc": 3, "fentry:down_write": 5}


def test_dearest_functions_are_those_that_rmapd_adds_most_to() -> None:
    symbols = Symbols(SYMBOLS)
    added = symbols.spent(BLOCKS).without(symbols.spent("ffffffff81000100 7 3\n"))
    assert [*added.dearest(2, 2)] == [
        ("fentry:down_write", 23, 2.5),
        ("mas_store_prealloc", 3, 0),
    ]


def test_changes_above_the_least_share_are_told() -> None:
    now = {"map": {"none": [100], "full": [152, 150, 151]}, "new": {"none": [1]}}
    before = {"map": {"none": [100], "full": [100]}}
    assert [*changes("6.1", now, before, 0.01)] == [("6.1 map full: 100 -> 151 (+51.0%)", 0.51)]
    assert not [*changes("6.1", now, before, 0.52)]


def test_spread_is_the_share_between_the_least_and_the_most() -> None:
    assert spread([100, 102, 101]) == pytest.approx(0.02)


def test_tables_of_the_pages_are_those_of_the_kept_counts() -> None:
    for path, text in pages(kept()):
        assert path.read_text() == text, "python -m tests.vm.cost --table"


def test_summary_says_what_was_not_counted_and_what_depends_on_chance() -> None:
    counts = {
        "map": {"none": [100], "full": [150, 152], "floor:full": [120]},
        "compact": {"none": [100, 200], "full": [150]},
        "exec": {"full": [7]},
    }
    rows = summary({"6.1": Cost("6.1.0", "abc", "2026-11-29", counts, [])}).splitlines()
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["1.51 (1.20)", "by chance"]


def test_page_without_a_place_for_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place between"):
        with_tables(BEGIN, "a table")
