"""`rmapd report` as Markdown, for a mail, an issue or a terminal: the same without plots, which need none of the libraries."""

from __future__ import annotations

from tracer.reported import Reported


def render(reported: Reported) -> str:
    """The document."""
    return ""
