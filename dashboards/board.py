"""The parts of a dashboard as data, and their conversion to JSON with Grafana's SDK."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.common import VisibilityMode, VizOrientation

RUNBOOKS = "https://rmapd.example/docs/runbooks"
"""The URL of docs/runbooks/ on a reserved domain; replace it (dashboards/README.md)."""

_SOURCE = model.DataSourceRef("prometheus", "${datasource}")
_TAG = "rmapd"

Thresholds = tuple[tuple[float, str], ...]
GOOD_IS_ZERO: Thresholds = ((1, "red"),)
GOOD_IS_ONE: Thresholds = ((0.5, "orange"), (1, "green"))
STANDING: Thresholds = ((0, "green"), (1, "orange"), (2, "red"))
STANDING_TEXTS = {"0": "green", "1": "amber", "2": "red"}


@dataclass(frozen=True)
class Query:
    """PromQL, and the legend of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel.

    kind: stat, graph, states or bars. unit: Grafana's name of it. runbook: a file of docs/runbooks/
    without its suffix. thresholds: the colour from each value on. base: the colour below the first
    threshold; it is never green, since Grafana also uses it without data, and since zero violations
    prove nothing if nothing is checked. texts: shown instead of a value. span: columns of 24.
    """

    kind: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    runbook: str = ""
    thresholds: Thresholds = ()
    base: str = "text"
    texts: Mapping[str, str] | None = None
    span: int = 12
    height: int = 8


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A selection at the top of a dashboard: the values of a query, by default all."""

    name: str
    label: str
    query: str
    multi: bool = True


@dataclass(frozen=True)
class Board:
    """A dashboard; uid: its name in links and of its file. window: the initial time range."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    window: str = "now-6h"

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


KERNEL = Variable("kernel", "Kernel", "label_values(rmapd_build_info, kernel)")
HOST = Variable("host", "Host", 'label_values(rmapd_build_info{kernel=~"$kernel"}, instance)')
INVARIANT = Variable("invariant", "Invariant", "label_values(rmapd_invariant_coverage, invariant)")


_Made = stat.Panel | timeseries.Panel | statetimeline.Panel | bargauge.Panel


def _graph() -> _Made:
    legend = common.VizLegendOptions().show_legend(True).calcs(["lastNotNull", "max"])
    return timeseries.Panel().fill_opacity(8).line_width(1).legend(legend).min(0)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _stat() -> _Made:
    return stat.Panel().reduce_options(_last())


def _bars() -> _Made:
    return bargauge.Panel().reduce_options(_last()).orientation(VizOrientation.HORIZONTAL).min(0)


def _states() -> _Made:
    return (
        statetimeline.Panel()
        .merge_values(True)
        .show_value(VisibilityMode.AUTO)
        .fill_opacity(80)
        .min(0)
        .max(1)
    )


_KINDS: dict[str, Callable[[], _Made]] = {
    "stat": _stat,
    "graph": _graph,
    "states": _states,
    "bars": _bars,
}


def _texts(panel: Panel) -> list[model.ValueMap]:
    if not panel.texts:
        return []
    return [
        model.ValueMap(
            {value: model.ValueMappingResult(text=text) for value, text in panel.texts.items()}
        )
    ]


def _no_data() -> model.SpecialValueMap:
    """Show "no data" in orange if there is no series, or a division by zero."""
    result = model.ValueMappingResult(text="no data", color="orange")
    return model.SpecialValueMap(
        model.DashboardSpecialValueMapOptions(model.SpecialValueMatch.NULL_AND_NAN, result)
    )


def _panel(number: int, panel: Panel) -> _Made:
    made = _KINDS[panel.kind]().id(number)
    made.title(panel.title).description(panel.description).datasource(_SOURCE).unit(
        panel.unit
    ).span(panel.span).height(panel.height)
    steps = [
        model.Threshold(None, panel.base),
        *(model.Threshold(value, colour) for value, colour in panel.thresholds),
    ]
    made.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    made.mappings([*_texts(panel), *([_no_data()] if panel.kind in ("stat", "bars") else [])])
    if panel.runbook:
        link = (
            build.DashboardLink("Runbook")
            .type(model.DashboardLinkType.LINK)
            .url(f"{RUNBOOKS}/{panel.runbook}.md")
            .target_blank(True)
        )
        made.links([link])
    for name, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = (
            prometheus.Dataquery()
            .expr(query.expr)
            .legend_format(query.legend or "__auto")
            .ref_id(name)
        )
        made.with_target(target.instant() if panel.kind in ("stat", "bars") else target.range())
    return made


def _variable(variable: Variable) -> build.QueryVariable:
    made = (
        build.QueryVariable(variable.name)
        .label(variable.label)
        .query(variable.query)
        .datasource(_SOURCE)
    )
    made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(
        model.VariableSort.ALPHABETICAL_ASC
    )
    everything = model.VariableOption(selected=True, text="All", value="$__all")
    return made.multi(variable.multi).include_all(True).all_value(".*").current(everything)


def _links(board: Board, boards: Sequence[Board]) -> list[Builder[model.DashboardLink]]:
    others = [other for other in boards if other is not board]
    made = [
        build.DashboardLink(o.title)
        .type(model.DashboardLinkType.LINK)
        .url(f"/d/{o.uid}")
        .keep_time(True)
        for o in others
    ]
    runbooks = (
        build.DashboardLink("Runbooks")
        .type(model.DashboardLinkType.LINK)
        .url(f"{RUNBOOKS}/README.md")
        .target_blank(True)
    )
    return [*made, runbooks]


def as_model(board: Board, boards: Sequence[Board]) -> model.Dashboard:
    """Return the dashboard as the SDK's object; boards: all dashboards, to link them."""
    made = (
        build.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([_TAG])
        .readonly()
    )
    made.time(board.window, "now").refresh("30s").timezone("browser").tooltip(
        model.DashboardCursorSync.CROSSHAIR
    )
    made.with_variable(
        build.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    )
    for variable in board.variables:
        made.with_variable(_variable(variable))
    made.links(_links(board, boards))
    numbers = itertools.count(1)
    for row in board.rows:
        made.with_row(build.Row(row.title))
        for panel in row.panels:
            made.with_panel(_panel(next(numbers), panel))
    return made.build()


def as_json(board: Board, boards: Sequence[Board]) -> str:
    """Return the JSON of a dashboard, as it is committed."""
    return JSONEncoder(sort_keys=True, indent=2).encode(as_model(board, boards)) + "\n"
