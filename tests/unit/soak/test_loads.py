"""Loads are complete data, and what a machine lacks is named with what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tracer.errors import RmapdError
from tracer.soak import loads
from tracer.soak.loads import DEFAULT, Part, command_of, discover, lacking, listed, named
from tracer.soak.plan import divided
from tracer.soak.stressors import STRESSORS

MIB = 1 << 20
ROUNDS = """
import random, sys
from pathlib import Path
from tracer.soak.calls import Here
from tracer.soak.stressors import STRESSORS
here = Here(random.Random(1), 8 << 20, 4 << 20, Path(sys.argv[2]))
rounds = STRESSORS[sys.argv[1]](here)
next(rounds), next(rounds)
rounds.close()
print("two rounds")
"""
ANYWHERE = (
    "vma_storm",
    "brk_storm",
    "fork_and_exec",
    "family",
    "huge_pages",
    "same_pages",
    "shared_file",
    "pressure",
    "tmpfs_files",
    "compile_units",
)
"""Stressors that need neither root nor a machine of a kind."""


def test_each_load_has_texts_and_parts_that_can_be_run() -> None:
    assert [*discover()] == ["message", "rmap", "thp", "vma", "selftests"]
    assert {*DEFAULT} < {*discover()}
    for name, load in discover().items():
        assert load.title, name
        assert load.about, name
        assert len({part.name for part in load.part}) == len(load.part), name
        assert 0 < load.tmpfs < 1, name
        for part in load.part:
            assert part.what, part.name
            assert not part.python or part.python in STRESSORS, part.name
            for command in part.commands:
                assert command.format(folder="/f", mib=1), "no other placeholder"


def test_each_stressor_belongs_to_a_load() -> None:
    used = {part.python for load in discover().values() for part in load.part if part.python}
    assert used == {*STRESSORS}


def test_stress_ng_runs_without_privileges() -> None:
    """As root its madvise marks pages of the machine as broken (MADV_HWPOISON)."""
    parts = [part for load in discover().values() for part in load.part]
    with_it = [part for part in parts if any("stress-ng" in one for one in part.commands)]
    assert len(with_it) >= 3
    for part in with_it:
        assert not part.root
        assert "stress-ng" in part.needs
        assert all("--timeout" in command and "{folder}" in command for command in part.commands)
        assert not any(f"--{bad} " in one for one in part.commands for bad in ("madvise", "swap"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "x", "what": "y"},
        {"name": "x", "what": "y", "python": "family", "commands": ["true"]},
        {"name": "x", "what": "y", "python": "family", "needs": ["luck"]},
        {"name": "x", "what": "y", "python": "family", "rot": True},
    ],
)
def test_part_that_is_wrong_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Part)


def test_unknown_load_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(RmapdError, match="no load chaos") as raised:
        named(["vma", "chaos"])
    assert "message, rmap, thp, vma, selftests" in str(raised.value)
    with pytest.raises(RmapdError, match="no load is named"):
        named([])
    assert [*named(["vma", "thp", "vma"])] == ["vma", "thp"]


def test_part_without_its_program_is_left_out_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    parts = {part.name: part for part in discover()["vma"].part}
    assert "apt install stress-ng" in lacking(parts["stress-ng"], None)
    assert lacking(parts["storm"], None) == "", "Python needs nothing"
    compiler = next(part for part in discover()["message"].part if part.needs == ("cc",))
    assert "apt install gcc" in lacking(compiler, None)
    assert "LEFT OUT: needs stress-ng" in listed(None)


def test_swapping_is_left_out_in_words_where_there_is_no_swap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = next(part for part in discover()["message"].part if part.needs == ("swap",))
    _, sentence = loads.NEEDS["swap"]
    for there in (True, False):
        monkeypatch.setattr(loads, "NEEDS", {"swap": (lambda: there, sentence)})  # noqa: B023
        why = lacking(part, None)
        assert bool(why) is not there
    assert "no swap" in why


def test_selftests_run_only_what_is_built(tmp_path: Path) -> None:
    (part,) = discover()["selftests"].part
    assert "--selftests DIR" in lacking(part, None)
    assert "none of the kernel's built tests" in lacking(part, tmp_path)
    (tmp_path / "ksm_tests").touch()
    assert lacking(part, tmp_path) == ""
    assert command_of(part, "ksm_tests -U", tmp_path) == [str(tmp_path / "ksm_tests"), "-U"]
    assert command_of(part, "rmap", tmp_path) == []


def test_memory_is_divided_and_never_more_than_the_limit() -> None:
    able = {name: (load, load.part) for name, load in discover().items()}
    for memory in (128 * MIB, 4096 * MIB):
        plans = divided(able, memory)
        total = sum(
            plan.tmpfs_bytes + plan.worker_bytes * sum(part.workers for part in plan.parts)
            for plan in plans
        )
        assert 0.7 * memory < total <= 0.8 * memory
        message = next(plan for plan in plans if plan.name == "message")
        assert message.tmpfs_bytes == max(plan.tmpfs_bytes for plan in plans)
        assert message.tmpfs_options == "huge=always"


@pytest.mark.parametrize("name", ANYWHERE)
def test_stressor_does_two_rounds_in_little_memory(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, name, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "two rounds\n"), done.stderr
    assert all(path.name.startswith("storm-") for path in tmp_path.iterdir()), "files are removed"
