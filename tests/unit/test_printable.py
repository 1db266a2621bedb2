"""Data keeps names exact; text for people has them without control characters."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import time
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.support.reports import unlucky, written
from tests.support.snapshots import FINDING, snapshot
from tracer.cli import main
from tracer.errors import RmapdError
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Finding, Violation
from tracer.logs import LineFormatter
from tracer.outputs.log import FindingLog
from tracer.outputs.store.writer import Store
from tracer.packed import pack
from tracer.printable import json_text, printable, shown
from tracer.report import diff, diff_output, explain, html, markdown, terminal
from tracer.report.find_violation import find
from tracer.report.junit import as_junit
from tracer.report.ktap import as_ktap
from tracer.report.load import from_report_file, from_store
from tracer.results import json_form
from tracer.web.application import Application
from tracer.web.http_message import Request

ESCAPE = (
    "\x1b]0;owned\x07\x1b[2J\n2026 CRITICAL forged\r\x7f\x9b31m"
    "\u202eevil\u2028\u2066\ud800\U000e0041"
)
FORBIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
names = st.one_of(
    st.text(min_size=1),
    st.text(st.sampled_from(ESCAPE + "ab`<|\\*_["), min_size=1),
    st.just(ESCAPE),
)
slow = settings(
    max_examples=8,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def control_characters(text: str, keep: str = "\n") -> set[str]:
    """Return the characters that a terminal or an editor would act on."""
    return {one for one in text if unicodedata.category(one) in FORBIDDEN and one not in keep}


@given(names)
def test_escaped_text_is_printable_and_stable(name: str) -> None:
    escaped = printable(name)
    assert escaped.isprintable()
    assert printable(escaped) == escaped
    assert escaped == name or not name.isprintable()


def test_control_format_and_surrogate_characters_are_escaped() -> None:
    assert (
        printable("a\x1b[0m\n\t\x7f\x9b\u202e\ud800 b")
        == "a\\x1b[0m\\n\\t\\x7f\\x9b\\u202e\\ud800 b"
    )
    assert printable("anon↓w i_mmap↑r × é 漢 😀") == "anon↓w i_mmap↑r × é 漢 😀"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def json_values(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), text)
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20
    )


@given(json_values(names))
def test_json_text_reads_back_equal_and_is_safe_on_a_terminal(value: Any) -> None:
    for text in (json_text(value), json_text(value, indent=None, separators=(",", ":"))):
        assert json.loads(text) == value
        assert not control_characters(text)
    assert not control_characters(
        json.dumps(shown(value), ensure_ascii=False, default=str).replace("\\n", "")
    )


def hostile(name: str) -> Finding:
    """Make a violation with this name in every place for a name."""
    task = {"pid": 7, "tgid": 7, "comm": name, "cgroup": {"id": 4, "name": name}}
    vma = {"vma": "0x1", "vm_start": "0x1000", "vm_end": "0x2000", "flags": name, "file": name}
    folio = {"folio": "0xf0", "kind": name, "order": 0, "flags": [name]}
    entry = {
        "tgid": 9,
        "comm": name,
        "addr": "0x7000",
        "entry": "0xe",
        "pfn": "0x12",
        "locked": False,
        "first_walk": vma,
        "folio_now": folio,
    }
    step = {
        "time_ns": 5,
        "function": name,
        "task": task,
        "vma": vma,
        "protocol": name,
        "marked": True,
        "why": name,
        "stack": [name],
    }
    edge = {"held": name, "taken": name, "protocol": name, "stack": [name]}
    evidence = {
        "entries": [entry],
        "edges": [edge],
        "trail_note": name,
        "culprit": {"function": name, "why": name},
        name: name,
    }
    return dataclasses.replace(
        FINDING,
        summary=name,
        task=task,
        stack=(name,),
        evidence=evidence,
        protocol=name,
        trail=pack((step,)),
    )


def reported(name: str) -> dict[str, Any]:
    """Make a report file of it, with the name also where only a forged file would have it."""
    found = unlucky()
    own = json_form.violation_json(
        Violation(
            hostile(name), 1.0, 2.0, 3, {"kernel": name, "tainted": name, "command_line": [name]}
        )
    )
    own |= {"function": name, "signature": name, "protocol": name}
    found |= {
        "kernel": name,
        "rmapd": name,
        "fidelity": name,
        "command": {"argv": [name], "exit_code": 0},
        "violations": [own],
    }
    found["hooks"] = {name: {"state": "missing", "reason": name}}
    found["invariants"] = {
        key: one | {"title": name, "reason": name} for key, one in found["invariants"].items()
    }
    found["protocols"] = [
        *found["protocols"],
        {"function": name, "context": [name], "steps": name, "count": 1, "violates": [name]},
    ]
    found["windows"], found["lost"], found["beyond"] = {name: 1}, {name: 1}, {f"{name} suspect": 1}
    classes = [one | {"name": name[:9]} for one in found["lock_graph"]["classes"]]
    edges = [
        one | {"functions": {name: 1}, "stack": [name], "protocol": name}
        for one in found["lock_graph"]["edges"]
    ]
    return found | {"lock_graph": {"classes": classes, "edges": edges}}


@slow
@example(ESCAPE)
@given(names)
def test_stored_report_is_printable_in_every_form(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "r.json", reported(name))
    if name is ESCAPE:  # drawing takes seconds
        assert not control_characters(html.render(from_report_file(path)))
    assert not control_characters(markdown.render(from_report_file(path)), keep="\n\u2007")
    known = find(FINDING.invariant + "-", tmp_path, path)
    for text in (explain.as_text, explain.as_markdown):
        assert not control_characters(text(known, discover()["M1"]))
    exact = explain.as_json(known, discover()["M1"])
    assert exact["violation"]["task"]["comm"] == name
    assert not control_characters(json_text(exact))


def test_difference_and_its_errors_are_printable(tmp_path: Path) -> None:
    line = "vma_shrink[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w"
    rows = [{"text": line, "count": 5, "violates": [ESCAPE], "suspect": []}]
    paths = [tmp_path / "a\x1b[2J.json", tmp_path / "b\nc.json"]
    for path, protocols in zip(paths, (rows, []), strict=True):
        path.write_text(
            json.dumps({"kernel": ESCAPE, "protocols": protocols, "windows": {}, "hooks": {}})
        )
    ours, theirs = diff.read_both(*paths)
    found = diff.compare(ours, theirs)
    assert found
    assert not control_characters(diff_output.as_text(ours, theirs, found))
    assert diff_output.as_json(ours, theirs, found)["a"]["kernel"] == ESCAPE
    done = CliRunner().invoke(main, ["diff", str(tmp_path / "\x1b[2Jnone"), str(paths[0])])
    assert (done.exit_code, control_characters(done.stderr)) == (2, set())
    assert "\\x1b[2Jnone" in done.stderr


@slow
@example(ESCAPE)
@given(names)
def test_output_of_a_run_is_printable(name: str) -> None:
    violation = Violation(hostile(name), 1.0, 2.0)
    s = snapshot(violations={"M1-x": violation}, kernel=name)
    text, ktap = terminal.as_text(s, ["sh", "-c", name], name), as_ktap(s, ending=name)
    texts = (text, ktap, as_junit(s, [name], 0, more={"exit.source": name}))
    assert [control_characters(text, keep="\n\t") for text in texts] == [set()] * 3
    ET.fromstring(texts[2].split("\n", 1)[1])
    assert json_form.as_json(s, [name], 0)["violations"][0]["task"]["comm"] == name


def logged(write: Callable[[logging.Logger], None], *, prefixed: bool = False) -> str:
    """Return the log that write() makes."""
    stream, log = io.StringIO(), logging.getLogger("rmapd")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(prefixed=prefixed))
    log.addHandler(handler)
    try:
        write(log)
    finally:
        log.removeHandler(handler)
    return stream.getvalue()


@slow
@example(ESCAPE)
@given(names)
def test_log_record_is_one_line_whatever_the_name(name: str) -> None:
    lines = list[str]()
    text = logged(
        lambda _: FindingLog(time.time, {}, lines.append).new([Violation(hostile(name), 1.0, 2.0)])
    )
    assert len(text.splitlines()) == 1
    assert not control_characters(text)
    assert json.loads(lines[0])["task"]["comm"] == name, "the JSON line has the exact name"
    assert not control_characters(lines[0])


def test_logged_traceback_keeps_its_lines_without_control_characters() -> None:
    def fail(log: logging.Logger) -> None:
        try:
            raise ValueError(ESCAPE)
        except ValueError:
            log.exception("no good: %s", ESCAPE)

    text = logged(fail, prefixed=True)
    assert not control_characters(text)
    assert "Traceback (most recent call last):" in text
    assert {line[:3] for line in text.splitlines()} == {"<3>"}, (
        "each line has its priority for journald"
    )


def test_error_is_printable_and_only_its_reason_has_lines() -> None:
    error = RmapdError(f"cannot read {ESCAPE}", why=f"first\nsecond {ESCAPE}", hint=ESCAPE)
    assert not control_characters(str(error))
    assert all(
        line.startswith("    ") or line.startswith("  try: ")
        for line in str(error).splitlines()[1:]
    )
    assert "\n" not in error.in_a_line


class FakeLatest:
    """A LatestSnapshot with one violation."""

    points = ()

    def __init__(self, name: str) -> None:
        self.id = "M1-x"
        self.snapshot = snapshot(
            violations={self.id: Violation(hostile(name), 1.0, 2.0)}, kernel=name
        )

    def __call__(self) -> Any:
        return self.snapshot


def test_pages_are_printable_and_api_is_exact() -> None:
    latest = FakeLatest(ESCAPE.replace("\ud800", ""))
    application = Application(latest)

    def body(path: str) -> str:
        answer = application(Request("GET", path, "", {}))
        assert answer.status == 200, path
        return answer.body.decode()

    for path in ("/", "/hooks", f"/violations/{latest.id}", "/invariants/M1"):
        assert not control_characters(body(path), keep="\n\t\r"), path
        assert "\\x1b" in body(path), path
    text = body(f"/api/v1/violations/{latest.id}")
    assert not control_characters(text)
    assert json.loads(text)["task"]["comm"] == ESCAPE.replace("\ud800", "")


def test_store_keeps_exact_names_and_reports_show_them_escaped(tmp_path: Path) -> None:
    name, path, now = ESCAPE.replace("\ud800", ""), tmp_path / "rmapd.db", time.time()
    store = Store(path, "6.1", 1 << 22, 90, must=True)
    violation = Violation(hostile(name), now, now)
    store.keep([violation], {})
    store.keep_run(
        json_form.as_json(snapshot(kernel=name, violations={"M1-x": violation}), [name], 0),
        ended=True,
    )
    store.close()
    assert not control_characters(html.render(from_store(path)))
    assert not control_characters(markdown.render(from_store(path)), keep="\n\u2007")
    known = find("M1-", path, None)
    assert known.exact["task"]["comm"] == name
    assert not control_characters(explain.as_text(known, discover()["M1"]))


@pytest.mark.parametrize("form", ["text", "md", "json"])
def test_explain_command_prints_escaped_names(tmp_path: Path, form: str) -> None:
    path = written(tmp_path / "r.json", reported(ESCAPE))
    done = CliRunner().invoke(main, ["explain", "M1-", "--report", str(path), "--format", form])
    assert (done.exit_code, control_characters(done.stdout), control_characters(done.stderr)) == (
        0,
        set(),
        set(),
    )
