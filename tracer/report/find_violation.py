"""Find the violation that `rmapd explain ID` explains, in a store or in a report file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from tracer.errors import RmapdError
from tracer.ids import canonical
from tracer.outputs.store import reader
from tracer.printable import shown
from tracer.report.load import read_report
from tracer.report.model import ReportedViolation, RunReport
from tracer.results.evidence import Evidence, ViolationDetails


class ExplainedViolation:
    """A violation with the report of the last run that saw it.

    exact: the violation with names as they are; all other members are printable. report: the JSON
    of the run, or {} if it was deleted. ValidationError or KeyError if rmapd did not write these.
    """

    def __init__(self, exact: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        self.exact, self._report = exact, report
        printable = shown(exact)
        self.violation: ReportedViolation = msgspec.convert(printable, ReportedViolation)
        self.details: ViolationDetails = self.violation.details
        self.first_seen, self.last_seen = printable["first_seen"], printable["last_seen"]

    @property
    def evidence(self) -> Evidence:
        """The evidence, typed."""
        return self.details.evidence

    @cached_property
    def report(self) -> RunReport:
        """The report of the run, without its violations."""
        return msgspec.convert(shown({"kernel": "", **self._report, "violations": []}), RunReport)

    @property
    def kernel(self) -> str:
        """The release of the kernel that it was found on."""
        return self.details.machine.kernel or self.report.kernel

    @property
    def culprit(self) -> str:
        """The function at fault by the evidence, or else the hooked function."""
        return self.evidence.culprit.function or self.violation.function


def find(id: str, store: Path, report: Path | None) -> ExplainedViolation:
    """Find a violation by its id or by an unambiguous beginning of it, in any case.

    report: a report file to search instead of the store. RmapdError if no violation or several
    match, or if the file cannot be read.
    """
    where = report or store
    if report:
        found = read_report(report).exact
        everything = [(violation, found) for violation in found.get("violations", [])]
    else:
        kept = reader.read(store)
        everything = [
            (violation, (kept.run_of(violation) or {}).get("report", {}))
            for violation in kept.violations
        ]
    ids = [str(violation.get("id", "")) for violation, _ in everything]
    matching = [n for n, known in enumerate(ids) if known.lower().startswith(id.lower())]
    exact = [n for n in matching if ids[n].lower() == id.lower()]
    if len(exact or matching) == 1:
        try:
            return ExplainedViolation(*everything[(exact or matching)[0]])
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            raise RmapdError(
                f"the content of {where} was not written by rmapd",
                why=str(error),
                hint="another one",
            ) from error
    near = difflib.get_close_matches(canonical(id), ids, 3)
    some = [ids[n] for n in matching] or near or ids
    why = (
        f"{len(matching)} ids begin with it"
        if matching
        else f"{where} has {len(ids)} violations and suspects"
    )
    names = ", ".join(some[-10:]) + (f" and {len(some) - 10} more" if len(some) > 10 else "")
    raise RmapdError(
        f"no violation {id!r}",
        why=why,
        hint=f"one of {names}" if some else "rmapd run --store FILE, or --report FILE.json",
    )
