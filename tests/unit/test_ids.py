"""Ids that a user types: any case is accepted everywhere, and a wrong one has a suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.reports import written
from tests.support.snapshots import snapshot
from tracer import config, ids
from tracer.cli import main
from tracer.daemon import required
from tracer.errors import RmapdError
from tracer.invariants.catalogue import discover
from tracer.results.latest import LatestSnapshot
from tracer.web import Application
from tracer.web.http_message import Request

TITLES = {name: one.title for name, one in discover().items()}


def rmapd(*args: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def test_ids_of_the_catalogue_are_canonical() -> None:
    """A file that declares an id in small letters could not be named by any user."""
    assert [name for name in discover() if ids.canonical(name) != name] == []


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [("m1", "M1"), (" M1 ", "M1"), ("l1-3FAB", "L1-3fab"), ("V5-", "V5-"), ("", ""), ("-A", "-a")],
)
def test_id_is_written_in_one_way(typed: str, canonical: str) -> None:
    assert ids.canonical(typed) == canonical


@pytest.mark.parametrize(
    ("typed", "similar"),
    [
        ("M11", ["M1"]),
        ("m9", ["M5", "M4", "M3"]),
        ("L22", ["L2"]),
        ("maple", ["V4"]),
        ("folio", ["R1"]),
        ("lock", ["M2", "M3", "L1"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_similar_ids_or_titles_with_the_word_are_suggested(typed: str, similar: list[str]) -> None:
    assert ids.similar(typed, TITLES) == similar


def test_required_ids_are_accepted_in_any_case_wherever_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "rmapd.toml"
    path.write_text("require = ['m1', 'M1', ' l2']\n")
    assert config.load(path).require == ["M1", "L2"]
    assert config.load(path, {"RMAPD_REQUIRE": "v4,r2"}).require == ["V4", "R2"]
    assert config.load(path, {}, require=["m5"]).require == ["M5"]
    shown = rmapd("check-config", "--config", path)
    assert (shown.exit_code, 'require = ["M1", "L2"]' in shown.output) == (0, True)
    assert required.required(config.load(path), discover()) == ("M1", "L2")


@pytest.mark.parametrize("command", [["run"], ["exec"]])
def test_unknown_required_id_is_refused_with_a_suggestion(command: list[str]) -> None:
    done = rmapd(*command, "--require", "m11,zzz,m1", *(["true"] if command == ["exec"] else []))
    assert done.exit_code == 2
    assert done.stderr == (
        "rmapd: cannot require M11,ZZZ,M1: no invariant M11, ZZZ: did you mean M1?\n"
        "  try: rmapd explain --list\n"
    )


def test_explanation_is_found_in_any_case(tmp_path: Path) -> None:
    assert rmapd("explain", "m1").output == rmapd("explain", "M1").output
    report = written(tmp_path / "report.json")
    violation = "L1-" + rmapd("explain", "L1-", "--report", report).output.rpartition("L1-")[2][:10]
    exact = rmapd("explain", violation, "--report", report)
    assert (exact.exit_code, violation in exact.output) == (0, True)
    for typed in (violation.lower(), violation.upper(), violation.lower()[:6]):
        assert rmapd("explain", typed, "--report", report).output == exact.output, typed


def test_unknown_id_of_a_violation_names_the_similar_one(tmp_path: Path) -> None:
    report = written(tmp_path / "report.json")
    violation = "L1-" + rmapd("explain", "L1-", "--report", report).output.rpartition("L1-")[2][:10]
    other = violation[:-1] + ("0" if violation[-1] != "0" else "1")
    done = rmapd("explain", other.upper(), "--report", report)
    assert done.exit_code == 2
    assert f"try: one of {violation}\n" in done.stderr


def test_unknown_invariant_has_a_suggestion() -> None:
    done = rmapd("explain", "maple")
    assert (done.exit_code, done.stderr) == (
        2,
        "rmapd: no invariant maple: did you mean V4?\n  try: rmapd explain --list\n",
    )
    with pytest.raises(RmapdError, match="cannot require M9: no invariant M9: did you mean M5"):
        required.check(config.Config(require=["M9"]), discover(), {}, "")


def test_pages_and_the_api_answer_for_an_id_in_any_case() -> None:
    latest = LatestSnapshot()
    one = snapshot()
    latest.put(one)
    application = Application(latest)

    def body(path: str) -> tuple[int, bytes]:
        answer = application(Request("GET", path, "", {}))
        return answer.status, answer.body

    violation = next(iter(one.violations))
    for path in ("/invariants/L1", f"/violations/{violation}", f"/api/v1/violations/{violation}"):
        status, found = body(path)
        folder, _, name = path.rpartition("/")
        assert status == 200
        assert body(f"{folder}/{name.lower()}") == (200, found), path
        assert body(f"{folder}/{name.upper()}") == (200, found), path
    assert body("/invariants/l99")[0] == 404
