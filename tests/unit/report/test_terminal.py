"""The text of `rmapd exec`: short, within 80 columns, and nothing hidden that changes a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.busy import tracepoints_only, well
from tests.support.snapshots import snapshot
from tests.unit.results.test_hook_groups import absent, hook
from tracer.attach.plan import HookState
from tracer.invariants.base import Coverage
from tracer.report import terminal
from tracer.results.snapshot import Snapshot

LONG = "a_function_with_a_name_that_is_much_longer_than_any_column_of_a_table_could_ever_be"


def lines(s: Snapshot, *argv: str, width: int = 80) -> list[str]:
    shown = replace(s, protocols=(), violations={})
    text = terminal.as_text(shown, argv or ["true"], "the command exited with 0", width)
    return text.splitlines()


@pytest.mark.parametrize("width", [80, 60, 100])
@pytest.mark.parametrize("made", [tracepoints_only, well], ids=["tracepoints", "all"])
def test_lines_fit_the_terminal(made: type[Snapshot], width: int) -> None:
    s = replace(made(), oracle_reason="no physical address " * 9)  # type: ignore[call-arg]
    shown = lines(s, *("word " * 40).split(), width=width)
    assert max(map(len, shown)) <= width


def test_long_name_stands_alone_and_is_whole() -> None:
    hooks = (hook(LONG, HookState.DETACHED, "its link is gone"), *well().hooks)
    shown = lines(replace(well(), hooks=hooks))
    assert {line.strip(" .") for line in shown if len(line) > 80} == {LONG}


def test_hooks_with_one_reason_take_one_sentence() -> None:
    shown = lines(tracepoints_only())
    at = next(n for n, line in enumerate(shown) if "hooks are attached" in line)
    count = len(tracepoints_only().hooks)
    assert shown[at:] == [
        f"21 of {count} hooks are attached (rmapd doctor -v lists them)",
        f"  {count - 21} are not: fentry programs are refused (EPERM: Operation not permitted),"
        " this",
        "    kernel is built without CONFIG_KPROBES",
    ]
    s = tracepoints_only()
    covered = [is_ for is_, _ in s.coverage.values() if is_ is not Coverage.NONE]
    assert len(lines(replace(s, window_times={}))) < 20 + len(covered), "a line for each of them"


def test_attached_hooks_need_no_details() -> None:
    shown = lines(well())
    (line,) = [line for line in shown if "hooks are attached" in line]
    assert line == f"{len(well().hooks)} of {len(well().hooks)} hooks are attached"
    assert shown[-1] == line


def test_replaced_function_is_no_failure() -> None:
    s = well()
    shown = lines(replace(s, hooks=(*s.hooks, absent("__vma_adjust_of_6_1"))))
    assert shown[-1] == "  1 function does not exist in this kernel"


def test_hook_that_failed_or_was_taken_away_is_named() -> None:
    s = well()
    bad = (
        hook("vma_expand", HookState.DENIED, "kprobe vma_expand refused at load: x", tried=True),
        hook("down_read", HookState.DETACHED, "its link is gone"),
    )
    text = " ".join(" ".join(lines(replace(s, hooks=(*bad, *s.hooks[2:])))).split())
    assert "1 could not be attached: vma_expand (kprobe refused at load: x)" in text
    assert "1 is detached: down_read (its link is gone)" in text


def test_losses_are_counted_by_what_overflowed_and_zeros_left_out() -> None:
    (line,) = (line for line in lines(snapshot()) if line.startswith("lost: "))
    assert line == "lost: evidence 1, ledger 3, missed runs 2"
    assert "lost: nothing" in lines(well(counters=dict.fromkeys(well().counters, 0), statistics={}))


def test_oracle_that_is_not_calibrated_is_visible() -> None:
    assert "oracle: not calibrated (no /proc/kallsyms): suspects stay suspects" in lines(
        well(oracle_reason="no /proc/kallsyms")
    )


def test_every_unchecked_invariant_is_named() -> None:
    s = well()
    none = dict.fromkeys(s.coverage, (Coverage.NONE, "needs a hook"))
    text = " ".join(" ".join(lines(replace(s, coverage=none))).split())
    assert f"not checked: {', '.join(none)} (rmapd doctor" in text
