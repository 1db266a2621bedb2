"""Check the built documentation: links and anchors lead somewhere, and no page asks another host.

usage: python -m tests.support.built_site FOLDER
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_CSS_URL = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")


class Page(HTMLParser):
    """The anchors of a page, the links that a reader may follow, and what a browser loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the anchors and the URLs of a tag."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("href", "src", "data", "poster") and tag != "a":
                self.loaded.append(value or "")


def read(root: Path) -> dict[Path, Page]:
    """Return the pages of a folder by their paths."""
    return {path: Page(path) for path in sorted(root.rglob("*.html"))}


def problems(root: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Yield each broken link, and each URL of another host that a browser would load."""
    for path, page in pages.items():
        where = path.relative_to(root)
        for url in [*page.links, *page.loaded]:
            to = urlsplit(url)
            if to.scheme or to.netloc:
                if url in page.loaded and to.scheme != "data":
                    yield f"{where}: loads {url}"
                continue
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            if not (target.is_file() and target.is_relative_to(root)):
                yield f"{where}: no file {url}"
            elif target in pages and unquote(to.fragment) not in pages[target].anchors:
                yield f"{where}: no anchor {url}"
    for path in sorted(root.rglob("*.css")):
        for found in _CSS_URL.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(root)}: loads {found}"


if __name__ == "__main__":
    _root = Path(sys.argv[1]).resolve()
    _pages = read(_root)
    _found = list(problems(_root, _pages))
    _links = sum(len(page.links) for page in _pages.values())
    print(*_found, f"{len(_pages)} pages, {_links} links, {len(_found)} problems", sep="\n")
    sys.exit(bool(_found) or not _links)
