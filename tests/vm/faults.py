"""What a workload says about the faults that it makes, and when a violation was found."""

from __future__ import annotations

import datetime
import json
from typing import Any

from tests.vm.guest import Result


def reported(result: Result) -> list[dict[str, Any]]:
    """Return the lines of the workload about each fault, as objects."""
    return [
        json.loads(line.removeprefix("fault "))
        for line in result.output.splitlines()
        if line.startswith("fault ")
    ]


def seconds(violation: dict[str, Any]) -> float:
    """Return when a violation was first seen, in seconds since 1970."""
    return datetime.datetime.fromisoformat(violation["first_seen"]).timestamp()


def found_during(fault: dict[str, Any], report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the violations that were first seen while a fault in state was there."""
    return [
        violation
        for violation in report["violations"]
        if fault["made"] <= seconds(violation) < fault["undone"]
    ]
