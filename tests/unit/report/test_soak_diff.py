"""rmapd diff of two soaks: chance or a difference, and what else is not the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from tests.support.soaks import result
from tracer.cli import main
from tracer.report.soak import Level, SoakResult, SoakRun, read_if_soak
from tracer.report.soak_diff import as_text, unlike

FAST = result(*([("violated", 60.0)] * 4))
SLOW = result(("violated", 3600.0), ("silent", 3600.0), kernel="6.2")


def saved(path: Path, made: SoakResult) -> str:
    path.write_text(json.dumps(made.as_json()))
    return str(path)


def diff(*args: str) -> Any:
    return CliRunner().invoke(main, ["diff", *args])


def test_an_hour_instead_of_a_minute_is_no_chance(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a.json", FAST), saved(tmp_path / "b.json", SLOW)
    done = diff(a, b)
    assert done.exit_code == 3
    lines = done.stdout.splitlines()
    assert "the first violation takes 60 s in A and 2 h 0 min in B, on average" in lines
    assert lines[-1].startswith("probability of such a difference by chance alone: ")
    assert lines[-1].endswith(": they differ")
    as_json = json.loads(diff("--format", "json", a, b).stdout)
    assert (as_json["differs"], as_json["comparable"]) == (True, True)
    assert as_json["rate_ratio"] == pytest.approx(120)
    assert as_json["chance"] < 1e-4
    assert as_json["b"]["kernel"] == "6.2"


def test_same_rates_may_be_chance(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a.json", FAST), saved(tmp_path / "b.json", FAST)
    done = diff(a, b)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].endswith("chance alone: 1: this may be chance")
    assert "not the same" not in done.stdout


def test_one_silent_side_has_no_mean(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.json", result(("silent", 6000.0)))
    done = diff(a, saved(tmp_path / "b.json", FAST))
    assert done.exit_code == 3
    assert "only B is violated" in done.stdout
    assert json.loads(diff("--format", "json", a, a).stdout)["comparable"] is False


@pytest.mark.parametrize(
    ("made", "why"), [(("silent", 60.0), "neither is violated"), (("lost", 0.0), "no time")]
)
def test_nothing_to_compare_is_its_own_exit_code(made: Any, why: str, tmp_path: Path) -> None:
    a = saved(tmp_path / "a.json", result(made))
    done = diff(a, saved(tmp_path / "b.json", result(("silent", 60.0))))
    assert (done.exit_code, why in done.stdout) == (4, True)


def test_soak_and_report_cannot_be_compared(tmp_path: Path) -> None:
    other = tmp_path / "r.json"
    other.write_text(json.dumps({"rmapd": "0.1.0", "kernel": "x"}))
    names = [saved(tmp_path / "a.json", FAST), str(other)]
    for args in (names, names[::-1]):
        done = diff(*args)
        assert done.exit_code == 2
        assert "cannot compare a soak with another report" in done.stderr


@pytest.mark.parametrize("wrong", [{"soak": 1}, {"soak": 99}, {"soak": 1, "runs": 3}])
def test_file_that_is_no_result_is_an_error(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(wrong))
    done = diff(str(path), str(path))
    assert (done.exit_code, "is no result of a soak" in done.stderr) == (2, True)


def test_result_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(FAST.as_json() | {"soak": 2}))
    done = diff(str(path), str(path))
    assert (done.exit_code, "its format is 2" in done.stderr) == (2, True)


def test_what_else_differs_is_listed() -> None:
    limits = msgspec.structs.replace(FAST.limits, memory_bytes=512 << 20)
    both: dict[str, Level] = {"M1": "full", "V4": "full"}
    base = result(runs=[SoakRun(1, "silent", fidelity="full", coverage=both)])
    coverage: dict[str, Level] = both | {"M1": "none"}
    low = SoakRun(1, "silent", fidelity="owner", lowered=True, coverage=coverage)
    other = msgspec.structs.replace(base, loads=["vma", "thp"], limits=limits, runs=[low])
    assert unlike(base, base) == []
    assert unlike(base, other) == [
        "loads: vma and vma, thp",
        "MiB of memory: 1,024 and 512",
        "fidelity: full and owner (lowered)",
        "coverage: M1 full and M1 none",
    ]
    assert "not the same: coverage: M1 full and M1 none" in as_text(base, other)


def test_unfinished_run_is_read_and_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    saved(path, result(("violated", 60.0), ("unfinished", 0.0)))
    read = read_if_soak(path)
    assert read is not None
    assert read.times.violated == (60.0,)
    assert len(read.of("unfinished")) == 1
