"""The request of `rmapd exec`: its options, and the smallest report that still answers it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tracer
from tracer.config import Config
from tracer.supervision.command import CommandOutcome


@dataclass(frozen=True)
class ExecRequest:
    """The options of one run, as the command line has them (COMMANDS.md).

    violation_code is the exit code for the verdicts that fail_on names. timeout is the command's
    time limit in seconds; grace is the time in seconds from a signal to SIGKILL.
    """

    config: Config
    command: Sequence[str]
    report: Path | None = None
    form: str = "text"
    fail_on: str = "violated"
    junit: Path | None = None
    violation_code: int = 3
    timeout: float | None = None
    grace: float = 5.0


def minimal_report(outcome: CommandOutcome) -> dict[str, Any]:
    """Make a report without any result: the version, the kernel and how the command ended."""
    head = {
        "rmapd": tracer.__version__,
        "kernel": os.uname().release,
        "invariants": {},
        "protocols": [],
        "violations": [],
    }
    return head | outcome.as_json() | {"exit": {"code": outcome.code, "reason": outcome.reason}}
