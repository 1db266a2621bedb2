"""rmapd with other probes, another pace of its governor, and no limit on its log lines.

usage: python -m tests.support.altered PROBES PACE ARGUMENT…

PACE: JSON, the members of tracer.daemon.governor.Pace.
"""

from __future__ import annotations

import json
import sys
from functools import partialmethod
from pathlib import Path

from tracer import cli
from tracer.daemon import session
from tracer.daemon.governor import Pace
from tracer.outputs import log


def main(probes: str, pace: str, *arguments: str) -> None:
    """Run rmapd with these arguments."""
    session.probes_folder = lambda: Path(probes)
    session.Session.govern = partialmethod(session.Session.govern, Pace(**json.loads(pace)))  # type: ignore[method-assign,assignment]
    log._MOST_A_MINUTE = 1 << 30
    cli.main(arguments, prog_name="rmapd")


if __name__ == "__main__":
    main(*sys.argv[1:])
