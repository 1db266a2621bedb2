"""How many values a row of a per-CPU map has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.bpf import maps


@pytest.mark.parametrize(
    ("possible", "count"), [("0", 1), ("0-3", 4), ("0,2-3", 3), ("0-1,4-5,7", 5)]
)
def test_row_has_a_value_for_each_possible_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, possible: str, count: int
) -> None:
    path = tmp_path / "possible"
    path.write_text(f"{possible}\n")
    monkeypatch.setattr(maps, "_POSSIBLE", path)
    assert maps.possible_cpus() == count
