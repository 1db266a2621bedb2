"""A section of an explained violation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A heading and its lines; code: the lines are printed as they are, not wrapped."""

    title: str
    lines: Sequence[str]
    code: bool = False
