"""Names are what their owners choose. Data keeps them exact; nothing of them that a terminal would obey is in text for people."""

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
from tracer.logs import Lines
from tracer.outputs.log import FindingLog
from tracer.outputs.store.writer import Store
from tracer.printable import json_text, printable, shown
from tracer.report import diff, diff_output, explain, html, markdown, terminal
from tracer.report.find_violation import find
from tracer.report.junit import as_junit
from tracer.report.ktap import as_ktap
from tracer.report.load import from_report_file, from_store
from tracer.results import json_form
from tracer.web.application import Application
from tracer.web.http_message import Request

ESCAPE = "\x1b]0;owned\x07\x1b[2J\n2026 CRITICAL forged\r\x7f\x9b31m\u202eevil\u2028\u2066\ud800\U000e0041"
FORBIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
names = st.one_of(
    st.text(min_size=1),
    st.text(st.sampled_from(ESCAPE + "ab`<|\\*_["), min_size=1),
    st.just(ESCAPE),
)
slow = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def obeyed(text: str, keep: str = "\n") -> set[str]:
    """Characters that a terminal or an editor would act on."""
    return {one for one in text if unicodedata.category(one) in FORBIDDEN and one not in keep}


@given(names)
def test_text_is_printable_and_escaping_twice_changes_nothing(name: str) -> None:
    said = printable(name)
    assert said.isprintable()
    assert printable(said) == said
    assert said == name or not name.isprintable()


def test_each_kind_of_character_has_its_escape() -> None:
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
def test_json_is_exact_to_read_and_safe_to_look_at(value: Any) -> None:
    for said in (json_text(value), json_text(value, indent=None, separators=(",", ":"))):
        assert json.loads(said) == value
        assert not obeyed(said)
    assert not obeyed(json.dumps(shown(value), ensure_ascii=False, default=str).replace("\\n", ""))


def hostile(name: str) -> Finding:
    """A violation with this name wherever a name may be."""
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
        trail=(step,),
    )


def reported(name: str) -> dict[str, Any]:
    """A report file of that, with the name also where only somebody who made the file up would have it."""
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
def test_a_report_that_is_read_back_is_printable_in_every_form(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "r.json", reported(name))
    if name is ESCAPE:  # drawing takes seconds
        assert not obeyed(html.render(from_report_file(path)))
    assert not obeyed(markdown.render(from_report_file(path)), keep="\n\u2007")
    known = find(FINDING.invariant + "-", tmp_path, path)
    for text in (explain.as_text, explain.as_markdown):
        assert not obeyed(text(known, discover()["M1"]))
    exact = explain.as_json(known, discover()["M1"])
    assert exact["violation"]["task"]["comm"] == name
    assert not obeyed(json_text(exact))


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
    assert not obeyed(diff_output.as_text(ours, theirs, found))
    assert diff_output.as_json(ours, theirs, found)["a"]["kernel"] == ESCAPE
    done = CliRunner().invoke(main, ["diff", str(tmp_path / "\x1b[2Jnone"), str(paths[0])])
    assert (done.exit_code, obeyed(done.stderr)) == (2, set())
    assert "\\x1b[2Jnone" in done.stderr


@slow
@example(ESCAPE)
@given(names)
def test_what_a_run_prints_is_printable(name: str) -> None:
    violation = Violation(hostile(name), 1.0, 2.0)
    s = snapshot(violations={"M1-x": violation}, kernel=name)
    texts = (terminal.as_text(s, ["sh", "-c", name], 0), as_ktap(s), as_junit(s, [name], 0))
    assert [obeyed(text, keep="\n\t") for text in texts] == [set()] * 3
    ET.fromstring(texts[2].split("\n", 1)[1])
    assert json_form.as_json(s, [name], 0)["violations"][0]["task"]["comm"] == name


def logged(say: Callable[[logging.Logger], None], *, prefixed: bool = False) -> str:
    """What is in the log."""
    stream, log = io.StringIO(), logging.getLogger("rmapd")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines(prefixed=prefixed))
    log.addHandler(handler)
    try:
        say(log)
    finally:
        log.removeHandler(handler)
    return stream.getvalue()


@slow
@example(ESCAPE)
@given(names)
def test_a_record_is_one_line_and_a_name_cannot_forge_another(name: str) -> None:
    lines = list[str]()
    said = logged(
        lambda _: FindingLog(time.time, {}, lines.append).new([Violation(hostile(name), 1.0, 2.0)])
    )
    assert len(said.splitlines()) == 1
    assert not obeyed(said)
    assert json.loads(lines[0])["task"]["comm"] == name, "the line for machines is exact"
    assert not obeyed(lines[0])


def test_a_traceback_keeps_its_lines_and_loses_what_a_terminal_would_obey() -> None:
    def fail(log: logging.Logger) -> None:
        try:
            raise ValueError(ESCAPE)
        except ValueError:
            log.exception("no good: %s", ESCAPE)

    said = logged(fail, prefixed=True)
    assert not obeyed(said)
    assert "Traceback (most recent call last):" in said
    assert {line[:3] for line in said.splitlines()} == {"<3>"}, (
        "journald takes each line with its priority"
    )


def test_an_error_is_printable_and_only_its_why_has_lines() -> None:
    error = RmapdError(f"cannot read {ESCAPE}", why=f"first\nsecond {ESCAPE}", hint=ESCAPE)
    assert not obeyed(str(error))
    assert all(
        line.startswith("    ") or line.startswith("  try: ")
        for line in str(error).splitlines()[1:]
    )
    assert "\n" not in error.in_a_line


class Box:
    """A daemon's current snapshot."""

    points = ()

    def __init__(self, name: str) -> None:
        self.id = "M1-x"
        self.snapshot = snapshot(
            violations={self.id: Violation(hostile(name), 1.0, 2.0)}, kernel=name
        )

    def __call__(self) -> Any:
        return self.snapshot


def test_the_pages_are_printable_and_the_api_is_exact_and_safe() -> None:
    box = Box(ESCAPE.replace("\ud800", ""))
    application = Application(box)

    def body(path: str) -> str:
        answer = application(Request("GET", path, "", {}))
        assert answer.status == 200, path
        return answer.body.decode()

    for path in ("/", "/hooks", f"/violations/{box.id}", "/invariants/M1"):
        assert not obeyed(body(path), keep="\n\t\r"), path
        assert "\\x1b" in body(path), path
    said = body(f"/api/v1/violations/{box.id}")
    assert not obeyed(said)
    assert json.loads(said)["task"]["comm"] == ESCAPE.replace("\ud800", "")


def test_a_store_keeps_names_exact_and_shows_them_printable(tmp_path: Path) -> None:
    name, path, now = ESCAPE.replace("\ud800", ""), tmp_path / "rmapd.db", time.time()
    store = Store(path, "6.1", 1 << 22, 90, must=True)
    violation = Violation(hostile(name), now, now)
    store.keep([violation], {})
    store.keep_run(
        json_form.as_json(snapshot(kernel=name, violations={"M1-x": violation}), [name], 0),
        ended=True,
    )
    store.close()
    assert not obeyed(html.render(from_store(path)))
    assert not obeyed(markdown.render(from_store(path)), keep="\n\u2007")
    known = find("M1-", path, None)
    assert known.exact["task"]["comm"] == name
    assert not obeyed(explain.as_text(known, discover()["M1"]))


@pytest.mark.parametrize("form", ["text", "md", "json"])
def test_explain_on_the_command_line(tmp_path: Path, form: str) -> None:
    path = written(tmp_path / "r.json", reported(ESCAPE))
    done = CliRunner().invoke(main, ["explain", "M1-", "--report", str(path), "--format", form])
    assert (done.exit_code, obeyed(done.stdout), obeyed(done.stderr)) == (0, set(), set())
