"""README and docs: every link resolves, lines of prose are short, and no retired word is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.native import ROOT
from tests.support.words import retired

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "dashboards/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
COLUMNS = 100
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_GENERATED_ROW = re.compile(r"^\| `\w+` \| `")
"""A row of CONFIGURATION.md repeats a text of tracer/config.py, which test_config.py checks."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is neither code nor a row of a table."""
    fenced = code = False
    blank = True
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced, blank = not fenced, False
            continue
        if fenced:
            continue
        code = line.startswith("    ") and (blank or code)
        blank = not line.strip()
        if not (code or line.lstrip().startswith("|")):
            yield number, line


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and Forgejo make them."""
    found: set[str] = set()
    for _, line in prose(text):
        if head := re.match(r"#+ (.+)", line):
            slug = re.sub(r"[^\w\- ]", "", head.group(1).lower()).replace(" ", "-")
            count = sum(1 for each in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", each))
            found.add(f"{slug}-{count}" if count else slug)
    return found


def links(text: str) -> Iterator[tuple[int, str]]:
    """Each link's target, also in tables, not in code."""
    for number, line in enumerate(text.splitlines(), start=1):
        for found in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            yield number, found.group(1)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for number, target in links(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            broken.append(f"{name(page)}:{number}: {target}")
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_of_prose_fit_a_hundred_columns(page: Path) -> None:
    """A link's target and one word that cannot be broken may stand over the edge."""
    long = [
        f"{name(page)}:{number}"
        for number, line in prose(page.read_text())
        if len(re.sub(r"\]\([^)]*\)", "]", line)) > COLUMNS and " " in line.strip().lstrip("-*> ")
    ]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_retired_word_is_used(page: Path) -> None:
    """Exempt are the table of renamed things and the rows that repeat texts of the code."""
    text = re.sub(r"^### Renamed\n(?:(?!#).*\n?)*", "", page.read_text(), flags=re.M)
    lines = text.splitlines()
    assert [
        f"{name(page)}: {lines[number - 1][:80]!r}: {word}: {instead}"
        for number, word, instead in retired(text)
        if not (page.name == "CONFIGURATION.md" and _GENERATED_ROW.match(lines[number - 1]))
    ] == []


def test_index_of_the_docs_has_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    linked = {(ROOT / "docs" / target.partition("#")[0]).resolve() for _, target in links(index)}
    pages = {path for path in PAGES if path.is_relative_to(ROOT / "docs")}
    own_index = {path for path in pages if path.parent.name in ("runbooks", "examples")}
    wanted = (pages - own_index) | {path for path in own_index if path.name == "README.md"}
    assert wanted - linked - {ROOT / "docs/README.md"} == set()


def test_pages_that_the_code_names_exist() -> None:
    named = {
        (page, name(path))
        for folder in ("dashboards", "debian", "probes", "systemd", "tests", "tracer")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".toml", ".h", ".c", ".yaml", ".service")
        for page in re.findall(r"(?<![\w/])docs/[\w/]+\.(?:md|toml)", path.read_text())
    }
    assert len(named) > 20
    assert {(page, path) for page, path in named if not (ROOT / page).exists()} == set()
