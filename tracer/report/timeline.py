"""Sample the counts of a run for its timeline: a bounded number of samples for any duration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_SAMPLES = 600


class TimelineSampler:
    """Keeps samples of total counts; call add() once a second.

    When there are more than max_samples, every other one is dropped and the interval is doubled.
    """

    def __init__(self, max_samples: int = _MAX_SAMPLES) -> None:
        self._samples: list[tuple[float, dict[str, int]]] = []
        self._max_samples, self._every, self._skip = max_samples, 1, 0

    def add(self, seconds: float, totals: Mapping[str, int], *, last: bool = False) -> None:
        """Take a sample, unless the interval has not passed.

        totals: counts since the gate opened, `seconds` ago. last: take it in any case.
        """
        if self._skip and not last:
            self._skip -= 1
            return
        self._samples.append((seconds, dict(totals)))
        self._skip = self._every - 1
        if len(self._samples) > self._max_samples:
            self._samples = self._samples[1::2]
            self._every *= 2

    def as_json(self) -> dict[str, Any]:
        """Return the samples in columns, as `timeline` of a report has them."""
        names = self._samples[-1][1] if self._samples else {}
        return {
            "seconds": [round(seconds, 3) for seconds, _ in self._samples],
            "totals": {name: [totals[name] for _, totals in self._samples] for name in names},
        }
