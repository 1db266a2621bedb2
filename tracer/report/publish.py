"""`rmapd report`: write a report file or a store as one HTML or Markdown file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from tracer import atomic_file, progress
from tracer.errors import RmapdError
from tracer.report import html, markdown
from tracer.report.model import ReportContents

_FORMS = {
    ".html": html.render,
    ".htm": html.render,
    ".md": markdown.render,
    ".markdown": markdown.render,
}


def publish(read: Callable[[], ReportContents], output: Path | None, *, quiet: bool = True) -> None:
    """Write the report to a file, atomically, or as Markdown to stdout.

    read: reads the source; it is called after the output is known to be of a kind that exists.
    quiet: show no progress. RmapdError if the suffix of the output is neither .html nor .md, or the
    file cannot be written.
    """
    render = markdown.render
    if output is not None:
        if output.suffix.lower() not in _FORMS:
            raise RmapdError(
                f"cannot write {output}",
                why="its name ends neither in .html nor in .md",
                hint="--output report.html",
            )
        render = _FORMS[output.suffix.lower()]
        atomic_file.writable(output, "the report")
    with progress.on_terminal(quiet, animated=True) as shown:
        shown.phase("reading what was found")
        contents = read()
        shown.phase("writing the report")
        text = render(contents)
    if output is None:
        click.echo(text, nl=False)
    else:
        atomic_file.write(output, text, "the report", rescue=False)
