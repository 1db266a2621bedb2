"""`rmapd report`: write a report file or a store as one HTML or Markdown file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from tracer import atomic_file
from tracer.errors import RmapdError
from tracer.report import html, markdown
from tracer.report.model import ReportContents

_FORMS = {
    ".html": html.render,
    ".htm": html.render,
    ".md": markdown.render,
    ".markdown": markdown.render,
}


def publish(read: Callable[[], ReportContents], output: Path | None) -> None:
    """Write the report to a file, atomically, or as Markdown to stdout.

    read: reads the source; it is called after the output is known to be of a kind that exists.
    RmapdError if the suffix of the output is neither .html nor .md, or the file cannot be written.
    """
    if output is None:
        click.echo(markdown.render(read()), nl=False)
        return
    if output.suffix.lower() not in _FORMS:
        raise RmapdError(
            f"cannot write {output}",
            why="its name ends neither in .html nor in .md",
            hint="--output report.html",
        )
    atomic_file.writable(output, "the report")
    atomic_file.write(output, _FORMS[output.suffix.lower()](read()), "the report", rescue=False)
