"""The drawing of the lock graph: which lock class was taken while another was held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.report.model import ReportedLockGraph, ReportedLockNesting
from tracer.report.svg import COLOUR, compact, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BOX = 0.62
"""Half the width of a class's box."""
_STEP = 0.72
"""The distance from one class to the next."""


def lock_graph(name: str, graph: ReportedLockGraph, width: float) -> str:
    """Draw the lock classes in the order of mm/rmap.c, the outermost on top, and their nestings.

    An arrow leads from the held class to the taken one: down on the right if that is the order, up
    on the left if it is against it. name: unique on the page. width: in points. Returns the SVG.
    """
    classes = sorted(graph.classes, key=lambda one: one.rank)
    place = {one.id: -_STEP * row for row, one in enumerate(classes)}
    most = max((edge.count for edge in graph.edges), default=1)
    reach = [_reach(edge, place) for edge in graph.edges]
    left, right = min([-0.05, *reach]) - _BOX - 0.2, max([0.05, *reach]) + _BOX + 0.2

    def paint(figure: Figure) -> dict[str, str]:
        from matplotlib.patches import FancyBboxPatch

        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        titles = dict[str, str]()
        for one in classes:
            at = (-_BOX + 0.06, place[one.id] - 0.09)
            box = {
                "boxstyle": "round,pad=0.06",
                "facecolor": COLOUR["soft"],
                "edgecolor": COLOUR["line"],
            }
            axes.add_patch(FancyBboxPatch(at, 2 * _BOX - 0.12, 0.18, zorder=4, **box))
            axes.text(
                0,
                place[one.id],
                one.name.replace(" of ", "\nof "),
                ha="center",
                va="center",
                weight="bold",
                zorder=5,
            )
        for number, edge in enumerate(sorted(graph.edges, key=lambda edge: edge.count)):
            titles |= _arrow(axes, edge, place, most, f"e{number}")
        axes.set_xlim(left, right)
        axes.set_ylim(min(place.values()) - 0.3, 0.3)
        return titles

    height = width * (0.6 - min(place.values())) / (right - left)
    nestings = "; ".join(f"{edge.taken} under {edge.held} {edge.count}" for edge in graph.edges)
    return draw(name, width, height, f"lock classes: {nestings}", paint)


def _reach(edge: ReportedLockNesting, place: dict[str, float]) -> float:
    """Return how far out the arc goes: to the right if it leads down, to the left if up."""
    down = place[edge.held] - place[edge.taken]
    return (0.3 + 0.3 * (abs(down) / _STEP - 1)) * (1 if down > 0 else -1)


def _arrow(
    axes: Axes, edge: ReportedLockNesting, place: dict[str, float], most: int, gid: str
) -> dict[str, str]:
    """Draw an arc, wider for more windows; return its tooltip by gid."""
    from math import log10

    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    start, end, out = place[edge.held], place[edge.taken], _reach(edge, place)
    side = 1 if out > 0 else -1
    x, lean = side * (_BOX + 0.02), side * 0.08
    curve = Path(
        [
            (x, start - lean),
            (x + out * 4 / 3, start - lean),
            (x + out * 4 / 3, end + lean),
            (x, end + lean),
        ],
        [1, 4, 4, 4],
    )
    colour = COLOUR["bad" if side < 0 else "blue"]
    wide = 0.8 + 2 * log10(1 + edge.count) / log10(1 + most) if edge.count else 0.8
    axes.add_patch(
        arrow := FancyArrowPatch(
            path=curve,
            arrowstyle="-|>",
            mutation_scale=9 + 2 * wide,
            linewidth=wide,
            color=colour,
            zorder=2,
        )
    )
    arrow.set_gid(gid)
    box = {"facecolor": COLOUR["paper"], "edgecolor": "none", "pad": 1.2}
    weight = "bold" if side < 0 else "normal"
    axes.text(
        x + out,
        (start + end) / 2,
        compact(edge.count),
        ha="center",
        va="center",
        color=colour,
        weight=weight,
        bbox=box,
        zorder=3,
    )
    modes = ", ".join(f"{count:,} for {mode}" for mode, count in edge.modes.items())
    return {gid: f"{edge.taken} taken with {edge.held} held: {modes}"}
