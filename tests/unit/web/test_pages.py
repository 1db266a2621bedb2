"""The pages and /api/v1: content, escaping, links, description, charts, search, cache."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from tests.support import busy
from tests.support.snapshots import snapshot
from tests.unit.invariants.test_golden import SEED
from tracer.invariants.verdict import Verdict, Violation
from tracer.packed import pack, unpack
from tracer.protocol.text import parse, text
from tracer.report import diff
from tracer.results import json_form, live_json
from tracer.results.history import KEPT_SECONDS, per_second
from tracer.results.latest import LatestSnapshot
from tracer.results.snapshot import Snapshot, StoreState
from tracer.tables.histogram import Histogram
from tracer.time_text import precise
from tracer.web import Application, Request, Response, api, chart, pages, search


class Reader(HTMLParser):
    """A page as a browser sees it: open tags, links, resources and text."""

    EMPTY = frozenset({"meta", "link", "img", "input", "line", "polyline", "polygon", "hr", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def current() -> LatestSnapshot:
    return busy.current()


@pytest.fixture(scope="module")
def app(current: LatestSnapshot) -> Application:
    return Application(current)


def over(s: Snapshot) -> Application:
    made = LatestSnapshot(lambda: 0.0)
    made.put(s)
    return Application(made)


def read(app: Application, target: str, **headers: str) -> Response:
    path, _, query = target.partition("?")
    return app(
        Request(
            "GET", path, query, {name.replace("_", "-"): value for name, value in headers.items()}
        )
    )


def page(app: Application, target: str, status: int = 200) -> Reader:
    answer = read(app, target)
    assert (answer.status, answer.kind) == (status, "text/html; charset=utf-8"), answer.body[:200]
    reader = Reader(answer.body.decode())
    assert reader.open == []
    return reader


def data(app: Application, target: str, status: int = 200) -> Any:
    answer = read(app, target)
    assert (answer.status, answer.kind) == (status, "application/json")
    return json.loads(answer.body)


def every_page(current: LatestSnapshot) -> list[str]:
    s = current()
    assert s
    mine = [f"/violations/{name}" for name in s.violations] + [
        f"/invariants/{name}" for name in s.invariants
    ]
    return ["/", "/?refresh=5", "/protocols", "/protocols?q=anon&ruled=violated", "/hooks", *mine]


def test_every_page_is_complete_and_escaped_and_loads_nothing_foreign(
    app: Application, current: LatestSnapshot
) -> None:
    for path in every_page(current):
        seen = page(app, path)
        names = [tag for tag, _ in seen.tags]
        assert names.count("h1") == 1, path
        assert names.count("main") == 1
        assert "script" not in names
        assert not [
            name
            for _, attributes in seen.tags
            for name in attributes
            if name.startswith("on") or name == "style"
        ], path
        for link in seen.attributes("href") + seen.attributes("src") + seen.attributes("action"):
            assert re.match(r"/(?!/)|#", link), link
        ids = seen.attributes("id")
        assert len(ids) == len(set(ids))
        named = [one for value in seen.attributes("aria-labelledby") for one in value.split()]
        assert set(named) <= set(ids)
        assert all("alt" in attributes for tag, attributes in seen.tags if tag == "img")
    shown = [path for path in every_page(current) if busy.HOSTILE in page(app, path).text]
    assert len(shown) >= 3, "a hostile name is shown, as text"


def test_every_link_resolves(app: Application, current: LatestSnapshot) -> None:
    links = {
        link
        for path in every_page(current)
        for link in page(app, path).attributes("href")
        if not link.startswith("#")
    }
    assert len(links) > 30
    for link in links:
        target, _, anchor = link.partition("#")
        assert read(app, target).status == 200, link
        assert not anchor or anchor in page(app, target).attributes("id"), link


def test_tables_have_captions_and_scopes(app: Application, current: LatestSnapshot) -> None:
    for path in every_page(current):
        seen = page(app, path)
        names = [tag for tag, _ in seen.tags]
        assert names.count("table") == names.count("caption")
        assert all(
            attributes.get("scope") in ("col", "row")
            for tag, attributes in seen.tags
            if tag == "th"
        )
        assert all(attributes.get("aria-label") for tag, attributes in seen.tags if tag == "svg")


def test_overview_shows_standing_and_counts(app: Application, current: LatestSnapshot) -> None:
    s = current()
    assert s
    shown = page(app, "/").text
    assert "3 checks found a rule broken, and there is proof." in shown
    assert "1 check is suspect" in shown
    assert "anon_vma rwsem is taken before i_mmap_rwsem" in shown
    assert "Events lost43" in shown.replace("\n", "")
    assert set(s.lost) == set(pages.LOSSES), "each kind of loss has its sentence"
    quiet = page(over(busy.quiet(s)), "/").text
    assert "Not all is known: nothing violated in" in quiet
    assert "None since rmapd began to record" in quiet
    suspect = replace(busy.quiet(s), checks={("M1", Verdict.SUSPECT): 1})
    assert "1 check is suspect" in page(over(suspect), "/").text
    empty = page(over(replace(busy.quiet(s), checks={})), "/").text
    assert "Nothing was checked" in empty
    none = replace(
        s,
        coverage={name: inv.coverage(()) for name, inv in s.invariants.items()},
        checks={},
        violations={},
    )
    assert "Nothing is checked here" in page(over(none), "/").text


def test_findings_beyond_limit_are_shown(current: LatestSnapshot) -> None:
    s = current()
    assert s
    store = StoreState("/var/lib/rmapd/<x>.db", "No space left on device", unwritten=2)
    shown = page(over(replace(s, rest={("M1", Verdict.SUSPECT): 1200}, store=store)), "/").text
    assert "1,200 more findings are counted without evidence" in shown
    assert "/var/lib/rmapd/<x>.db cannot be written: No space left on device." in shown
    assert "If the daemon ends now, 2 of these findings are lost" in shown
    assert "cannot be written" not in page(over(s), "/").text


def test_outdated_page_has_a_warning(current: LatestSnapshot) -> None:
    s = current()
    assert s
    assert "The data is stale: the last update was " in page(over(s), "/").text
    assert "Data is stale: last update " in page(over(s), "/hooks").text
    now = s.taken_seconds + 1
    fresh = pages.Pages(search.Search(), lambda: now)(Request("GET", "/"), s, ())
    assert b"is stale" not in fresh.body
    ended = page(over(replace(s, gate_open=False, taken_seconds=4e9)), "/").text
    assert "Recording has ended: this is what was found until then." in ended
    assert "recorded for 66.7 min" in ended


def test_page_of_a_daemon_that_starts_reloads_and_has_the_documentation() -> None:
    before = Application(LatestSnapshot())
    assert "rmapd is starting" in page(before, "/", 503).text
    assert b'http-equiv="refresh" content="5"' in read(before, "/").body
    assert data(before, "/api/v1/", 503)["error"] == "the gate is not open"
    assert "linux-mm" in page(before, "/docs/runbooks/M1.md").text


def test_violation_has_a_page(app: Application, current: LatestSnapshot) -> None:
    s = current()
    assert s
    for violation in s.violations.values():
        f = violation.first
        shown = page(app, f"/violations/{f.id}").text
        for part in (
            f.id,
            f.summary,
            f.signature,
            f.protocol,
            *f.stack,
            *(str(step["protocol"]) for step in unpack(f.trail)),
        ):
            assert " ".join(part.split()) in " ".join(shown.split()), part
    trail = page(app, f"/violations/{next(iter(s.violations))}").text
    assert "−29.2 ms" in trail
    assert "12.3 µs" in trail
    assert "The evidence points at this window: a boundary moved between the two walks." in trail
    assert "The recorder goes back 9 s." in trail
    without_evidence = replace(
        next(iter(s.violations.values())).first,
        trail=pack(({"time_ns": 1, "function": "vma_expand"},)),
    )
    assert (
        "vma_expand"
        in page(
            over(
                replace(s, violations={without_evidence.id: Violation(without_evidence, 0.0, 0.0)})
            ),
            f"/violations/{without_evidence.id}",
        ).text
    )
    page(app, "/violations/M1-nothing", 404)
    page(app, "/violations/", 404)
    page(app, "/violations/<script>alert(1)</script>", 404)


def test_page_reloads_only_on_request(app: Application) -> None:
    assert b'http-equiv="refresh"' not in read(app, "/").body
    assert b'http-equiv="refresh" content="5"' in read(app, "/?refresh=5").body
    for odd in ("0", "1;url=//evil.example", "", "99"):
        assert b"http-equiv" not in read(app, f"/?refresh={odd}").body


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", 35),
        ("q=", 35),
        ("function=do_brk_flags", 3),
        ("q=do_brk_flags+enomem", 1),
        ("q=COMMIT_MERGE", 1),
        ("q=lock(i_mmap:w)+anon_vma_clone", 2),
        ("ruled=violated&function=vma_expand", 2),
        ("function=nothing", 0),
        ("q=%3Cscript%3E", 0),
        ("ruled=&function=", 35),
    ],
)
def test_search_finds_protocols_by_words_and_function(
    app: Application, current: LatestSnapshot, query: str, found: int
) -> None:
    s = current()
    assert s
    rows = data(app, f"/api/v1/protocols?{query}")
    assert len(rows) == found
    counts = [row["count"] for row in rows]
    assert counts == sorted(counts, reverse=True)
    shown = page(app, f"/protocols?{query}").text
    assert f"{found} of {len(s.protocols)}" in shown


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("ruled=odd&page=-1", 35),
        ("page=99999999999999999999", 35),
        ("&".join(f"a{n}=1" for n in range(100)), 35),
        ("q=%ff%fe%00", 0),
    ],
)
def test_page_ignores_what_a_search_cannot_be(
    app: Application, current: LatestSnapshot, query: str, found: int
) -> None:
    s = current()
    assert s
    assert f"{found} of {len(s.protocols)}" in page(app, f"/protocols?{query}").text


def test_search_selects_by_verdict(app: Application, current: LatestSnapshot) -> None:
    s = current()
    assert s
    by = {
        ruled: {row["text"] for row in data(app, f"/api/v1/protocols?ruled={ruled}")}
        for ruled in search.RULED
    }
    assert text(parse(SEED[0][0])) in by["violated"]
    assert text(parse(SEED[1][0])) in by["clean"]
    assert by["clean"] | by["violated"] | by["suspect"] | by["unverifiable"] == {
        text(one.protocol) for one in s.protocols
    }
    assert not by["clean"] & by["violated"]


def test_many_protocols_are_split_into_pages(current: LatestSnapshot) -> None:
    s = current()
    assert s
    app = over(replace(s, protocols=s.protocols * 4))
    assert f"page 1 of {-(-len(s.protocols) * 4 // search.PAGE)}" in page(app, "/protocols").text
    last = page(app, "/protocols?page=999")
    assert "page 3 of 3" in last.text
    assert "/protocols?page=2" in last.attributes("href")


def test_api_has_keys_of_a_report(app: Application, current: LatestSnapshot) -> None:
    s = current()
    assert s
    expected = json.loads(json.dumps(json_form.as_json(s, [], 0)))
    whole = data(app, "/api/v1/report")
    assert whole.pop("command") == {"argv": [], "exit_code": None}
    expected.pop("command")
    assert (
        whole.pop("standing")["colour"] == expected.pop("standing")["colour"] == "red"
    )  # of different ages: reasons differ
    assert whole == expected
    for part in api.PARTS:
        assert data(app, f"/api/v1/{part}") == expected[part]
    for violation in expected["violations"]:
        assert data(app, f"/api/v1/violations/{violation['id']}") == violation
    assert {row["text"] for row in data(app, "/api/v1/protocols")} == {
        row["text"] for row in expected["protocols"]
    }
    for path in (
        "/api",
        "/api/",
        "/api/v2/report",
        "/api/v1x",
        "/api/v1/nothing",
        "/api/v1/violations/nothing",
        "/api/v1/../v1/report",
    ):
        assert set(data(app, path, 404)) == {"error", "where", "why", "hint"}


def test_report_over_http_can_be_compared(app: Application, tmp_path: Any) -> None:
    path = tmp_path / "host.json"
    path.write_bytes(read(app, "/api/v1/report").body)
    ours = diff.read(path)
    assert not list(diff.compare(ours, ours))


def test_openapi_describes_every_path(app: Application, current: LatestSnapshot) -> None:
    """Validate each response with its schema: OpenAPI 3.1 uses JSON Schema."""
    described = data(app, "/api/v1/openapi.json")
    s = current()
    assert s
    index = data(app, "/api/v1/")
    assert {f"/api/v1{path}" for path in described["paths"]} == {*index["paths"], "/api/v1/"}
    for path, operations in described["paths"].items():
        schema = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        target = path.replace("{id}", next(iter(s.violations)))
        whole = {**schema, "components": described["components"]}
        jsonschema.Draft202012Validator(whole).validate(data(app, f"/api/v1{target}"))
    lost = described["components"]["schemas"]["Lost"]
    assert not jsonschema.Draft202012Validator(lost).is_valid({"evidence": "many"})


def described_keys(schema: dict[str, Any], schemas: dict[str, Any]) -> set[str]:
    """Return the properties of a schema and of those that it includes."""
    keys = set(schema.get("properties", ()))
    for part in schema.get("allOf", ()):
        keys |= described_keys(schemas[part["$ref"].rpartition("/")[2]], schemas)
    return keys


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("", "Index"),
        ("status", "Status"),
        ("functions", "Function"),
        ("locks", "Lock"),
        ("entries", "Entry"),
        ("rates", "Rates"),
    ],
)
def test_openapi_describes_every_key(app: Application, path: str, schema: str) -> None:
    schemas = data(app, "/api/v1/openapi.json")["components"]["schemas"]
    found = data(app, f"/api/v1/{path}")
    for one in found if isinstance(found, list) else [found]:
        assert set(one) == described_keys(schemas[schema], schemas)
    nested = {"overhead": "Costs", "standing": "Standing"} if path == "status" else {}
    for key, name in nested.items():
        assert set(found[key]) == described_keys(schemas[name], schemas)


def test_status_has_findings_without_evidence(app: Application, current: LatestSnapshot) -> None:
    s = current()
    assert s
    status = data(app, "/api/v1/status")
    whole = {one["id"]: one for one in data(app, "/api/v1/violations")}
    assert [one["id"] for one in status["findings"]] == list(whole)
    for one in status["findings"]:
        assert one == {key: whole[one["id"]][key] for key in one}
        assert {"evidence", "trail", "stack", "protocol"}.isdisjoint(one)
    assert status["run"] == data(app, "/api/v1/")["run"] == s.run != ""
    assert status["overhead"]["probe_share"] == pytest.approx(
        per_second(current.points, 60, lambda p: p.probe_seconds), abs=1e-6
    )
    assert data(over(s), "/api/v1/status")["overhead"]["probe_share"] is None
    assert data(over(replace(s, store=None)), "/api/v1/status")["store"] is None


def test_functions_and_locks_are_sorted_by_time(app: Application) -> None:
    functions = data(app, "/api/v1/functions")
    assert [one["seconds"] for one in functions] == sorted(
        (one["seconds"] for one in functions), reverse=True
    )
    locks = data(app, "/api/v1/locks")
    assert [one["wait"]["seconds"] for one in locks] == sorted(
        (one["wait"]["seconds"] for one in locks), reverse=True
    )
    assert {(one["lock"], one["mode"], one["where"]) for one in locks} >= {
        ("mmap_lock", "read", "everywhere"),
        ("mmap_lock", "write", "everywhere"),
        ("anon_vma rwsem", "any", "windows"),
    }
    assert len({(one["lock"], one["mode"]) for one in locks}) == len(locks)


def test_locks_add_up_instances_and_leave_out_unused_classes(current: LatestSnapshot) -> None:
    s = current()
    assert s
    first, second = Histogram((0, 2, *[0] * 62), 2), Histogram((0, 0, 0, 3, *[0] * 60), 18)
    held = replace(
        s,
        histograms={},
        lock_waits={"anon": first, "anon2": second, "vma": Histogram()},
        lock_holds={},
    )
    (found,) = data(over(held), "/api/v1/locks")
    assert found["lock"] == "anon_vma rwsem"
    assert found["wait"] == {
        "count": 5,
        "seconds": 2e-8,
        "p50_seconds": 8e-9,
        "p99_seconds": 8e-9,
        "longest_seconds": 8e-9,
    }
    assert found["hold"]["count"] == found["hold"]["longest_seconds"] == 0


def test_function_that_is_only_counted_is_listed(current: LatestSnapshot) -> None:
    s = current()
    assert s
    only = replace(
        s,
        window_times={"vma_expand": Histogram(), "__split_vma": Histogram()},
        windows_unsampled={"vma_expand": 7},
    )
    (found,) = data(over(only), "/api/v1/functions")
    assert (found["function"], found["count"], found["unsampled"]) == ("vma_expand", 0, 7)


def test_rates_since_a_point_have_only_later_ones(app: Application) -> None:
    everything = data(app, "/api/v1/rates")
    cut = everything["seconds"][-3]
    later = data(app, f"/api/v1/rates?since={cut}")
    assert later["seconds"] == everything["seconds"][-2:]
    assert later["checks"]["M1"] == everything["checks"]["M1"][-2:]
    last = data(app, f"/api/v1/rates?since={everything['seconds'][-1]}")
    assert last["seconds"] == []
    assert last["checks"].keys() == everything["checks"].keys()
    for all_of_them in ("", "-5"):
        assert data(app, f"/api/v1/rates?since={all_of_them}") == everything


def test_rates_are_differences_of_counts(current: LatestSnapshot) -> None:
    points = current.points
    assert len(points) == KEPT_SECONDS / 2 + 1
    assert points[-1].seconds - points[0].seconds == KEPT_SECONDS
    columns = live_json.rates_json(points)
    assert len(columns["seconds"]) == len(columns["checks"]["M1"]) == len(points)
    first = chart.rates(points, lambda p: p.windows)[0]
    assert first == (points[1].seconds, max(0, points[1].windows - points[0].windows) / 2)
    assert per_second(points[:1], 60, lambda p: p.windows) is None
    assert per_second(points, 60, lambda p: p.windows) == pytest.approx(
        (points[-1].windows - points[-31].windows) / 60
    )
    assert per_second(points, 0.1, lambda p: p.seconds) == 1.0
    assert live_json.rates_json(())["seconds"] == []


def test_history_has_limits_of_length_and_interval() -> None:
    made = LatestSnapshot(lambda: 0.0)
    assert made() is None
    for second in range(2000):
        made.put(snapshot(running_seconds=second * 1.0))
    assert len(made.points) == 301
    assert made.points[1].seconds - made.points[0].seconds == 2.0
    made.put(snapshot(running_seconds=2500.0))
    assert [point.seconds for point in made.points[:2]] == [1900.0, 1902.0], (
        "by time, not by number"
    )


@pytest.mark.parametrize(
    ("most", "least", "top"),
    [(0, 1, 1), (1, 1, 1), (1.1, 1, 2), (3, 1, 5), (5001, 1, 10_000), (0.03, 0.01, 0.05)],
)
def test_scale_ends_at_round_value(most: float, least: float, top: float) -> None:
    assert chart.scale(most, least) == pytest.approx(top)


def test_missing_points_interrupt_the_line(current: LatestSnapshot) -> None:
    points = [*current.points[:10], *current.points[40:50]]
    (line,) = chart.draw(chart.CHARTS[0], points, points[-1].seconds).lines
    assert len(line.pieces) == 2
    for piece in line.pieces:
        for pair in piece.split(" "):
            x, y = map(float, pair.split(","))
            assert 0 <= x <= chart.WIDTH
            assert 0 <= y <= chart.HEIGHT
    assert chart.draw(chart.CHARTS[0], points[:1], 0).empty


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0, "0 ns"),
        (3e-7, "300 ns"),
        (1.5e-5, "15 µs"),
        (0.0042, "4.2 ms"),
        (59.0, "59 s"),
        (4000, "66.7 min"),
        (2e5, "2.3 d"),
    ],
)
def test_duration_is_printed_in_suitable_unit(seconds: float | None, text: str) -> None:
    assert precise(seconds) == text


def test_response_is_cached_while_snapshot_is_current(current: LatestSnapshot) -> None:
    s = current()
    assert s
    made = LatestSnapshot(lambda: 0.0)
    made.put(s)
    app = Application(made)
    first = read(app, "/api/v1/lost")
    assert read(app, "/api/v1/lost") is first
    packed = read(app, "/", accept_encoding="gzip, br")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert b"<title>" in gzip.decompress(packed.body)
    assert b"<title>" in read(app, "/").body
    paths = [f"/protocols?q={number}" for number in range(500)]
    responses = {path: read(app, path) for path in paths}
    assert 0 < len(app.cached) <= 64
    assert sum(len(answer.body) for answer in app.cached) <= 4 << 20
    again = [responses[path] for path in reversed(paths) if read(app, path) is responses[path]]
    assert 0 < len(again) <= 64
    assert sum(len(answer.body) for answer in again) <= 4 << 20
    made.put(replace(s, counters={}))
    assert read(app, "/api/v1/lost") is not first
    assert data(app, "/api/v1/lost")["locks"] == 0


def test_metrics_use_requested_format(app: Application) -> None:
    plain = read(app, "/metrics")
    assert plain.kind.startswith("text/plain")
    open_metrics = read(app, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert open_metrics.kind.startswith("application/openmetrics-text")
    assert open_metrics.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("version", ["1.a", "1.0.0.x", "1.0.0.é", "9" * 5000, "é", '"1.0.0"'])
def test_unknown_version_of_a_format_is_not_answered_with(app: Application, version: str) -> None:
    for kind in ("application/openmetrics-text", "text/plain"):
        shown = read(app, "/metrics", accept=f"{kind}; version={version}, {kind}; version=0.0.4")
        assert (shown.status, shown.kind.startswith("text/plain; version=0.0.4")) == (200, True)


def test_methods_other_than_get_and_head_are_refused() -> None:
    app = Application(LatestSnapshot())
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = app(Request(method, "/"))
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
