"""Parts of the pages: hooks by reason, the nearest legal protocol, legend, icon, reasons."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.support import busy
from tests.unit.web.test_pages import over, page, read
from tracer import icon
from tracer.attach.plan import HookState
from tracer.invariants.base import Coverage
from tracer.protocol.legend import legend
from tracer.results.hook_groups import group
from tracer.results.snapshot import Snapshot
from tracer.web import Application

LOWERED = "the governor has lowered fidelity to owner: programs take 2.3 % of the CPUs"


def some_off() -> Snapshot:
    """A snapshot with hooks of each kind of reason."""
    s = busy.well()
    changes = {
        0: (HookState.DENIED, busy.NO_HOOKS),
        1: (HookState.DENIED, busy.NO_HOOKS),
        2: (HookState.PAUSED, LOWERED),
        3: (HookState.DETACHED, "the switch of kprobes is off"),
        4: (HookState.MISSING, "no function gone in this kernel's BTF"),
    }
    hooks = [
        replace(hook, state=changes[n][0], reason=changes[n][1]) if n in changes else hook
        for n, hook in enumerate(s.hooks)
    ]
    return replace(s, hooks=tuple(hooks))


def test_hooks_are_grouped_by_reason_as_doctor_groups_them() -> None:
    s = some_off()
    groups = group(s.hooks, s.invariants)
    seen = page(over(s), "/hooks")
    assert f"{len(s.hooks) - 5} of {len(s.hooks)} hooks are attached" in seen.text
    assert len(groups.off) >= 4
    for one in groups.off:
        assert f"{one.sentence}." in seen.text
        for name in one.names:
            assert seen.text.count(name) >= 1
    badges = {"refused", "paused", "detached"}
    assert badges <= set(seen.text.split())
    assert seen.text.count(busy.NO_HOOKS.split(";")[0]) == 1, "once, not at each hook"


def test_hooks_page_folds_long_groups_only() -> None:
    shown = read(over(busy.tracepoints_only()), "/hooks").body.decode()
    assert "<details>" in shown
    assert "<details open>" not in shown
    assert "<details open>" in read(over(some_off()), "/hooks").body.decode()


def test_page_without_an_attached_hook_has_words_for_it() -> None:
    s = busy.well()
    off = tuple(replace(one, state=HookState.DENIED, reason=busy.NO_HOOKS) for one in s.hooks)
    assert "No hook is attached now." in page(over(replace(s, hooks=off)), "/hooks").text
    assert "Not attached, by reason" not in page(over(s), "/hooks").text


def test_violation_shows_the_most_similar_legal_protocol_with_differences() -> None:
    s = busy.snapshot()
    wrong = next(v.first for v in s.violations.values() if v.first.protocol)
    path = f"/violations/{wrong.id}"
    shown = read(over(s), path).body.decode()
    assert "Most similar legal protocol" in shown
    assert '<mark class="seen"><span class="take">i_mmap↓w</span></mark>' in shown
    assert '<mark class="legal"><span class="take">i_mmap↓w</span></mark>' in shown
    illegal = tuple(one for one in s.protocols if one.protocol.window != wrong.function)
    alone = page(over(replace(s, protocols=illegal)), path).text
    assert "Most similar legal protocol" not in alone
    assert f"No legal protocol of {wrong.function} was seen" in alone
    assert wrong.protocol.replace("  ", " ") in alone


def test_pages_tell_no_window_yet_from_no_hook_for_windows() -> None:
    s = replace(busy.snapshot(), protocols=())
    entry = next(v.first for v in s.violations.values() if not v.first.protocol)
    off = [
        replace(hook, state=HookState.DENIED, reason=busy.NO_HOOKS) if hook.hook.window else hook
        for hook in s.hooks
    ]
    for some, protocols, trail in (
        (s, "No window was recorded yet.", "No window touched the same objects"),
        (
            replace(s, hooks=tuple(off)),
            "No window is recorded, as no hook for that is attached",
            "No hook records windows now",
        ),
    ):
        assert protocols in page(over(some), "/protocols").text
        assert trail in page(over(some), f"/violations/{entry.id}").text
    assert "No protocol matches." in page(over(busy.snapshot()), "/protocols?q=nothing").text


def test_pages_with_protocols_have_the_legend() -> None:
    s = busy.snapshot()
    app = over(s)
    wrong = next(v.first for v in s.violations.values() if v.first.protocol)
    for path in ("/protocols", f"/violations/{wrong.id}"):
        text = page(app, path).text
        for one in legend():
            assert one.title in text
            assert all(row.sign in text and row.meaning in text for row in one.rows)
    entry = next(v.first for v in s.violations.values() if not v.first.protocol)
    assert "How to read a protocol" not in page(app, f"/violations/{entry.id}").text


def test_none_names_its_reason_on_overview_and_invariant_page() -> None:
    s = busy.well()
    hooks = tuple(
        replace(hook, state=HookState.PAUSED, reason=LOWERED)
        if hook.probe_object in ("locks", "mmap_lock")
        else hook
        for hook in s.hooks
    )
    attached = {hook.hook.name for hook in hooks if hook.on} | {"oracle", "audit"}
    coverage = {name: one.coverage(attached) for name, one in s.invariants.items()}
    assert coverage["L2"][0] is Coverage.NONE
    app = over(replace(s, hooks=hooks, coverage=coverage))
    for path in ("/", "/invariants/L2"):
        assert f"{coverage['L2'][1]}: {LOWERED}" in page(app, path).text


@pytest.mark.parametrize(
    ("s", "colour"),
    [(busy.snapshot(), "red"), (busy.tracepoints_only(), "amber"), (busy.well(), "green")],
)
def test_icon_has_the_colour_of_the_standing(s: Snapshot, colour: str) -> None:
    fresh = over(replace(s, taken_seconds=4e9))
    for path in ("/", "/hooks", "/protocols", "/docs/"):
        assert (
            f'<link rel="icon" href="/static/icon-{colour}.svg"' in read(fresh, path).body.decode()
        )


def test_icons_are_svg_and_differ_also_without_colour() -> None:
    app = over(busy.well())
    drawn = set()
    for path in ("/favicon.ico", *(f"/static/icon-{one}.svg" for one in icon.COLOURS if one)):
        answer = read(app, path)
        assert (answer.status, answer.kind) == (200, "image/svg+xml")
        root = ElementTree.fromstring(answer.body)
        drawn.add(tuple(one.get("d") for one in root.iter() if one.get("d")))
    assert len(drawn) == 3, "red and amber have marks, green and blue have none"


def test_page_not_found_tells_where_older_violations_are() -> None:
    text = page(Application(busy.current()), "/violations/L1-0123456789", 404).text
    assert "rmapd explain ID" in text
