"""Run rmapd with other probes, another pace of its governor, and no limit on its log lines.

usage: python -m tests.support.altered PROBES PACE ARGUMENT…

PACE: JSON, the members of tracer.daemon.governor.Pace.
"""

from __future__ import annotations

import json
import sys
from functools import partialmethod
from pathlib import Path

from tracer import cli
from tracer.daemon import fidelity
from tracer.daemon import probes as probes_module
from tracer.daemon.governor import Pace
from tracer.outputs import log


def main(probes: str, pace: str, *arguments: str) -> None:
    """Run rmapd with these arguments."""
    probes_module.probes_folder = lambda: Path(probes)
    given = Pace(**json.loads(pace))
    govern = partialmethod(fidelity.Fidelity.govern, pace=given)
    fidelity.Fidelity.govern = govern  # type: ignore[method-assign,assignment]
    log.MOST_LINES_A_MINUTE = 1 << 30
    cli.main(arguments, prog_name="rmapd")


if __name__ == "__main__":
    main(*sys.argv[1:])
