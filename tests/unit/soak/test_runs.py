"""A run is counted as what it was, and the exit code is one that `git bisect run` understands."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest
from click.testing import CliRunner

from tests.support.soaks import result
from tracer.cli import main
from tracer.cli_soak import duration
from tracer.errors import RmapdError, Temporary
from tracer.outcome import StdoutError
from tracer.report.soak import (
    Outcome,
    SoakPart,
    SoakResult,
    SoakRun,
    as_text,
    read_if_soak,
    run_text,
    summary_text,
)
from tracer.results.json_form import iso
from tracer.soak import runs
from tracer.soak.limits import Limits
from tracer.soak.plan import Ending, Status
from tracer.soak.runs import classified, exit_code

BEGIN = 1_000_000.0


def status(end: Ending = "time", seconds: float = 60.0, done: int = 5) -> Status:
    why = "" if end == "time" else f"{end} it was"
    return Status(BEGIN, seconds, end, why, [SoakPart("vma.storm", done)])


def finding(at: float, name: str = "L3-1", verdict: str = "violated") -> dict[str, Any]:
    return {
        "id": name,
        "invariant": "L3",
        "verdict": verdict,
        "summary": "not held",
        "count": 2,
        "first_seen": iso(BEGIN + at),
    }


def report(*findings: dict[str, Any], level: str = "full", **keys: Any) -> dict[str, Any]:
    violated = sum(one["verdict"] == "violated" for one in findings)
    checks = {"holds": 100, "violated": violated, "suspect": 0, "unverifiable": 1}
    return {
        "started": iso(BEGIN - 2),
        "fidelity": "full",
        "invariants": {"L3": {"coverage": level, "checks": checks}},
        "violations": [*findings],
        "lost": {"ring": 0},
        "exit": {"source": "violation" if violated else "command", "reason": "why"},
        "timeline": {"seconds": [1.0, 30.0], "totals": {"violated": [0, violated]}},
    } | keys


def found(code: int, known: dict[str, Any] | None, ran: Status | None, errors: str = "") -> SoakRun:
    return classified(1, iso(BEGIN), code, known, ran, errors)


def early_end() -> dict[str, Any]:
    """The report of a run that a signal ended before the gate was open."""
    exit_of = {"source": "signal", "reason": "SIGINT arrived"}
    return {"invariants": {}, "violations": [], "exit": exit_of}


def test_run_that_lasted_its_time_is_silent() -> None:
    run = found(0, report(), status())
    assert (run.outcome, run.seconds, run.fidelity, run.lowered) == ("silent", 60, "full", False)
    assert run.coverage == {"L3": "full"}
    assert run.checks == {"holds": 100, "violated": 0, "suspect": 0, "unverifiable": 1}


def test_time_to_the_first_violation_is_from_the_loads_start() -> None:
    run = found(3, report(finding(41.5), finding(12.25, "L3-2")), status("signal"))
    assert (run.outcome, run.seconds, run.at_once) == ("violated", 12.25, False)
    assert [one.seconds for one in run.violations] == [41.5, 12.25]


def test_suspect_is_no_violation() -> None:
    assert found(0, report(finding(5, verdict="suspect")), status()).outcome == "silent"


def test_violation_that_the_last_audit_finds_was_there_when_the_load_ended() -> None:
    """Else it would be alone at risk, after all silent runs, and the median would be its time."""
    run = found(3, report(finding(65)), status("time", 60))
    assert (run.outcome, run.seconds) == ("violated", 60)
    made = result(("violated", run.seconds), *[("silent", 60.0)] * 9)
    assert made.times.quantile(0.5) is None


def test_violation_before_the_load_is_at_once() -> None:
    run = found(3, report(finding(-1)), status("signal"))
    assert (run.outcome, run.seconds, run.at_once) == ("violated", 0, True)
    assert "before the load began" in "\n".join(run_text(run))


def test_violation_that_stops_a_load_in_its_first_moment_is_at_once() -> None:
    """The load left no status; the time is from the open gate, not from before rmapd attached."""
    known = report(finding(7))
    gate = known["violations"][0]["first_seen"]
    run = found(3, known | {"started": gate}, None)
    assert (run.outcome, run.seconds, run.at_once) == ("violated", 0, True)


def test_finding_that_the_daemon_knew_is_timed_by_the_timeline() -> None:
    known = report(finding(-500), daemon={"known_before": ["L3-1"], "fidelity_lowered": False})
    run = found(3, known, status("signal"))
    assert (run.outcome, run.seconds, run.daemon) == ("violated", 28.0, True)


def test_times_are_from_the_runs_begin_where_the_load_left_no_status() -> None:
    """After a checker's death the report may have findings and no time of its own."""
    known = report(finding(7))
    del known["started"], known["timeline"]
    run = found(71, known, None)
    assert (run.outcome, run.seconds, run.violations[0].seconds) == ("violated", 7, 7)


def test_violation_counts_even_if_the_checker_died_of_it() -> None:
    early = report(finding(7), ended_early={"reason": "the checker died"})
    assert found(71, early, status("signal")).outcome == "violated"


@pytest.mark.parametrize(
    ("code", "known", "ran", "why"),
    [
        (125, None, None, "rmapd exec ended with 125: cannot attach why: refused try: later"),
        (
            71,
            report(ended_early={"reason": "the checker died: x"}),
            status("signal"),
            "checker died",
        ),
        (0, report(exit={"source": "daemon"}), status("signal"), "the checker died"),
        (0, report(level="none"), status(), "no invariant can be checked"),
        (4, report(exit={"source": "required", "reason": "M1 required"}), status(), "M1 required"),
        (0, report(), None, "the load failed: cannot attach why: refused try: later"),
        (1, report(), status("failed"), "failed it was"),
        (0, report(), status(done=0), "the load failed"),
        (130, early_end(), None, "SIGINT arrived"),
    ],
)
def test_run_of_which_nothing_is_known_is_lost(
    code: int, known: dict[str, Any] | None, ran: Status | None, why: str
) -> None:
    said = "rmapd: another\nrmapd: cannot attach\n  why: refused\n  try: later"
    run = found(code, known, ran, said)
    assert (run.outcome, run.seconds) == ("lost", 0)
    assert why in run.why


@pytest.mark.parametrize("done", [5, 0])
@pytest.mark.parametrize("end", ["signal", "memory", "soak"])
def test_run_that_ended_early_is_cut_and_not_silent(end: Ending, done: int) -> None:
    """Also where no part of the load had ended a round: that is a matter of time."""
    run = found(0, report(), status(end, 30, done))
    assert (run.outcome, run.seconds, run.why) == ("cut", 30, f"{end} it was")
    assert "ended early after 30 s, nothing violated until then" in run_text(run)[0]


@pytest.mark.parametrize(
    "keys",
    [
        {"fidelity": "owner"},
        {"fidelity_changes": {"lowered": 1}},
        {"daemon": {"fidelity_lowered": True, "known_before": []}},
    ],
)
def test_lowered_fidelity_is_shown(keys: dict[str, Any]) -> None:
    run = found(0, report(**keys), status())
    assert run.lowered
    assert "fidelity was not full all the time" in "\n".join(run_text(run))


@pytest.mark.parametrize(
    ("outcomes", "repeat", "stopped", "code"),
    [
        (["silent", "silent"], 2, 0, 0),
        (["silent", "violated"], 2, 0, 3),
        (["violated", "cut"], 2, 2, 3),
        (["silent", "cut"], 2, 15, 143),
        (["silent", "cut"], 2, 0, 125),
        (["silent", "lost"], 2, 0, 125),
        (["silent"], 2, 0, 125),
        (["lost"], 1, 0, 125),
        ([], 1, 2, 130),
    ],
)
def test_exit_code_is_good_only_if_every_run_was_silent(
    outcomes: list[Any], repeat: int, stopped: int, code: int
) -> None:
    assert exit_code(result(*((one, 1.0) for one in outcomes), repeat=repeat), stopped) == code


class _Exec(runs._Soak):  # noqa: SLF001
    """A soak whose exec is made up: each pair is its exit code and its report."""

    made: ClassVar[list[tuple[int, dict[str, Any] | None]]] = []

    def _exec(self, report: Path, number: int) -> tuple[int, str]:
        out = self._order.out
        assert out is not None
        kept = json.loads(out.read_text())
        last = kept["runs"][-1]
        assert (last["number"], last["outcome"]) == (number, "unfinished"), "should it die now"
        code, known = self.made.pop(0)
        if known:
            report.write_text(json.dumps(known))
            if not known["violations"]:
                (self._folder / "status.json").write_bytes(msgspec.json.encode(status()))
        return code, "errors"


def test_each_run_is_written_when_it_begins_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(1 << 30, 100, 1 << 28, why="a test")
    monkeypatch.setattr("tracer.soak.limits.planned", lambda *_args: limits)
    monkeypatch.setattr("tracer.supervision.supervisor.Signals", lambda *_numbers: None)
    monkeypatch.setattr(runs, "_Soak", _Exec)
    _Exec.made = [(0, report()), (3, report(finding(9))), (125, None), (0, report())]
    out, shown = tmp_path / "out.json", list[Any]()
    order = runs.Order(("vma",), 60.0, 4, out, seed=7)
    made, code = runs.soak(order, lambda _result, run: shown.append(run and run.outcome))
    assert shown == [None, "silent", "violated", "lost"]
    assert code == 3
    assert len(_Exec.made) == 1, "where a load does not even begin, the next would not either"
    read = read_if_soak(out)
    assert read == made
    assert [run.number for run in read.runs] == [1, 2, 3]
    assert json.loads((tmp_path / "out.2.json").read_text())["violations"], "the evidence is kept"
    _Exec.made = [(3, report(finding(9)))]
    order = runs.Order(("vma",), 60.0, out=tmp_path / "of-6.1", seed=7)
    made, code = runs.soak(order, lambda *_: None)
    assert made.runs[0].report == str(tmp_path / "of-6.1.1.json")
    assert (read.seed, read.limits.why, read.loads) == (7, "a test", ["vma"])
    assert read.versions["Python"]
    assert {"cpus", "memory_bytes", "swap_bytes", "nodes"} == {*read.machine}


def test_summary_has_the_mean_with_its_interval_and_the_median() -> None:
    made = result(("violated", 60.0), ("violated", 120.0), ("silent", 600.0), ("lost", 0.0))
    assert summary_text(made) == [
        "2 of 3 runs violated, in 13 min 0 s watched; 1 more are not counted",
        "mean time to the first violation: 6 min 30 s (95%: 1 min 47 s to 53 min 40 s)",
        "median (Kaplan-Meier): 2 min 0 s",
    ]
    silent = summary_text(result(("silent", 600.0)))
    assert silent[1:] == [
        "mean time to the first violation: more than 2 min 42 s (97.5%, if times are exponential)",
        "median (Kaplan-Meier): not reached",
    ]
    assert summary_text(result(("lost", 0.0))) == ["nothing was measured; 1 more are not counted"]


def test_text_shows_limits_and_what_is_left_out() -> None:
    text = as_text(result(("silent", 600.0), left_out={"vma.stress-ng": "needs stress-ng"}))
    assert "soak vma on 6.1: one run, 10 min 0 s, seed 1" in text
    assert "left out: vma.stress-ng: needs stress-ng" in text
    assert "rlimits and a check" in text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("10min", 600), ("1.5h", 5400), ("2d", 172800)],
)
def test_time_has_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "args",
    [
        ("--for", "soon"),
        ("--for", "0"),
        ("--for", "10m", "--until-violation"),
        ("--fro", "3"),
        ("-v", "-q"),
        ("--log-level", "debug", "-v"),
        ("--repeat", "0"),
        ("--load", "chaos"),
    ],
)
def test_wrong_usage_stops_a_bisection(args: tuple[str, ...], monkeypatch: Any) -> None:
    """2 would be a bad commit."""
    monkeypatch.setattr("tracer.cli_soak.require_privilege", lambda: None)
    assert CliRunner().invoke(main, ["soak", *args]).exit_code == 128


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("error", "otherwise"),
    [
        (RmapdError("cannot write the result"), 128),
        (Temporary("cannot remove the cgroup"), 125),
        (OSError(errno.ENOSPC, "no space"), 125),
        (StdoutError(errno.EPIPE, "closed"), 125),
    ],
)
def test_kernel_that_was_violated_is_bad_whatever_fails_then(
    form: str, error: Exception, otherwise: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.cli_soak.require_privilege", lambda: None)
    for outcome, code in (("violated", 3), ("silent", otherwise)):
        made = result((cast(Outcome, outcome), 0.0 if outcome == "violated" else 60.0))

        def failing(_: runs.Order, show: Any, made: SoakResult = made) -> None:
            show(msgspec.structs.replace(made, runs=[]), None)
            show(made, made.runs[0])
            raise error

        monkeypatch.setattr("tracer.soak.runs.soak", failing)
        done = CliRunner().invoke(main, ["soak", "--format", form])
        assert done.exit_code == code
        if form == "json":
            assert json.loads(done.stdout)["runs"][0]["outcome"] == outcome
        else:
            assert "mean time to the first violation" in done.stdout


def test_load_that_cannot_run_here_is_skipped_by_a_bisection(monkeypatch: Any) -> None:
    monkeypatch.setattr("tracer.cli_soak.require_privilege", lambda: None)
    done = CliRunner().invoke(main, ["soak", "--load", "selftests"])
    assert done.exit_code == 125
    assert "--selftests DIR" in done.stderr
