"""`rmapd report`: from a report file or a store to one file for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from tracer import atomic_file
from tracer.errors import RmapdError
from tracer.report import html, markdown
from tracer.report.model import Reported

_FORMS = {
    ".html": html.render,
    ".htm": html.render,
    ".md": markdown.render,
    ".markdown": markdown.render,
}


def publish(read: Callable[[], Reported], output: Path | None) -> None:
    """Write it whole; without an output Markdown to stdout."""
    if output is None:
        click.echo(markdown.render(read()), nl=False)
        return
    if output.suffix.lower() not in _FORMS:
        raise RmapdError(
            f"cannot tell what {output} should be",
            why="it ends neither in .html nor in .md",
            hint="--output report.html",
        )
    atomic_file.writable(output, "the report")
    atomic_file.write(output, _FORMS[output.suffix.lower()](read()), "the report", rescue=False)
