"""README and docs: every link resolves, lines of prose are short, and no retired word is used."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.native import ROOT
from tests.support.words import retired
from tracer.attach import plan
from tracer.invariants.catalogue import discover

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


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of a table's rows, found by its first heading and by nothing else."""
    lines = [line.strip() for line in (ROOT / page).read_text().splitlines()]
    at = next(n for n, line in enumerate(lines) if line.startswith(f"| {head} |"))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[at + 2 :])
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_recipe_of_invariants_lists_every_file_with_its_rules() -> None:
    declared = {}
    for path in (ROOT / "tracer/invariants").glob("*.py"):
        module = importlib.import_module(f"tracer.invariants.{path.stem}")
        if found := getattr(module, "INVARIANTS", ()):
            declared[f"`{path.stem}`"] = [one.id for one in found]
    listed = {file: rules.split(", ") for file, _, rules in rows("docs/EXTENDING.md", "file")}
    assert listed == declared


def test_recipe_of_hooks_lists_every_probe_object() -> None:
    named = " ".join(cells[0] for cells in rows("docs/EXTENDING.md", "`NAME`"))
    objects = {path.stem: plan.read_probe_object(path) for path in (ROOT / "probes").glob("*.toml")}
    assert set(re.findall(r"`(\w+)`", named)) == set(objects)


def test_recipes_name_files_and_names_that_exist() -> None:
    """NAME and ID stand for a name; a file may be named without its folder after another one."""
    code = {
        name(path): path.read_text()
        for folder in ("tracer", "tests", "probes", "dashboards")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".html", ".toml", ".h", ".c", ".yaml", ".json")
    }
    quoted = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs/EXTENDING.md").read_text()))
    files = {
        one
        for one in quoted
        if re.fullmatch(r"[\w/]+\.(py|html|toml|h|c|yaml|json|md)", one)
        and not re.search(r"\b(NAME|ID)\b", one)
    }
    names = {
        one.removesuffix("()")
        for one in quoted
        if re.fullmatch(r"_?[A-Z]\w{2,}|\w+\(\)", one) and "NAME" not in one
    }
    assert (len(files) > 40, len(names) > 20) == (True, True)
    paths = [f"/{path}" for path in code]
    pages = [f"/{name(page)}" for page in PAGES]
    assert {one for one in files if not any(f.endswith(f"/{one}") for f in paths + pages)} == set()
    text = "\n".join(code.values())
    assert {one for one in names if not re.search(rf"\b{one}\b", text)} == set()


@pytest.mark.parametrize("page", ["README.md", "RmapdInvariantViolated.md"])
def test_runbooks_of_all_invariants_are_linked(page: str) -> None:
    text = (ROOT / "docs/runbooks" / page).read_text()
    assert [one for one in discover() if f"[{one}]({one}.md)" not in text] == []


def test_table_of_protocols_has_every_rule_on_protocols() -> None:
    ids = [one for cells in rows("docs/PROTOCOLS.md", "id") for one in cells[0].split(", ")]
    judged = {one.id for one in discover().values() if one.judge or one.needs_every_window}
    assert set(ids) == judged
