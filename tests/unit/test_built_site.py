"""The check of the built documentation finds broken links, anchors, and what other hosts serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.built_site import problems, read

GOOD = """<link rel="stylesheet" href="style.css"><img src="data:image/png;base64,AA==">
<h1 id="top">A</h1><a href="sub/b.html#b">b</a> <a href="#top">top</a> <a href="?q=1">self</a>
<a href="https://example.org/">far</a> <a href="mailto:a@example.org">mail</a>"""


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", None),
        ('<a href="gone.html">x</a>', "index.html: no file gone.html"),
        ('<a href="#gone">x</a>', "index.html: no anchor #gone"),
        ('<a href="sub/b.html#gone">x</a>', "index.html: no anchor sub/b.html#gone"),
        ('<a href="../outside.txt">x</a>', "index.html: no file ../outside.txt"),
        ('<a href="sub">a folder</a>', "index.html: no file sub"),
        ('<img src="gone.png">', "index.html: no file gone.png"),
        ('<script src="//cdn.example/x.js"></script>', "index.html: loads //cdn.example/x.js"),
        ('<link href="https://fonts.example/f">', "index.html: loads https://fonts.example/f"),
    ],
)
def test_broken_link_or_foreign_resource_of_page_is_found(
    tmp_path: Path, line: str, found: str | None
) -> None:
    root = tmp_path / "site"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "outside.txt").touch()
    (root / "style.css").write_text("a { background: url(data:image/svg+xml,x) }")
    (root / "sub/b.html").write_text('<a id="b" href="../index.html#top">back</a>')
    (root / "index.html").write_text(GOOD + line)
    assert list(problems(root, read(root))) == ([found] if found else [])


def test_style_that_loads_from_another_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text('@font-face { src: url("https://fonts.example/a.woff2") }')
    assert list(problems(tmp_path, read(tmp_path))) == [
        "a.css: loads https://fonts.example/a.woff2"
    ]
