"""Grafana dashboards as code.

`python -m dashboards` writes dashboards/grafana/*.json; dashboards/prometheus/ is written by hand.
"""

from __future__ import annotations

from pathlib import Path

from dashboards import daemon, fleet, host
from dashboards.board import Board, as_json

FOLDER = Path(__file__).parent / "grafana"
BOARDS: tuple[Board, ...] = (host.BOARD, fleet.BOARD, daemon.BOARD)


def files() -> dict[Path, str]:
    """Return the text of each file in the folder by path."""
    return {FOLDER / f"{board.uid}.json": as_json(board, BOARDS) for board in BOARDS}
