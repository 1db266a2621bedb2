"""rmapd report: one file for browsers, mails and printers, and clear errors for bad input."""

from __future__ import annotations

import builtins
import json
import os
import re
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from tests.support.reports import HOSTILE, LEGAL, SWAPPED, unlucky, written
from tests.support.snapshots import FINDING, snapshot
from tracer import atomic_file
from tracer.cli import main
from tracer.errors import RmapdError
from tracer.invariants.verdict import Verdict, Violation
from tracer.outputs.store.writer import Store
from tracer.printable import printable
from tracer.protocol.legend import legend
from tracer.report import html, markdown
from tracer.report.load import from_report_file, from_store
from tracer.report.model import ReportContents, ReportedCommand, ReportedHook
from tracer.report.summary import headline, origin, tiles
from tracer.results.json_form import as_json

T0 = 1_767_225_600.0  # 2026-01-01T00:00:00Z
_VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """A page as a browser sees it: elements, attributes, text, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self._open = "", list[str]()
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "title"):
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return html.render(from_report_file(written(tmp_path_factory.mktemp("r") / "r.json")))


def test_page_has_no_scripts_and_no_requests(page: str) -> None:
    seen = Page(page)
    assert not seen.tags.keys() & {"script", "iframe", "img", "object", "embed", "base", "form"}
    refers = [
        (tag, name, value)
        for tag, name, value in seen.attributes
        if name in ("src", "href", "xlink:href", "action", "srcset")
    ]
    assert len(refers) > 8
    assert all(value.startswith(("#", "data:image/svg+xml,%3Csvg")) for _, _, value in refers)
    assert not re.search(r"@import|url\((?!#)", page)
    assert not [name for _, name, _ in seen.attributes if name.startswith("on")]
    assert (
        "meta",
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    ) in seen.attributes


def test_hostile_name_is_escaped_in_html(page: str) -> None:
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert printable(HOSTILE) in Page(page).text


@pytest.fixture
def reported(tmp_path: Path) -> ReportContents:
    return from_report_file(written(tmp_path / "r.json"))


def test_report_has_host_kernel_and_times_with_their_zone(reported: ReportContents) -> None:
    found = dict(origin(reported))
    assert found == {
        "host": "a-host",
        "kernel": "Linux 6.1-test",
        "rmapd": reported.report.rmapd,
        "recorded from": "2023-11-14 22:13:20 UTC",
        "until": "2023-11-14 22:13:26 UTC",
    }
    text, md = Page(html.render(reported)).text, markdown.render(reported)
    for name, value in found.items():
        assert f"{name}{value}" in text
        assert f"{name} `{value}`" in md


def test_report_has_the_legend_of_its_notation(reported: ReportContents) -> None:
    text, md = Page(html.render(reported)).text, markdown.render(reported)
    for group in legend():
        for row in group.rows:
            assert f"{row.sign}" in text
            assert row.meaning in text
            assert f"`{row.sign}`" in md
    without = msgspec.structs.replace(
        reported, violations=[], report=msgspec.structs.replace(reported.report, protocols=[])
    )
    assert "How to read a protocol" not in markdown.render(without)
    assert "How to read a protocol" not in html.render(without)


def test_hooks_of_a_report_are_grouped_by_reason(reported: ReportContents) -> None:
    why = "fentry programs are refused (EPERM); this kernel is built without CONFIG_KPROBES"
    hooks = {
        "on": ReportedHook("attached"),
        **{name: ReportedHook("denied", reason=why) for name in ("a", "b")},
        "c": ReportedHook("missing", reason="no raw tracepoint c in this kernel"),
        "d": ReportedHook("a state of a later rmapd"),
    }
    report = msgspec.structs.replace(reported.report, hooks=hooks)
    for text in (
        Page(html.render(msgspec.structs.replace(reported, report=report))).text,
        markdown.render(msgspec.structs.replace(reported, report=report)),
    ):
        plain = text.replace("\\", "")
        assert "1 of 4 hooks are attached" in plain
        assert f"2 are not (a, b): {why.replace(';', ',')}" in plain
        assert "1 raw tracepoint does not exist in this kernel" in plain


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    seen = Page(page)
    ids = Counter(value for _, name, value in seen.attributes if name == "id")
    assert not [id for id, times in ids.items() if times > 1]
    referred = {
        value[1:]
        for _, name, value in seen.attributes
        if name in ("href", "xlink:href") and value.startswith("#")
    }
    referred |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert referred <= ids.keys()


def test_every_section_has_content(page: str) -> None:
    text = Page(page).text
    for part in (
        "L1 violated",
        "1 distinct defect, found 3 times, in vma_expand().",
        "−2.5 ms",
        "0x1000-0x2000 →\n0x1000-0x3000",
        "against the order",
        "violates L1",
        "half below",
        "i_mmap_rwsem",
        "hooks are attached",
        "it took the locks in the other order",
        "the recorder goes no further back",
    ):
        assert part in text, part
    assert SWAPPED.replace("]  ", "] ") in text
    assert "Most similar legal protocol, 900 windows of this run" in text
    seen, legal = (
        re.findall(f'<mark class="{side}">(.*?)</mark>', page) for side in ("seen", "legal")
    )
    assert {re.sub("<.*?>", "", step) for step in (*seen, *legal)} <= {"anon↓w", "i_mmap↓w"}
    assert len(seen) == len(legal) == 1
    assert 'class="marked"' in page


def test_plots_use_only_css_variables_as_colours(page: str) -> None:
    """A fixed colour would not follow the light and dark styles."""
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert drawn.count("<svg") == 8
    assert not re.findall(r"(?:fill|stroke|color): *#[0-9a-fA-F]{3,6}", drawn)
    used = set(re.findall(r"var\(--(\w+)\)", drawn))
    assert {"ink", "blue", "bad", "warn"} <= used <= set(re.findall(r"--(\w+):", page))


def test_plots_show_the_data_of_the_report(page: str) -> None:
    titles = re.findall(
        r"<title>([^<]*)</title>", "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    )
    assert "i_mmap taken with anon held: 3 for write" in titles
    assert "anon taken with mmap held: 9 for write, 8 for read" in titles
    assert "8.2 µs to 16 µs: 10" in titles
    assert any(title.startswith("M4-") and "×3: an entry is old" in title for title in titles)


COUNTS = ["holds", "violated", "suspect", "unverifiable"]
HEADS = {
    "violations": ["when", "task", "VMA", "protocol"],
    "coverage": ["", "invariant", "coverage", *COUNTS],
    "locks": ["held", "then taken", "for write", "for read", "functions, and first stack"],
}
"""Columns of the tables in the page's sections."""
RUNS = ["started", "ended", "kernel", "rmapd", *COUNTS[:3]]


def heads(page: str) -> dict[str, list[str]]:
    """Return the columns of the first table in each section that has one with a head."""
    return {
        id: re.findall(r"<th(?: class=\"n\")?>(.*?)</th>", found.group(1))
        for id, section in re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.S)
        if (found := re.search("<thead>(.*?)</thead>", section, re.S))
    }


def rows_fit(page: str) -> bool:
    """Return whether each row of a table with a head has as many cells as the head."""
    return all(
        len(re.findall(r"<t[hd][ >]", row)) == len(re.findall(r"<th[ >]", head))
        for head, body in re.findall(
            r"<thead>(.*?)</thead><tbody>(.*?)</tbody>",
            re.sub(r"<details.*?</details>", "", page[page.index("<main>") :], flags=re.S),
            re.S,
        )
        for row in re.findall(r"<tr.*?</tr>", body, re.S)
    )


def test_tables_of_the_page_have_their_columns(page: str) -> None:
    """And a number that stands alone on a phone has its column's name beside it."""
    assert heads(page) == HEADS
    assert rows_fit(page)
    labels = Counter(value for _, name, value in Page(page).attributes if name == "data-label")
    invariants = len(unlucky()["invariants"])
    assert labels.keys() == {"", "hold", *COUNTS[1:], "for write", "for read"}
    assert {labels[name] for name in ("hold", *COUNTS[1:])} == {invariants}


def test_tables_of_the_markdown_have_their_columns(tmp_path: Path) -> None:
    text = markdown.render(from_report_file(written(tmp_path / "r.json")))
    for columns in (
        ["when", "function", "protocol", ""],
        ["", "invariant", "coverage", *COUNTS, "why not full"],
        ["held", "then taken", "for write", "for read", "in"],
    ):
        assert f"\n| {' | '.join(columns)} |\n| ---" in text


def test_markdown_has_all_sections_and_escaped_cells(tmp_path: Path) -> None:
    text = markdown.render(from_report_file(written(tmp_path / "r.json")))
    assert text.startswith("# L1 violated\n")
    for part in (
        LEGAL.replace("]  ", "] "),
        "violates L1",
        '-->|"900"|',
        "linkStyle",
        "| i_mmap_rwsem | anon_vma rwsem | 900 | 0 |",
        "−2.5 ms",
        "**it took the locks in the other order**",
        "the recorder goes no further back",
        "\nlegal  ",
        " ^^^^^^^^",
    ):
        assert part in text, part
    tokens = [
        token
        for block in MarkdownIt("commonmark").enable("table").parse(text)
        for token in (block, *(block.children or ()))
    ]
    kinds = Counter(token.type for token in tokens)
    assert not kinds.keys() & {"html_block", "html_inline", "link_open", "image"}
    assert kinds["heading_open"] == len(re.findall("^#+ ", text, re.M))
    assert kinds["fence"] == 6
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert kinds["tr_open"] == len(rows) - kinds["table_open"]
    assert kinds["td_open"] + kinds["th_open"] == sum(
        len(re.findall(r"(?<!\\)\|", line)) - 1 for line in rows if "| --- |" not in line
    )


def test_report_of_older_rmapd_is_rendered(tmp_path: Path) -> None:
    """The first 0.1.0 wrote no histograms, no lock graph and no start time."""
    old = {
        key: value
        for key, value in unlucky().items()
        if key not in ("histograms", "lock_graph", "timeline", "started", "ended")
    }
    reported = from_report_file(written(tmp_path / "old.json", old))
    assert "There is no histogram" in html.render(reported)
    assert "seconds since the first violation" in html.render(reported)
    assert "No window took a lock" in markdown.render(reported)


def test_trail_without_mark_marks_window_with_violating_protocol(tmp_path: Path) -> None:
    """The first versions wrote no mark; no window is marked if the last one did something else."""
    old = unlucky()
    order = next(one for one in old["violations"] if one["trail"])
    order["trail"][-1].pop("marked")
    assert (
        html.render(from_report_file(written(tmp_path / "r.json", old))).count('class="marked"')
        == 1
    )
    order["trail"].reverse()
    assert (
        html.render(from_report_file(written(tmp_path / "r.json", old))).count('class="marked"')
        == 0
    )


def test_protocol_in_unknown_notation_is_shown_without_counterpart(tmp_path: Path) -> None:
    strange = unlucky()
    next(one for one in strange["violations"] if one["protocol"])["protocol"] = (
        "vma_expand[of the future]  anon⇓"
    )
    text = Page(html.render(from_report_file(written(tmp_path / "r.json", strange)))).text
    assert "anon⇓" in text
    assert "broke nothing" not in text


def test_run_without_events_is_reported_as_empty(tmp_path: Path) -> None:
    nothing = {"holds": 0, "violated": 0, "suspect": 0, "unverifiable": 0}
    quiet = unlucky() | {
        "violations": [],
        "protocols": [],
        "windows": {},
        "histograms": [],
        "lock_graph": {},
        "timeline": {},
    }
    quiet["invariants"] = {
        name: one | {"checks": nothing} for name, one in quiet["invariants"].items()
    }
    text = Page(html.render(from_report_file(written(tmp_path / "q.json", quiet)))).text
    assert "Nothing was checked" in text
    assert "nothing to show over time" in text


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Return a store of two runs, three days apart, with two findings without a row."""
    path, hour = tmp_path / "rmapd.db", 3600.0
    violations = [
        Violation(replace(FINDING, shape=f"shape {n}", function=f"f{n}"), T0, T0 + n * hour, 1)
        for n in range(3)
    ]
    now = T0

    def clock() -> float:
        return now

    for run, found in enumerate((violations, [])):
        now = T0 + run * 72 * hour
        store = Store(path, f"6.1.{run}", 64 << 20, 90, must=True, clock=clock, monotonic=clock)
        for passed in range(4 if found else 1):
            now = T0 + run * 72 * hour + passed * hour
            for violation in found[passed:]:
                violation.count += 10**passed
                violation.last_seen = now
            store.keep(found, {("V1", Verdict.VIOLATED): 2} if found else {})
        seen = snapshot(
            kernel=f"6.1.{run}",
            taken_seconds=now,
            running_seconds=hour,
            checks={("L1", Verdict.HOLDS): 5 + run},
        )
        store.keep_run(as_json(seen, ["rmapd", "run"], 0), ended=bool(run))
        store.close()
    return path


def test_store_report_covers_all_runs(kept: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["report", "--store", str(kept), "--output", str(tmp_path / "s.html")]
    )
    assert (done.exit_code, done.stderr) == (0, "")
    page = (tmp_path / "s.html").read_text()
    text = Page(page).text
    for part in (
        "M1 and V1 violated",
        "3 distinct defects, found 126 times, in f0(), f1() and f2().",
        "Without evidence, as there are more defects than are kept: V1 violated 2.",
        "The last of 2 runs:",
        "still runs, or was killed",
        "2026-01-04 00:00:00 UTC",
        "per hour",
    ):
        assert part in text, part
    assert heads(page)["runs"] == RUNS
    assert "1 raw tracepoint does not exist in this kernel" in text
    assert rows_fit(page)
    assert f"\n| {' | '.join(RUNS)} |\n" in markdown.render(from_store(kept))
    assert (tiles(from_store(kept))[0]["value"], tiles(from_store(kept))[2]["value"]) == (
        "128",
        "11",
    )
    assert (
        "violated"
        in CliRunner().invoke(main, ["report", "--store", str(kept)]).stdout.splitlines()[0]
    )


def test_unreadable_store_is_an_error(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"nothing of the kind" * 999)
    Store(tmp_path / "young", "6.1", 64 << 20, 90, must=True).close()
    with sqlite3.connect(kept) as database:
        database.execute("UPDATE evidence SET evidence = '{\"id\": 7}'")
    database.close()
    for name, message in (
        ("gone", "there is no store"),
        ("none", "cannot read the store"),
        ("young", "no run in the store"),
        (kept.name, "was not written by rmapd"),
    ):
        done = CliRunner().invoke(
            main, ["report", "--store", str(tmp_path / name), "--output", str(tmp_path / "s.html")]
        )
        assert (done.exit_code, message in done.stderr, (tmp_path / "s.html").exists()) == (
            2,
            True,
            False,
        ), done.stderr
    done = CliRunner().invoke(main, ["report", "--store", "a", "--from", "b"])
    assert (done.exit_code, "cannot read two sources" in done.stderr) == (2, True)


def test_violation_known_only_by_count_is_reported_as_red(tmp_path: Path) -> None:
    """There may be findings beyond the limit on signatures, or counts without a finding."""
    quiet = unlucky() | {"violations": [], "beyond": {"L5 suspect": 7}}
    quiet["invariants"] = {
        name: one | {"checks": {"holds": 5}} for name, one in quiet["invariants"].items()
    }
    assert (
        headline(from_report_file(written(tmp_path / "r.json", quiet))).text == "L5 under suspicion"
    )
    quiet["invariants"]["V2"]["checks"] = {"violated": 1}
    assert headline(from_report_file(written(tmp_path / "r.json", quiet))).text == "V2 violated"
    quiet["invariants"] = {
        name: one | {"checks": {"unverifiable": 2}} for name, one in quiet["invariants"].items()
    }
    assert (
        headline(from_report_file(written(tmp_path / "r.json", quiet | {"beyond": {}}))).text
        == f"None of {2 * len(quiet['invariants'])} checks could be verified"
    )


def damaged() -> list[tuple[str, Any]]:
    """Return reports that are each invalid in one place."""
    first = unlucky()["histograms"][0]
    return [
        ("kernel", 6),
        ("invariants", []),
        ("violations", [unlucky()["violations"][0] | {"first_seen": "yesterday"}]),
        ("violations", [unlucky()["violations"][0] | {"first_seen": "2026-01-01T00:00:00"}]),
        ("violations", [unlucky()["violations"][0] | {"verdict": "holds"}]),
        ("histograms", [first | {"bounds": first["bounds"][:-1]}]),
        ("histograms", [first | {"bounds": first["bounds"][::-1]}]),
        ("histograms", [first | {"count": 1}]),
        ("lock_graph", {"classes": [], "edges": [{"held": "a", "taken": "b"}]}),
        ("timeline", {"seconds": [1, 2], "totals": {"holds": [1]}}),
        ("timeline", {"seconds": [2, 1]}),
    ]


@pytest.mark.parametrize(("key", "value"), damaged())
def test_damaged_report_is_an_error_and_writes_no_file(
    tmp_path: Path, key: str, value: object
) -> None:
    source, output = written(tmp_path / "r.json", unlucky() | {key: value}), tmp_path / "r.html"
    done = CliRunner().invoke(main, ["report", "--from", str(source), "--output", str(output)])
    assert done.exit_code == 2
    assert f"{source} is no report of rmapd" in done.stderr
    assert f"$.{key}" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"kernel": "6.1"',
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"\x00" * 99,
    ],
)
def test_file_that_is_no_report_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    done = CliRunner().invoke(main, ["report", "--from", str(tmp_path / "r.json")])
    assert done.exit_code == 2
    assert "is no report of rmapd" in done.stderr
    assert "try: " in done.stderr


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("none.json", "r.html", "cannot read"),
        (".", "r.html", "is a directory"),
        ("r.json", "r.pdf", "cannot write"),
        ("r.json", "none/r.html", "cannot write the report"),
        ("r.json", "r.json/r.md", "cannot write the report"),
    ],
)
def test_invalid_source_or_output_is_an_error(
    tmp_path: Path, source: str, output: str, message: str
) -> None:
    written(tmp_path / "r.json")
    done = CliRunner().invoke(
        main, ["report", "--from", str(tmp_path / source), "--output", str(tmp_path / output)]
    )
    assert done.exit_code == 2
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json"]


def test_missing_matplotlib_names_extra_and_markdown_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return original(name, *rest)

    source = str(written(tmp_path / "r.json"))
    monkeypatch.setattr(builtins, "__import__", missing)
    done = CliRunner().invoke(
        main, ["report", "--from", source, "--output", str(tmp_path / "r.html")]
    )
    assert done.exit_code == 2
    assert "matplotlib is not installed" in done.stderr
    assert "rmapd[report]" in done.stderr
    done = CliRunner().invoke(
        main, ["report", "--from", source, "--output", str(tmp_path / "r.md")]
    )
    assert (done.exit_code, done.stderr) == (0, "")
    assert (tmp_path / "r.md").read_text().startswith("# L1 violated")
    assert not (tmp_path / "r.html").exists()


LIMITED = (
    "import sys; from pathlib import Path; from tracer import atomic_file; "
    "atomic_file.write(Path(sys.argv[1]), 'n' * 100_000, 'the report')"
)


def test_full_disk_leaves_old_file_intact(tmp_path: Path) -> None:
    """Limit the file size (RLIMIT_FSIZE), which fails like a full disk."""
    (tmp_path / "r.md").write_text("old")
    limit = (4096, 4096)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "r.md")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RmapdError: cannot write the report" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["r.md"]
    assert (tmp_path / "r.md").read_text() == "old"


def test_writing_keeps_links_and_devices(tmp_path: Path) -> None:
    (tmp_path / "link.md").symlink_to("real.md")
    atomic_file.writable(tmp_path / "link.md", "the report")
    atomic_file.write(tmp_path / "link.md", "new", "the report")
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "real.md").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic_file.writable(tmp_path / "pipe", "the report")
    atomic_file.write(tmp_path / "pipe", "new", "the report")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    with pytest.raises(
        RmapdError, match="cannot write the report /dev/full: No space left on device"
    ):
        atomic_file.write(Path("/dev/full"), "new", "the report")


def test_histogram_of_zeros_is_drawn(tmp_path: Path) -> None:
    """A logarithmic axis without values made rmapd report exit with 2 on 6.18."""
    found = unlucky()
    for one in found["histograms"]:
        if one["name"] == "lock_wait_seconds":
            one |= {"bounds": [1e-9], "counts": [one["count"]], "sum": 0.0}
    reported = from_report_file(written(tmp_path / "r.json", found))
    assert "Waiting for locks" in html.render(reported)
    assert "| i_mmap_rwsem | 140 | 0 |  |  |  |" in markdown.render(reported)


def test_report_json_has_histograms_and_lock_graph() -> None:
    found = unlucky()
    waits = [
        one
        for one in found["histograms"]
        if one["name"] == "lock_wait_seconds" and one["labels"] == {"class": "i_mmap"}
    ]
    assert (waits[0]["bounds"][0], waits[0]["counts"][0], waits[0]["count"]) == (
        1e-9,
        40,
        sum(waits[0]["counts"]),
    )
    assert all(len(one["bounds"]) == len(one["counts"]) for one in found["histograms"])
    graph = found["lock_graph"]
    assert [one["class"] for one in graph["classes"]] == ["mmap", "i_mmap", "anon"]
    assert graph["edges"][1] == {
        "held": "anon",
        "taken": "i_mmap",
        "modes": {"write": 3},
        "functions": {"vma_expand": 3},
        "in_cycle": True,
        "protocol": SWAPPED,
        "stack": ["vma_expand+0x1"],
    }
    assert found["started"] == "2023-11-14T22:13:20.000000Z"
    assert json.dumps(found["timeline"]["totals"]["windows"]) == "[0, 10, 20, 30, 40, 50]"


def test_command_that_had_not_ended_has_no_exit_code() -> None:
    assert [ReportedCommand(["x"], code).ending for code in (0, 3, None)] == [
        "exited with 0",
        "exited with 3",
        "had not ended",
    ]
