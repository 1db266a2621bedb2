"""Red, amber or green: every reason has its colour, and every output shows the same.

Green is never shown where little is known.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.busy import NO_HOOKS, tracepoints_only, well
from tests.support.reports import written
from tracer.attach.plan import HookState
from tracer.daemon.run import status_line
from tracer.daemon.terminal import table
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Verdict
from tracer.outputs.store.writer import Store
from tracer.report import html, markdown, terminal
from tracer.report.junit import as_junit
from tracer.report.ktap import as_ktap
from tracer.report.load import from_report_file, from_store
from tracer.report.model import StoredRun
from tracer.report.summary import facts, headline
from tracer.results import json_form
from tracer.results.history import HistoryPoint, longer
from tracer.results.latest import LatestSnapshot
from tracer.results.snapshot import Snapshot
from tracer.results.standing import MOST_OUTSTANDING, Colour, ReasonKind
from tracer.results.standing_facts import standing
from tracer.web import Application, Request

KNOWN = discover()


def taken_away() -> Snapshot:
    s = well()
    return replace(
        s,
        hooks=(
            replace(s.hooks[0], state=HookState.DETACHED, reason="its link is gone"),
            *s.hooks[1:],
        ),
    )


def required_in_part() -> Snapshot:
    s = well(required=("M1", "L1"))
    return replace(s, coverage={**s.coverage, "L1": (Coverage.PARTIAL, "windows are sampled")})


def unverifiable(share: float) -> Snapshot:
    return well(
        checks={("M1", Verdict.HOLDS): 1000, ("M1", Verdict.UNVERIFIABLE): int(1000 * share)}
    )


CASES: list[tuple[str, Snapshot, ReasonKind, str]] = [
    (
        "suspect",
        well(checks={("M1", Verdict.HOLDS): 9, ("M1", Verdict.SUSPECT): 2}),
        ReasonKind.SUSPECT,
        "2 checks are suspect",
    ),
    (
        "ended early",
        well(ended_early="the checker died by signal 9"),
        ReasonKind.ENDED_EARLY,
        "The run ended early: the checker died by signal 9.",
    ),
    ("nothing happened", well(checks={}), ReasonKind.NOTHING, "0 checks"),
    (
        "tracepoints only",
        tracepoints_only(),
        ReasonKind.COVERAGE,
        f"14 of {len(KNOWN)} invariants are checked here: 4 in full, 10 in part;"
        f" {len(KNOWN) - 14} are not: M5 ",
    ),
    (
        "required",
        required_in_part(),
        ReasonKind.REQUIRED,
        "Required, and not checked in full: L1 in part.",
    ),
    (
        "governed",
        well(fidelity="owner", fidelity_changes={"lower": 2, "raise": 1}),
        ReasonKind.FIDELITY,
        "lowered fidelity to owner",
    ),
    ("taken away", taken_away(), ReasonKind.HOOKS, "switched off by another program: "),
    (
        "unverifiable",
        unverifiable(0.02),
        ReasonKind.UNVERIFIABLE,
        "more than 1% of all: M1 20 of 1,020.",
    ),
    (
        "lost",
        well(counters={"LEDGER_LOST": 3, "LOCKS_LOST": 40}),
        ReasonKind.LOST,
        "43 events were lost",
    ),
    (
        "without a verdict",
        well(outstanding=69_639, gate_open=False),
        ReasonKind.OUTSTANDING,
        "69,639 migration entries got no verdict.",
    ),
    (
        "old",
        well(outstanding=12, oldest_entry_seconds=14.0),
        ReasonKind.OUTSTANDING,
        "the oldest for 14 s: longer than the age limit of 10 s",
    ),
]


@pytest.mark.parametrize(
    ("s", "kind", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_reason_alone_makes_it_amber(s: Snapshot, kind: ReasonKind, said: str) -> None:
    found = standing(s)
    assert (found.colour, list(found.reasons)) == (Colour.AMBER, [kind])
    assert said in found.reasons[kind]


def test_green_title_has_the_number_of_checks_and_invariants() -> None:
    found = standing(well())
    assert (found.colour, found.reasons) == (Colour.GREEN, {})
    built = len(KNOWN)
    assert re.fullmatch(rf"Nothing violated in [\d,]+ checks of {built} invariants", found.title)
    assert found.coverage == f"{built} of {len(KNOWN)} invariants are checked here, in full"
    assert standing(unverifiable(0.005)).colour is Colour.GREEN
    assert standing(well(outstanding=12, oldest_entry_seconds=0.2)).colour is Colour.GREEN, (
        "entries under way are no reason"
    )


def test_red_keeps_its_reasons() -> None:
    found = standing(
        replace(tracepoints_only(), checks={("M1", Verdict.VIOLATED): 1, ("M4", Verdict.HOLDS): 5})
    )
    assert (found.colour, found.title, list(found.reasons)) == (
        Colour.RED,
        "M1 violated",
        [ReasonKind.COVERAGE],
    )


def test_a_quarter_of_the_invariants_may_be_unchecked() -> None:
    s = well()
    names = list(s.coverage)
    for unchecked, colour in (
        (len(names) // 4, Colour.GREEN),
        (len(names) // 4 + 1, Colour.AMBER),
    ):
        none = dict.fromkeys(names[-unchecked:], (Coverage.NONE, "needs a hook"))
        assert standing(replace(s, coverage={**s.coverage, **none})).colour is colour


def test_kernel_with_tracepoints_only_has_one_reason() -> None:
    assert NO_HOOKS in standing(tracepoints_only()).reasons[ReasonKind.COVERAGE]


def test_reason_counts_hooks_that_also_have_a_candidate_of_another_kernel() -> None:
    s = tracepoints_only()
    off = [n for n, hook in enumerate(s.hooks) if not hook.on]
    hooks = list(s.hooks)
    for n in off[: len(off) * 2 // 3]:
        gone = f"no symbol old_{n} in this kernel"
        hooks[n] = replace(hooks[n], reason=f"{NO_HOOKS}; {gone}")
    s = replace(s, hooks=tuple(hooks))
    count = f"{len(off)} of {len(off)} missing hooks have one reason: {NO_HOOKS}."
    assert standing(s).reasons[ReasonKind.COVERAGE].endswith(count)


def history(outstanding: list[int]) -> tuple[HistoryPoint, ...]:
    points: tuple[HistoryPoint, ...] = ()
    for n, count in enumerate(outstanding):
        points = longer(points, well(running_seconds=2.0 * n, outstanding=count))
    return points


@pytest.mark.parametrize(
    ("outstanding", "colour"),
    [
        ([142_520] * 100, Colour.AMBER),
        ([100 * n for n in range(100)], Colour.AMBER),
        ([100 * (n % 50) for n in range(100)], Colour.GREEN),
        ([MOST_OUTSTANDING * 2] * 99 + [0], Colour.GREEN),
        ([142_520] * 20, Colour.GREEN),  # under three minutes nobody can tell
    ],
)
def test_entries_that_pile_up_are_amber(outstanding: list[int], colour: Colour) -> None:
    s = well(outstanding=outstanding[-1], oldest_entry_seconds=0.2)
    assert standing(s, history(outstanding), 0.0).colour is colour
    assert status_line(s, history(outstanding)).startswith(colour)


def test_entries_in_no_row_are_amber_at_once() -> None:
    """As seen: 142,520 outstanding, the oldest 0.0 s old, for ever."""
    found = standing(well(outstanding=142_520), (), 0.0)
    assert (found.colour, list(found.reasons)) == (Colour.AMBER, [ReasonKind.OUTSTANDING])
    assert (
        "142,520 migration entries outstanding, and the ledger has no row of them"
        in found.reasons[ReasonKind.OUTSTANDING]
    )


LISTS_HOOKS = ("text", "terminal")
"""Outputs that have the hooks by reason, or below a log that has them."""


def texts_of_outputs(s: Snapshot, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """What each output shows of a run that ended so."""
    found = json_form.as_json(s, ["true"], 0)
    reported = from_report_file(
        written(tmp_path / "r.json", found | {"histograms": []})
    )  # plots take long
    yield "text", terminal.as_text(s, ["true"], "")
    yield "json", json.dumps(found["standing"], ensure_ascii=False)
    yield "ktap", as_ktap(s)
    yield "junit", as_junit(s, ["true"], 0)
    yield "markdown", markdown.render(reported).replace("\\", "")
    yield "html", html.render(reported)
    yield "terminal", str(table(s, None, "here").title)


@pytest.mark.parametrize(
    "s", [well(), *(case[1] for case in CASES)], ids=["well", *(case[0] for case in CASES)]
)
def test_all_outputs_show_the_same_standing(s: Snapshot, tmp_path: Path) -> None:
    s = replace(s, gate_open=False) if not s.outstanding else s
    found = standing(s)
    again = headline(
        from_report_file(written(tmp_path / "again.json", json_form.as_json(s, ["true"], 0)))
    )
    assert (again.colour, again.text, again.reasons) == (
        found.colour.value,
        found.title,
        list(found.reasons.values()),
    )
    for name, text in texts_of_outputs(s, tmp_path):
        in_a_line = " ".join(text.split()) if name == "text" else text
        reasons = standing(s, hooks=name not in LISTS_HOOKS).reasons
        assert list(reasons) == list(found.reasons)
        assert found.title in in_a_line, name
        assert re.search(rf"\b{found.colour}\b", text, re.I), name
        assert all(reason in in_a_line for reason in reasons.values()), name
        not_alone(name, in_a_line)
    not_alone("page", Served(s)("/"))


def test_text_that_lists_hooks_by_reason_has_what_its_standing_leaves_out() -> None:
    s = tracepoints_only()
    assert NO_HOOKS in standing(s).reasons[ReasonKind.COVERAGE]
    assert NO_HOOKS not in standing(s, hooks=False).reasons[ReasonKind.COVERAGE]
    text = " ".join(terminal.as_text(s, ["true"], "").split())
    assert NO_HOOKS.replace("; ", ", ") in text


def not_alone(name: str, text: str) -> None:
    """Nothing violated: in how many checks?"""
    for said in re.finditer("nothing violated", text, re.I):
        assert re.match(r" in [\d,]+ checks", text[said.end() :]), (
            name,
            text[said.start() : said.end() + 40],
        )


def test_what_is_outstanding_is_in_every_output(tmp_path: Path) -> None:
    s = well(outstanding=69_639, oldest_entry_seconds=0.0, gate_open=False)
    found = json_form.as_json(s, ["true"], 0)
    assert found["migration"]["outstanding"] == 69_639
    outputs = dict(texts_of_outputs(s, tmp_path)) | {"page": Served(s)("/"), "line": status_line(s)}
    outputs["json"] = json.dumps(found)
    for name, text in outputs.items():
        assert re.search("outstanding", text, re.I), name
        assert re.search("69,?639", text), name
    none = dict(texts_of_outputs(well(), tmp_path)) | {
        "page": Served(well())("/"),
        "line": status_line(well()),
    }
    assert [name for name, text in none.items() if "outstanding" not in text.lower()] == ["json"], (
        "also where it is none"
    )


class Served:
    """A daemon's answers from one snapshot, at a moment that the test chooses."""

    def __init__(self, s: Snapshot) -> None:
        self.age = 0.0
        made = LatestSnapshot(lambda: 0.0)
        made.put(s)
        self.app = Application(made, lambda: s.taken_seconds + self.age)

    def __call__(self, path: str, status: int = 200) -> str:
        answer = self.app(Request("GET", path))
        assert answer.status == status
        return answer.body.decode()


def test_kept_answers_show_a_checker_that_hangs() -> None:
    """The same snapshot, asked for when it was new and again when it is old: an answer that was
    kept must not be green."""
    now = Served(well())
    assert ">green</span>" in now("/")
    assert "rmapd_standing 0.0" in now("/metrics")
    assert json.loads(now("/api/v1/"))["standing"]["colour"] == "green"
    assert now("/-/healthy").strip() == "healthy"
    now.age = 12.0
    page = now("/")
    assert ">amber</span>" in page
    assert ">green</span>" not in page.partition("</section>")[0]
    assert "The data is stale: the last update was 12 s ago." in page
    assert "rmapd_standing 1.0" in now("/metrics")
    assert json.loads(now("/api/v1/"))["standing"]["reasons"][0]["kind"] == "stale"
    assert json.loads(now("/api/v1/report"))["standing"]["colour"] == "amber"
    assert now("/-/healthy").strip() == "healthy, but the last update was 12 s ago"
    now.age = 13.0
    assert "the last update was 13 s ago" in now("/")
    now.age = 75.0
    assert (
        now("/-/healthy", 503).strip()
        == "not healthy: the last update was 75 s ago, the checker hangs"
    )


def test_a_closed_gate_is_amber_and_healthy() -> None:
    now = Served(well(gate_open=False))
    assert "Recording has ended: this is what was found until then." in now("/")
    assert ">amber</span>" in now("/")
    now.age = 100.0
    assert now("/-/healthy").strip() == "healthy"


def test_the_line_for_systemd_has_the_colour_and_what_is_outstanding() -> None:
    assert status_line(well()).startswith("green: gate open on 6.12.95-amd64")
    assert status_line(replace(tracepoints_only(), outstanding=7)).startswith("amber (coverage): ")
    assert status_line(replace(tracepoints_only(), outstanding=7)).endswith(
        "7 migration entries outstanding"
    )


def kept(path: Path, *, ended: tuple[bool, bool]) -> Path:
    """A store of two runs."""
    s = well()
    for number, end in enumerate(ended):
        at = s.taken_seconds + 100 * number
        now = itertools.repeat(at).__next__
        store = Store(path, "6.1", 64 << 20, 90, must=True, clock=now, monotonic=now)
        taken = replace(s, taken_seconds=at, running_seconds=50.0, gate_open=not end)
        store.keep_run(json_form.as_json(taken, ["rmapd", "run"], 0), ended=end)
        store.close()
    return path


def test_a_store_whose_runs_were_killed_is_amber(tmp_path: Path) -> None:
    def stands(ended: tuple[bool, bool], now: float = 0.0) -> tuple[str, list[str]]:
        path = tmp_path / f"{ended}.db"
        reported = from_store(path if path.exists() else kept(path, ended=ended))
        last: StoredRun = reported.runs[-1]
        assert (reported.silent_seconds > 0) == (last.ended is None)
        found = headline(
            type(reported)(reported.source, reported.report, [], {}, reported.runs, now)
        )
        return found.colour, found.reasons

    assert stands((True, True)) == ("green", [])
    assert stands((True, False), 60.0) == ("green", [])
    assert stands((True, False), 7200.0) == (
        "amber",
        ["The last run has no end and wrote nothing for 2 h 0 min: it was killed, or hangs."],
    )
    assert stands((False, True)) == (
        "amber",
        [
            "1 run before the last one has no end: killed, and what was not judged then has no"
            " verdict."
        ],
    )


def test_a_report_that_ended_early_is_amber(tmp_path: Path) -> None:
    """As the supervisor writes it, where the process that judged is gone."""
    found = json_form.as_json(well(gate_open=False), ["true"], 0) | {
        "ended_early": {"reason": "the checker was killed by SIGKILL"}
    }
    reported = from_report_file(written(tmp_path / "r.json", found))
    assert headline(reported).colour == "amber"
    assert facts(reported).ended_early == ["the checker was killed by SIGKILL"]
    for text in (html.render(reported), markdown.render(reported)):
        assert "the checker was killed by SIGKILL." in text


def test_a_point_of_which_most_checks_are_unverifiable_is_not_ok() -> None:
    lines = as_ktap(
        well(checks={("M1", Verdict.HOLDS): 1, ("M1", Verdict.UNVERIFIABLE): 999})
    ).splitlines()
    (line,) = [line for line in lines if line.startswith("ok 1 M1")]
    assert line.endswith("# SKIP 999 of 1000 checks could not be verified, events were lost")
