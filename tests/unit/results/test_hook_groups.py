"""Hooks by reason: each hook is in one group, and only what is normal goes without a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.busy import NO_HOOKS, tracepoints_only
from tests.support.snapshots import full
from tests.unit.attach.test_plan import kernel, one
from tracer.attach import plan
from tracer.attach.plan import ABSENCES, AttachMethod, Hook, HookState, PlannedHook
from tracer.daemon.levels import ON_DEMAND
from tracer.invariants.catalogue import discover
from tracer.results.hook_groups import GroupKind, HookGroups, blocked_by, group

KNOWN = discover()
FENTRY, KPROBE = ABSENCES["fentry"], ABSENCES["kprobe"]


def hook(
    name: str, state: HookState = HookState.ATTACHED, reason: str = "", *, tried: bool = False
) -> PlannedHook:
    return PlannedHook(
        "vma",
        Hook(name, [f"fentry:{name}", f"kprobe:{name}"], ""),
        state,
        (AttachMethod("fentry", name, ()),),
        reason,
        tried=tried,
    )


def absent(name: str, also: str = "") -> PlannedHook:
    reason = "; ".join(filter(None, [FENTRY.format(name), KPROBE.format(name), also]))
    return hook(name, HookState.DENIED if also else HookState.MISSING, reason)


def grouped(*hooks: PlannedHook) -> HookGroups:
    return group(hooks, KNOWN)


def sentences(*hooks: PlannedHook) -> list[str]:
    return [one.sentence for one in grouped(*hooks).off]


def test_no_hooks_are_no_groups() -> None:
    assert (grouped().head, grouped().off) == ("0 of 0 hooks are attached", ())


def test_attached_hooks_are_one_group_and_need_no_sentence() -> None:
    found = group(full().hooks, KNOWN)
    assert [one.kind for one in found.groups] == [GroupKind.ATTACHED]
    assert found.off == ()
    count = len(full().hooks)
    assert found.head == f"{count} of {count} hooks are attached"


def test_substituted_hook_counts_as_attached() -> None:
    found = grouped(hook("a"), hook("b", HookState.SUBSTITUTED, "instead of fentry:b"))
    assert (found.head, found.off) == ("2 of 2 hooks are attached", ())


def test_hooks_with_one_reason_are_one_sentence_whatever_their_other_candidates() -> None:
    """As on 6.18 without kprobes: some hooks also have a candidate of another kernel."""
    found = grouped(
        hook("a"),
        *(hook(f"h{n}", HookState.DENIED, NO_HOOKS) for n in range(46)),
        *(absent(f"old_{n}", NO_HOOKS) for n in range(7)),
    )
    assert found.head == "1 of 54 hooks are attached"
    assert [one.sentence for one in found.off] == [
        "53 are not: fentry programs are refused (EPERM: Operation not permitted), this kernel is"
        " built without CONFIG_KPROBES"
    ]


def test_several_reasons_are_shown_in_order_and_the_largest_group_of_a_kind_first() -> None:
    found = sentences(
        absent("vma_merge"),
        hook("owner_enters", HookState.PAUSED, ON_DEMAND["owners"]),
        hook("audit_writer", HookState.PAUSED, ON_DEMAND["audit_writers"]),
        hook("one", HookState.DENIED, "x"),
        hook("commit", HookState.MISSING, plan.NOTHING_TO_ACCOMPANY),
        hook("contention_begin", HookState.MISSING, plan.NEEDS_PROBE_OBJECT.format("vma")),
        *(hook(f"many_{n}", HookState.DENIED, "y") for n in range(6)),
        hook("shrunk", HookState.MISSING, "shrunk(vma) has no end"),
    )
    assert found == [
        "6 are not: y",
        "1 is not (one): x",
        "2 go with hooks that are missing",
        "1 does not fit this kernel: shrunk (shrunk(vma) has no end)",
        "2 are attached only while they are needed",
        "1 function does not exist in this kernel",
    ]


def test_function_that_another_one_replaces_is_normal() -> None:
    """L5, V1, V2 and V5 need one of both, so nothing is lost."""
    found = grouped(hook("commit_merge"), hook("__split_vma"), absent("__vma_adjust"))
    assert [(one.kind, one.lacked_by) for one in found.off] == [(GroupKind.ABSENT, ())]
    assert found.off[0].sentence == "1 function does not exist in this kernel"
    two = grouped(absent("__vma_adjust"), absent("vma_merge"), hook("commit_merge"))
    assert two.off[0].sentence == "2 functions do not exist in this kernel"


def test_function_that_nothing_replaces_is_named_with_the_invariants_that_lack_it() -> None:
    found = grouped(absent("__vma_adjust"), absent("commit_merge"), absent("vma_merge"))
    lacking, normal = found.off
    assert (lacking.kind, lacking.names) == (GroupKind.LACKING, ("__vma_adjust", "commit_merge"))
    assert {"L5", "V2"} <= set(lacking.lacked_by)
    assert lacking.sentence.startswith("2 functions do not exist in this kernel, and L5")
    assert lacking.sentence.endswith(" lack them: __vma_adjust, commit_merge")
    assert (normal.kind, normal.names) == (GroupKind.ABSENT, ("vma_merge",))


def test_absent_tracepoint_is_called_one() -> None:
    gone = PlannedHook(
        "ledger",
        Hook("exit_mmap", ["raw_tp:exit_mmap"], ""),
        HookState.MISSING,
        reason=ABSENCES["raw_tp"].format("exit_mmap"),
    )
    assert sentences(gone) == [
        "1 raw tracepoint does not exist in this kernel, and M1, M4 lack it: exit_mmap"
    ]


def test_alternative_way_is_lacked_only_where_the_invariant_depends_on_it() -> None:
    """L3 is checked by hooks of rwsems, or else in part by the state audit."""
    gone = absent("owner_enters")
    locks = [hook(names) for names in KNOWN["L3"].needs]
    assert grouped(gone, *locks).off[0].kind is GroupKind.ABSENT
    assert grouped(gone).off[0].lacked_by == ("L3",)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            [
                hook(name, HookState.DENIED, f"kprobe {name} refused at attach: EINVAL", tried=True)
                for name in ("a", "b")
            ],
            "2 could not be attached: a, b (kprobe refused at attach: EINVAL)",
        ),
        (
            [hook("a", HookState.DETACHED, "its link is gone")],
            "1 is detached: a (its link is gone)",
        ),
        (
            [hook(f"h{n}", HookState.DETACHED, "kprobes are off") for n in range(8)],
            "8 are detached: h0, h1, h2, h3, h4 and 3 more (kprobes are off)",
        ),
        (
            [hook("a", HookState.PAUSED, "the governor has lowered fidelity to owner: 2 %")],
            "1 is paused: the governor has lowered fidelity to owner: 2 %",
        ),
        ([hook("a", HookState.DENIED, plan.NOTRACE.format("a"))], "1 is not (a): notrace"),
    ],
)
def test_what_is_not_normal_is_named(made: list[PlannedHook], said: str) -> None:
    assert sentences(*made) == [said]


def test_message_of_a_compiler_is_one_line_of_bounded_length() -> None:
    long = "vma.bpf.c does not compile: " + "error: x\n  y\n" * 100
    (said,) = sentences(hook("a", HookState.MISSING, long, tried=True))
    assert len(said) < 260
    assert "\n" not in said
    assert grouped(hook("a", HookState.MISSING, long, tried=True)).groups[0].reason == long


def test_reason_of_every_lookup_of_the_resolver_is_recognised(tmp_path: Path) -> None:
    """The texts are taken apart, so a resolver that words one otherwise must be noticed."""
    k = kernel(tmp_path)
    for how in ABSENCES:
        missing = one(k, f"{how}:nothing")
        assert (missing.state, blocked_by(missing.reason)) == (HookState.MISSING, "")
    denied = one(k, "fentry:nothing", "kprobe:quiet_function")
    assert blocked_by(denied.reason) == "quiet_function is notrace"


def test_groups_of_a_kernel_with_tracepoints_only() -> None:
    found = group(tracepoints_only().hooks, KNOWN)
    assert [one.kind for one in found.groups] == [GroupKind.ATTACHED, GroupKind.REFUSED]


REASONS = st.sampled_from(
    [
        NO_HOOKS,
        FENTRY.format("f"),
        f"{FENTRY.format('f')}; {NO_HOOKS}",
        plan.NOTHING_TO_ACCOMPANY,
        ON_DEMAND["owners"],
        "",
        "x",
    ]
)


@given(st.lists(st.tuples(st.sampled_from(list(HookState)), REASONS, st.booleans())))
def test_each_hook_is_in_exactly_one_group(made: list[tuple[HookState, str, bool]]) -> None:
    hooks = [
        hook(f"h{number}", state, reason, tried=tried)
        for number, (state, reason, tried) in enumerate(made)
    ]
    groups = group(hooks, KNOWN).groups
    names = [name for one in groups for name in one.names]
    assert sorted(names) == sorted(one.hook.name for one in hooks)
    assert len(set(names)) == len(names)
    assert all(one.sentence for one in groups)


def test_json_has_every_group_with_its_hooks() -> None:
    found = group([absent("vma_merge"), hook("a"), replace(hook("b"))], KNOWN).as_json()
    assert found == [
        {"kind": "attached", "reason": "", "hooks": ["a", "b"], "lacked_by": []},
        {
            "kind": "absent",
            "reason": "no such function",
            "hooks": ["vma_merge"],
            "lacked_by": [],
        },
    ]
