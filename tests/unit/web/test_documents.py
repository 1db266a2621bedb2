"""The documentation that the daemon serves: runbooks and the rest, rendered, escaped, linked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.support import busy
from tests.support.native import ROOT
from tests.unit.test_docs import anchors
from tests.unit.web.test_pages import Reader, page, read
from tracer import package_data
from tracer.invariants.catalogue import discover
from tracer.web import Application
from tracer.web import documents as documents_module
from tracer.web.documents import Documents

APP = Application(busy.current())
DOCUMENTS = Documents(ROOT / "docs")
HOSTILE = """# A <b>title</b>
<script>alert(1)</script> <img src=x onerror=alert(1)>

[link](javascript:alert(1)) [data](data:text/html,x) ![picture](http://127.0.0.1/x.png)
[outside](../secret) [also](/etc/passwd) [far](https://example.org/) [other](other.md#b)

| number | <i>text</i> |
|---:|---|
| 1 | `<script>` |
"""


@pytest.mark.parametrize("path", DOCUMENTS.paths)
def test_every_document_is_a_page_whose_links_lead_somewhere(path: str) -> None:
    seen = page(APP, path)
    names = [tag for tag, _ in seen.tags]
    assert (names.count("h1"), names.count("main"), "script" in names) == (1, 1, False)
    assert not [name for _, found in seen.tags for name in found if name in ("style", "onerror")]
    ids = seen.attributes("id")
    assert len(ids) == len(set(ids))
    assert anchors((ROOT / path.lstrip("/")).read_text()) <= set(ids)
    for link in seen.attributes("href"):
        target, _, anchor = link.partition("#")
        if target.startswith("https:"):
            continue
        assert read(APP, target or path).status == 200, link
        if anchor and target.startswith("/docs"):
            assert f'id="{anchor}"' in read(APP, target).body.decode(), link


def test_every_invariant_and_alert_has_a_runbook_that_pages_link_to() -> None:
    for name, invariant in discover().items():
        runbook = f"/{invariant.runbook}"
        assert runbook in page(APP, f"/invariants/{name}").attributes("href")
        assert f"{name}: " in page(APP, runbook).text
    for violation in busy.violations():
        links = page(APP, f"/violations/{violation.first.id}").attributes("href")
        assert f"/docs/runbooks/{violation.first.invariant}.md" in links
    alerts = (ROOT / "dashboards/prometheus/alerts.yaml").read_text()
    runbooks = set(re.findall(r"https://rmapd\.example(/docs/\S+)", alerts))
    assert len(runbooks) > 10
    assert runbooks <= set(DOCUMENTS.paths), "the same path below another root"


def test_documents_cannot_bring_html_scripts_or_files_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (tmp_path / "secret.md").write_text("# secret")
    (folder / "bad.md").write_text(HOSTILE)
    (folder / "other.md").write_text("# b\n")
    documents = Documents(folder)
    bad = documents.get(f"{documents_module.ROOT}/bad.md")
    assert bad
    assert bad.title == "A <b>title</b>"
    seen = Reader(str(bad.html))
    assert {tag for tag, _ in seen.tags} == set(
        "h1 p a span div table thead tr th tbody td code".split()
    )
    assert seen.attributes("href") == [
        "https://example.org/",
        f"{documents_module.ROOT}/other.md#b",
    ]
    assert seen.attributes("src") == seen.attributes("style") == []
    assert "<script>alert(1)</script>" in seen.text
    assert seen.attributes("class").count("n") == 2, "numbers are aligned by a class"
    for path in ("/docs/../secret.md", "/docs/secret", "/docs//etc/passwd", "/docsother.md"):
        assert documents.get(path) is None


def test_index_is_shown_for_the_folder_itself() -> None:
    assert read(APP, "/docs/").body == read(APP, "/docs/README.md").body
    assert read(APP, "/docs/nothing.md").status == 404


def test_wheel_has_the_documents_and_the_package_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert built["targets"]["wheel"]["force-include"]["docs"] == "tracer/docs"
    assert package_data.folder("docs") == ROOT / "docs", "a checkout"
    (tmp_path / "tracer/docs").mkdir(parents=True)
    monkeypatch.setattr(package_data, "_PACKAGE", tmp_path / "tracer")
    assert package_data.folder("docs") == tmp_path / "tracer/docs", "installed"
