"""What `rmapd exec` was asked for, and the least that it answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tracer
from tracer.config import Config
from tracer.supervision.command import Outcome


@dataclass(frozen=True)
class ExecOrder:
    """What was asked for. violation_code: of what --fail-on names; seconds: timeout for the command, grace from a signal to SIGKILL."""

    config: Config
    command: Sequence[str]
    report: Path | None = None
    form: str = "text"
    fail_on: str = "violated"
    junit: Path | None = None
    violation_code: int = 3
    timeout: float | None = None
    grace: float = 5.0


def bare(outcome: Outcome) -> dict[str, Any]:
    """A report without any book."""
    head = {
        "rmapd": tracer.__version__,
        "kernel": os.uname().release,
        "invariants": {},
        "protocols": [],
        "violations": [],
    }
    return head | outcome.as_json() | {"exit": {"code": outcome.code, "reason": outcome.reason}}
