"""Check that the metrics, labels and label values of a PromQL expression are exported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import promql_parser as promql
from prometheus_client import Metric

PROMETHEUS = dict.fromkeys(
    ("up", "scrape_samples_scraped", "scrape_duration_seconds"),
    frozenset({"cluster", "job", "instance"}),
)
"""Series that Prometheus itself writes for every target, with their labels."""
_TARGET = frozenset({"cluster", "job", "instance"})


def expand(expr: str, variables: Mapping[str, str]) -> str:
    """Replace Grafana's variables, $name."""
    return re.sub(r"\$(\w+)", lambda match: variables[match[1]], expr)


@dataclass
class Exported:
    """The exported metrics with their labels, and the values of each label."""

    labels: dict[str, frozenset[str]] = field(default_factory=dict)
    values: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, families: Iterable[Metric]) -> Exported:
        """Collect names, labels and values of metric families."""
        out = cls(dict(PROMETHEUS))
        for family in families:
            for sample in family.samples:
                out.labels[sample.name] = frozenset(sample.labels) | _TARGET
                for label, value in sample.labels.items():
                    out.values.setdefault((sample.name, label), set()).add(value)
        return out

    def wrong(self, expr: str) -> list[str]:
        """Return a message for each metric, label or value of the expression that is unknown."""
        out, seen = [], set[str]()
        tree = promql.parse(expr)
        for selector in selectors(tree):
            known = self.labels.get(selector.name or "")
            if known is None:
                out.append(f"no metric {selector.name}")
                continue
            seen |= known
            for matcher in selector.matchers.matchers:
                values = self.values.get((selector.name or "", matcher.name))
                if matcher.name not in known:
                    out.append(f"{selector.name} has no label {matcher.name}")
                elif (
                    matcher.op == promql.MatchOp.Equal
                    and values is not None
                    and matcher.value not in values
                ):
                    out.append(f"{selector.name} has no {matcher.name}={matcher.value}")
        out += [f"nothing has a label {label}" for label in grouped(tree) if label not in seen]
        return out


def selectors(tree: promql.Expr) -> list[promql.VectorSelector]:
    """Return the vector selectors of an expression."""
    return [node for node in _nodes(tree) if isinstance(node, promql.VectorSelector)]


def grouped(tree: promql.Expr) -> Iterator[str]:
    """Yield the labels of aggregations and of vector matching."""
    for node in _nodes(tree):
        if isinstance(node, promql.AggregateExpr) and node.modifier:
            yield from node.modifier.labels
        if isinstance(node, promql.BinaryExpr) and node.modifier:
            yield from node.modifier.matching.labels if node.modifier.matching else ()
            yield from node.modifier.group_labels or ()


def kept(tree: promql.Expr) -> frozenset[str]:
    """Return the labels of the result: of the outermost aggregation, or vector matching by `on`."""
    found = (labels for node in _nodes(tree) if (labels := _left_by(node)))
    return frozenset(next(found)) - {"le"}


def _left_by(node: promql.Expr) -> list[str]:
    if isinstance(node, promql.AggregateExpr) and node.modifier:
        return list(node.modifier.labels)
    if isinstance(node, promql.BinaryExpr) and node.modifier and node.modifier.matching:
        return list(node.modifier.matching.labels)
    return []


def _nodes(tree: promql.Expr) -> list[promql.Expr]:
    """Return all nodes, the outermost first."""
    nodes: list[promql.Expr] = []
    promql.walk(tree, nodes.append)
    return nodes
