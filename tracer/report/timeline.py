"""Totals over the time of a run, for its timeline: a bounded number of moments, however long the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST = 600


class TimelineSampler:
    """add() once a second; when there are too many moments, every other one goes and half as many are taken from then on."""

    def __init__(self, most: int = _MOST) -> None:
        self._moments: list[tuple[float, dict[str, int]]] = []
        self._most, self._every, self._left = most, 1, 0

    def add(self, seconds: float, totals: Mapping[str, int], *, last: bool = False) -> None:
        """totals: counts since the beginning, which is `seconds` ago."""
        if self._left and not last:
            self._left -= 1
            return
        self._moments.append((seconds, dict(totals)))
        self._left = self._every - 1
        if len(self._moments) > self._most:
            self._moments = self._moments[1::2]
            self._every *= 2

    def as_json(self) -> dict[str, Any]:
        """Column by column."""
        names = self._moments[-1][1] if self._moments else {}
        return {
            "seconds": [round(seconds, 3) for seconds, _ in self._moments],
            "totals": {name: [totals[name] for _, totals in self._moments] for name in names},
        }
