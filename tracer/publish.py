"""`rmapd report`: from a report file or a store to one file for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from tracer import html_report, markdown_report, whole
from tracer.errors import RmapdError
from tracer.reported import Reported

_FORMS = {
    ".html": html_report.render,
    ".htm": html_report.render,
    ".md": markdown_report.render,
    ".markdown": markdown_report.render,
}


def publish(read: Callable[[], Reported], output: Path | None) -> None:
    """Write it whole; without an output Markdown to stdout."""
    if output is None:
        click.echo(markdown_report.render(read()), nl=False)
        return
    if output.suffix.lower() not in _FORMS:
        raise RmapdError(
            f"cannot tell what {output} should be",
            why="it ends neither in .html nor in .md",
            hint="--output report.html",
        )
    whole.writable(output, "the report")
    whole.write(output, _FORMS[output.suffix.lower()](read()), "the report", rescue=False)
