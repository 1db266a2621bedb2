"""Read a report file or a store, and check it: the only reader of `report`, `explain` and `diff`.

Keys that an older rmapd did not write are empty. A file that is no report is an RmapdError.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tracer import bounded_input
from tracer.errors import RmapdError
from tracer.outputs.store import reader
from tracer.printable import shown
from tracer.report.model import ReportContents, ReportedViolation, RunReport, StoredRun

_HINT = "a file of rmapd exec --report, rmapd protocols --save or rmapd exec --format json"
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class ReportFile:
    """A report file that has been read and checked.

    exact: the file's JSON with names as they are. printable: the same with every name escaped for
    people.
    """

    path: Path
    exact: Mapping[str, Any]
    printable: RunReport

    @property
    def exact_report(self) -> RunReport:
        """The report with names as they are, without its violations.

        Names are escaped where msgspec cannot take them: half a surrogate pair is no text.
        """
        without = {**self.exact, "violations": []}
        try:
            return msgspec.convert(without, RunReport)
        except msgspec.ValidationError:
            return msgspec.convert(shown(without), RunReport)


def read_report(path: Path) -> ReportFile:
    """Read a report file of at most 1 GiB; RmapdError if it cannot be read or is no report."""
    try:
        found = bounded_input.json_value(bounded_input.read(path, "", _MOST_BYTES, _HINT))
        # Escaped first: half a surrogate pair, which argv may have, is no text to msgspec.
        printable = msgspec.convert(shown(found), RunReport)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise RmapdError(f"{path} is no report of rmapd", why=str(error), hint=_HINT) from error
    return ReportFile(path, dict(found), printable)


def from_report_file(path: Path) -> ReportContents:
    """Return the contents of one report file, every name printable; RmapdError as read_report()."""
    report = read_report(path).printable
    return ReportContents(
        shown(path.name),
        report,
        sorted(report.violations, key=lambda v: (v.verdict != "violated", v.first_seen)),
        report.beyond,
    )


def from_store(path: Path) -> ReportContents:
    """Return the contents of a store: its last run in full, and all violations, latest first.

    RmapdError if the store cannot be read or has no run.
    """
    found = reader.read(path)
    if not found.runs:
        raise RmapdError(
            f"there is no run in the store {path}",
            why="none was written yet",
            hint="the same in a minute, with rmapd run",
        )
    try:
        runs = [
            msgspec.convert(shown(run | {"report": run["report"] | {"violations": []}}), StoredRun)
            for run in found.runs
        ]
        violations = msgspec.convert(shown(found.violations), list[ReportedViolation])
    except (msgspec.ValidationError, TypeError, RecursionError) as error:
        raise RmapdError(
            f"the content of the store {path} was not written by rmapd",
            why=str(error),
            hint="another one with --store",
        ) from error
    rest = Counter[str]()
    for (_, invariant, verdict), count in found.rest.items():
        rest[f"{invariant} {verdict}"] += count
    violations.sort(key=lambda v: v.last_seen, reverse=True)
    violations.sort(key=lambda v: v.verdict != "violated")
    last = runs[-1]
    silent = (
        time.time() - last.report.ended.timestamp()
        if last.ended is None and last.report.ended
        else 0.0
    )
    return ReportContents(shown(str(path)), last.report, violations, dict(rest), runs, silent)
