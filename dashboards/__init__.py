"""Grafana dashboards, recording rules and alerts, generated from settings.

`python -m dashboards` writes grafana/*.json from the boards of this package, and
prometheus/*.yaml from templates/, with the settings of config.yaml or of a fleet's own file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dashboards import daemon, fleet, host
from dashboards.board import Board, as_json
from dashboards.settings import Settings, load

FOLDER = Path(__file__).parent
TEMPLATES: tuple[Board, ...] = (host.BOARD, fleet.BOARD, daemon.BOARD)


def boards(settings: Settings) -> Sequence[Board]:
    """Return the dashboards with these settings."""
    return [board.filled(settings) for board in TEMPLATES]


def files(settings: Settings) -> dict[str, str]:
    """Return the text of each file by its path below the output folder."""
    made = boards(settings)
    return {f"grafana/{board.uid}.json": as_json(board, made, settings) for board in made} | {
        f"prometheus/{name}": text for name, text in settings.rules().items()
    }


BOARDS = boards(load())
"""The dashboards with the default settings."""
