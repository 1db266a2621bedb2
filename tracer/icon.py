"""The icon of the pages and of reports: red, amber or green as the run stands, blue before."""

from __future__ import annotations

_FILLS = {"": "#1f5fbf", "red": "#b3261e", "amber": "#8a5800", "green": "#1a6b3c"}
"""White on each of them has a contrast of 5 or more. Each also has another mark at its corner."""
_MARKS = {
    "": "",
    "red": '<path d="M22 22l7 7m0-7l-7 7" stroke="#fff" stroke-width="3" stroke-linecap="round"/>',
    "amber": '<path d="M26 20v5m0 4v.1" stroke="#fff" stroke-width="3" stroke-linecap="round"/>',
    "green": "",
}
COLOURS = tuple(_FILLS)
"""What svg() takes: an empty text, and the colours of a standing."""


def svg(colour: str = "") -> str:
    """Return the icon as SVG: a chain of mappings, with a mark where the run is not green."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
        f'<rect width="32" height="32" rx="7" fill="{_FILLS[colour]}"/>'
        '<g fill="none"><path d="M23 10H12a4 4 0 0 0 0 8h8a4 4 0 0 1 0 8H9" stroke="#fff"'
        ' stroke-width="3" stroke-linecap="round" transform="translate(0 -2)"/>'
        '<path d="M20 4l5 4-5 4" stroke="#cfe0fb" stroke-width="3" stroke-linecap="round"'
        f' stroke-linejoin="round"/>{_MARKS[colour]}</g></svg>'
    )
