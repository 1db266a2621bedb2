"""Where the folders are that are not Python and belong to rmapd: probes/ and docs/."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """Return a folder of the installed package, or of the checkout that rmapd runs from."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name
