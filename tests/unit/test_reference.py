"""The reference pages are what the code makes of them, and the site has every page."""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support import reference
from tests.support.native import ROOT
from tests.unit.test_docs import PAGES, name, rows
from tracer.cli import main
from tracer.invariants.catalogue import discover

MADE = {name(path): text for path, text in reference.pages()}


@pytest.mark.parametrize("page", MADE)
def test_page_is_what_the_code_makes_of_it(page: str) -> None:
    assert (ROOT / page).read_text() == MADE[page], "make reference"


def test_pages_have_every_command_option_invariant_and_metric() -> None:
    cli = MADE["docs/reference/CLI.md"]
    assert {f"## rmapd {one}" for one in main.commands} <= set(cli.splitlines())
    options = {
        option
        for command in main.commands.values()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    assert len(options) > 30
    assert {one for one in options if not re.search(rf"{one}\b", cli)} == set()
    assert [row[0][1:3] for row in rows("docs/reference/INVARIANTS.md", "id")] == list(discover())
    metrics = [row[0] for row in rows("docs/reference/METRICS.md", "metric")]
    assert len(metrics) == len(set(metrics)) > 45


def files_of(toc: Any) -> Iterator[str]:
    """Yield the files and patterns of a table of contents, in its order."""
    if isinstance(toc, list):
        for one in toc:
            yield from files_of(one)
    elif isinstance(toc, dict):
        yield from (toc[key] for key in ("root", "file", "glob") if key in toc)
        yield from files_of([toc.get("subtrees", ()), toc.get("entries", [])])


def test_site_has_every_page_and_begins_with_the_limits() -> None:
    listed = list(files_of(yaml.safe_load((ROOT / "docsite/_toc.yml").read_text())))
    assert listed[:2] == ["README", "docs/LIMITS"]
    pages = [name(path).removesuffix(".md") for path in PAGES]
    assert [one for one in pages if not any(fnmatch.fnmatch(one, known) for known in listed)] == []
    assert [known for known in listed if not fnmatch.filter(pages, known)] == []


def texts_of_code() -> str:
    """Return every text in the code, with … where something is filled in."""
    found = []
    for path in (ROOT / "tracer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "") for part in node.values)
                found.append("".join(part if isinstance(part, str) else "…" for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd]|\{\}", "…", node.value))
    return "\n".join(found)


@pytest.mark.parametrize("head", ["message", "what is printed"])
def test_messages_of_troubleshooting_are_those_of_the_code(head: str) -> None:
    page, code = ROOT / "docs/TROUBLESHOOTING.md", texts_of_code()
    cells = re.findall(rf"^\| {head} \|.*\n\|---.*\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    messages = [
        message
        for row in "".join(cells).splitlines()
        if row.startswith("| `")
        for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    ]
    assert len(messages) > 8
    assert [one for one in messages if one not in code] == []
