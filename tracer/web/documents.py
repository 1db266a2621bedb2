"""The documentation as pages: runbooks, the notation of protocols, and what they link to.

All files are read at the start, because the user that the daemon becomes may not be able to read
them. A page is rendered when it is asked for. Raw HTML in a document is shown as text, and a link
to a file that is not served is shown without its target.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

ROOT = "/docs"
_INDEX = "README.md"
_ELSEWHERE = re.compile(r"https?:", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """A document as HTML. title: its first heading, as text."""

    title: str
    html: Markup


class _Renderer(RendererHTML):
    """Writes HTML. Its methods are named after the tokens that they write."""

    def table_open(self, tokens: Sequence[Token], index: int, *_: object) -> str:
        """Begin a table that scrolls by itself, also by keyboard, where it is too wide."""
        label = Markup.escape(f"Table: {tokens[index].meta['label']}")
        return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table>'

    def table_close(self, *_: object) -> str:
        """End a table."""
        return "</table></div>"

    def th_open(self, tokens: Sequence[Token], index: int, *_: object) -> str:
        """Begin a cell; a class aligns numbers, as the pages' policy forbids styles in the text."""
        token = tokens[index]
        scope = ' scope="col"' if token.tag == "th" else ""
        number = ' class="n"' if "right" in str(token.attrGet("style") or "") else ""
        return f"<{token.tag}{scope}{number}>"

    td_open = th_open


class Documents:
    """The Markdown files of a folder, and of the folders in it."""

    def __init__(self, folder: Path) -> None:
        self._texts: Mapping[str, str] = {
            path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(folder.rglob("*.md"))
        }
        markdown = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer)
        self._markdown = markdown.enable("table")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all documents on the server."""
        return tuple(f"{ROOT}/{name}" for name in self._texts)

    def get(self, path: str) -> Document | None:
        """Return the document at a path of the server, or None. /docs/ is the index."""
        name = path.removeprefix(ROOT).strip("/") or _INDEX
        if not f"{path}/".startswith(f"{ROOT}/") or name not in self._texts:
            return None
        tokens = self._markdown.parse(self._texts[name])
        taken: set[str] = set()
        title = heading = ""
        for before, token in itertools.pairwise(tokens):
            if before.type == "heading_open":
                before.attrSet("id", _anchor(token.content, taken))
                heading = _plain(token.children or ())
                title = title or heading
            if before.type == "table_open":
                before.meta["label"] = heading
            if token.type == "inline":
                self._resolve(token.children or [], posixpath.dirname(name))
        html = self._markdown.renderer.render(tokens, self._markdown.options, {})
        return Document(title, Markup(html))  # noqa: S704 - markdown-it has escaped all text

    def _resolve(self, children: list[Token], folder: str) -> None:
        """Turn relative links into paths of this server; other files are not linked."""
        opened: list[Token] = []
        for token in children:
            if token.type == "link_open":
                opened.append(token)
                self._resolve_link(token, folder)
            elif token.type == "link_close":
                token.tag = opened.pop().tag
            elif token.type == "image":
                token.type, token.content = "text", f"({token.content})"

    def _resolve_link(self, token: Token, folder: str) -> None:
        href = str(token.attrGet("href") or "")
        if _ELSEWHERE.match(href):
            token.attrSet("rel", "noreferrer")
            return
        path, _, anchor = href.partition("#")
        name = posixpath.normpath(posixpath.join(folder, path))
        if not path:
            return
        if name in self._texts:
            token.attrSet("href", f"{ROOT}/{name}" + (f"#{anchor}" if anchor else ""))
        else:
            token.tag, token.attrs = "span", {}


def _plain(children: Sequence[Token]) -> str:
    return "".join(child.content for child in children)


def _anchor(heading: str, taken: set[str]) -> str:
    """Return the id of a heading, as Forgejo and GitHub make it, and note it as taken."""
    slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    found, number = slug, 0
    while found in taken:
        number += 1
        found = f"{slug}-{number}"
    taken.add(found)
    return found
