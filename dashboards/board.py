"""The parts of a dashboard as data, and their conversion to JSON with Grafana's SDK."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)

from dashboards.settings import Settings

NO_DATA = "no data"

_SOURCE = model.DataSourceRef("prometheus", "${datasource}")
_TAG = "rmapd"

Thresholds = tuple[tuple[float | str, str], ...]
"""A colour from each value on; a text is the name of one in `thresholds` of the settings."""
GREY = "#808080"
"""What this kernel cannot have: it is neither good nor bad."""
GOOD_IS_ZERO: Thresholds = ((1, "red"),)
GOOD_IS_ONE: Thresholds = ((1, "green"),)
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
    nothing: shown where there are no series, in grey if that is not the usual "no data".
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
    nothing: str = NO_DATA

    def filled(self, settings: Settings) -> Panel:
        """Return the panel with the settings in its queries, its texts and its thresholds."""
        return replace(
            self,
            description=settings.fill(self.description),
            queries=tuple(replace(one, expr=settings.fill(one.expr)) for one in self.queries),
            thresholds=tuple(
                (settings.threshold(value), colour) for value, colour in self.thresholds
            ),
        )


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A selection at the top of a dashboard: the values of a query, by default all.

    named: "All" means each value of the query, so that what is chosen before counts; else it means
    anything, which is shorter, and finds series without the label.
    """

    name: str
    label: str
    query: str
    named: bool = False


@dataclass(frozen=True)
class Annotation:
    """Marks in all graphs, at the times at which a query has values above zero.

    title, text: may have labels, `{{instance}}`. tags: names of labels.
    """

    name: str
    expr: str
    title: str
    text: str
    colour: str
    tags: str = ""


@dataclass(frozen=True)
class Board:
    """A dashboard; uid: its name in links and of its file. window: the initial time range."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    annotations: tuple[Annotation, ...]
    window: str = "now-6h"

    def filled(self, settings: Settings) -> Board:
        """Return the dashboard with these settings."""
        return replace(
            self,
            variables=tuple(replace(one, query=settings.fill(one.query)) for one in self.variables),
            annotations=tuple(
                replace(one, expr=settings.fill(one.expr)) for one in self.annotations
            ),
            rows=tuple(
                replace(row, panels=tuple(panel.filled(settings) for panel in row.panels))
                for row in self.rows
            ),
        )

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


_OF_CLUSTER = '<<cluster>>=~"$cluster"'
_OF_JOB = f'{_OF_CLUSTER}, job=~"$job"'
CHOSEN = f'<<selector>>, {_OF_JOB}, instance=~"$instance"'
"""The matchers of a raw series of the hosts that are chosen at the top."""
RECORDED = f'{_OF_JOB}, kernel=~"$kernel"'
"""The matchers of a recorded series."""


def _info(matchers: str, label: str) -> str:
    return f"label_values(rmapd_build_info{{<<selector>>{matchers}}}, {label})"


HOSTS = (
    Variable("cluster", "Cluster", _info("", "<<cluster>>")),
    Variable("job", "Job", _info(f", {_OF_CLUSTER}", "job")),
    Variable("kernel", "Kernel", _info(f", {_OF_JOB}", "kernel")),
    Variable("instance", "Host", _info(f', {_OF_JOB}, kernel=~"$kernel"', "instance"), named=True),
)
"""The variables that choose hosts."""
INVARIANT = Variable(
    "invariant", "Invariant", "label_values(rmapd_invariant_coverage{<<selector>>}, invariant)"
)
VIOLATIONS = Annotation(
    "Violations",
    f"sum by (<<target>>, invariant) (increase(rmapd_violations_total{{{CHOSEN}}}[2m])) > 0",
    "{{invariant}} violated",
    "{{instance}}: a violation was proven. The status page has the evidence.",
    "red",
    "invariant,instance",
)
STARTS = Annotation(
    "Starts of the daemon",
    f"changes(process_start_time_seconds{{{CHOSEN}}}[2m]) > 0",
    "rmapd started",
    "{{instance}}: the daemon was started again.",
    "blue",
    "instance",
)


_Made = stat.Panel | timeseries.Panel | statetimeline.Panel | bargauge.Panel


def _graph() -> _Made:
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.TABLE)
        .placement(LegendPlacement.BOTTOM)
        .calcs(["lastNotNull", "max"])
    )
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    made = timeseries.Panel().fill_opacity(8).line_width(1).min(0)
    return made.legend(legend).tooltip(tooltip)


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
        .legend(common.VizLegendOptions().show_legend(False))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.SINGLE))
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


def _nothing(text: str) -> model.SpecialValueMap:
    """Show this text if there is no series, or a division by zero: missing data in orange."""
    result = model.ValueMappingResult(text=text, color="orange" if text == NO_DATA else GREY)
    return model.SpecialValueMap(
        model.DashboardSpecialValueMapOptions(model.SpecialValueMatch.NULL_AND_NAN, result)
    )


def _panel(number: int, panel: Panel, settings: Settings) -> _Made:
    made = _KINDS[panel.kind]().id(number).no_value(panel.nothing)
    made.title(panel.title).description(panel.description).datasource(_SOURCE).unit(
        panel.unit
    ).span(panel.span).height(panel.height)
    steps = [
        model.Threshold(None, panel.base),
        *(model.Threshold(float(value), colour) for value, colour in panel.thresholds),
    ]
    made.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    if isinstance(made, timeseries.Panel) and panel.thresholds:
        dashed = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        made.thresholds_style(dashed)
    at_once = panel.kind in ("stat", "bars")
    made.mappings([*_texts(panel), *([_nothing(panel.nothing)] if at_once else [])])
    if panel.runbook:
        link = (
            build.DashboardLink("Runbook")
            .type(model.DashboardLinkType.LINK)
            .url(settings.fill(f"<<runbooks>>/{panel.runbook}.md"))
            .target_blank(True)
        )
        made.links([link])
    for name, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = (
            prometheus.Dataquery()
            .datasource(_SOURCE)
            .expr(query.expr)
            .legend_format(query.legend or "__auto")
            .ref_id(name)
        )
        made.with_target(target.instant() if at_once else target.range())
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
    made.multi(True).include_all(True).current(everything)
    return made if variable.named else made.all_value(".*")


def _annotation(one: Annotation) -> build.AnnotationQuery:
    return (
        build.AnnotationQuery()
        .name(one.name)
        .datasource(_SOURCE)
        .enable(True)
        .icon_color(one.colour)
        .expr(one.expr)
        .step("60s")
        .title_format(one.title)
        .text_format(one.text)
        .tag_keys(one.tags)
    )


def _links(
    board: Board, boards: Sequence[Board], settings: Settings
) -> list[Builder[model.DashboardLink]]:
    others = [other for other in boards if other is not board]
    made = [
        build.DashboardLink(o.title)
        .type(model.DashboardLinkType.LINK)
        .url(f"/d/{o.uid}")
        .keep_time(True)
        .include_vars(True)
        for o in others
    ]
    runbooks = (
        build.DashboardLink("Runbooks")
        .type(model.DashboardLinkType.LINK)
        .url(settings.fill("<<runbooks>>/README.md"))
        .target_blank(True)
    )
    return [*made, runbooks]


def as_model(board: Board, boards: Sequence[Board], settings: Settings) -> model.Dashboard:
    """Return a filled dashboard as the SDK's object; boards: all dashboards, to link them."""
    made = (
        build.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([_TAG])
        .readonly()
    )
    made.time(board.window, "now").refresh("30s").timezone("browser").tooltip(
        model.DashboardCursorSync.TOOLTIP
    )
    made.with_variable(
        build.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    )
    for variable in board.variables:
        made.with_variable(_variable(variable))
    for annotation in board.annotations:
        made.annotation(_annotation(annotation))
    made.links(_links(board, boards, settings))
    numbers = itertools.count(1)
    for row in board.rows:
        made.with_row(build.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            made.with_panel(_panel(next(numbers), panel, settings))
    return made.build()


def as_json(board: Board, boards: Sequence[Board], settings: Settings) -> str:
    """Return the JSON of a filled dashboard, as it is committed."""
    return encoded(as_model(board, boards, settings))


def encoded(made: model.Dashboard) -> str:
    """Return the JSON of a dashboard without what the SDK adds unasked."""
    plain = json.loads(JSONEncoder(sort_keys=True).encode(made))
    return json.dumps(_without(_UNWANTED, plain), sort_keys=True, indent=2) + "\n"


_UNWANTED = {"auto": False, "auto_count": 30, "auto_min": "10s", "placement": "inControlsMenu"}
"""What the SDK always writes: members of another kind of variable, and a menu that hides links."""


def _without(members: Mapping[str, object], value: Any) -> Any:
    """Return a value of JSON without these members, wherever they are."""
    if isinstance(value, dict):
        kept = {name: one for name, one in value.items() if members.get(name, ...) != one}
        return {name: _without(members, one) for name, one in kept.items()}
    return [_without(members, one) for one in value] if isinstance(value, list) else value
